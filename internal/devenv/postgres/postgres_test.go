// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestServer goes through a server's life: data survives every kind of end, and nothing is left after Close.
func TestServer(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]Options{"fast": {}, "durable": {Durable: true, MaxConnections: 20}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			server := start(ctx, t, options)
			url, err := server.CreateDatabase(ctx, `odd "name`)
			if err != nil {
				t.Fatal(err)
			}
			execute(ctx, t, url, "CREATE TABLE written (n int)")

			insertRow := "INSERT INTO written SELECT count(*) FROM written"
			execute(ctx, t, url, insertRow)
			for _, mode := range []StopMode{Fast, Immediate} {
				if err := server.Restart(ctx, mode); err != nil {
					t.Fatalf("Restart(%v): %v", mode, err)
				}
				execute(ctx, t, url, insertRow)
			}
			done := server.Done()
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			<-done
			if err := server.Run(ctx); err != nil {
				t.Fatalf("Run after Kill: %v", err)
			}
			if got := queryInt(ctx, t, url, "SELECT count(*) FROM written"); got != 3 {
				t.Errorf("rows after two restarts and a kill: got %d, want 3", got)
			}
			if err := server.Stop(ctx, Fast); err != nil {
				t.Fatal(err)
			}
			if conn, err := net.Dial("tcp", server.Address()); err == nil {
				t.Errorf("a stopped server still accepts connections: %v", conn.Close())
			}
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(server.state.Path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("state directory after Close: %v", err)
			}
		})
	}
}

func TestServerAuthentication(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	server := start(ctx, t, Options{})
	if got := queryInt(ctx, t, server.SocketURL(adminDB), "SELECT 1"); got != 1 {
		t.Errorf("over the socket: got %d", got)
	}
	config, err := pgx.ParseConfig(server.URL(adminDB))
	if err != nil {
		t.Fatal(err)
	}
	config.Password = "guessed"
	if conn, err := pgx.ConnectConfig(ctx, config); err == nil {
		t.Errorf("a wrong password was accepted: %v", conn.Close(ctx))
	}
}

func TestServerSettings(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	server := start(ctx, t, Options{MaxConnections: 33, Settings: map[string]string{"statement_timeout": "7s", "application_name": "it's"}})
	for setting, want := range map[string]string{"max_connections": "33", "statement_timeout": "7s", "fsync": "off"} {
		conn := connect(ctx, t, server.URL(adminDB))
		var got string
		if err := conn.QueryRow(ctx, "SHOW "+setting).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", setting, got, want)
		}
	}
}

func TestStartRefusesDirectoryThatItsUserCannotEnter(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := parentDir(dir, account{name: "nobody"})
	var pathErr *os.PathError
	if !errors.As(err, &pathErr) {
		t.Fatalf("got %v, want the directory that cannot be entered", err)
	}
	if _, err := parentDir(dir, account{self: true}); err != nil {
		t.Errorf("own user: %v", err)
	}
}

func TestShared(t *testing.T) {
	ctx := testContext(t)
	t.Setenv(URLEnv, "postgres://somewhere/else")
	if got, err := Shared(ctx); err != nil || got != "postgres://somewhere/else" {
		t.Errorf("with %s set: got %s, %v", URLEnv, got, err)
	}
	t.Setenv(URLEnv, "")
	first, err := Shared(ctx)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Shared(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if first != second {
		t.Errorf("two calls, two servers: %s, %s", first, second)
	}
	execute(ctx, t, first, "SELECT 1")
	if err := CloseShared(); err != nil {
		t.Fatal(err)
	}
	if conn, err := pgx.Connect(ctx, first); err == nil {
		t.Errorf("the shared server outlived CloseShared: %v", conn.Close(ctx))
	}
}

func TestMajorVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n": 15,
		"postgres (PostgreSQL) 17beta1":                          17,
		"postgres (PostgreSQL) 18":                               18,
		"something else":                                         0,
		"postgres (PostgreSQL) devel":                            0,
	} {
		if got := majorVersion(text); got != want {
			t.Errorf("majorVersion(%q): got %d, want %d", text, got, want)
		}
	}
}

func start(ctx context.Context, t *testing.T, options Options) *Server {
	t.Helper()
	server, err := Start(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

func connect(ctx context.Context, t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(ctx)) })
	return conn
}

func execute(ctx context.Context, t *testing.T, url, sql string) {
	t.Helper()
	conn := connect(ctx, t, url)
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if err := conn.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

func queryInt(ctx context.Context, t *testing.T, url, sql string) int {
	t.Helper()
	var n int
	if err := connect(ctx, t, url).QueryRow(ctx, sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
