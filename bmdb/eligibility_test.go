// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// Two transactions that each bring one of two facts must not each miss the other's. Where the machine's mutex is written last, or by the
// recompute itself, the machine is parked for ever.
func TestTwoConcurrentTagChangesDoNotPark(t *testing.T) {
	t.Parallel()
	changes := map[string]func(ctx context.Context, s *bmdb.Session, w *bmdb.Work) error{
		"closure": func(ctx context.Context, s *bmdb.Session, w *bmdb.Work) error {
			return s.Transact(ctx, tag(ctx, w.Machine, w.Process()))
		},
		"data": func(ctx context.Context, _ *bmdb.Session, w *bmdb.Work) error {
			return w.FinishData(ctx, bmdb.Outcome{})
		},
		"finish": func(ctx context.Context, _ *bmdb.Session, w *bmdb.Work) error { return w.Finish(ctx, nil) },
	}
	g := &gates{}
	l := newLab(t, g.config)
	other := l.another(named("other"))
	l.process("left", "left", []string{"Provided"}, nil, []string{"left"}, nil)
	l.process("right", "right", []string{"Provided"}, nil, []string{"right"}, nil)
	l.process("both", "both", []string{"left", "right"}, nil, nil, nil)
	s1, s2 := l.session(bmdb.WithoutBeat()), start(t, other, bmdb.WithoutMaintenance())
	operation := map[string]string{"closure": "transact", "data": "end", "finish": "finish"}
	for first, change1 := range changes {
		for second, change2 := range changes {
			for _, statement := range []string{"Recompute", "COMMIT"} {
				what := fmt.Sprintf("%s stopped before %s, %s", first, statement, second)
				machine := provided(t, s2, what)
				w1, w2 := l.work(s1, "left", machine), l.work(s2, "right", machine)
				stop := g.at(operation[first], statement)
				done1, done2 := make(chan error, 1), make(chan error, 1)
				go func() { done1 <- change1(t.Context(), s1, w1) }()
				done(t, what, stop.reached)
				go func() { done2 <- change2(t.Context(), s2, w2) }()
				eventually(t, what+": the second ends, or waits for the first", func() bool { return len(done2) > 0 || l.blocked("other") })
				stop.open <- nil
				if err := errors.Join(done(t, what, done1), done(t, what, done2)); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				if got := l.state(machine, "both"); got != ready {
					t.Errorf("%s: parked, state %d", what, got)
				}
				checkInvariants(t, l.db, machine)
			}
		}
	}
}

// A hold that was placed while a machine was worked on is there when its worker has died.
func TestHeldMachineIsNotReinstalledAfterReap(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	dead, other := l.session(bmdb.WithoutBeat()), l.session()
	machine := provided(t, other, "1")
	wantInstall(t, other, machine)
	w := l.work(dead, model.ProcessOSInstall, machine)
	if err := hold(ctx, l.conn, "stop", machine); err != nil {
		t.Fatal(err)
	}
	l.expire(dead.UUID)
	l.reap(l.another())
	if got := l.end(w.ID()); got != bmdb.EventLost {
		t.Fatalf("the work ended as %q", got)
	}
	if got := l.state(machine, model.ProcessOSInstall); got == ready {
		t.Error("the reaper made a held machine ready")
	}
	if works, err := batch(ctx, other, model.ProcessOSInstall, 1, machine); err != nil || len(works) != 0 {
		t.Errorf("batch start on a held machine: %d works, %v", len(works), err)
	}
	var why *bmdb.NotStartedError
	if _, err := other.Work(ctx, model.ProcessOSInstall, constantly(machine)); !errors.As(err, &why) || why.Reason != "Held" || !errors.Is(err, bmdb.ErrNothingToDo) {
		t.Errorf("start on a held machine: %v", err)
	}
	checkInvariants(t, l.db)
	if err := l.conn.ReleaseHold(ctx, "default", "stop", "test"); err != nil {
		t.Fatal(err)
	}
	if works, err := batch(ctx, other, model.ProcessOSInstall, 1, machine); err != nil || len(works) != 1 {
		t.Errorf("batch start after the release: %d works, %v", len(works), err)
	}
	checkInvariants(t, l.db)
}

// wantInstall records everything that makes OSInstall due.
func wantInstall(t *testing.T, s *bmdb.Session, machine uuid.UUID) {
	t.Helper()
	ctx := t.Context()
	err := s.Transact(ctx, func(q *model.Queries) error {
		return errors.Join(
			q.MachineSetAgentStarted(ctx, model.MachineSetAgentStartedParams{MachineID: machine, AgentStartedAt: time.Now(), AgentPublicKey: []byte("key")}),
			q.MachineSetOSInstallationRequest(ctx, model.MachineSetOSInstallationRequestParams{MachineID: machine, Generation: 1, OsInstallationRequestRaw: []byte("os")}))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A ready row that is out of date starts nothing: the start evaluates the predicate again, on the rows that it has locked.
func TestStaleReadyRowStartsNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	l.process("Careful", "Careful", []string{"Provided", "wanted"}, []string{"unwanted"}, nil, nil)
	s := l.session()
	for name, c := range map[string]struct {
		process model.Process
		spoil   string
	}{
		"required fact gone":   {"Careful", "UPDATE machine_state SET facts = array_remove(facts, 'wanted') WHERE machine_id = $1"},
		"forbidden fact there": {"Careful", "UPDATE machine_state SET facts = facts || ARRAY['unwanted'] WHERE machine_id = $1"},
		"no objects any more":  {"Careful", "UPDATE machine_state SET facts = facts || ARRAY['ViewLost'] WHERE machine_id = $1"},
		"held":                 {"Careful", "UPDATE machine_state SET held_until = clock_timestamp() + interval '1 hour' WHERE machine_id = $1"},
		"definition changed":   {"Careful 2", "UPDATE processes SET requires = ARRAY['something'] WHERE process = 'Careful 2' AND $1::uuid IS NOT NULL"},
		"backed off":           {"Careful", "UPDATE work SET state = 1, not_before = clock_timestamp() + interval '1 hour' WHERE process = 'Careful' AND machine_id = $1"},
		"not ready at all":     {"Careful", "UPDATE work SET state = 0 WHERE process = 'Careful' AND machine_id = $1"},
		"another provider":     {"Careful", "UPDATE machine_state SET provider = 'Lumen' WHERE machine_id = $1"},
		"another pool":         {"Careful", "UPDATE machine_state SET pool = 'other' WHERE machine_id = $1"},
	} {
		if name == "definition changed" {
			l.process("Careful 2", "Careful 2", []string{"Provided", "wanted"}, nil, nil, nil)
		}
		machine := provided(t, s, name)
		if err := s.Transact(ctx, tag(ctx, machine, "wanted")); err != nil {
			t.Fatal(err)
		}
		if got := l.state(machine, c.process); got != ready {
			t.Fatalf("%s: state %d", name, got)
		}
		if n := l.exec(c.spoil, machine); n != 1 {
			t.Fatalf("%s: %d rows spoilt", name, n)
		}
		if works, err := batch(ctx, s, c.process, 1, machine); err != nil || len(works) != 0 {
			t.Errorf("%s: %d works, %v", name, len(works), err)
		}
	}
}

// AgentRecovery power-cycles. A machine that was heard of again while its recovery waited for a free slot is left alone.
func TestRecoveredMachineIsNotRecovered(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s := l.session()
	silent := func(machine uuid.UUID) {
		t.Helper()
		err := s.Transact(ctx, func(q *model.Queries) error {
			return errors.Join(
				q.MachineSetAgentStarted(ctx, model.MachineSetAgentStartedParams{MachineID: machine, AgentStartedAt: time.Now(), AgentPublicKey: []byte("key")}),
				q.MachineSetAgentHeartbeat(ctx, model.MachineSetAgentHeartbeatParams{MachineID: machine, AgentHeartbeatAt: time.Now().Add(-11 * time.Minute)}))
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := l.state(machine, model.ProcessAgentRecovery); got != ready {
			t.Fatalf("a machine not heard of for eleven minutes: state %d", got)
		}
	}
	heard := provided(t, s, "heard")
	silent(heard)
	err := s.Transact(ctx, func(q *model.Queries) error {
		return q.MachineSetAgentHeartbeat(ctx, model.MachineSetAgentHeartbeatParams{MachineID: heard, AgentHeartbeatAt: time.Now()})
	})
	if err != nil {
		t.Fatal(err)
	}
	checkInvariants(t, l.db)
	quietly := provided(t, s, "quietly")
	silent(quietly)
	// Heartbeats in bulk touch no work rows.
	l.exec("UPDATE machine_state SET unresponsive_at = clock_timestamp() + interval '10 minutes' WHERE machine_id = $1", quietly)
	still := provided(t, s, "still")
	silent(still)
	works, err := batch(ctx, s, model.ProcessAgentRecovery, 3, heard, quietly, still)
	if err != nil || len(works) != 1 || works[0].Machine != still {
		t.Errorf("recoveries: %d works, %v; want that of the silent one", len(works), err)
	}
}

// Time alone makes nothing ready: what becomes due is evaluated.
func TestPromoteEvaluates(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s := l.session()
	held, free := provided(t, s, "held"), provided(t, s, "free")
	for _, m := range []uuid.UUID{held, free} {
		if err := l.work(s, model.ProcessAgentStart, m).Fail(ctx, &bmdb.Backoff{Initial: time.Hour}, "test"); err != nil {
			t.Fatal(err)
		}
	}
	// A hold that is committed before the backoff is over, and whose recompute the rows have yet to see.
	l.exec(`INSERT INTO machine_holds (machine_id, hold_name, pool, reason, owner, held_at) VALUES ($1, 'stop', 'default', '', '', clock_timestamp())`, held)
	l.exec("UPDATE work SET backoff_until = clock_timestamp() - interval '1 second', not_before = clock_timestamp() - interval '1 second' WHERE state = 1")
	if err := bmdb.NewChores(l.another()).Promote(ctx); err != nil {
		t.Fatal(err)
	}
	if got := l.state(held, model.ProcessAgentStart); got != idle {
		t.Errorf("the held machine has state %d", got)
	}
	if got := l.state(free, model.ProcessAgentStart); got != ready {
		t.Errorf("the free machine has state %d", got)
	}
	checkInvariants(t, l.db)
}

// A reader does not wait for the promoter.
func TestDueMachineStartsWithoutPromoter(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s := l.session()
	machine := provided(t, s, "1")
	if err := l.work(s, model.ProcessAgentStart, machine).Fail(ctx, &bmdb.Backoff{Initial: time.Second}, "test"); err != nil {
		t.Fatal(err)
	}
	if works, err := batch(ctx, s, model.ProcessAgentStart, 1, machine); err != nil || len(works) != 0 {
		t.Errorf("start during the backoff: %d works, %v", len(works), err)
	}
	eventually(t, "the backoff to end", func() bool {
		works, err := batch(ctx, s, model.ProcessAgentStart, 1, machine)
		if err != nil {
			t.Fatal(err)
		}
		return len(works) == 1
	})
	if n := l.int("SELECT count(*) FROM work_history s JOIN work_history e ON e.event = 'Failed' WHERE s.phase = 0 AND s.attempt = 2 AND s.timestamp - e.timestamp < interval '990 ms'"); n != 0 {
		t.Error("the backoff was shorter than a second")
	}
}

// In the original a machine matched no query any more after an installation had failed.
func TestFailedInstallIsEligibleAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s := l.session()
	machine := provided(t, s, "1")
	wantInstall(t, s, machine)
	report := func(result model.MachineOsInstallationResult, generation int64) func(*model.Queries) error {
		return func(q *model.Queries) error {
			return q.MachineSetOSInstallationReport(ctx, model.MachineSetOSInstallationReportParams{
				MachineID: machine, Generation: generation, OsInstallationResult: result, OsInstallationReportRaw: []byte("report"),
			})
		}
	}
	again := func(what string) *bmdb.Work {
		t.Helper()
		l.exec("UPDATE work SET backoff_until = clock_timestamp() WHERE backoff_until IS NOT NULL")
		if err := l.conn.Reevaluate(ctx, machine); err != nil {
			t.Fatal(err)
		}
		checkInvariants(t, l.db)
		works, err := batch(ctx, s, model.ProcessOSInstall, 1, machine)
		if err != nil || len(works) != 1 {
			t.Fatalf("start after %s: %d works, %v", what, len(works), err)
		}
		return works[0]
	}
	w := l.work(s, model.ProcessOSInstall, machine)
	if err := w.Fail(ctx, &bmdb.Backoff{Initial: time.Hour}, "no disk"); err != nil {
		t.Fatal(err)
	}
	w = again("a failure")
	if err := w.Finish(ctx, report(model.MachineOsInstallationResultError, 1)); err != nil { // the agent reports, and it went wrong
		t.Fatal(err)
	}
	w = again("a report of an error")
	if err := w.Finish(ctx, report(model.MachineOsInstallationResultSuccess, 1)); err != nil {
		t.Fatal(err)
	}
	if got := l.state(machine, model.ProcessOSInstall); got != idle {
		t.Errorf("an installed machine has state %d", got)
	}
	// The mark never falls: an older request is not due, a newer one is.
	for generation, want := range map[int64]int64{0: idle, 1: idle} {
		err := s.Transact(ctx, func(q *model.Queries) error {
			return q.MachineSetOSInstallationRequest(ctx, model.MachineSetOSInstallationRequestParams{MachineID: machine, Generation: generation, OsInstallationRequestRaw: []byte("os")})
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := l.state(machine, model.ProcessOSInstall); got != want {
			t.Errorf("generation %d: state %d, want %d", generation, got, want)
		}
	}
	checkInvariants(t, l.db)
}

// A process is a row: a new one needs no migration, and has its own slot, predicate and tags.
func TestProcessesAreRows(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	l.process("Wash", "water", []string{"Provided"}, []string{"clean"}, []string{"clean"}, []string{"dirty"})
	s := l.session()
	machine := provided(t, s, "1")
	if err := s.Transact(ctx, tag(ctx, machine, "dirty")); err != nil {
		t.Fatal(err)
	}
	works, err := batch(ctx, s, "Wash", 1, machine)
	if err != nil || len(works) != 1 {
		t.Fatalf("%d works, %v", len(works), err)
	}
	if err := works[0].FinishData(ctx, bmdb.Outcome{}); err != nil {
		t.Fatal(err)
	}
	if n := l.int("SELECT count(*) FROM machine_tags WHERE tag = 'clean'"); n != 1 || l.int("SELECT count(*) FROM machine_tags") != 1 {
		t.Error("success does not leave the tags that the process says")
	}
	if got := l.state(machine, "Wash"); got != idle {
		t.Errorf("state %d after a success that made the predicate false", got)
	}
	if _, err := s.Work(ctx, "Dry", constantly(machine)); err == nil || errors.Is(err, bmdb.ErrNothingToDo) {
		t.Errorf("a process that nobody registered: %v", err)
	}
	checkInvariants(t, l.db)
}

// Every worker of the original picked the first machine, and all but one of them in vain.
func TestWorkersSpread(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *bmdb.Config) { c.MaxConnections = 4 })
	ctx := t.Context()
	s := l.session()
	const machines, looks = 24, 16
	for i := range machines {
		m := provided(t, s, fmt.Sprint(i))
		err := s.Transact(ctx, func(q *model.Queries) error {
			return errors.Join(
				q.MachineSetAgentStarted(ctx, model.MachineSetAgentStartedParams{MachineID: m, AgentStartedAt: time.Now(), AgentPublicKey: []byte("key")}),
				q.MachineSetAgentHeartbeat(ctx, model.MachineSetAgentHeartbeatParams{MachineID: m, AgentHeartbeatAt: time.Now().Add(-time.Hour)}))
		})
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // half of them are for the one query, half for the other
			err = s.Transact(ctx, func(q *model.Queries) error { return q.MachineDeleteAgentStarted(ctx, m) })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	queries := map[string]func(q *model.Queries, limit int32) ([]uuid.UUID, error){
		"GetMachinesForAgentStart": func(q *model.Queries, limit int32) (ids []uuid.UUID, err error) {
			rows, err := q.GetMachinesForAgentStart(ctx, limit)
			for _, r := range rows {
				ids = append(ids, r.MachineID)
			}
			return ids, err
		},
		"GetMachinesForAgentStartByProvider": func(q *model.Queries, limit int32) (ids []uuid.UUID, err error) {
			rows, err := q.GetMachinesForAgentStartByProvider(ctx, model.GetMachinesForAgentStartByProviderParams{Limit: limit, Provider: "Equinix"})
			for _, r := range rows {
				ids = append(ids, r.MachineID)
			}
			return ids, err
		},
		"GetMachineForAgentRecovery": func(q *model.Queries, limit int32) (ids []uuid.UUID, err error) {
			rows, err := q.GetMachineForAgentRecovery(ctx, limit)
			for _, r := range rows {
				ids = append(ids, r.MachineID)
			}
			return ids, err
		},
		"GetMachineForAgentRecoveryByProvider": func(q *model.Queries, limit int32) (ids []uuid.UUID, err error) {
			rows, err := q.GetMachineForAgentRecoveryByProvider(ctx, model.GetMachineForAgentRecoveryByProviderParams{Limit: limit, Provider: "Equinix"})
			for _, r := range rows {
				ids = append(ids, r.MachineID)
			}
			return ids, err
		},
	}
	for name, query := range queries {
		first := map[uuid.UUID]bool{}
		for range looks {
			err := s.Transact(ctx, func(q *model.Queries) error {
				ids, err := query(q, 1)
				if err == nil && len(ids) != 1 {
					err = fmt.Errorf("%d machines, want 1", len(ids))
				}
				if err != nil {
					return err
				}
				first[ids[0]] = true
				all, err := query(q, machines)
				seen := map[uuid.UUID]bool{}
				for _, id := range all {
					seen[id] = true
				}
				if err == nil && (len(all) != machines/2 || len(seen) != machines/2) {
					err = fmt.Errorf("%d machines, %d different ones, want %d", len(all), len(seen), machines/2)
				}
				return err
			})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if len(first) < 3 {
			t.Errorf("%s: %d looks found %d different machines first", name, looks, len(first))
		}
	}
}

// Workers that look at the same moment all find something, and nobody fails for it.
func TestConcurrentWorkersAllFindWork(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s := l.session()
	const workers = 8
	for i := range workers {
		provided(t, s, fmt.Sprint(i))
	}
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for i := range workers {
		wg.Go(func() {
			_, errs[i] = s.Work(ctx, model.ProcessAgentStart, forAgentStart(ctx))
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Errorf("start: %v", err)
		}
	}
	checkInvariants(t, l.db)
}
