// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
)

// What a person raises while the owner looks at the machines counts: the verdict of a row that is out of date ends nothing.
func TestVerdictOfAnOldRowEndsNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	var stops gates
	conn := l.another(inClusterA, stops.config)
	register(t, l.conn, 1)
	spec := agentStart("c", bmdb.ModeOnce)
	spec.Names, spec.MaxAttempts = names(1), 1
	s := start(t, conn, bmdb.WithoutMaintenance())
	o := attach(t, l.conn, s, spec)
	fail(t, "no route to host", next(t, s, o)...)

	stop := stops.at("end claim", "EndClaim")
	type result struct {
		out bmdb.Outlook
		err error
	}
	results := make(chan result, 1)
	go func() {
		out, err := s.ReviewClaim(context.Background(), o)
		results <- result{out, err}
	}()
	done(t, "the verdict is about to be written", stop.reached)
	spec.MaxAttempts = 2
	attachOnly(t, l.conn, spec)
	stop.open <- nil
	if r := done(t, "the review", results); r.err != nil || r.out.State != bmdb.ClaimRunning {
		t.Fatalf("outlook after maxAttempts was raised: %+v, %v", r.out, r.err)
	}
	eventually(t, "the backoff is over", func() bool {
		if err := bmdb.NewChores(l.conn).Promote(t.Context()); err != nil {
			t.Fatal(err)
		}
		works := round(t, s, o, 1)
		finish(t, works...)
		return len(works) == 1
	})
	if got := snapshot(t, l.conn, "c"); got.State != bmdb.ClaimComplete {
		t.Errorf("at the end: %+v", got)
	}
}

// A claim whose provider is away has no owner who would end it at its deadline.
func TestDeadlineWithoutAnOwner(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	register(t, l.conn, 2)
	s := l.session()
	overdue := func(key string) {
		t.Helper()
		if l.exec("UPDATE claims SET deadline_at = clock_timestamp() - interval '1 second' WHERE claim_key = $1", key) != 1 {
			t.Fatal("no claim " + key)
		}
	}
	sweep := func() {
		t.Helper()
		if err := bmdb.NewChores(l.conn).Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	deadline := int64(3600)
	spec := agentStart("orphan", bmdb.ModeOnce)
	spec.Names, spec.ActiveDeadlineSeconds = names(1), &deadline
	o := attach(t, l.conn, s, spec)
	works := round(t, s, o, 1)
	owned := agentStart("owned", bmdb.ModeOnce)
	owned.Names, owned.ActiveDeadlineSeconds = []string{"m1"}, &deadline
	attach(t, l.conn, s, owned)

	if _, err := l.conn.AttachClaim(t.Context(), view("orphan"), spec, false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReviewClaim(t.Context(), o); !errors.Is(err, bmdb.ErrClaimLost) {
		t.Fatalf("review without a provider: %v", err)
	}
	sweep()
	overdue("owned")
	overdue("orphan")
	sweep()
	for _, key := range []string{"owned", "orphan"} {
		if got := snapshot(t, l.conn, key); got.State != bmdb.ClaimRunning {
			t.Errorf("claim %s, which has an owner or work that goes on, is %s", key, got.State)
		}
	}
	fail(t, "no route to host", works...)
	sweep()
	got := snapshot(t, l.conn, "orphan")
	if got.State != bmdb.ClaimFailed || got.Reason != bmdb.OutlookDeadlineExceeded || !strings.Contains(got.Message, "3600 seconds") || got.CompletedAt == nil {
		t.Errorf("overdue, without an owner and idle: %+v", got)
	}
	if got := snapshot(t, l.conn, "owned"); got.State != bmdb.ClaimRunning {
		t.Errorf("the sweep ended a claim that has an owner")
	}
}

func TestOwnsClaimsOfItsPoolsAlone(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	elsewhere := start(t, l.another(inClusterA, func(c *bmdb.Config) { c.Pools = []string{"other"} }), bmdb.WithoutMaintenance())
	here := start(t, l.another(inClusterA, func(c *bmdb.Config) { c.Pools = []string{"other", pool} }), bmdb.WithoutMaintenance())
	spec := agentStart("c", bmdb.ModeOnce)
	spec.Selector = &bmdb.Selector{}
	attachOnly(t, l.conn, spec)
	if owned, err := elsewhere.OwnClaims(t.Context(), 10); err != nil || len(owned) != 0 {
		t.Errorf("took up %d claims of a pool that it does not serve, %v", len(owned), err)
	}
	if got := snapshot(t, l.conn, "c"); got.StartedAt != nil {
		t.Error("the deadline of a claim that nobody took up runs")
	}
	if owned, err := here.OwnClaims(t.Context(), 10); err != nil || len(owned) != 1 {
		t.Errorf("took up %d claims of the pools that it serves, %v", len(owned), err)
	}
}

// A Drain shows how far it is among all that it selects, also while work goes on and whoever did it.
func TestDrainCountsWhatOthersHaveDone(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	register(t, l.conn, 4)
	s := l.session()
	first := agentStart("first", bmdb.ModeOnce)
	first.Names = names(1)
	finish(t, round(t, s, attach(t, l.conn, s, first), 1)...)

	drain := agentStart("drain", bmdb.ModeDrain)
	drain.Selector = &bmdb.Selector{}
	o := attach(t, l.conn, s, drain)
	works := round(t, s, o, 1)
	if out := review(t, s, o); out.Reason != bmdb.OutlookWorking {
		t.Errorf("outlook while work goes on: %+v", out)
	}
	if got := snapshot(t, l.conn, "drain"); got.Selected != 4 || got.Unneeded != 1 || got.Succeeded != 0 {
		t.Errorf("while the first work goes on: %d selected, %d unneeded, %d succeeded, want 4, 1, 0", got.Selected, got.Unneeded, got.Succeeded)
	}
	finish(t, works...)
	finish(t, round(t, s, o, 1)...)
	if got := snapshot(t, l.conn, "drain"); got.Selected != 4 || got.Unneeded != 1 || got.Succeeded != 2 {
		t.Errorf("after two: %d selected, %d unneeded, %d succeeded, want 4, 1, 2", got.Selected, got.Unneeded, got.Succeeded)
	}
}

// A process name means one thing to a machine: it is defined for its pool or for every pool, whoever comes first.
func TestProcessNameIsDefinedOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var stops gates
	first, second := l.another(stops.config), l.another(named("second"))
	stop := stops.at("register process", "OtherDefinition")
	results := make(chan error, 2)
	go func() {
		results <- first.RegisterProcess(context.Background(), bmdb.ProcessDefinition{Name: "burn-in"})
	}()
	done(t, "the first has written its definition", stop.reached)
	go func() {
		results <- second.RegisterProcess(context.Background(), bmdb.ProcessDefinition{Pool: pool, Name: "burn-in"})
	}()
	eventually(t, "the second waits for the first", func() bool { return l.blocked("second") })
	stop.open <- nil
	if a, b := done(t, "one", results), done(t, "the other", results); (a == nil) == (b == nil) {
		t.Errorf("two definitions of one name: %v, and %v", a, b)
	}
	if n := l.int("SELECT count(*) FROM processes WHERE process = 'burn-in'"); n != 1 {
		t.Errorf("the name has %d definitions", n)
	}
}

// A new version's built-in process does not come beside a user's of the same name.
func TestMigrateRefusesATakenProcessName(t *testing.T) {
	t.Parallel()
	url := bmdbtest.NewURL(t)
	db := connect(t, url)
	if _, err := db.Exec(t.Context(), "UPDATE processes SET pool = 'metal' WHERE process = 'OSInstall'"); err != nil {
		t.Fatal(err)
	}
	err := bmdb.Migrate(t.Context(), url, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "OSInstall") || !strings.Contains(err.Error(), "pool metal") {
		t.Errorf("migration over a name that is taken: %v", err)
	}
}

// Programs that start for claims alone need not be waited for when a limit is introduced, and are held to it.
func TestClaimsOnly(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA, claimsOnly)
	ids := register(t, l.conn, 1)
	s := l.session()
	if _, err := batch(t.Context(), s, "AgentStart", 1, ids...); !errors.Is(err, bmdb.ErrClaimsOnly) {
		t.Errorf("batch start without a claim: %v", err)
	}
	if _, err := s.Work(t.Context(), "AgentStart", nil); !errors.Is(err, bmdb.ErrClaimsOnly) {
		t.Errorf("general start without a claim: %v", err)
	}
	attachProvider(t, l.conn, view("lab"), limited(1))
	if provider(t, l.conn, "a").Settling {
		t.Error("a limit settles although nothing can have been started")
	}
	if err := l.conn.DetachProvider(t.Context(), view("lab"), pool, "lab"); err != nil {
		t.Fatal(err)
	}
	start(t, l.another(inClusterA), bmdb.WithoutMaintenance())
	attachProvider(t, l.conn, view("lab"), limited(1))
	if !provider(t, l.conn, "a").Settling {
		t.Error("a limit is in force although a program may be about to start without a claim")
	}
}
