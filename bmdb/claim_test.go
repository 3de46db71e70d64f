// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

const pool = "metal"

// register records machines named m0, m1, ... at provider lab, in rack r0 or r1 by turns.
func register(t *testing.T, conn *bmdb.Connection, n int) []uuid.UUID {
	t.Helper()
	ids := make([]uuid.UUID, n)
	for i := range n {
		r, err := conn.RegisterMachine(t.Context(), view(fmt.Sprintf("m%d", i)), bmdb.MachineSpec{
			Pool: pool, Name: fmt.Sprintf("m%d", i), Provider: "lab", ProviderID: fmt.Sprint(i), Address: fmt.Sprintf("10.0.0.%d", i),
			Labels: map[string]string{"rack": fmt.Sprintf("r%d", i%2)},
		})
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = r.MachineID
	}
	return ids
}

// view is an object of cluster a.
func view(name string) bmdb.View { return bmdb.View{Cluster: "a", UID: "uid of " + name, Name: name} }

func inClusterA(c *bmdb.Config) { c.Cluster = "a" }

// claimsOnly is a program that limits which are introduced need not wait for.
func claimsOnly(c *bmdb.Config) { c.ClaimsOnly = true }

func names(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("m%d", i)
	}
	return list
}

// attach records a claim with a view in cluster a and takes it up.
func attach(t *testing.T, conn *bmdb.Connection, s *bmdb.Session, spec bmdb.ClaimSpec) *bmdb.OwnedClaim {
	t.Helper()
	attachOnly(t, conn, spec)
	owned, err := s.OwnClaims(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range owned {
		if o.Spec.Key == spec.Key {
			return o
		}
	}
	t.Fatalf("claim %s was not taken up, but %d others", spec.Key, len(owned))
	return nil
}

func attachOnly(t *testing.T, conn *bmdb.Connection, spec bmdb.ClaimSpec) bmdb.Attachment {
	t.Helper()
	a, err := conn.AttachClaim(t.Context(), view(spec.Key), spec, true)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func agentStart(key, mode string) bmdb.ClaimSpec {
	return bmdb.ClaimSpec{Pool: pool, Key: key, Process: "AgentStart", Mode: mode}
}

// round takes rounds until one starts something, or says that there is nothing.
func round(t *testing.T, s *bmdb.Session, o *bmdb.OwnedClaim, free int) []*bmdb.Work {
	t.Helper()
	const most = 20
	for range most {
		works, err := s.ClaimRound(t.Context(), o, free)
		switch {
		case len(works) > 0 || errors.Is(err, bmdb.ErrNothingToDo):
			return works
		case err != nil:
			t.Fatal(err)
		}
	}
	t.Fatalf("%d rounds started nothing, and did not say that there is nothing", most)
	return nil
}

func finish(t *testing.T, works ...*bmdb.Work) {
	t.Helper()
	for _, w := range works {
		if err := w.FinishData(t.Context(), bmdb.Outcome{AgentPublicKey: []byte("key")}); err != nil {
			t.Fatal(err)
		}
	}
}

func review(t *testing.T, s *bmdb.Session, o *bmdb.OwnedClaim) bmdb.Outlook {
	t.Helper()
	out, err := s.ReviewClaim(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func snapshot(t *testing.T, conn *bmdb.Connection, key string) *bmdb.ClaimSnapshot {
	t.Helper()
	s, err := conn.ClaimSnapshot(t.Context(), pool, key, bmdb.ClaimLimits{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOnceWithNames(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, inClusterA)
	s := start(t, conn)
	register(t, conn, 8)
	spec := agentStart("first", bmdb.ModeOnce)
	spec.Names, spec.Parallelism = names(6), 3
	o := attach(t, conn, s, spec)
	done := map[uuid.UUID]bool{}
	for range 2 {
		works := round(t, s, o, 64)
		if len(works) != 3 {
			t.Fatalf("started %d works, want 3, the parallelism", len(works))
		}
		if more := round(t, s, o, 64); len(more) != 0 {
			t.Fatalf("started %d more works over the parallelism", len(more))
		}
		if got := snapshot(t, conn, "first"); got.Active != 3 || len(got.Works) != 3 || got.Reason != bmdb.OutlookWorking {
			t.Errorf("snapshot while works go on: active %d, works %v, reason %s", got.Active, got.Works, got.Reason)
		}
		for _, w := range works {
			done[w.Machine] = true
			if w.ClaimKey() != "first" || w.Pool() != pool || w.Provider() != "lab" {
				t.Errorf("work of claim %q, pool %q, provider %q", w.ClaimKey(), w.Pool(), w.Provider())
			}
		}
		finish(t, works...)
	}
	if len(done) != 6 {
		t.Errorf("%d machines were done, want 6", len(done))
	}
	got := snapshot(t, conn, "first")
	if got.State != bmdb.ClaimComplete || got.Reason != bmdb.OutlookComplete || got.Succeeded != 6 || got.Active != 0 || got.CompletedAt == nil {
		t.Errorf("claim ended as %+v", got)
	}
	if _, err := s.ClaimRound(t.Context(), o, 64); !errors.Is(err, bmdb.ErrClaimLost) {
		t.Errorf("round of a complete claim: %v, want ErrClaimLost", err)
	}
	if out := review(t, s, o); out.State != bmdb.ClaimComplete || out.RetryAfter != 0 {
		t.Errorf("outlook of a complete claim: %+v", out)
	}
	// The same again is the same claim; another spec under its key is not.
	if a := attachOnly(t, conn, spec); a.State != bmdb.ClaimComplete || !a.Manages {
		t.Errorf("attached again: %+v", a)
	}
	spec.Names = names(7)
	var conflict *bmdb.KeyConflictError
	if _, err := conn.AttachClaim(t.Context(), view("other"), spec, true); !errors.As(err, &conflict) || conflict.Name != "first" || conflict.Cluster != "a" {
		t.Errorf("another spec under the same key: %v", err)
	}
}

func TestSelectorAndProvider(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, inClusterA)
	s := start(t, conn)
	ids := register(t, conn, 6)
	if _, err := conn.RegisterMachine(t.Context(), view("x0"), bmdb.MachineSpec{Pool: pool, Name: "x0", Provider: "other", ProviderID: "0", Labels: map[string]string{"rack": "r0"}}); err != nil {
		t.Fatal(err)
	}
	spec := agentStart("r0", bmdb.ModeDrain)
	spec.Selector = &bmdb.Selector{MatchLabels: map[string]string{"rack": "r0"}}
	spec.Provider, spec.Parallelism = "lab", 10
	o := attach(t, conn, s, spec)
	works := round(t, s, o, 64)
	got := []uuid.UUID{}
	for _, w := range works {
		got = append(got, w.Machine)
	}
	want := []uuid.UUID{ids[0], ids[2], ids[4]}
	sortIDs(got)
	sortIDs(want)
	if !slices.Equal(got, want) {
		t.Errorf("works on %v, want %v", got, want)
	}
	if out := review(t, s, o); out.State != bmdb.ClaimRunning || out.Reason != bmdb.OutlookWorking {
		t.Errorf("outlook while works go on: %+v", out)
	}
	finish(t, works...)
	if out := review(t, s, o); out.State != bmdb.ClaimComplete {
		t.Errorf("outlook of a drain when nothing is left: %+v", out)
	}
	if got := snapshot(t, conn, "r0"); got.Selected != 3 || got.Succeeded != 3 {
		t.Errorf("selected %d, succeeded %d, want 3 and 3", got.Selected, got.Succeeded)
	}
}

func sortIDs(ids []uuid.UUID) {
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
}

func TestContinuousIsIdleAndGoesOn(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, inClusterA)
	s := start(t, conn)
	ids := register(t, conn, 1)
	spec := agentStart("all", bmdb.ModeContinuous)
	spec.Selector = &bmdb.Selector{}
	o := attach(t, conn, s, spec)
	for i := range 2 {
		works := round(t, s, o, 1)
		if len(works) != 1 {
			t.Fatalf("turn %d: started %d works, want 1", i, len(works))
		}
		finish(t, works...)
		out := review(t, s, o)
		if out.Reason != bmdb.OutlookIdle || !strings.Contains(out.Message, "with AgentStarted") {
			t.Errorf("outlook when no machine needs it: %+v", out)
		}
		err := s.Transact(t.Context(), func(q *model.Queries) error { return q.MachineDeleteAgentStarted(t.Context(), ids[0]) })
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := snapshot(t, conn, "all"); got.Succeeded != 2 || got.State != bmdb.ClaimRunning {
		t.Errorf("continuous claim: %+v", got)
	}
}

func TestSkippedMachinesCountAsDone(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, inClusterA)
	s := start(t, conn)
	ids := register(t, conn, 3)
	err := s.Transact(t.Context(), func(q *model.Queries) error {
		return q.MachineSetAgentStarted(t.Context(), model.MachineSetAgentStartedParams{MachineID: ids[1], AgentPublicKey: []byte("key")})
	})
	if err != nil {
		t.Fatal(err)
	}
	spec := agentStart("three", bmdb.ModeOnce)
	spec.Names, spec.Parallelism = names(3), 3
	o := attach(t, conn, s, spec)
	works := round(t, s, o, 64)
	if len(works) != 2 {
		t.Fatalf("started %d works, want 2", len(works))
	}
	review(t, s, o)
	got := snapshot(t, conn, "three")
	if got.Skipped != 1 || !slices.Equal(got.SkippedMachines, []string{"m1"}) || got.State != bmdb.ClaimRunning {
		t.Errorf("while works go on: %+v", got)
	}
	finish(t, works...)
	if got := snapshot(t, conn, "three"); got.State != bmdb.ClaimComplete || got.Succeeded != 2 || got.Skipped != 1 {
		t.Errorf("at the end: %+v", got)
	}
	// One of which every machine is skipped ends with the review.
	spec = agentStart("again", bmdb.ModeOnce)
	spec.Names = names(3)
	o = attach(t, conn, s, spec)
	if out := review(t, s, o); out.State != bmdb.ClaimComplete {
		t.Errorf("claim for machines that need nothing: %+v", out)
	}
	if got := snapshot(t, conn, "again"); got.Skipped != 3 || got.Succeeded != 0 {
		t.Errorf("claim for machines that need nothing: %+v", got)
	}
}

// machinesOf are all the machines of a pool.
func machinesOf(t *testing.T, l *lab, pool string) (ids []uuid.UUID) {
	t.Helper()
	rows, err := l.db.Query(t.Context(), "SELECT machine_id FROM machine_state WHERE pool = $1 ORDER BY machine_id", pool)
	if err == nil {
		ids, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	}
	if err != nil {
		t.Fatal(err)
	}
	return ids
}
