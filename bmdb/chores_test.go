// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// The sweep finds works of sessions that are over, whoever ended them and got no further.
func TestSweepEndsWorksOfEndedSessions(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	dead, other := l.session(bmdb.WithoutBeat()), l.session()
	w, alive := l.work(dead, model.ProcessAgentStart, provided(t, other, "1")), l.work(other, model.ProcessAgentStart, provided(t, other, "2"))
	l.exec("DELETE FROM session_leases WHERE session_id = $1", dead.UUID)
	l.exec("UPDATE sessions SET session_ended_at = clock_timestamp() WHERE session_id = $1", dead.UUID)
	if err := bmdb.NewChores(l.another()).Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := l.end(w.ID()); got != bmdb.EventLost {
		t.Errorf("the dead session's work ended as %q", got)
	}
	if got := l.end(alive.ID()); got != "" {
		t.Errorf("a living session's work ended as %q", got)
	}
	if got := l.state(w.Machine, model.ProcessAgentStart); got != ready {
		t.Errorf("its machine has state %d", got)
	}
	checkInvariants(t, l.db)
}

// The sweep finds works that a living program forgot, but gives it time to end them itself.
func TestSweepEndsWorksPastTheirDeadline(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.session()
	started := func(id string) *bmdb.Work {
		works, err := s.StartBatch(t.Context(), bmdb.StartRequest{
			Process: "AgentStart", Pool: "default", Provider: "Equinix", Candidates: []uuid.UUID{provided(t, s, id)}, Limit: 1, Timeout: time.Minute,
		})
		if err != nil || len(works) != 1 {
			t.Fatalf("%d works, %v", len(works), err)
		}
		return works[0]
	}
	forgotten, late, open := started("1"), started("2"), l.work(s, model.ProcessAgentStart, provided(t, s, "3"))
	if n := l.int("SELECT count(*) FROM work WHERE deadline > clock_timestamp() + interval '1 minute'"); n != 2 {
		t.Errorf("%d works have a deadline after their timeout, want 2", n)
	}
	l.exec("UPDATE work SET deadline = clock_timestamp() - interval '1 hour' WHERE work_id = $1", forgotten.ID())
	l.exec("UPDATE work SET deadline = clock_timestamp() - interval '1 second' WHERE work_id = $1", late.ID())
	if err := bmdb.NewChores(l.another()).Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for w, want := range map[*bmdb.Work]string{forgotten: bmdb.EventLost, late: "", open: ""} {
		if got := l.end(w.ID()); got != want {
			t.Errorf("ended as %q, want %q", got, want)
		}
	}
	if err := forgotten.Finish(t.Context(), nil); !errors.Is(err, bmdb.ErrWorkLost) {
		t.Errorf("finish of a work that was swept: %v", err)
	}
	checkInvariants(t, l.db)
}

// The sweep frees slots of limits that name no work.
func TestSweepFreesLostSlots(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.session()
	l.limit("Equinix", 3)
	w := l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
	l.exec("UPDATE limit_slots SET work_id = $1 WHERE n = 3", uuid.New())
	if err := bmdb.NewChores(l.another()).Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := l.int("SELECT count(*) FROM limit_slots WHERE work_id IS NOT NULL"); n != 1 || l.int("SELECT count(*) FROM limit_slots WHERE work_id = $1", w.ID()) != 1 {
		t.Errorf("%d slots are taken, want the one of the work", n)
	}
	checkInvariants(t, l.db)
}

// A slot that was found lost, and is somebody's by the time that it is freed, stays his.
func TestSweepDoesNotFreeASlotTakenMeanwhile(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s := l.session()
	l.limit("Equinix", 1)
	machine := provided(t, s, "1")
	l.exec("UPDATE limit_slots SET work_id = $1", uuid.New()) // lost
	tx, err := l.db.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx) //nolint:errcheck // it is committed where all is well
	// Another sweep, and then a start, before this sweep gets the row.
	if _, err := tx.Exec(ctx, "UPDATE limit_slots SET work_id = NULL"); err != nil {
		t.Fatal(err)
	}
	swept := make(chan error, 1)
	sweeper := bmdb.NewChores(l.another(named("sweeper")))
	go func() { swept <- sweeper.Sweep(ctx) }()
	eventually(t, "the sweep to wait for the slot", func() bool { return l.blocked("sweeper") })
	work := uuid.New()
	for _, sql := range []string{
		"UPDATE machine_state SET rev = rev + 1 WHERE machine_id = $2 AND $1::uuid IS NOT NULL AND $3::uuid IS NOT NULL",
		"UPDATE limit_slots SET work_id = $1 WHERE $2::uuid IS NOT NULL AND $3::uuid IS NOT NULL",
		"UPDATE work SET state = 3, work_id = $1, session_id = $3, fence = 2, started_at = clock_timestamp() WHERE machine_id = $2 AND process = 'AgentStart'",
		`INSERT INTO work_history SELECT machine_id, $1, 0, process, 'Started', clock_timestamp(), NULL, $3, pool, '', fence, 1, 0, '' FROM work WHERE machine_id = $2 AND process = 'AgentStart'`,
	} {
		if _, err := tx.Exec(ctx, sql, work, machine, s.UUID); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := done(t, "the sweep", swept); err != nil {
		t.Fatal(err)
	}
	if n := l.int("SELECT count(*) FROM limit_slots WHERE work_id = $1", work); n != 1 {
		t.Error("the sweep freed a slot that somebody had taken")
	}
	checkInvariants(t, l.db)
}

// I7: with any number of starts at once there are never more works than the limit, and every end frees its slot.
func TestLimitsAreExact(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(l *lab, s *bmdb.Session, machines []uuid.UUID) int{
		"general": func(l *lab, s *bmdb.Session, machines []uuid.UUID) int {
			w, err := s.Work(l.t.Context(), model.ProcessAgentStart, constantly(machines...))
			if err != nil && !errors.Is(err, bmdb.ErrNothingToDo) && !errors.Is(err, bmdb.ErrWorkConflict) {
				l.t.Errorf("start: %v", err)
			}
			if w == nil {
				return 0
			}
			return 1
		},
		"batch": func(l *lab, s *bmdb.Session, machines []uuid.UUID) int {
			works, err := batch(l.t.Context(), s, model.ProcessAgentStart, 3, machines...)
			if err != nil {
				l.t.Errorf("start: %v", err)
			}
			return len(works)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			s := l.session()
			const limit, machines, workers = 4, 12, 6
			l.limit("Equinix", limit)
			var all []uuid.UUID
			for i := range machines {
				all = append(all, provided(t, s, fmt.Sprint(i)))
			}
			results := make(chan int, workers)
			for i := range workers {
				go func() { results <- start(l, s, all[2*i:2*i+2]) }()
			}
			for range workers {
				done(t, "a start", results)
			}
			for range 20 { // what was passed over because somebody else looked at it
				start(l, s, all)
				if n := l.int("SELECT count(*) FROM work WHERE work_id IS NOT NULL"); n > limit {
					t.Fatalf("%d works, and the limit is %d", n, limit)
				}
			}
			if n := l.int("SELECT count(*) FROM work WHERE work_id IS NOT NULL"); n != limit {
				t.Errorf("%d works, want the limit of %d", n, limit)
			}
			checkInvariants(t, l.db)
			// Lowered: nothing starts until enough have ended.
			l.exec("UPDATE limit_slots SET open = n <= 1")
			closeSession(t, s)
			if n := l.int("SELECT count(*) FROM limit_slots WHERE work_id IS NOT NULL"); n != 0 {
				t.Errorf("%d slots are taken after all works have ended", n)
			}
			next := l.session()
			for range 5 {
				start(l, next, all)
			}
			if n := l.int("SELECT count(*) FROM work WHERE work_id IS NOT NULL"); n != 1 {
				t.Errorf("%d works under a limit that was lowered to 1", n)
			}
			checkInvariants(t, l.db)
		})
	}
}

// Every kind of end frees the slot of its work.
func TestEveryEndFreesItsSlot(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.limit("Equinix", 1)
	s := l.session()
	for name, end := range ends {
		w := l.work(s, model.ProcessUnitTest1, provided(t, s, name))
		if n := l.int("SELECT count(*) FROM limit_slots WHERE work_id = $1", w.ID()); n != 1 {
			t.Fatalf("%s: the work has %d slots", name, n)
		}
		if err := end(t.Context(), w); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := l.int("SELECT count(*) FROM limit_slots WHERE work_id IS NOT NULL"); n != 0 {
			t.Errorf("%s: the slot is still taken", name)
		}
	}
}
