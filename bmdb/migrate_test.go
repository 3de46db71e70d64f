// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/migrations"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// emptyDatabase makes a database without a schema, beside one that bmdbtest made and drops with it.
func emptyDatabase(t *testing.T) string {
	t.Helper()
	u, err := url.Parse(bmdbtest.NewURL(t))
	if err != nil {
		t.Fatal(err)
	}
	admin := connect(t, u.String())
	name := "bmdb_empty_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec(context.Background(), "DROP DATABASE "+name); err != nil {
			t.Error(err)
		}
	})
	u.Path = "/" + name
	return u.String()
}

func connect(t *testing.T, databaseURL string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func TestMigrateOnceForAll(t *testing.T) {
	t.Parallel()
	empty := emptyDatabase(t)
	open := func() error {
		c, err := (&bmdb.BMDB{Config: bmdb.Config{DatabaseURL: empty}}).Open(false)
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := open(); !errors.Is(err, bmdb.ErrSchemaTooOld) {
		t.Errorf("open of an empty database: %v, want ErrSchemaTooOld", err)
	}
	const programs = 4
	errs := make(chan error)
	for range programs {
		go func() { errs <- bmdb.Migrate(t.Context(), empty, slog.New(slog.DiscardHandler)) }()
	}
	for range programs {
		if err := <-errs; err != nil {
			t.Errorf("one of several migrations at once: %v", err)
		}
	}
	if err := open(); err != nil {
		t.Errorf("open of a migrated database: %v", err)
	}
}

// A newer version has migrated: the schema itself says whether this one may still work with it.
func TestNewerSchema(t *testing.T) {
	t.Parallel()
	url := bmdbtest.NewURL(t)
	db := connect(t, url)
	open := func() error {
		c, err := (&bmdb.BMDB{Config: bmdb.Config{DatabaseURL: url}}).Open(false)
		if err == nil {
			c.Close()
		}
		return err
	}
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := db.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	const requires = "SELECT requires FROM processes WHERE pool = '' AND process = 'AgentStart'"
	exec("INSERT INTO bmdb_schema_version (version_id, is_applied) VALUES ($1, true)", migrations.Latest+1)
	exec("UPDATE processes SET requires = '{Provided,Tomorrow}' WHERE pool = '' AND process = 'AgentStart'")
	for _, test := range []struct {
		name   string
		oldest int64
		want   error
	}{
		{"works with the version before the last", migrations.Latest - 1, nil},
		{"works with this version", migrations.Latest, nil},
		{"needs what this version does not know", migrations.Latest + 1, bmdb.ErrSchemaTooNew},
	} {
		exec("UPDATE schema_compatibility SET oldest = $1", test.oldest)
		if err := open(); !errors.Is(err, test.want) {
			t.Errorf("%s: open: %v, want %v", test.name, err, test.want)
		}
		if err := bmdb.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)); !errors.Is(err, test.want) {
			t.Errorf("%s: migrate: %v, want %v", test.name, err, test.want)
		}
		if s, err := bmdb.SchemaStatus(t.Context(), url); err != nil || s != (bmdb.Status{Version: migrations.Latest + 1, Oldest: test.oldest}) {
			t.Errorf("%s: status is %+v, %v: an older version has changed what the newer one wrote", test.name, s, err)
		}
		var facts []string
		if err := db.QueryRow(t.Context(), requires).Scan(&facts); err != nil || len(facts) != 2 {
			t.Errorf("%s: AgentStart requires %v, %v: an older version has changed a newer one's process", test.name, facts, err)
		}
	}
	exec("DELETE FROM schema_compatibility")
	if err := open(); !errors.Is(err, bmdb.ErrSchemaTooNew) {
		t.Errorf("open of a newer schema that says nothing: %v, want ErrSchemaTooNew", err)
	}
}

// A newer version has said that it will migrate, and has not come to it: who could not stand the migrations does not begin before them.
func TestMigrationIsAhead(t *testing.T) {
	t.Parallel()
	url := bmdbtest.NewURL(t)
	db := connect(t, url)
	if _, err := db.Exec(t.Context(), "UPDATE schema_compatibility SET oldest = $1", migrations.Latest+1); err != nil {
		t.Fatal(err)
	}
	if c, err := (&bmdb.BMDB{Config: bmdb.Config{DatabaseURL: url}}).Open(false); !errors.Is(err, bmdb.ErrSchemaTooNew) {
		t.Errorf("open: %v, want ErrSchemaTooNew", err)
		if err == nil {
			c.Close()
		}
	}
	if err := bmdb.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)); !errors.Is(err, bmdb.ErrSchemaTooNew) {
		t.Errorf("migrate: %v, want ErrSchemaTooNew", err)
	}
}

// A newer version migrates while programs run: theirs go on and end as they would, and nothing new is begun until that is taken back.
func TestSchemaMigratedUnderSessions(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.session()
	machine := provided(t, s, "1")
	work := l.work(s, model.ProcessAgentStart, machine)
	l.exec("UPDATE schema_compatibility SET oldest = $1", migrations.Latest+1)
	sessions := l.int("SELECT count(*) FROM sessions")
	if s, err := l.conn.StartSession(t.Context()); !errors.Is(err, bmdb.ErrSchemaTooNew) {
		t.Errorf("start of a session: %v, want ErrSchemaTooNew", err)
		if err == nil {
			_ = s.Close(t.Context())
		}
	}
	if n := l.int("SELECT count(*) FROM sessions"); n != sessions {
		t.Errorf("%d sessions were made", n-sessions)
	}
	if err := beat(t.Context(), s); err != nil {
		t.Errorf("beat of a session that lives: %v", err)
	}
	work.Cancel(t.Context())
	if end := l.end(work.ID()); end != bmdb.EventCanceled {
		t.Errorf("work that went on ended with %q", end)
	}
	l.exec("UPDATE schema_compatibility SET oldest = $1", migrations.Latest)
	l.session()
}

// What code must know of a schema only grows, whoever migrates.
func TestOldestGrows(t *testing.T) {
	t.Parallel()
	url := bmdbtest.NewURL(t)
	db := connect(t, url)
	for _, test := range []struct{ before, after int64 }{{migrations.Oldest - 1, migrations.Oldest}, {migrations.Oldest, migrations.Oldest}, {migrations.Oldest + 1, migrations.Oldest + 1}} {
		if _, err := db.Exec(t.Context(), "UPDATE schema_compatibility SET oldest = $1", test.before); err != nil {
			t.Fatal(err)
		}
		if err := bmdb.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		if s, err := bmdb.SchemaStatus(t.Context(), url); err != nil || s.Oldest != test.after {
			t.Errorf("oldest was %d and is %d (%v), want %d", test.before, s.Oldest, err, test.after)
		}
	}
}

// The lock of a migration is a lease and does not fence, so two programs may run the same migration: each is idempotent.
func TestMigrationsAreIdempotent(t *testing.T) {
	t.Parallel()
	db := connect(t, bmdbtest.NewURL(t))
	names, err := fs.Glob(migrations.FS, "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != migrations.Latest {
		t.Errorf("there are %d migrations, and Latest is %d", len(names), migrations.Latest)
	}
	for i, name := range names {
		if want := fmt.Sprintf("%04d_", i+1); !strings.HasPrefix(name, want) {
			t.Errorf("%s: want a name that begins with %s", name, want)
		}
		text, err := fs.ReadFile(migrations.FS, name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "+goose NO TRANSACTION") {
			t.Errorf("%s runs in a transaction", name)
		}
		if n := strings.Count(string(text), ";\n"); n != 1 {
			t.Errorf("%s has %d statements, want one schema change", name, n)
		}
		if _, err := db.Exec(t.Context(), string(text)); err != nil {
			t.Errorf("%s run again: %v", name, err)
		}
	}
}

func TestOpenHidesThePassword(t *testing.T) {
	t.Parallel()
	for _, broken := range []string{"postgresql://user:hunter2@host:port/db", "postgresql://user:hunter2@127.0.0.1:1/db?connect_timeout=1"} {
		_, err := (&bmdb.BMDB{Config: bmdb.Config{DatabaseURL: broken}}).Open(false)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("open %q: %v, want an error without the password", broken, err)
		}
	}
}
