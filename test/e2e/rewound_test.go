// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestDatabaseRewoundUnderASession puts a copy in the database's place that is some seconds old, so that the session of the operator that runs is known to
// it and lives on. Nothing in it tells of what is lost; the objects do, soon, and hold back what could do harm.
func TestDatabaseRewoundUnderASession(t *testing.T) {
	t.Parallel()
	l := newLab(t, testbed.Options{})
	l.Start("operator-a", "--lease", "24s", "--cluster-id", "here")
	l.Create(l.Simulated("lab", v1alpha1.SimulatedProvider{}))
	l.CreateFleet("lab", "m-000", "m-001")
	l.Create(l.Claim("before", "m-000"))
	l.AwaitClaim("before", v1alpha1.ReasonComplete)
	wipe := bmdb.ProcessDefinition{Pool: l.Namespace, Name: "wipe", Requires: []string{bmdb.FactProvided}, Destructive: true}
	conn := l.library()
	if err := conn.RegisterProcess(t.Context(), wipe); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	l.AwaitCount("the machines are ready for the destructive process", 2, "SELECT count(*) FROM work WHERE process = 'wipe' AND state = 2")
	l.Eventually(testbed.Patience, "everything is shown", func(ctx context.Context) error {
		return l.none(ctx, "SELECT count(*) FROM projection WHERE rev <> done_rev AND done_rev < rev")
	})
	const living = "SELECT count(*) FROM sessions s JOIN session_leases d ON d.session_id = s.session_id WHERE s.session_ended_at IS NULL AND d.deadline > clock_timestamp()"
	r := l.rewinder()
	r.copy()
	l.Create(l.Claim("after", "m-001"))
	l.AwaitClaim("after", v1alpha1.ReasonComplete)
	l.awaitAgents("m-000", "m-001")
	r.rewind()
	if n := l.Count(living); n != 1 {
		t.Fatalf("%d sessions live in the copy, want the operator's: it was too slow", n)
	}
	l.AwaitCount("the objects speak against the database", 2, "SELECT count(*) FROM database_alarms WHERE reason = 'DatabaseRewound' AND id <> 'before'")
	if n := l.Count(living + " OR s.session_ended_at IS NOT NULL"); n != 1 {
		t.Errorf("%d sessions, want the one that lived through it", n)
	}
	l.AwaitClaim("after", v1alpha1.ReasonDatabaseRewound)
	l.AwaitMachine("m-001", v1alpha1.ReasonDatabaseRewound)
	conn = l.library()
	defer conn.Close()
	if reason := startWipe(t, conn, l.Namespace); reason != "DatabaseNotAcknowledged" {
		t.Errorf("a destructive process started, or not for this reason: %q", reason)
	}
	if n := l.Count("SELECT count(*) FROM work_history WHERE claim_key = 'after'"); n != 0 {
		t.Error("something is done again for a claim that is over")
	}
}

// rewinder copies a lab's database while it is used, and puts the copy in its place.
type rewinder struct {
	lab   *lab
	admin *pgx.Conn
	name  string
}

func (l *lab) rewinder() *rewinder {
	l.T.Helper()
	u, err := url.Parse(l.Database)
	if err != nil {
		l.T.Fatal(err)
	}
	r := &rewinder{lab: l, name: strings.TrimPrefix(u.Path, "/")}
	u.Path = "/postgres"
	if r.admin, err = pgx.Connect(l.T.Context(), u.String()); err != nil {
		l.T.Fatal(err)
	}
	l.T.Cleanup(func() {
		ctx := context.WithoutCancel(l.T.Context())
		_, err := r.admin.Exec(ctx, fmt.Sprintf("DROP DATABASE IF EXISTS %s_lost WITH (FORCE)", r.name))
		if err = errors.Join(err, r.admin.Close(ctx)); err != nil {
			l.T.Errorf("drop the database that was replaced: %v", err)
		}
	})
	return r
}

// alone does something while nobody is connected to the database.
func (r *rewinder) alone(statements ...string) {
	r.lab.T.Helper()
	statements = append([]string{
		"ALTER DATABASE %[1]s WITH ALLOW_CONNECTIONS false", "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '%[1]s'",
	}, statements...)
	for _, s := range statements {
		if _, err := r.admin.Exec(r.lab.T.Context(), fmt.Sprintf(s, r.name)); err != nil {
			r.lab.T.Fatalf("%s: %v", s, err)
		}
	}
}

// copy copies the database. At that moment nobody uses it; before and after, anybody.
func (r *rewinder) copy() {
	r.lab.T.Helper()
	r.alone("CREATE DATABASE %[1]s_copy TEMPLATE %[1]s", "ALTER DATABASE %[1]s WITH ALLOW_CONNECTIONS true")
}

// rewind puts the copy in the place of the database.
func (r *rewinder) rewind() {
	r.lab.T.Helper()
	r.alone("ALTER DATABASE %[1]s RENAME TO %[1]s_lost", "ALTER DATABASE %[1]s_copy RENAME TO %[1]s")
	r.lab.DB.Reset()
}
