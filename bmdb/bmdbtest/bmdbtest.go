// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bmdbtest gives tests a fresh Bare Metal Database each, for this library and for programs that use it.
//
// The server is, in this order: the one that BMDB_TEST_COCKROACH_URL names, the one that BMDB_TEST_DATABASE_URL names, a private
// PostgreSQL server (15 or newer, found in the usual places) that the test process starts once and that ends with it. The user of a
// named URL must be allowed to make databases.
package bmdbtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/migrations"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
)

// CockroachURLEnv names the environment variable with the URL of a CockroachDB server to run the tests on.
const CockroachURLEnv = "BMDB_TEST_COCKROACH_URL"

const setupTimeout = 2 * time.Minute

// New returns a connection to a fresh, migrated database, which is dropped when the test ends. Options may change the configuration
// before it is opened. Sessions must be closed by the test. It may be called from parallel tests.
func New(t testing.TB, options ...func(*bmdb.Config)) *bmdb.Connection {
	t.Helper()
	return Open(t, NewURL(t), options...)
}

// Open returns one more connection to a database that NewURL made, as another program would have it.
func Open(t testing.TB, databaseURL string, options ...func(*bmdb.Config)) *bmdb.Connection {
	t.Helper()
	config := bmdb.Config{
		DatabaseURL: databaseURL, ComponentName: "test", RuntimeInfo: t.Name(), Lease: 5 * time.Second,
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	for _, option := range options {
		option(&config)
	}
	conn, err := (&bmdb.BMDB{Config: config}).Open(false)
	if err != nil {
		t.Fatalf("open test database: %v", err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// NewURL makes a fresh, migrated database and returns its URL. The database is dropped when the test ends.
func NewURL(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	admin, err := server(ctx)
	if err != nil {
		t.Fatalf("find a database server for tests: %v", err)
	}
	name := "bmdb_test_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	if err := create(ctx, admin, name); err != nil {
		t.Fatalf("make test database: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
		defer cancel()
		if err := drop(ctx, admin, name); err != nil {
			t.Errorf("drop test database: %v", err)
		}
	})
	return withDatabase(admin, name)
}

// Exec runs a statement past the library, for tests of what becomes of a damaged or restored database. It fails the test if that does not work.
func Exec(t testing.TB, databaseURL, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	if err != nil {
		t.Fatalf("connect to test database: %v", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("run %s: %v", sql, err)
	}
}

func server(ctx context.Context) (string, error) {
	if u := os.Getenv(CockroachURLEnv); u != "" {
		return u, nil
	}
	return postgres.Shared(ctx)
}

func withDatabase(admin, name string) string {
	u, err := url.Parse(admin)
	if err != nil {
		return admin // it was connected to a moment ago
	}
	u.Path = "/" + name
	return u.String()
}

// create makes a migrated database: from a template that is migrated once for each server and schema, where the server has templates.
func create(ctx context.Context, admin, name string) error {
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	if conn.PgConn().ParameterStatus("crdb_version") != "" {
		if _, err := conn.Exec(ctx, "CREATE DATABASE "+name); err != nil {
			return err
		}
		return bmdb.Migrate(ctx, withDatabase(admin, name), slog.New(slog.DiscardHandler))
	}
	template, err := ensureTemplate(ctx, conn, admin)
	if err != nil {
		return fmt.Errorf("prepare template: %w", err)
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		return err
	}
	// Each database is one of its own: what the template brought is somebody else's identity.
	fresh, err := pgx.Connect(ctx, withDatabase(admin, name))
	if err != nil {
		return err
	}
	defer func() { _ = fresh.Close(ctx) }()
	_, err = fresh.Exec(ctx, "UPDATE database_identity SET database_id = $1 WHERE singleton = 1", uuid.New())
	return err
}

// templateLock is the key of the advisory lock under which templates are made. Locks are of one database: all processes must take it on the
// connection to the database that the server's URL names.
const templateLock = 0x626d6462

// ensureTemplate returns the name of the template for the schema as it is, on the server that conn is connected to.
func ensureTemplate(ctx context.Context, conn *pgx.Conn, admin string) (string, error) {
	digest, err := schemaDigest()
	if err != nil {
		return "", err
	}
	return "bmdb_template_" + digest, makeTemplate(ctx, conn, admin, digest)
}

// makeTemplate makes a template unless it is there. It is made under another name, so that one that is there is whole, and under a lock: tests
// of several packages have a process each, on one server. A rename alone decides nothing: where two of them come at the same moment, the server
// refuses one by its check for the name, or, when both have passed that, by the unique index of its catalog.
func makeTemplate(ctx context.Context, conn *pgx.Conn, admin, digest string) (err error) {
	template, draft := "bmdb_template_"+digest, "bmdb_draft_"+digest
	if exists, err := databaseExists(ctx, conn, template); err != nil || exists {
		return err
	}
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", templateLock); err != nil {
		return err
	}
	defer func() {
		// With a done ctx the connection is of no use any more, and its end lets go of the lock.
		if _, unlockErr := conn.Exec(ctx, "SELECT pg_advisory_unlock($1)", templateLock); err == nil {
			err = unlockErr
		}
	}()
	if exists, err := databaseExists(ctx, conn, template); err != nil || exists {
		return err
	}
	// Somebody may have been killed while he made it.
	if err := drop(ctx, admin, draft); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+draft); err != nil {
		return err
	}
	if err := bmdb.Migrate(ctx, withDatabase(admin, draft), slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "ALTER DATABASE "+draft+" RENAME TO "+template)
	return err
}

func databaseExists(ctx context.Context, conn *pgx.Conn, name string) (exists bool, err error) {
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)", name).Scan(&exists)
	return exists, err
}

// schemaDigest names the template by what it is made of, seeded rows included, so that a changed schema has another.
func schemaDigest() (string, error) {
	sum := sha256.New()
	err := fs.WalkDir(migrations.FS, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(migrations.FS, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(sum, "%s %d\n%s", path, len(data), data)
		return nil
	})
	if err != nil {
		return "", err
	}
	fmt.Fprintf(sum, "%s", bmdb.BuiltinsDigest())
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

func drop(ctx context.Context, admin, name string) error {
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	force := " WITH (FORCE)"
	if conn.PgConn().ParameterStatus("crdb_version") != "" {
		force = " CASCADE"
	}
	_, err = conn.Exec(ctx, "DROP DATABASE IF EXISTS "+name+force)
	return err
}

// testWriter writes the library's log to the test's.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}
