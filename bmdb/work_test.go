// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// agentOf records a key that tells which work recorded it.
func agentOf(ctx context.Context, w *bmdb.Work) func(*model.Queries) error {
	return func(q *model.Queries) error {
		return q.MachineSetAgentStarted(ctx, model.MachineSetAgentStartedParams{MachineID: w.Machine, AgentStartedAt: time.Now(), AgentPublicKey: keyOf(w)})
	}
}

func keyOf(w *bmdb.Work) []byte { return []byte("work " + w.ID().String()) }

// ends are all the ways to end a work.
var ends = map[string]func(ctx context.Context, w *bmdb.Work) error{
	bmdb.EventFinished: func(ctx context.Context, w *bmdb.Work) error { return w.Finish(ctx, agentOf(ctx, w)) },
	bmdb.EventFinished + " data": func(ctx context.Context, w *bmdb.Work) error {
		return w.FinishData(ctx, bmdb.Outcome{AgentPublicKey: keyOf(w)})
	},
	bmdb.EventFailed: func(ctx context.Context, w *bmdb.Work) error {
		return w.Fail(ctx, &bmdb.Backoff{Initial: time.Hour}, "test")
	},
	bmdb.EventCanceled: func(ctx context.Context, w *bmdb.Work) error {
		w.Cancel(ctx)
		return nil
	},
}

func eventOf(end string) string { return strings.Fields(end)[0] }

// I1 is the database's word, not that of a query: even a program that asks for no mutex cannot hold a slot twice.
func TestSlotIsHeldOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.session()
	w := l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
	_, err := l.db.Exec(t.Context(), `INSERT INTO work (machine_id, process, slot, pool, provider, state, work_id, session_id)
		VALUES ($1, 'OSInstall', 'access', 'default', 'Equinix', 3, $2, $3)`, w.Machine, uuid.New(), s.UUID)
	if err == nil || !strings.Contains(err.Error(), "work_slot") {
		t.Errorf("a second work in the slot: %v, want a violation of work_slot", err)
	}
}

// Processes exclude each other in their slot, whoever starts them and in whatever way.
func TestExclusionBetweenProcesses(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	l.process("BurnIn", "access", []string{"Provided"}, nil, nil, nil)
	l.process("Inventory", "Inventory", []string{"Provided"}, nil, nil, nil)
	s, other := l.session(), l.session()
	machine := provided(t, s, "1")
	w := l.work(s, "BurnIn", machine)
	for _, p := range []model.Process{model.ProcessAgentStart, model.ProcessShepherdInstall, "BurnIn"} {
		if _, err := other.Work(ctx, p, constantly(machine)); !errors.Is(err, bmdb.ErrWorkConflict) {
			t.Errorf("%s beside BurnIn: %v, want ErrWorkConflict", p, err)
		}
	}
	works, err := batch(ctx, other, model.ProcessAgentStart, 1, machine)
	if err != nil || len(works) != 0 {
		t.Errorf("batch start beside BurnIn: %d works, %v", len(works), err)
	}
	if works, err = batch(ctx, other, "Inventory", 1, machine); err != nil || len(works) != 1 {
		t.Errorf("batch start in another slot: %d works, %v", len(works), err)
	}
	w.Cancel(ctx)
	if works, err = batch(ctx, other, model.ProcessAgentStart, 1, machine); err != nil || len(works) != 1 {
		t.Errorf("batch start after the end: %d works, %v", len(works), err)
	}
	checkInvariants(t, l.db)
}

// I2: a work that was taken over ends nothing and writes nothing, in whatever way it tries, and whether somebody else works there or not.
func TestFinishOfLostWorkWritesNothing(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restarted %v", name, again), func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				ctx := t.Context()
				stale, other := l.session(bmdb.WithoutBeat()), l.session()
				w := l.work(stale, model.ProcessAgentStart, provided(t, other, "1"))
				l.expire(stale.UUID)
				l.reap(l.another())
				var next *bmdb.Work
				if again {
					next = l.work(other, model.ProcessAgentStart, w.Machine)
				}
				before := l.dump()
				if err := end(ctx, w); !errors.Is(err, bmdb.ErrWorkLost) && eventOf(name) != bmdb.EventCanceled {
					t.Errorf("%v, want ErrWorkLost", err)
				}
				if shown, err := stale.ShowProgress(ctx, []bmdb.Progress{{Work: w, Step: "x", Percent: 1}}); len(shown) > 0 || err != nil {
					t.Errorf("progress: shown of %d, %v", len(shown), err)
				}
				for what, err := range map[string]error{"check": w.Check(ctx), "checkpoint": w.Checkpoint(ctx, []byte("x"))} {
					if !errors.Is(err, bmdb.ErrWorkLost) {
						t.Errorf("%s: %v, want ErrWorkLost", what, err)
					}
				}
				if diff := cmp.Diff(before, l.dump(), cmp.Transformer("withoutRevisions", withoutRevisions)); diff != "" {
					t.Errorf("a lost work wrote (-before +after):\n%s", diff)
				}
				if w.Context().Err() == nil {
					t.Error("the context of a lost work goes on")
				}
				if again {
					if err := next.Finish(ctx, agentOf(ctx, next)); err != nil {
						t.Errorf("finish of the one who took over: %v", err)
					}
				}
				checkInvariants(t, l.db)
			})
		}
	}
}

// The row of the work itself refuses what is not ours, also where the context and the session say nothing.
func TestCheckAsksTheDatabase(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s := l.session(bmdb.WithoutBeat())
	for i, use := range []func(w *bmdb.Work) error{
		func(w *bmdb.Work) error { return w.Check(ctx) },
		func(w *bmdb.Work) error { return w.Checkpoint(ctx, []byte("x")) },
	} {
		w := l.work(s, model.ProcessAgentStart, provided(t, s, fmt.Sprint(i)))
		if err := use(w); err != nil {
			t.Errorf("use %d of a work that goes on: %v", i, err)
		}
		l.exec("UPDATE work SET work_id = $2 WHERE work_id = $1", w.ID(), uuid.New()) // taken over
		if err := use(w); !errors.Is(err, bmdb.ErrWorkLost) {
			t.Errorf("use %d of a work that was taken over: %v, want ErrWorkLost", i, err)
		}
		if w.Context().Err() == nil {
			t.Errorf("use %d: the context goes on", i)
		}
	}
}

// I3: whatever comes first is the end.
func TestEveryWorkEndsOnce(t *testing.T) {
	t.Parallel()
	for first, end := range ends {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			ctx := t.Context()
			s := l.session()
			w := l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
			if err := end(ctx, w); err != nil {
				t.Fatal(err)
			}
			for second, end := range ends {
				if err := end(ctx, w); !errors.Is(err, bmdb.ErrWorkLost) && eventOf(second) != bmdb.EventCanceled {
					t.Errorf("then %s: %v, want ErrWorkLost", second, err)
				}
			}
			if got := l.end(w.ID()); got != eventOf(first) {
				t.Errorf("it ended as %q", got)
			}
			_, err := l.db.Exec(ctx, `INSERT INTO work_history SELECT machine_id, work_id, phase, process, 'Lost', timestamp, failed_cause, session_id, pool, claim_key, fence,
				attempt, duration_ms, actor FROM work_history WHERE phase = 1`)
			if err == nil || !strings.Contains(err.Error(), "work_history_pkey") {
				t.Errorf("a second end in the history: %v, want a violation of its key", err)
			}
			if !errors.Is(w.Context().Err(), context.Canceled) {
				t.Error("the context of a work that has ended goes on")
			}
			checkInvariants(t, l.db)
		})
	}
}

// done was set before the commit in the original, so that a commit that failed kept the lock for ever.
func TestDoneOnlyAfterCommit(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &gates{}
			l := newLab(t, g.config)
			s := l.session()
			w := l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
			operation := "end"
			if name == bmdb.EventFinished {
				operation = "finish"
			}
			g.at(operation, "COMMIT").open <- errInjected
			if err := end(t.Context(), w); !errors.Is(err, errInjected) && name != bmdb.EventCanceled {
				t.Fatalf("an end whose commit fails: %v", err)
			}
			if w.Context().Err() != nil {
				t.Error("a work whose commit failed is over")
			}
			if err := w.Check(t.Context()); err != nil {
				t.Errorf("check after a failed commit: %v", err)
			}
			if err := end(t.Context(), w); err != nil {
				t.Errorf("the second try: %v", err)
			}
			if got := l.end(w.ID()); got != eventOf(name) {
				t.Errorf("it ended as %q", got)
			}
			checkInvariants(t, l.db)
		})
	}
}

// The caller's context is often the one that was cancelled: then the lock has to go all the more.
func TestEndsWorkOnCancelledContext(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		if name == bmdb.EventFinished {
			continue // its closure brings the context with it
		}
		t.Run(name, func(t *testing.T) { testEndOnCancelledContext(t, name, end) })
	}
}

func testEndOnCancelledContext(t *testing.T, name string, end func(context.Context, *bmdb.Work) error) {
	t.Parallel()
	l := newLab(t)
	s := l.session()
	w := l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := end(ctx, w); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if got := l.end(w.ID()); got != eventOf(name) {
		t.Errorf("it ended as %q", got)
	}
	checkInvariants(t, l.db)
}

// The original ran Cancel on a context that was cancelled already.
func TestCancelOnCancelledContext(t *testing.T) {
	testEndOnCancelledContext(t, bmdb.EventCanceled, ends[bmdb.EventCanceled])
}

// I4: an operation that fails before any of its statements has changed nothing at all.
func TestNothingHalf(t *testing.T) {
	t.Parallel()
	tried := []string{"start", "batch", "tag", "new machine"}
	for name := range ends {
		tried = append(tried, name)
	}
	for _, name := range tried {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &gates{}
			l := newLab(t, g.config)
			ctx := t.Context()
			l.limit("Equinix", 50)
			s := l.session(bmdb.WithoutBeat())
			do := l.operation(s, name)
			g.seen = nil
			if err := do(ctx); err != nil { // the dry run tells the statements
				t.Fatal(err)
			}
			boundaries := slices.DeleteFunc(slices.Clone(g.seen), func(at bmdb.Boundary) bool { return at.Operation != g.seen[0].Operation })
			if len(boundaries) < 2 {
				t.Fatalf("only %d statements", len(boundaries))
			}
			for _, at := range boundaries {
				do := l.operation(s, name)
				before := l.dump()
				g.at(at.Operation, at.Statement).open <- errInjected
				if err := do(ctx); !errors.Is(err, errInjected) && name != bmdb.EventCanceled {
					t.Errorf("before %s: %v, want the injected error", at.Statement, err)
				}
				if diff := cmp.Diff(before, l.dump()); diff != "" {
					t.Errorf("an attempt that ended before %s left something behind (-before +after):\n%s", at.Statement, diff)
				}
				if len(g.gates) != 0 {
					t.Errorf("%s was not reached", at.Statement)
				}
				if err := do(ctx); err != nil {
					t.Errorf("after an attempt that ended before %s: %v", at.Statement, err)
				}
				checkInvariants(t, l.db)
			}
		})
	}
}

// operation prepares something for an operation to be done to, and returns it. It may be called again if it failed.
func (l *lab) operation(s *bmdb.Session, name string) func(ctx context.Context) error {
	l.t.Helper()
	machine := provided(l.t, s, uuid.NewString())
	if end, ok := ends[name]; ok {
		w := l.work(s, model.ProcessAgentStart, machine)
		return func(ctx context.Context) error { return end(ctx, w) }
	}
	finish := func(ctx context.Context, w *bmdb.Work) error {
		if w == nil {
			return errors.New("nothing was started")
		}
		w.Cancel(ctx)
		return nil
	}
	switch name {
	case "start":
		return func(ctx context.Context) error {
			w, err := s.Work(ctx, model.ProcessAgentStart, constantly(machine))
			if err != nil {
				return err
			}
			return finish(ctx, w)
		}
	case "batch":
		return func(ctx context.Context) error {
			works, err := batch(ctx, s, model.ProcessAgentStart, 1, machine)
			if err != nil {
				return err
			}
			if len(works) != 1 {
				return fmt.Errorf("%d works", len(works))
			}
			return finish(ctx, works[0])
		}
	case "tag":
		return func(ctx context.Context) error { return s.Transact(ctx, tag(ctx, machine, "x")) }
	case "new machine":
		return func(ctx context.Context) error {
			return s.Transact(ctx, func(q *model.Queries) error {
				_, err := q.NewMachine(ctx)
				return err
			})
		}
	}
	panic("unknown operation " + name)
}

// dump is everything that a database holds, but for what beats write.
func (l *lab) dump() map[string][]string {
	l.t.Helper()
	tables := []string{
		"sessions", "machines", "machine_state", "machine_provided", "machine_agent_started", "machine_agent_heartbeat", "machine_hardware_report", "machine_tags",
		"machine_holds", "work", "work_history", "audit_log", "limits", "limit_slots", "claims", "claim_machines", "projection",
	}
	all := map[string][]string{}
	for _, table := range tables {
		rows, err := l.db.Query(l.t.Context(), "SELECT x::text FROM "+table+" x ORDER BY 1")
		if err != nil {
			l.t.Fatal(err)
		}
		for rows.Next() {
			var row string
			if err := rows.Scan(&row); err != nil {
				l.t.Fatal(err)
			}
			all[table] = append(all[table], row)
		}
		if rows.Err() != nil {
			l.t.Fatal(rows.Err())
		}
	}
	return all
}

// withoutRevisions leaves out the machines' revisions: raising one for nothing shows something again, and does no harm.
func withoutRevisions(all map[string][]string) map[string]any {
	out := map[string]any{}
	for table, rows := range maps.All(all) {
		if table != "machine_state" {
			out[table] = rows
		}
	}
	return out
}

// The fence grows with each start on a machine, whatever the process: hardware refuses what comes with a lower one.
func TestFenceGrowsAcrossProcesses(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s := l.session()
	machine := provided(t, s, "1")
	var last int64
	var open []*bmdb.Work
	for i, p := range []model.Process{model.ProcessUnitTest1, model.ProcessAgentStart, model.ProcessUnitTest2, model.ProcessUnitTest1, model.ProcessAgentStart} {
		w := l.work(s, p, machine)
		if i == 4 {
			w.Cancel(ctx)
			works, err := batch(ctx, s, p, 1, machine)
			if err != nil || len(works) != 1 {
				t.Fatalf("batch start: %d works, %v", len(works), err)
			}
			w = works[0]
		}
		if w.Fence() <= last { // also while the others go on, in other slots
			t.Errorf("%s has fence %d after %d", p, w.Fence(), last)
		}
		last = w.Fence()
		if rev := l.int("SELECT rev FROM machine_state WHERE machine_id = $1", machine); rev != last {
			t.Errorf("fence %d, and the machine's revision is %d", last, rev)
		}
		open = append(open, w)
		if i >= 2 {
			for _, w := range open {
				w.Cancel(ctx)
			}
		}
	}
}

// Who failed to start a work may ask about it as about one that was lost.
func TestNoWorkMayBeginNoStep(t *testing.T) {
	t.Parallel()
	var none *bmdb.Work
	for what, err := range map[string]error{"check": none.Check(t.Context()), "checkpoint": none.Checkpoint(t.Context(), []byte("x"))} {
		if !errors.Is(err, bmdb.ErrWorkLost) {
			t.Errorf("%s of no work: %v, want ErrWorkLost", what, err)
		}
	}
}

// Whoever takes a machine over reads what the last worker was about to do.
func TestCheckpointIsHandedOver(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s, other := l.session(bmdb.WithoutBeat()), l.session()
	machine := provided(t, other, "1")
	w := l.work(s, model.ProcessAgentStart, machine)
	if w.PreviousCheckpoint() != nil {
		t.Errorf("a first work has the checkpoint %q", w.PreviousCheckpoint())
	}
	if err := w.Checkpoint(ctx, []byte("power off")); err != nil {
		t.Fatal(err)
	}
	l.expire(s.UUID)
	l.reap(l.another())
	works, err := batch(ctx, other, model.ProcessAgentStart, 1, machine)
	if err != nil || len(works) != 1 || string(works[0].PreviousCheckpoint()) != "power off" {
		t.Fatalf("works after the takeover: %v, %v", works, err)
	}
	if err := works[0].Fail(ctx, nil, "test"); err != nil {
		t.Fatal(err)
	}
	again := l.work(other, model.ProcessAgentStart, machine)
	if string(again.PreviousCheckpoint()) != "power off" || again.Attempt() != 2 {
		t.Errorf("after a failure: checkpoint %q, attempt %d", again.PreviousCheckpoint(), again.Attempt())
	}
	if err := again.Finish(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if c := l.work(other, model.ProcessAgentStart, machine).PreviousCheckpoint(); c != nil {
		t.Errorf("after a success: checkpoint %q", c)
	}
}

// After its time the context of a work is over, and the work can still be ended.
func TestTimeoutEndsTheContext(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.session()
	works, err := s.StartBatch(t.Context(), bmdb.StartRequest{
		Process: "AgentStart", Pool: "default", Provider: "Equinix", Candidates: []uuid.UUID{provided(t, s, "1")}, Limit: 1, Timeout: 10 * time.Millisecond,
	})
	if err != nil || len(works) != 1 {
		t.Fatalf("%d works, %v", len(works), err)
	}
	done(t, "the context to end", works[0].Context().Done())
	if cause := context.Cause(works[0].Context()); !errors.Is(cause, context.DeadlineExceeded) {
		t.Errorf("cause %v", cause)
	}
	if err := works[0].Check(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("check: %v", err)
	}
	if err := works[0].Fail(t.Context(), nil, "took too long"); err != nil {
		t.Errorf("fail: %v", err)
	}
}
