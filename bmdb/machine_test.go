// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

func machine(name, providerID, address string) bmdb.MachineSpec {
	return bmdb.MachineSpec{Pool: pool, Name: name, Provider: "lab", ProviderID: providerID, Address: address}
}

func mustRegister(t *testing.T, conn *bmdb.Connection, v bmdb.View, spec bmdb.MachineSpec) bmdb.Registration {
	t.Helper()
	r, err := conn.RegisterMachine(t.Context(), v, spec)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func conflict(t *testing.T, conn *bmdb.Connection, v bmdb.View, spec bmdb.MachineSpec, kind, other string) {
	t.Helper()
	var c *bmdb.ConflictError
	_, err := conn.RegisterMachine(t.Context(), v, spec)
	if !errors.As(err, &c) || c.Kind != kind || !strings.Contains(c.Other, other) {
		t.Errorf("registering %+v as %+v: %v, want %s with %s", spec, v, err, kind, other)
	}
}

func snapshotOf(t *testing.T, conn *bmdb.Connection, id uuid.UUID) bmdb.MachineSnapshot {
	t.Helper()
	list, err := conn.MachineSnapshots(t.Context(), []uuid.UUID{id})
	if err != nil || len(list) != 1 {
		t.Fatalf("snapshots of %s: %v, %v", id, list, err)
	}
	return list[0]
}

func TestRegisterIsIdempotentAndManagesOnce(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t)
	spec := machine("m", "1", "10.0.0.1:22")
	spec.Labels = map[string]string{"rack": "r7", "empty": ""}
	first := mustRegister(t, conn, view("m"), spec)
	if !first.Manages || first.Manager != "a" || first.Rev < 1 {
		t.Errorf("first: %+v", first)
	}
	if again := mustRegister(t, conn, view("m"), spec); again != first {
		t.Errorf("again: %+v, want %+v", again, first)
	}
	b := bmdb.View{Cluster: "b", UID: "b", Name: "m"}
	other := spec
	other.Address, other.Labels = "10.0.0.9", nil
	r := mustRegister(t, conn, b, other)
	if r.Manages || r.Manager != "a" || r.MachineID != first.MachineID || r.Rev <= first.Rev {
		t.Errorf("second cluster: %+v", r)
	}
	got := snapshotOf(t, conn, first.MachineID)
	if got.Address != spec.Address || got.Labels["rack"] != "r7" || len(got.Labels) != 2 || len(got.Views) != 2 || !slices.Contains(got.Facts, "Provided") {
		t.Errorf("a view that does not manage wrote its spec: %+v", got)
	}
	spec.Labels = map[string]string{"rack": "r8"}
	mustRegister(t, conn, view("m"), spec)
	if got := snapshotOf(t, conn, first.MachineID); len(got.Labels) != 1 || got.Labels["rack"] != "r8" {
		t.Errorf("labels: %v", got.Labels)
	}
	// An object that was made again has another UID; a late detach of the former one does nothing.
	former := view("m")
	recreated := bmdb.View{Cluster: "a", UID: "new", Name: "m"}
	mustRegister(t, conn, recreated, spec)
	if err := conn.DetachMachine(t.Context(), former, first.MachineID); err != nil {
		t.Fatal(err)
	}
	if got := snapshotOf(t, conn, first.MachineID); len(got.Views) != 2 {
		t.Errorf("views: %+v", got.Views)
	}
	// The role passes when the manager is detached and the other calls.
	if err := conn.DetachMachine(t.Context(), recreated, first.MachineID); err != nil {
		t.Fatal(err)
	}
	if r := mustRegister(t, conn, b, other); !r.Manages {
		t.Errorf("after the manager was detached: %+v", r)
	}
	if events, err := conn.AuditOf(t.Context(), pool, bmdb.KindMachine, "m", 10); err != nil || len(events) != 1 || events[0].Event != bmdb.AuditManages || events[0].Cluster != "b" {
		t.Errorf("audit of the role that passed: %+v, %v", events, err)
	}
	if got := snapshotOf(t, conn, first.MachineID); got.Address != other.Address || len(got.Labels) != 0 {
		t.Errorf("the new manager's spec was not written: %+v", got)
	}
}

func TestConflicts(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t)
	mustRegister(t, conn, view("m1"), machine("m1", "1", "10.0.0.1"))
	mustRegister(t, conn, view("m2"), machine("m2", "2", "10.0.0.2"))
	b := func(name string) bmdb.View { return bmdb.View{Cluster: "b", UID: "b " + name, Name: name} }
	// A copy of a manifest with only its name changed.
	conflict(t, conn, view("copy"), machine("copy", "1", "10.0.0.1"), bmdb.IdentityConflict, "m1")
	// Another name elsewhere.
	conflict(t, conn, b("copy"), machine("copy", "1", "10.0.0.1"), bmdb.IdentityConflict, "m1")
	conflict(t, conn, b("m1"), machine("m1", "3", ""), bmdb.NameConflict, "provider ID 1")
	conflict(t, conn, view("m3"), machine("m3", "3", "10.0.0.2"), bmdb.AddressConflict, "m2")
	// The same box in another pool.
	elsewhere := machine("m1", "1", "10.0.0.1")
	elsewhere.Pool = "other"
	conflict(t, conn, view("m1"), elsewhere, bmdb.IdentityConflict, "pool metal")
	elsewhere.Address = "10.9.9.9"
	mustRegister(t, conn, view("m1"), elsewhere)
	// An object that was of another machine before.
	conflict(t, conn, view("m1"), machine("m1", "9", ""), bmdb.IdentityConflict, "provider ID 1")
	// A change of address into another's.
	conflict(t, conn, view("m1"), machine("m1", "1", "10.0.0.2"), bmdb.AddressConflict, "m2")
	if id, err := conn.MachineByName(t.Context(), pool, "m3"); !errors.Is(err, bmdb.ErrNoSuchMachine) {
		t.Errorf("a conflict left machine %s behind, %v", id, err)
	}
}

func TestDetachedMachineComesBackAsItself(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, inClusterA)
	s := start(t, conn)
	r := mustRegister(t, conn, view("m0"), machine("m0", "1", "10.0.0.1"))
	spec := agentStart("c", bmdb.ModeOnce)
	spec.Names = names(1)
	o := attach(t, conn, s, spec)
	running := next(t, s, o)
	if err := conn.DetachMachine(t.Context(), view("m0"), r.MachineID); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(snapshotOf(t, conn, r.MachineID).Facts, bmdb.FactViewLost) {
		t.Error("a machine without views is retrievable")
	}
	// Its name and address are not given up while work goes on on it.
	conflict(t, conn, bmdb.View{Cluster: "a", UID: "2", Name: "m0"}, machine("m0", "2", ""), bmdb.NameConflict, "provider ID 1")
	conflict(t, conn, view("m9"), machine("m9", "2", "10.0.0.1"), bmdb.AddressConflict, "m0")
	running[0].Cancel(t.Context())
	if works := round(t, s, o, 1); len(works) > 0 {
		t.Error("work was started on a machine that lost its last view")
	}
	if out := review(t, s, o); out.Reason != bmdb.OutlookNoSuchMachine {
		t.Errorf("outlook of a claim for a machine that lost its last view: %+v", out)
	}
	if e, err := conn.Explain(t.Context(), r.MachineID, "AgentStart"); err != nil || e.Reason != bmdb.OutlookNotNeeded || e.Predicate != "forbids ViewLost" {
		t.Errorf("explained: %+v, %v", e, err)
	}
	// Back under another name: the same row.
	if again := mustRegister(t, conn, view("renamed"), machine("renamed", "1", "10.0.0.1")); again.MachineID != r.MachineID || !again.Manages {
		t.Errorf("back: %+v, want machine %s", again, r.MachineID)
	}
	// Another box gets its old name, and when it goes, the name is free.
	second := mustRegister(t, conn, bmdb.View{Cluster: "a", UID: "2", Name: "m0"}, machine("m0", "2", "10.0.0.2"))
	finish(t, next(t, s, o)...)
	if err := conn.DetachMachine(t.Context(), bmdb.View{Cluster: "a", UID: "2", Name: "m0"}, second.MachineID); err != nil {
		t.Fatal(err)
	}
	third := mustRegister(t, conn, bmdb.View{Cluster: "a", UID: "3", Name: "m0"}, machine("m0", "3", "10.0.0.2"))
	if third.MachineID == second.MachineID {
		t.Error("another provider ID is the same machine")
	}
	if id, err := conn.MachineByName(t.Context(), pool, "m0"); err != nil || id != third.MachineID {
		t.Errorf("m0 is machine %s, %v, want %s", id, err, third.MachineID)
	}
	// An object of the same name that was missed when it went: its view ends with the one that took its place.
	fourth := mustRegister(t, conn, bmdb.View{Cluster: "a", UID: "4", Name: "m0"}, machine("m0", "4", ""))
	if got := snapshotOf(t, conn, third.MachineID); len(got.Views) != 0 || got.Name == "m0" {
		t.Errorf("the former m0: %+v", got)
	}
	if id, err := conn.MachineByName(t.Context(), pool, "m0"); err != nil || id != fourth.MachineID {
		t.Errorf("m0 is machine %s, %v, want %s", id, err, fourth.MachineID)
	}
}

// However many register at once: one row for an identity, one machine for a name and an address, and the count is right.
func TestConcurrentRegistration(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var all sync.WaitGroup
	ids := make(chan uuid.UUID, 64)
	for i := range 32 {
		all.Go(func() {
			n := i % 4
			spec := machine(fmt.Sprintf("m%d", n), fmt.Sprint(n), fmt.Sprintf("10.0.0.%d", n))
			v := bmdb.View{Cluster: fmt.Sprint(i / 4), UID: "u", Name: spec.Name}
			r, err := l.conn.RegisterMachine(context.Background(), v, spec)
			if err != nil {
				t.Errorf("register: %v", err)
			}
			ids <- r.MachineID
			// Others that want the same name, or are the same box in another pool.
			spec.ProviderID = "other " + spec.ProviderID
			var c *bmdb.ConflictError
			if _, err := l.conn.RegisterMachine(context.Background(), bmdb.View{Cluster: fmt.Sprint(100 + i), UID: "u", Name: spec.Name}, spec); !errors.As(err, &c) {
				t.Errorf("a second machine of a name: %v", err)
			}
		})
	}
	all.Wait()
	close(ids)
	distinct := map[uuid.UUID]bool{}
	for id := range ids {
		distinct[id] = true
	}
	if len(distinct) != 4 || l.int("SELECT count(*) FROM machines") != 4 || l.int("SELECT machines FROM providers WHERE pool = 'metal'") != 4 {
		t.Errorf("%d machines were made", len(distinct))
	}
	if n := l.int("SELECT count(*) FROM machine_views WHERE manages"); n != 4 {
		t.Errorf("%d views manage, want 4", n)
	}
}

func TestTwoPoolsRaceForOneBox(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			spec := machine("m", "1", "10.0.0.1")
			spec.Pool = fmt.Sprintf("pool%d", i)
			var c *bmdb.ConflictError
			if _, err := l.conn.RegisterMachine(context.Background(), view("m"), spec); err != nil && !errors.As(err, &c) {
				t.Errorf("register: %v", err)
			}
		})
	}
	all.Wait()
	if n := l.int("SELECT count(*) FROM machines"); n != 1 {
		t.Errorf("one box is %d machines", n)
	}
}

func TestHoldWhileWorkGoesOn(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, inClusterA)
	s := start(t, conn)
	ids := register(t, conn, 2)
	spec := agentStart("c", bmdb.ModeDrain)
	spec.Selector, spec.Parallelism = &bmdb.Selector{}, 2
	o := attach(t, conn, s, spec)
	works := round(t, s, o, 1)
	hold := bmdb.Hold{Pool: pool, Name: "h", Reason: "bad DIMM", Owner: "oncall", Actor: "alice"}
	for range 2 {
		if err := conn.PlaceHold(t.Context(), hold, ids); err != nil {
			t.Fatal(err)
		}
	}
	if h, err := conn.HoldOf(t.Context(), pool, "h"); err != nil || len(h.Machines) != 2 || h.Working != 1 {
		t.Errorf("hold while work goes on: %+v, %v", h, err)
	}
	fail(t, "the pod died", works...)
	if h, err := conn.HoldOf(t.Context(), pool, "h"); err != nil || h.Working != 0 {
		t.Errorf("hold when nothing goes on: %+v, %v", h, err)
	}
	if works := round(t, s, o, 2); len(works) > 0 {
		t.Fatal("a held machine was started on")
	}
	if _, err := s.Work(t.Context(), model.ProcessUnitTest1, constantly(ids...)); !errors.Is(err, bmdb.ErrNothingToDo) {
		t.Errorf("general form on held machines: %v", err)
	}
	// A second hold, that ends by itself by the database's clock.
	soon := time.Now().Add(2 * time.Second)
	brief := bmdb.Hold{Pool: pool, Name: "brief", Reason: "reboot", Owner: "x", Until: &soon}
	if err := conn.PlaceHold(t.Context(), brief, ids[:1]); err != nil {
		t.Fatal(err)
	}
	if err := conn.ReleaseHold(t.Context(), pool, "h", "bob"); err != nil {
		t.Fatal(err)
	}
	got := snapshotOf(t, conn, ids[0])
	if len(got.Holds) != 1 || got.Holds[0].Name != "brief" || !got.Holds[0].Active {
		t.Errorf("holds: %+v", got.Holds)
	}
	done := map[uuid.UUID]bool{}
	for len(done) < 2 {
		for _, w := range next(t, s, o) {
			if w.Machine == ids[0] && time.Now().Before(soon.Add(-time.Second)) {
				t.Error("started before the hold's time was over")
			}
			done[w.Machine] = true
			finish(t, w)
		}
	}
	if got := snapshotOf(t, conn, ids[0]); len(got.Holds) != 1 || got.Holds[0].Active {
		t.Errorf("holds after their time: %+v", got.Holds)
	}
	events, err := conn.AuditOf(t.Context(), pool, bmdb.KindHold, "h", 10)
	if err != nil || len(events) != 4 || events[0].Event != bmdb.AuditReleased || events[0].Actor != "bob" || events[3].Event != bmdb.AuditPlaced || events[3].Actor != "alice" {
		t.Errorf("audit: %+v, %v", events, err)
	}
	if err := conn.PlaceHold(t.Context(), bmdb.Hold{Pool: "other", Name: "h"}, ids); !errors.Is(err, bmdb.ErrNoSuchMachine) {
		t.Errorf("hold from another pool: %v", err)
	}
}

func TestPinsAndAcceptances(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	conn := l.conn
	ids := register(t, conn, 1)
	s := l.session()
	target := func() bmdb.Target {
		t.Helper()
		got, err := conn.MachineTargets(t.Context(), []uuid.UUID{ids[0], uuid.New()})
		if err != nil || len(got) != 1 {
			t.Fatalf("targets of a machine and of none: %+v, %v", got, err)
		}
		return got[ids[0]]
	}
	w := l.work(s, model.ProcessAgentStart, ids[0])
	if err := w.PinHostKey(t.Context(), []byte("key 1")); err != nil {
		t.Fatal(err)
	}
	if got := target(); string(got.HostKey) != "key 1" || got.Name != "m0" || got.Provider != "lab" || got.ProviderID != "0" || got.Address != "10.0.0.0" || got.Pool != pool {
		t.Errorf("target: %+v", got)
	}
	if used, err := w.UseOwnerAcceptance(t.Context(), []byte("file 0")); err != nil || used {
		t.Errorf("used an acceptance that nobody gave: %v, %v", used, err)
	}
	if err := conn.AcceptOwner(t.Context(), pool, "m0", "alice"); err != nil {
		t.Fatal(err)
	}
	if !target().OwnerAccepted {
		t.Error("the acceptance is not seen")
	}
	for i, want := range []bool{true, false} {
		if used, err := w.UseOwnerAcceptance(t.Context(), fmt.Appendf(nil, "file %d", i+1)); err != nil || used != want {
			t.Errorf("used an acceptance: %v, %v, want %v", used, err, want)
		}
	}
	if err := conn.AcceptHostKey(t.Context(), pool, "m0", "alice"); err != nil {
		t.Fatal(err)
	}
	if got := target(); got.HostKey != nil || got.OwnerAccepted {
		t.Errorf("target: %+v", got)
	}
	if err := conn.AcceptHostKey(t.Context(), pool, "absent", "alice"); !errors.Is(err, bmdb.ErrNoSuchMachine) {
		t.Errorf("accept for no machine: %v", err)
	}
	stale := bmdb.CopyWork(w)
	w.Cancel(t.Context())
	if err := stale.PinHostKey(t.Context(), []byte("stale")); !errors.Is(err, bmdb.ErrWorkLost) {
		t.Errorf("pin by a stale work: %v", err)
	}
	if got := target(); got.HostKey != nil {
		t.Errorf("a stale work pinned %q", got.HostKey)
	}
	// The acceptance is gone, and what it was used for goes on until it is done.
	again := l.work(s, model.ProcessAgentStart, ids[0])
	if got := string(again.PreviousCheckpoint()); got != "file 1" {
		t.Errorf("the next work finds that %q is replaced, want file 1", got)
	}
	finish(t, again)
	if got := l.work(s, model.ProcessAgentStart, ids[0]).PreviousCheckpoint(); got != nil {
		t.Errorf("after it was done the next work finds %q", got)
	}
	events, err := conn.AuditOf(t.Context(), pool, bmdb.KindMachine, "m0", 10)
	kinds := []string{}
	for _, e := range events {
		kinds = append(kinds, e.Event)
	}
	want := []string{bmdb.AuditHostKeyAccepted, bmdb.AuditOwnerReplaced, bmdb.AuditOwnerAccepted, bmdb.AuditHostKeyPinned}
	if err != nil || !slices.Equal(kinds, want) {
		t.Errorf("audit: %v, %v, want %v", kinds, err, want)
	}
}

func TestMachineSnapshotShowsAll(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	ids := register(t, l.conn, 2)
	s := l.session()
	w := l.work(s, model.ProcessAgentStart, ids[0])
	if err := w.Fail(t.Context(), &bmdb.Backoff{Initial: time.Hour}, "no route"); err != nil {
		t.Fatal(err)
	}
	w = l.work(s, model.ProcessUnitTest1, ids[0])
	if shown, err := s.ShowProgress(t.Context(), []bmdb.Progress{{Work: w, Step: "Connect", Percent: 20}}); err != nil || !slices.Equal(shown, []*bmdb.Work{w}) {
		t.Fatalf("progress of %v was shown, %v", shown, err)
	}
	err := s.Transact(t.Context(), func(q *model.Queries) error {
		if err := q.MachineSetTag(t.Context(), model.MachineSetTagParams{MachineID: ids[0], Tag: "BurnedIn"}); err != nil {
			return err
		}
		return q.MachineSetAgentStarted(t.Context(), model.MachineSetAgentStartedParams{MachineID: ids[0], AgentStartedAt: time.Now(), AgentPublicKey: []byte("key")})
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := l.conn.MachineSnapshots(t.Context(), append(ids, uuid.New()))
	if err != nil || len(list) != 2 {
		t.Fatalf("%d snapshots, %v, want 2", len(list), err)
	}
	got := list[slices.IndexFunc(list, func(m bmdb.MachineSnapshot) bool { return m.MachineID == ids[0] })]
	if got.Name != "m0" || got.Pool != pool || got.Provider != "lab" || len(got.Works) != 1 || len(got.Backoffs) != 1 || len(got.Failures) != 1 || len(got.Tags.Custom) != 1 || got.Tags.AgentStarted == nil {
		t.Fatalf("snapshot: %+v", got)
	}
	if work := got.Works[0]; work.Process != "UnitTest1" || work.WorkID != w.ID() || work.Holder != t.Name() || work.Cluster != "a" || work.Step != "Connect" || work.Percent != 20 {
		t.Errorf("work: %+v", work)
	}
	if b := got.Backoffs[0]; b.Process != "AgentStart" || b.Cause != "no route" || b.Attempts != 1 {
		t.Errorf("backoff: %+v", b)
	}
	if string(got.Tags.AgentStarted.PublicKey) != "key" || got.Tags.Custom[0].Name != "BurnedIn" || !slices.Contains(got.Facts, "BurnedIn") {
		t.Errorf("tags: %+v, facts %v", got.Tags, got.Facts)
	}
	w.Cancel(t.Context())
}

// New machines of a provider wait for one another, and for another pod that is slow in the middle of making one. Works do not wait with them.
func TestNewMachinesLeaveConnectionsToWorks(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA, named("newcomers"))
	s := l.session()
	register(t, l.conn, 1)
	machine := machinesOf(t, l, pool)[0]
	release := l.lock("SELECT 1 FROM providers WHERE pool = $1 AND provider = 'lab' FOR UPDATE", pool)
	const newcomers = 24 // more than there are connections
	registered := make(chan error, newcomers)
	for i := range newcomers {
		go func() {
			_, err := l.conn.RegisterMachine(t.Context(), view(fmt.Sprintf("new-%d", i)), bmdb.MachineSpec{
				Pool: pool, Name: fmt.Sprintf("new-%d", i), Provider: "lab", ProviderID: fmt.Sprintf("new-%d", i),
			})
			registered <- err
		}()
	}
	eventually(t, "new machines to wait", func() bool { return l.waiting("newcomers") > 0 })
	const soon = 2 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	works, err := startLab(ctx, s, 1, []uuid.UUID{machine})
	if err != nil || len(works) != 1 {
		t.Fatalf("%d works were started: %v", len(works), err)
	}
	if err := works[0].FinishData(ctx, bmdb.Outcome{AgentPublicKey: []byte("key")}); err != nil {
		t.Fatal(err)
	}
	if n := l.waiting("newcomers"); n == 0 {
		t.Error("no new machine waits any more")
	}
	release()
	for range newcomers {
		if err := done(t, "a registration", registered); err != nil {
			t.Error(err)
		}
	}
}
