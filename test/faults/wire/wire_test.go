// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
	"github.com/bmdb-dev/bmdb-operator/test/faults/wire"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := postgres.CloseShared(); err != nil {
		code = 1
	}
	os.Exit(code)
}

func open(t *testing.T) (*wire.Proxy, *pgx.Conn) {
	t.Helper()
	catalog, err := wire.ReadCatalog("../../../bmdb")
	if err != nil {
		t.Fatal(err)
	}
	database, err := postgres.Shared(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := wire.Listen(t.Context(), wire.Options{Database: database, Catalog: catalog})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, connect(t, p.URL())
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
	return c
}

func batch(statements ...string) *pgx.Batch {
	b := &pgx.Batch{}
	for _, s := range statements {
		b.Queue(s)
	}
	return b
}

// once is a hook that acts at one side of the first round trip that commits.
func once(side wire.Side, v wire.Verdict) wire.Hook {
	var mu sync.Mutex
	done := false
	return func(t *wire.Trip, at wire.Side) wire.Verdict {
		mu.Lock()
		defer mu.Unlock()
		if done || at != side || !t.Has("COMMIT") {
			return wire.Verdict{}
		}
		done = true
		return v
	}
}

// Each verdict does to a transaction in one round trip what it says, and nothing else.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	p, c := open(t)
	ctx := t.Context()
	if _, err := c.Exec(ctx, "CREATE TABLE wire_test (n int)"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := connect(t, p.URL()).Exec(ctx, "DROP TABLE wire_test"); err != nil {
			t.Error(err)
		}
	}()
	torn := make(chan struct{}, 1)
	for name, test := range map[string]struct {
		side    wire.Side
		verdict wire.Verdict
		code    string
		rows    int
		closed  bool
	}{
		"pass":              {wire.Before, wire.Verdict{}, "", 2, false},
		"delay":             {wire.Before, wire.Verdict{Delay: time.Millisecond}, "", 2, false},
		"cut before":        {wire.Before, wire.Verdict{Cut: true}, "lost", 0, true},
		"torn":              {wire.Before, wire.Verdict{Cut: true, Tear: 2, Torn: func() { torn <- struct{}{} }}, "lost", 0, true},
		"cut after":         {wire.After, wire.Verdict{Cut: true}, "lost", 2, true},
		"a statement fails": {wire.Before, wire.Verdict{Fail: "40001", FailAt: 2}, "40001", 0, false},
		"the first fails":   {wire.Before, wire.Verdict{Fail: "40P01", FailAt: 0}, "40P01", 0, false},
		"COMMIT fails":      {wire.Before, wire.Verdict{Fail: "40003", FailAt: 3}, "40003", 0, false},
		"the server ends":   {wire.Before, wire.Verdict{Fail: "57P01", FailAt: 1}, "57P01", 0, true},
		"COMMIT is unknown": {wire.After, wire.Verdict{Unknown: "40003"}, "40003", 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, p.URL())
			for range 2 { // the statements are prepared the second time
				if _, err := c.Exec(ctx, "TRUNCATE wire_test"); err != nil {
					t.Fatal(err)
				}
				p.SetHook(nil)
				if err := c.SendBatch(ctx, batch("BEGIN", "INSERT INTO wire_test VALUES (1)", "INSERT INTO wire_test VALUES (2)", "COMMIT")).Close(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.Exec(ctx, "TRUNCATE wire_test"); err != nil {
				t.Fatal(err)
			}
			p.SetHook(once(test.side, test.verdict))
			err := c.SendBatch(ctx, batch("BEGIN", "INSERT INTO wire_test VALUES (1)", "INSERT INTO wire_test VALUES (2)", "COMMIT")).Close()
			p.SetHook(nil)
			code := ""
			var refused *pgconn.PgError
			if errors.As(err, &refused) {
				code = refused.Code
			} else if err != nil {
				code = "lost"
			}
			if code != test.code {
				t.Errorf("it ended with %q (%v), want %q", code, err, test.code)
			}
			if test.verdict.Torn != nil {
				<-torn
			}
			if c.IsClosed() != test.closed {
				t.Errorf("the connection is closed: %v", c.IsClosed())
			}
			if !test.closed && c.PgConn().TxStatus() != 'I' {
				if _, err := c.Exec(ctx, "ROLLBACK"); err != nil {
					t.Errorf("roll back: %v", err)
				}
			}
			var rows int
			if err := connect(t, p.URL()).QueryRow(ctx, "SELECT count(*) FROM wire_test").Scan(&rows); err != nil || rows != test.rows {
				t.Errorf("%d rows (%v), want %d", rows, err, test.rows)
			}
		})
	}
}

// Statements have the names that the source gives them.
func TestNames(t *testing.T) {
	t.Parallel()
	catalog, err := wire.ReadCatalog("../../../bmdb")
	if err != nil {
		t.Fatal(err)
	}
	for sql, want := range map[string]string{
		"-- name: NewMachine :one\nINSERT INTO machines": "NewMachine",
		"BEGIN ISOLATION LEVEL READ COMMITTED":           "BEGIN",
		"COMMIT":                                         "COMMIT",
		"SELECT machine_id FROM work WHERE machine_id = $1 AND process = $2 AND work_id IS NOT DISTINCT FROM $3": "OwnWork",
	} {
		if got := catalog.Name(sql); got != want {
			t.Errorf("%s is called %s, want %s", sql, got, want)
		}
	}
	if a, b := catalog.Name("SELECT 17 FROM something_else"), catalog.Name("SELECT 18 FROM something_else"); a == b {
		t.Errorf("two statements are called %s", a)
	}
}

// A hook sees each round trip on its way there and back, by the names of its statements.
func TestHookSeesTrips(t *testing.T) {
	t.Parallel()
	p, c := open(t)
	var mu sync.Mutex
	var seen []string
	p.SetHook(func(t *wire.Trip, side wire.Side) wire.Verdict {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, wire.Point{Trip: t.Name(), Side: side}.String())
		return wire.Verdict{}
	})
	for range 2 {
		if err := c.SendBatch(t.Context(), batch("BEGIN", "SELECT 1", "COMMIT")).Close(); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 4 || !slices.Equal(seen[:2], seen[2:]) || p.Trips() != 2 {
		t.Errorf("%d trips: %v", p.Trips(), seen)
	}
}
