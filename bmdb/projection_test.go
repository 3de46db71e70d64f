// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// pending is what a cluster has to show after everything was spread, as kind/id.
func pending(t *testing.T, conn *bmdb.Connection, cluster string) map[string]bmdb.Pending {
	t.Helper()
	for {
		n, err := conn.Spread(t.Context(), 3)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
	}
	list, err := conn.PendingProjections(t.Context(), cluster, 1000)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bmdb.Pending{}
	for _, p := range list {
		found[p.Kind+"/"+p.ID] = p
	}
	return found
}

func ack(t *testing.T, conn *bmdb.Connection, cluster string, shown ...bmdb.Pending) {
	t.Helper()
	if err := conn.AckProjections(t.Context(), cluster, shown); err != nil {
		t.Fatal(err)
	}
}

func TestProjectionOfTwoClusters(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA, claimsOnly)
	conn := l.conn
	if _, err := conn.PendingProjections(t.Context(), "a", 1); !errors.Is(err, bmdb.ErrNoSuchCluster) {
		t.Errorf("pending of a cluster that is not registered: %v", err)
	}
	for _, cluster := range []string{"a", "b"} {
		if err := conn.RegisterCluster(t.Context(), cluster); err != nil {
			t.Fatal(err)
		}
	}
	s := l.session()
	m := mustRegister(t, conn, view("m"), machine("m", "1", "")).MachineID
	only := mustRegister(t, conn, view("only"), machine("only", "2", "")).MachineID
	mustRegister(t, conn, bmdb.View{Cluster: "b", UID: "b", Name: "m"}, machine("m", "1", ""))
	attachProvider(t, conn, view("lab"), limited(5))
	spec := agentStart("c", bmdb.ModeDrain)
	spec.Selector = &bmdb.Selector{}
	attachOnly(t, conn, spec)

	a, b := pending(t, conn, "a"), pending(t, conn, "b")
	if len(a) != 4 || a["machine/"+m.String()].Rev == 0 || a["machine/"+only.String()].Pool != pool || a["claim/c"].Rev == 0 || a["provider/lab"].Rev == 0 {
		t.Errorf("pending of a: %v", a)
	}
	if len(b) != 1 || b["machine/"+m.String()].Rev == 0 {
		t.Errorf("pending of b: %v", b)
	}
	// What is not acknowledged stays, for each cluster by itself.
	for _, p := range a {
		ack(t, conn, "a", p)
	}
	if a := pending(t, conn, "a"); len(a) != 0 {
		t.Errorf("pending of a after all was shown: %v", a)
	}
	if again := pending(t, conn, "b"); len(again) != 1 {
		t.Errorf("pending of b after a has shown all: %v", again)
	}
	// A change between the reading and the acknowledgement stays pending.
	read := b["machine/"+m.String()]
	err := s.Transact(t.Context(), func(q *model.Queries) error {
		return q.MachineSetTag(t.Context(), model.MachineSetTagParams{MachineID: m, Tag: "x"})
	})
	if err != nil {
		t.Fatal(err)
	}
	pending(t, conn, "b")
	ack(t, conn, "b", read)
	after := pending(t, conn, "b")["machine/"+m.String()]
	if after.Rev <= read.Rev {
		t.Fatalf("a change before the acknowledgement is pending as %+v, shown was %+v", after, read)
	}
	ack(t, conn, "b", after)
	// An acknowledgement that comes late takes nothing back.
	ack(t, conn, "b", read)
	if left := pending(t, conn, "b"); len(left) != 0 {
		t.Errorf("pending of b: %v", left)
	}
	if a := pending(t, conn, "a"); len(a) != 1 || a["machine/"+m.String()].Rev != after.Rev {
		t.Errorf("pending of a: %v", a)
	}
	// A claim shows its starts and ends.
	owned, err := s.OwnClaims(t.Context(), 1)
	if err != nil || len(owned) != 1 {
		t.Fatal(owned, err)
	}
	works := round(t, s, owned[0], 1)
	first := pending(t, conn, "a")["claim/c"]
	finish(t, works...)
	if second := pending(t, conn, "a")["claim/c"]; first.Rev == 0 || second.Rev <= first.Rev {
		t.Errorf("a claim's revisions: %d, then %d", first.Rev, second.Rev)
	}
	if err := conn.UnregisterCluster(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if n := l.int("SELECT count(*) FROM projection WHERE cluster = 'a'"); n != 0 {
		t.Errorf("%d rows of a forgotten cluster are left", n)
	}
}

// What cannot be shown does not keep the rest from being seen.
func TestPendingGoesAround(t *testing.T) {
	t.Parallel()
	conn := newLab(t).conn
	if err := conn.RegisterCluster(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	register(t, conn, 5)
	pending(t, conn, "a")
	seen := map[string]int{}
	for range 5 {
		list, err := conn.PendingProjections(t.Context(), "a", 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			seen[p.ID]++
		}
	}
	if len(seen) != 5 {
		t.Errorf("saw %v of five, by two, in five turns", seen)
	}
}

// A process that changes while tags are written: in the end every machine is evaluated against the new definition, also those whose
// tags were written by transactions that saw the old one.
func TestBackfillOfAChangedProcess(t *testing.T) {
	t.Parallel()
	const fleet = 2300
	l := newLab(t, inClusterA)
	var stops gates
	slow := l.another(inClusterA, stops.config)
	conn := l.conn
	conn.SettleWithin(0)
	l.exec(`INSERT INTO machines SELECT gen_random_uuid(), now() FROM generate_series(1, $1::bigint)`, fleet)
	l.exec(`INSERT INTO machine_state (machine_id, pool) SELECT machine_id, 'metal' FROM machines`)
	all := machinesOf(t, l, pool)
	tag := func(s *bmdb.Session, tag string, ids ...uuid.UUID) error {
		return s.Transact(t.Context(), func(q *model.Queries) error {
			for _, id := range ids {
				if err := q.MachineSetTag(t.Context(), model.MachineSetTagParams{MachineID: id, Tag: tag}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	s := l.session()
	if err := tag(s, "Racked", all[:1500]...); err != nil {
		t.Fatal(err)
	}
	define := func(requires ...string) {
		t.Helper()
		if err := conn.RegisterProcess(t.Context(), bmdb.ProcessDefinition{Pool: pool, Name: "burn-in", Requires: requires}); err != nil {
			t.Fatal(err)
		}
	}
	filling := func() bool {
		t.Helper()
		list, err := conn.Processes(t.Context(), pool)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list, func(p bmdb.ProcessState) bool { return p.Name == "burn-in" })
		return list[i].Filling
	}
	fill := func() {
		t.Helper()
		eventually(t, "the process is filled in", func() bool {
			if _, err := conn.FillPage(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.exec("UPDATE processes SET fill_not_before = NULL")
			return !filling()
		})
	}
	check := func(tag string) {
		t.Helper()
		wrong := l.int(`SELECT count(*) FROM machine_state m LEFT JOIN work w ON w.machine_id = m.machine_id AND w.process = 'burn-in'
			WHERE ($1 = ANY(m.facts)) <> (COALESCE(w.state, 0) = 2)`, tag)
		if wrong != 0 {
			t.Errorf("%d machines are not as the definition that requires %s says", wrong, tag)
		}
	}
	define("Racked")
	fill()
	check("Racked")

	// One that sees the old definition, and only locks its machine and commits when the first pass is over: what it evaluates is wrong.
	late := start(t, slow, bmdb.WithoutMaintenance())
	stop := stops.at("transact", "LockMachines")
	results := make(chan error, 1)
	go func() { results <- tag(late, "Wired", all[fleet-1]) }()
	done(t, "the late one has its snapshot", stop.reached)
	define("Wired")
	if err := tag(s, "Wired", all[2000:2200]...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first pass is over", func() bool {
		if _, err := conn.FillPage(t.Context()); err != nil {
			t.Fatal(err)
		}
		return l.int("SELECT fill_pass FROM processes WHERE process = 'burn-in'") == 2
	})
	stop.open <- nil
	if err := done(t, "the late one", results); err != nil {
		t.Fatal(err)
	}
	if err := tag(s, "Wired", all[10:20]...); err != nil {
		t.Fatal(err)
	}
	fill()
	check("Wired")
	if n := l.int("SELECT count(*) FROM work WHERE process = 'burn-in' AND state = 2"); n != 211 {
		t.Errorf("%d machines are ready, want 211", n)
	}
	define("Wired")
	if filling() {
		t.Error("the same definition again is filled in again")
	}
	for _, bad := range []bmdb.ProcessDefinition{
		{Pool: pool, Name: "AgentStart"}, {Name: "burn-in"}, {Pool: pool, Name: "x", Forbids: []string{bmdb.FactAgentUnresponsive}}, {Pool: pool},
	} {
		if err := conn.RegisterProcess(t.Context(), bad); err == nil {
			t.Errorf("registered %+v", bad)
		}
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	conn := l.conn
	ids := register(t, conn, 1)
	s := l.session()
	check := func(process, reason, predicate string) bmdb.Explanation {
		t.Helper()
		e, err := conn.Explain(t.Context(), ids[0], process)
		if err != nil || e.Reason != reason || e.Predicate != predicate || e.Message == "" {
			t.Errorf("%s explained as %+v, %v, want %s, %q", process, e, err, reason, predicate)
		}
		return e
	}
	check("AgentStart", bmdb.ExplainReady, "")
	check("OSInstall", bmdb.OutlookNotNeeded, "requires AgentStarted")
	check("absent", bmdb.OutlookProcessNotAvailable, "")
	w := l.work(s, model.ProcessShepherdAccess, ids[0])
	check("AgentStart", bmdb.OutlookLockedBy, "")
	w.Cancel(t.Context())
	if err := l.work(s, model.ProcessAgentStart, ids[0]).Fail(t.Context(), &bmdb.Backoff{Initial: 1e12}, "no route"); err != nil {
		t.Fatal(err)
	}
	if e := check("AgentStart", bmdb.OutlookBackedOff, ""); e.Until.IsZero() {
		t.Errorf("backed off until an unknown time: %+v", e)
	}
	if err := conn.PlaceHold(t.Context(), bmdb.Hold{Pool: pool, Name: "h", Reason: "r", Owner: "o"}, ids); err != nil {
		t.Fatal(err)
	}
	if e := check("AgentStart", bmdb.OutlookHeld, ""); !e.Until.IsZero() {
		t.Errorf("held without an end until %s", e.Until)
	}
	finishDirect := func(q *model.Queries) error {
		return q.MachineSetAgentStarted(t.Context(), model.MachineSetAgentStartedParams{MachineID: ids[0], AgentPublicKey: []byte("k")})
	}
	if err := s.Transact(t.Context(), finishDirect); err != nil {
		t.Fatal(err)
	}
	check("AgentStart", bmdb.OutlookNotNeeded, "forbids AgentStarted")
	if e, err := conn.Explain(t.Context(), uuid.New(), "AgentStart"); err != nil || e.Reason != bmdb.OutlookNoSuchMachine {
		t.Errorf("no machine explained as %+v, %v", e, err)
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	ids := register(t, l.conn, 1)
	old := l.session()
	l.work(old, model.ProcessAgentStart, ids[0]).Cancel(t.Context())
	if err := old.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone := l.session(bmdb.WithoutBeat())
	left := l.work(gone, model.ProcessAgentStart, ids[0])
	if err := l.conn.PlaceHold(t.Context(), bmdb.Hold{Pool: pool, Name: "h"}, ids); err != nil {
		t.Fatal(err)
	}
	if err := l.conn.RegisterCluster(t.Context(), "silent"); err != nil {
		t.Fatal(err)
	}
	l.exec("INSERT INTO work_history SELECT machine_id, gen_random_uuid(), phase, process, event, timestamp, failed_cause, session_id, pool, claim_key, fence, attempt, duration_ms, actor FROM work_history, generate_series(1, 1200) WHERE phase = 0")
	for _, sql := range []string{
		"UPDATE work_history SET timestamp = timestamp - interval '100 days'", "UPDATE audit_log SET at = at - interval '100 days'",
		"UPDATE sessions SET session_ended_at = clock_timestamp() - interval '100 days'", "UPDATE clusters SET seen_at = seen_at - interval '2 hours'",
	} {
		l.exec(sql)
	}
	fresh := l.session()
	l.exec("UPDATE machine_holds SET held_until = clock_timestamp()")
	if err := l.conn.Reevaluate(t.Context(), ids...); err != nil {
		t.Fatal(err)
	}
	l.exec("UPDATE machine_state SET held_until = NULL")
	w := l.work(fresh, model.ProcessUnitTest1, ids[0])
	if err := l.conn.Retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]int64{"work_history": 1, "audit_log": 0, "clusters": 0} {
		if n := l.int("SELECT count(*) FROM " + what); n != want {
			t.Errorf("%d rows of %s are left, want %d", n, what, want)
		}
	}
	for session, want := range map[uuid.UUID]int{old.UUID: 0, gone.UUID: 1, fresh.UUID: 1} {
		if rows, err := l.conn.GetSession(t.Context(), session); err != nil || len(rows) != want {
			t.Errorf("session %s: %v, %v, want %d", session, rows, err, want)
		}
	}
	left.Cancel(t.Context())
	w.Cancel(t.Context())
}

// What a cluster has no view of any more it has not to show either.
func TestDetachedHasNothingToShow(t *testing.T) {
	t.Parallel()
	l := twoClusters(t)
	pending(t, l.conn, "a")
	id := machinesOf(t, l, pool)[0]
	of := func(name string) bmdb.View { return bmdb.View{Cluster: "a", UID: "a", Name: name} }
	if err := l.conn.DetachMachine(t.Context(), of("m"), id); err != nil {
		t.Fatal(err)
	}
	if _, err := l.conn.DetachClaim(t.Context(), of("c"), pool, "c"); err != nil {
		t.Fatal(err)
	}
	if err := l.conn.DetachProvider(t.Context(), of("lab"), pool, "lab"); err != nil {
		t.Fatal(err)
	}
	pending(t, l.conn, "b")
	for cluster, want := range map[string]int64{"a": 0, "b": 3} {
		if n := l.int("SELECT count(*) FROM projection WHERE cluster = $1", cluster); n != want {
			t.Errorf("cluster %s has %d rows to show, want %d", cluster, n, want)
		}
	}
}
