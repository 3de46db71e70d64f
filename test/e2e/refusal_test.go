// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb/migrations"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

const secret = "hunter2-but-longer"

// TestRefusesToStart starts an operator that cannot work: it ends by itself, at once, with a line that says what to do, and without
// anything that is secret.
func TestRefusesToStart(t *testing.T) {
	t.Parallel()
	l := newLab(t, testbed.Options{})
	server, err := url.Parse(l.Database)
	if err != nil {
		t.Fatal(err)
	}
	port, err := proc.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args     []string
		database string
		want     []string
	}{
		"no database":         {want: []string{"--database-url", "BMDB_DATABASE_URL"}},
		"migrate no database": {args: []string{"migrate"}, want: []string{"--database-url", "BMDB_DATABASE_URL"}},
		"a URL that is none":  {database: "postgres://bmdb:" + secret + "@127.0.0.1:notaport/bmdb", want: []string{"parse database URL"}},
		"nobody listens":      {database: fmt.Sprintf("postgres://bmdb:%s@127.0.0.1:%d/bmdb", secret, port), want: []string{"connection refused"}},
		"no such database":    {database: withPath(*server, "no_such_database"), want: []string{"no_such_database", "does not exist"}},
		"not migrated":        {database: l.emptyDatabase("unmigrated"), want: []string{"schema version is 0", "run the migration first"}},
		"migrated further": {
			database: l.newerDatabase("newer"),
			want:     []string{fmt.Sprintf("know version %d at least", migrations.Latest+1), "run a newer version of this program"},
		},
		"a lease that is too short":                 {database: l.Database, args: []string{"--lease", "10ms"}, want: []string{"lease of 10ms is too short"}},
		"no workers":                                {database: l.Database, args: []string{"--work-concurrency", "0"}, want: []string{"--work-concurrency is too small"}},
		"a level that is none":                      {database: l.Database, args: []string{"--log-level", "loud"}, want: []string{"--log-level", "loud"}},
		"a flag that is none":                       {database: l.Database, args: []string{"--lesae", "3s"}, want: []string{"--lesae"}},
		"no way to the API server":                  {database: l.Database, args: []string{"--kubeconfig", filepath.Join(l.Dir, "missing")}, want: []string{"missing: no such file"}},
		"a value from the environment that is none": {database: l.Database, want: []string{"BMDB_LEASE"}, args: []string{"BMDB_LEASE=soon"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := l.in(t).Run(test.database, test.args...)
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() <= 0 {
				t.Fatalf("it ended with %v:\n%s", err, out)
			}
			for _, want := range test.want {
				if !strings.Contains(out, want) {
					t.Errorf("the output has no %q:\n%s", want, out)
				}
			}
			password, _ := server.User.Password()
			for _, s := range []string{secret, password} {
				if s != "" && strings.Contains(out, s) {
					t.Errorf("the output has a password:\n%s", out)
				}
			}
			if strings.Contains(out, "goroutine ") || strings.Contains(out, "Usage:") {
				t.Errorf("the output is not a message:\n%s", out)
			}
		})
	}
}

func withPath(u url.URL, database string) string {
	u.Path = "/" + database
	return u.String()
}

// emptyDatabase makes a database beside the test's and returns its URL.
func (l *lab) emptyDatabase(name string) string { return l.newDatabase(name, "") }

// newerDatabase makes a database that a later version of the program migrated.
func (l *lab) newerDatabase(name string) string {
	l.T.Helper()
	// From the test's own, which nobody may be connected to meanwhile.
	l.DB.Reset()
	u := l.newDatabase(name, " TEMPLATE "+pgx.Identifier{l.databaseName()}.Sanitize())
	conn, err := pgx.Connect(l.T.Context(), u)
	if err != nil {
		l.T.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, statement := range []string{"INSERT INTO bmdb_schema_version (version_id, is_applied) VALUES ($1, true)", "UPDATE schema_compatibility SET oldest = $1"} {
		if _, err := conn.Exec(l.T.Context(), statement, migrations.Latest+1); err != nil {
			l.T.Fatal(err)
		}
	}
	return u
}

func (l *lab) databaseName() string {
	l.T.Helper()
	u, err := url.Parse(l.Database)
	if err != nil {
		l.T.Fatal(err)
	}
	return strings.TrimPrefix(u.Path, "/")
}

func (l *lab) newDatabase(name, suffix string) string {
	l.T.Helper()
	u, err := url.Parse(l.Database)
	if err != nil {
		l.T.Fatal(err)
	}
	name = l.databaseName() + "_" + name
	admin := func(ctx context.Context, statement string) error {
		conn, err := pgx.Connect(ctx, withPath(*u, "postgres"))
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, statement)
		return err
	}
	if err := admin(l.T.Context(), "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+suffix); err != nil {
		l.T.Fatalf("make database: %v", err)
	}
	l.T.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testbed.Patience)
		defer cancel()
		if err := admin(ctx, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
			l.T.Errorf("drop database: %v", err)
		}
	})
	return withPath(*u, name)
}
