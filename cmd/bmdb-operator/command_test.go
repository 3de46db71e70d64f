// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

func TestMain(m *testing.M) { os.Exit(devtest.Main(m).Run()) }

// execute runs a command line and returns what it printed.
func execute(t *testing.T, env map[string]string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newCommand(&out, func(name string) string { return env[name] })
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(context.Background())
	return out.String(), err
}

// TestHelpIsGolden keeps the command line what it is documented as. UPDATE_GOLDEN=1 writes it anew.
func TestHelpIsGolden(t *testing.T) {
	for _, command := range []string{"", "run", "migrate", "accept", "take-over", "give-up", "acknowledge-database", "release-finalizers", "version"} {
		t.Run("help "+command, func(t *testing.T) {
			args := []string{"--help"}
			if command != "" {
				args = []string{command, "--help"}
			}
			got, err := execute(t, nil, args...)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", "help"+command+".txt")
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("help (-want +got):\n%s", diff)
			}
		})
	}
}

// TestEveryFlagNamesItsVariable, once.
func TestEveryFlagNamesItsVariable(t *testing.T) {
	root := newCommand(&bytes.Buffer{}, os.Getenv)
	for _, cmd := range append(root.Commands(), root) {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && strings.Count(f.Usage, "["+variable(f.Name)+"]") != 1 {
				t.Errorf("%s --%s: %s", cmd.Name(), f.Name, f.Usage)
			}
		})
	}
}

func TestEnvironmentCountsWhereAFlagIsNotGiven(t *testing.T) {
	var c Config
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	operatorFlags(flags, &c)
	if err := flags.Parse([]string{"--work-concurrency", "3"}); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"BMDB_WORK_CONCURRENCY": "5", "BMDB_LEASE": "9s", "BMDB_NAMESPACES": "a,b"}
	if err := fromEnvironment(flags, func(name string) string { return env[name] }); err != nil {
		t.Fatal(err)
	}
	if c.WorkConcurrency != 3 || c.Lease.Seconds() != 9 || len(c.Namespaces) != 2 {
		t.Errorf("configuration is %+v", c)
	}
	env["BMDB_LEASE"] = "soon"
	if err := fromEnvironment(pflagsOf(t), func(name string) string { return env[name] }); err == nil || !strings.Contains(err.Error(), "BMDB_LEASE") {
		t.Errorf("a wrong variable: %v", err)
	}
}

func pflagsOf(t *testing.T) *pflag.FlagSet {
	t.Helper()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	operatorFlags(flags, &Config{})
	return flags
}

func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"no database", nil, "BMDB_DATABASE_URL"},
		{"no database to migrate", []string{"migrate"}, "BMDB_DATABASE_URL"},
		{"no workers", []string{"--database-url", "x", "--work-concurrency", "0"}, "--work-concurrency is too small"},
		{"unknown level", []string{"--database-url", "x", "--log-level", "loud"}, "--log-level"},
		{"unknown format", []string{"--database-url", "x", "--log-format", "xml"}, "--log-format"},
		{"accept what", []string{"accept", "m", "everything", "--database-url", "x"}, "host-key or owner"},
		{"certificate without HTTPS", []string{"--database-url", "x", "--metrics-cert-dir", t.TempDir()}, "--metrics-secure"},
		{"no certificate", []string{"--database-url", "x", "--metrics-secure", "--metrics-cert-dir", t.TempDir()}, "tls.crt"},
		{"extra argument", []string{"run", "now"}, "unknown command"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := execute(t, nil, test.args...); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %q", err, test.want)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	out, err := execute(t, nil, "version")
	if err != nil || !strings.HasPrefix(out, "bmdb-operator development (go") {
		t.Errorf("version is %q: %v", out, err)
	}
}

func TestMigrateAndAccept(t *testing.T) {
	url := bmdbtest.NewURL(t)
	env := map[string]string{"BMDB_DATABASE_URL": url}
	out, err := execute(t, env, "migrate")
	if err != nil || !strings.HasPrefix(out, "schema is at version ") {
		t.Fatalf("migrate said %q: %v", out, err)
	}
	conn := bmdbtest.Open(t, url)
	spec := bmdb.MachineSpec{Pool: "metal", Name: "m", Provider: "lab", ProviderID: "m"}
	if _, err := conn.RegisterMachine(t.Context(), bmdb.View{UID: "u", Name: "m"}, spec); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"host-key", "owner"} {
		out, err := execute(t, env, "accept", "m", what, "-n", "metal", "--actor", "alice")
		if err != nil || out != "accepted the "+what+" of machine metal/m for alice\n" {
			t.Errorf("accept said %q: %v", out, err)
		}
	}
	if _, err := execute(t, env, "accept", "nobody", "owner", "-n", "metal", "--actor", "alice"); err == nil {
		t.Error("accepted something of a machine that there is not")
	}
	events, err := conn.AuditOf(t.Context(), "metal", "machine", "m", 10)
	if err != nil {
		t.Fatal(err)
	}
	if len(events) != 1 || events[0].Actor != "alice" || events[0].Event != "OwnerAccepted" { // no key was pinned
		t.Errorf("audit log is %+v", events)
	}
}
