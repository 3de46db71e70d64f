// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
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
)

const secret = "hunter2-but-longer"

// TestRefusesToStart starts an operator that cannot work: it ends by itself, at once, with a line that says what to do, and without
// anything that is secret.
func TestRefusesToStart(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	server, err := url.Parse(l.database)
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
			want:     []string{fmt.Sprintf("schema version is %d", migrations.Latest+1), "run a newer version of this program"},
		},
		"a lease that is too short":                 {database: l.database, args: []string{"--lease", "10ms"}, want: []string{"lease of 10ms is too short"}},
		"no workers":                                {database: l.database, args: []string{"--work-concurrency", "0"}, want: []string{"--work-concurrency is too small"}},
		"a level that is none":                      {database: l.database, args: []string{"--log-level", "loud"}, want: []string{"--log-level", "loud"}},
		"a flag that is none":                       {database: l.database, args: []string{"--lesae", "3s"}, want: []string{"--lesae"}},
		"no way to the API server":                  {database: l.database, args: []string{"--kubeconfig", filepath.Join(l.dir, "missing")}, want: []string{"missing: no such file"}},
		"a value from the environment that is none": {database: l.database, want: []string{"BMDB_LEASE"}, args: []string{"BMDB_LEASE=soon"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := l.in(t).run(test.database, test.args...)
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

// run runs the operator's program until it ends. Arguments of the form NAME=value are for the environment.
func (l *lab) run(database string, args ...string) (string, error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	env := []string{"HOME=" + l.dir, "KUBECONFIG=" + l.kubeconfig(), "BMDB_METRICS_BIND_ADDRESS=0", "BMDB_HEALTH_PROBE_BIND_ADDRESS=0"}
	if database != "" {
		env = append(env, "BMDB_DATABASE_URL="+database)
	}
	var flags []string
	for _, a := range args {
		if strings.HasPrefix(a, "BMDB_") {
			env = append(env, a)
		} else {
			flags = append(flags, a)
		}
	}
	cmd := exec.CommandContext(ctx, filepath.Join(l.programs, operatorProgram), flags...)
	cmd.Env = env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ctx.Err() != nil {
		l.t.Fatalf("it did not end by itself:\n%s", out.String())
	}
	return out.String(), err
}

func withPath(u url.URL, database string) string {
	u.Path = "/" + database
	return u.String()
}

// emptyDatabase makes a database beside the test's and returns its URL.
func (l *lab) emptyDatabase(name string) string { return l.newDatabase(name, "") }

// newerDatabase makes a database that a later version of the program migrated.
func (l *lab) newerDatabase(name string) string {
	l.t.Helper()
	// From the test's own, which nobody may be connected to meanwhile.
	l.db.Reset()
	u := l.newDatabase(name, " TEMPLATE "+pgx.Identifier{l.databaseName()}.Sanitize())
	conn, err := pgx.Connect(l.t.Context(), u)
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, statement := range []string{"INSERT INTO bmdb_schema_version (version_id, is_applied) VALUES ($1, true)", "UPDATE schema_compatibility SET oldest = $1"} {
		if _, err := conn.Exec(l.t.Context(), statement, migrations.Latest+1); err != nil {
			l.t.Fatal(err)
		}
	}
	return u
}

func (l *lab) databaseName() string {
	l.t.Helper()
	u, err := url.Parse(l.database)
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimPrefix(u.Path, "/")
}

func (l *lab) newDatabase(name, suffix string) string {
	l.t.Helper()
	u, err := url.Parse(l.database)
	if err != nil {
		l.t.Fatal(err)
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
	if err := admin(l.t.Context(), "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+suffix); err != nil {
		l.t.Fatalf("make database: %v", err)
	}
	l.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := admin(ctx, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
			l.t.Errorf("drop database: %v", err)
		}
	})
	return withPath(*u, name)
}
