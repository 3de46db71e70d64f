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

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestDatabaseRestored puts an older copy of the database in its place while the operators are away: what was done since is done again only
// when a person has acknowledged that. Before, nothing destructive starts in the pool.
func TestDatabaseRestored(t *testing.T) {
	t.Parallel()
	l := newLab(t, testbed.Options{})
	o := l.Start("operator-a", "--lease", "3s", "--cluster-id", "here")
	l.Create(l.Simulated("lab", v1alpha1.SimulatedProvider{}))
	l.CreateFleet("lab", "m-000", "m-001")
	deleted := l.Claim("deleted", "m-000")
	l.Create(l.Claim("before", "m-000"), deleted)
	l.AwaitClaim("before", v1alpha1.ReasonComplete)
	l.AwaitClaim("deleted", v1alpha1.ReasonComplete)
	wipe := bmdb.ProcessDefinition{Pool: l.Namespace, Name: "wipe", Requires: []string{bmdb.FactProvided}, Destructive: true}
	conn := l.library()
	if err := conn.RegisterProcess(t.Context(), wipe); err != nil {
		t.Fatal(err)
	}
	l.AwaitCount("the machines are ready for the destructive process", 2, "SELECT count(*) FROM work WHERE process = 'wipe' AND state = 2")
	conn.Close()
	o.Terminate()
	copied := l.copyDatabase(l.Database)

	o.Start()
	l.Create(l.Claim("after", "m-001"))
	l.AwaitClaim("after", v1alpha1.ReasonComplete)
	l.awaitAgents("m-000", "m-001")
	l.Remove(deleted)
	const views = "SELECT count(*) FROM claim_views WHERE claim_key = 'deleted'"
	l.AwaitCount("the deleted claim has no view", 0, views)
	o.Terminate()
	outcomes := l.outcomes()
	l.Database, o.Env = copied, environWith(o.Env, copied)
	restored := newLab(t, testbed.Options{Database: copied, Namespace: l.Namespace})
	history := restored.everythingDone()
	o.Start()

	l.AwaitClaim("after", v1alpha1.ReasonDatabaseRewound)
	l.AwaitMachine("m-001", v1alpha1.ReasonDatabaseRewound)
	l.AwaitClaim("before", v1alpha1.ReasonComplete)
	if now := restored.everythingDone(); now != history {
		t.Errorf("something was done on a rewound database:\n%s\nbefore:\n%s", now, history)
	}
	if c, err := l.ReadClaim(t.Context(), "after"); err != nil || !testbed.IsTrue(c.Status.Conditions, v1alpha1.ConditionFinished) {
		t.Errorf("the claim's end was taken back: %v", err)
	}
	conn = restored.library()
	defer conn.Close()
	if n := restored.Count(views); n != 1 {
		t.Errorf("the rewound database has %d views of the claim that was deleted, before anybody has looked", n)
	}
	if reason := startWipe(t, conn, l.Namespace); reason != "DatabaseNotAcknowledged" {
		t.Errorf("a destructive process started, or not for this reason: %q", reason)
	}
	shown := restored.Command("acknowledge-database")
	if !strings.Contains(shown, "DatabaseRewound") || !strings.Contains(shown, "after") {
		t.Errorf("what is shown before the acknowledgement:\n%s", shown)
	}
	restored.Command("acknowledge-database", "--yes", "--actor", "somebody")
	l.AwaitClaim("after", v1alpha1.ReasonComplete) // the machine was done again, as the person has decided
	restored.AwaitCount("the deleted claim has no view again", 0, views)
	l.Eventually(testbed.Patience, "the statuses are those of the database again", func(ctx context.Context) error {
		m, err := l.ReadMachine(ctx, "m-001")
		if err == nil && !testbed.ConditionIs(m.Status.Conditions, v1alpha1.ConditionReady, v1alpha1.ReasonRecorded) {
			err = errors.New(testbed.Describe(m.Status.Conditions))
		}
		return err
	})
	if reason := startWipe(t, conn, l.Namespace); reason != "" {
		t.Errorf("a destructive process does not start on a database that was acknowledged: %s", reason)
	}
	if now := l.outcomes()["before"]; now != outcomes["before"] {
		t.Errorf("the outcome of the older claim was %s and is %s", outcomes["before"], now)
	}
}

// TestWrongDatabase starts an operator whose URL leads to an empty database: it says so on every object, and does nothing. With the right URL all is as
// before.
func TestWrongDatabase(t *testing.T) {
	t.Parallel()
	l := newLab(t, testbed.Options{})
	o := l.Start("operator-a", "--lease", "3s", "--cluster-id", "here")
	l.Create(l.Simulated("lab", v1alpha1.SimulatedProvider{}))
	l.CreateFleet("lab", "m-000")
	l.Create(l.Claim("c", "m-000"))
	l.AwaitClaim("c", v1alpha1.ReasonComplete)
	l.awaitAgents("m-000")
	outcomes := l.outcomes()
	o.Terminate()
	right := o.Env
	wrong := newLab(t, testbed.Options{Database: bmdbtest.NewURL(t), Namespace: l.Namespace})
	o.Env = environWith(o.Env, wrong.Database)
	o.Start()
	l.AwaitClaim("c", v1alpha1.ReasonDatabaseChanged)
	l.AwaitMachine("m-000", v1alpha1.ReasonDatabaseChanged)
	if n := wrong.Count("SELECT (SELECT count(*) FROM work_history) + (SELECT count(*) FROM machines) + (SELECT count(*) FROM claims)"); n != 0 {
		t.Errorf("%d rows were made in the wrong database", n)
	}
	o.Terminate()
	o.Env = right
	o.Start()
	l.Eventually(testbed.Patience, "all is as before", func(ctx context.Context) error {
		now, err := l.readOutcomes(ctx)
		if err == nil && fmt.Sprint(now) != fmt.Sprint(outcomes) {
			err = fmt.Errorf("%v, not %v", now, outcomes)
		}
		return err
	})
}

// library opens the lab's database as a program without Kubernetes does.
func (l *lab) library() *bmdb.Connection {
	l.T.Helper()
	db := bmdb.BMDB{Config: bmdb.Config{DatabaseURL: l.Database, ComponentName: "test", Pool: l.Namespace}}
	conn, err := db.Open(false)
	if err != nil {
		l.T.Fatal(err)
	}
	return conn
}

// startWipe starts the destructive process on a machine, gives it back, and returns why it did not start.
func startWipe(t *testing.T, conn *bmdb.Connection, pool string) (reason string) {
	t.Helper()
	s, err := conn.StartSession(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	id, err := conn.MachineByName(t.Context(), pool, "m-000")
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Work(t.Context(), "wipe", thisMachine(id))
	w.Cancel(t.Context())
	var refused *bmdb.NotStartedError
	if errors.As(err, &refused) {
		return refused.Reason
	}
	if err != nil {
		t.Fatal(err)
	}
	return ""
}

// copyDatabase makes a copy of a database that nobody uses at the moment, and returns its URL.
func (l *lab) copyDatabase(database string) string {
	l.T.Helper()
	u, err := url.Parse(database)
	if err != nil {
		l.T.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	l.DB.Reset()
	admin := *u
	admin.Path = "/postgres"
	conn, err := pgx.Connect(l.T.Context(), admin.String())
	if err != nil {
		l.T.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(l.T.Context()))
	l.Eventually(testbed.Patience, "nobody uses the database", func(ctx context.Context) error {
		_, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name + "_copy"}.Sanitize()+" TEMPLATE "+pgx.Identifier{name}.Sanitize())
		return err
	})
	l.T.Cleanup(func() {
		ctx := context.WithoutCancel(l.T.Context())
		conn, err := pgx.Connect(ctx, admin.String())
		if err == nil {
			_, err = conn.Exec(ctx, "DROP DATABASE "+pgx.Identifier{name + "_copy"}.Sanitize()+" WITH (FORCE)")
			err = errors.Join(err, conn.Close(ctx))
		}
		if err != nil {
			l.T.Errorf("drop copy: %v", err)
		}
	})
	u.Path = "/" + name + "_copy"
	return u.String()
}

// environWith is an environment with another database.
func environWith(env []string, database string) []string {
	out := []string{"BMDB_DATABASE_URL=" + database}
	for _, e := range env {
		if !strings.HasPrefix(e, "BMDB_DATABASE_URL=") {
			out = append(out, e)
		}
	}
	return out
}

// thisMachine is a retriever that returns one machine.
func thisMachine(id uuid.UUID) func(*model.Queries) ([]uuid.UUID, error) {
	return func(*model.Queries) ([]uuid.UUID, error) { return []uuid.UUID{id}, nil }
}
