// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// lock is what porcupine is told about one slot of one machine: it is free, or held by a work.
type lock struct {
	machine uuid.UUID
	slot    string
}

// attempt is one operation on a lock, and what came of it.
type attempt struct {
	lock lock
	kind string // start, end, takeover
	work uuid.UUID
	ok   bool // false: refused, because the lock is held (start), or is not this work's (end)
}

var lockModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := map[lock][]porcupine.Operation{}
		for _, op := range history {
			l := op.Input.(attempt).lock
			parts[l] = append(parts[l], op)
		}
		var all [][]porcupine.Operation
		for _, p := range parts {
			all = append(all, p)
		}
		return all
	},
	Init: func() any { return uuid.Nil },
	Step: func(state, input, _ any) (bool, any) {
		holder, op := state.(uuid.UUID), input.(attempt)
		switch {
		case op.kind == "start" && op.ok:
			return holder == uuid.Nil, op.work
		case op.kind == "start":
			return holder != uuid.Nil, holder
		case op.ok:
			return holder == op.work, uuid.Nil
		default:
			return holder != op.work, holder
		}
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
}

// stress is a number of programs that work on a few machines while they are killed and their connections are cut.
type stress struct {
	*lab
	began    time.Time
	machines []uuid.UUID

	mu      sync.Mutex
	history []porcupine.Operation
	unknown []porcupine.Operation             // ends whose outcome their caller was not told
	ended   map[uuid.UUID][2]int64            // sessions, and when they were ended by somebody
	lost    map[starter][]porcupine.Operation // starts whose outcome their caller was not told, in their order
	known   map[uuid.UUID]bool                // works that somebody was told of
	client  atomic.Int64
	cutting []*proxy
}

// starter is who wanted a lock. A session tries one after the other.
type starter struct {
	session uuid.UUID
	lock    lock
}

func (s *stress) now() int64 { return int64(time.Since(s.began)) }

func (s *stress) record(call int64, a attempt) porcupine.Operation {
	op := porcupine.Operation{ClientId: int(s.client.Add(1)), Input: a, Call: call, Return: s.now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history = append(s.history, op)
	if a.work != uuid.Nil {
		s.known[a.work] = true
	}
	return op
}

// open is an operation whose outcome is not known, and which may yet take place.
func (s *stress) open(call int64, a attempt) porcupine.Operation {
	return porcupine.Operation{ClientId: int(s.client.Add(1)), Input: a, Call: call, Return: math.MaxInt64}
}

// worker is one program. Its session is ended by others now and then, and it starts another.
func (s *stress) worker(ctx context.Context, conn *bmdb.Connection, sessions chan *bmdb.Session, turns int) {
	processes := map[model.Process]string{"left": "l", "right": "r", "right too": "r"}
	names := []model.Process{"left", "right", "right too"}
	var session *bmdb.Session
	fresh := func() {
		var err error
		if session, err = conn.StartSession(ctx, bmdb.WithoutMaintenance(), bmdb.WithoutBeat()); err != nil {
			s.t.Errorf("start session: %v", err)
			return
		}
		sessions <- session
	}
	fresh()
	defer func() { // it stays open for others to end
		s.t.Cleanup(func() {
			if err := session.Close(context.Background()); err != nil {
				s.t.Errorf("close: %v", err)
			}
		})
	}()
	for range turns {
		process, machine := names[rand.IntN(len(names))], s.machines[rand.IntN(len(s.machines))]
		at := lock{machine, processes[process]}
		call := s.now()
		var work *bmdb.Work
		var err error
		// A batch that started nothing may be on its way still, if its connection was cut: it did not find what it had started.
		batched := rand.IntN(2) == 0
		if !batched {
			work, err = session.Work(ctx, process, constantly(machine))
		} else {
			var works []*bmdb.Work
			if works, err = batch(ctx, session, process, 1, machine); len(works) == 1 {
				work = works[0]
			}
		}
		switch {
		case work != nil:
			s.record(call, attempt{lock: at, kind: "start", work: work.ID(), ok: true})
			s.end(ctx, at, work)
		case errors.Is(err, bmdb.ErrWorkConflict):
			s.record(call, attempt{lock: at, kind: "start"})
		case errors.Is(err, bmdb.ErrAmbiguous), batched && err == nil:
			by := starter{session.UUID, at}
			s.mu.Lock()
			s.lost[by] = append(s.lost[by], s.open(call, attempt{lock: at, kind: "start"}))
			s.mu.Unlock()
		case errors.Is(err, bmdb.ErrSessionExpired):
		case err != nil && !errors.Is(err, bmdb.ErrNothingToDo):
			s.t.Errorf("start: %v", err)
		}
		if errors.Is(err, bmdb.ErrSessionExpired) || rand.IntN(20) == 0 {
			call := s.now()
			if err := session.Close(ctx); err != nil {
				s.t.Logf("close: %v", err) // the connection was cut; others end what is left
			}
			s.closed(session.UUID, call)
			fresh()
		}
	}
}

func (s *stress) closed(session uuid.UUID, call int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if times, ok := s.ended[session]; ok { // by whom is not known: by both
		s.ended[session] = [2]int64{min(times[0], call), max(times[1], s.now())}
		return
	}
	s.ended[session] = [2]int64{call, s.now()}
}

// end ends a work in some way, and perhaps again.
func (s *stress) end(ctx context.Context, at lock, work *bmdb.Work) {
	names := []string{bmdb.EventFinished, bmdb.EventFinished + " data", bmdb.EventFailed}
	since := s.now()
	for range 1 + rand.IntN(2) {
		call := s.now()
		var err error
		switch names[rand.IntN(len(names))] {
		case bmdb.EventFinished:
			err = work.Finish(ctx, agentOf(ctx, work))
		case bmdb.EventFailed:
			err = work.Fail(ctx, nil, "test")
		default:
			err = work.FinishData(ctx, bmdb.Outcome{AgentPublicKey: keyOf(work)})
		}
		switch {
		case err == nil: // now, or at an earlier try whose outcome was not known
			s.record(since, attempt{lock: at, kind: "end", work: work.ID(), ok: true})
		case errors.Is(err, bmdb.ErrWorkLost):
			s.record(call, attempt{lock: at, kind: "end", work: work.ID()})
		case errors.Is(err, bmdb.ErrAmbiguous):
			s.mu.Lock()
			s.unknown = append(s.unknown, s.open(call, attempt{lock: at, kind: "end", work: work.ID(), ok: true}))
			s.mu.Unlock()
		default:
			s.t.Errorf("end: %v", err)
		}
	}
}

// reaper ends sessions that are alive, as it is when their lease runs out while they are suspended.
func (s *stress) reaper(ctx context.Context, conn *bmdb.Connection, sessions chan *bmdb.Session) {
	for session := range sessions {
		if rand.IntN(2) == 0 {
			continue
		}
		call := s.now()
		if s.exec("UPDATE session_leases SET deadline = clock_timestamp() - interval '1 hour' WHERE session_id = $1", session.UUID) == 0 {
			continue
		}
		chores := bmdb.NewChores(conn)
		for range 2 {
			if err := chores.Reap(ctx); err != nil {
				s.t.Logf("reap: %v", err)
			}
			chores.Watch()
		}
		if err := chores.Sweep(ctx); err != nil {
			s.t.Logf("sweep: %v", err)
		}
		s.closed(session.UUID, call)
	}
}

// settle adds what the database says of what nobody was told: ends by others, and outcomes that were ambiguous. The latter may have
// taken place at any time after they were asked for.
func (s *stress) settle() {
	s.t.Helper()
	type row struct {
		Machine, Work, Session uuid.UUID
		Slot, Event            string
	}
	rows, err := s.db.Query(s.t.Context(), `SELECT h.machine_id, h.work_id, h.session_id, p.slot, h.event FROM work_history h JOIN processes p ON p.process = h.process ORDER BY h.fence, h.phase`)
	if err != nil {
		s.t.Fatal(err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		s.t.Fatal(err)
	}
	ended := map[uuid.UUID]string{}
	for _, e := range events {
		at := lock{e.Machine, e.Slot}
		switch e.Event {
		case bmdb.EventStarted:
			if s.known[e.Work] {
				continue
			}
			// Of several it may be any: the first was called before it.
			lost := s.lost[starter{e.Session, at}]
			if len(lost) == 0 {
				s.t.Errorf("nobody started work %s", e.Work)
				continue
			}
			lost[0].Input = attempt{lock: at, kind: "start", work: e.Work, ok: true}
			s.history, s.lost[starter{e.Session, at}] = append(s.history, lost[0]), lost[1:]
		case bmdb.EventLost, bmdb.EventReleased:
			times, ok := s.ended[e.Session]
			if !ok {
				s.t.Errorf("work %s ended as %s, and nobody ended its session", e.Work, e.Event)
			}
			s.history = append(s.history, porcupine.Operation{
				ClientId: int(s.client.Add(1)), Call: times[0], Return: times[1], Input: attempt{lock: at, kind: "takeover", work: e.Work, ok: true},
			})
		default:
			ended[e.Work] = e.Event
		}
	}
	told := map[uuid.UUID]bool{}
	for _, op := range s.history {
		if a := op.Input.(attempt); a.kind == "end" && a.ok {
			told[a.work] = true
		}
	}
	for _, op := range s.unknown {
		if a := op.Input.(attempt); ended[a.work] != "" && !told[a.work] {
			told[a.work] = true
			s.history = append(s.history, op)
		}
	}
}

// The histories of all locks are those of locks: whatever happened could have happened one after another, each operation between its
// call and its answer, while sessions die and connections break at their commits.
func TestLockHistoriesAreLinearizable(t *testing.T) {
	t.Parallel()
	const programs, turns, machines = 6, 60, 3
	s := &stress{lab: newLab(t), began: time.Now(), ended: map[uuid.UUID][2]int64{}, lost: map[starter][]porcupine.Operation{}, known: map[uuid.UUID]bool{}}
	s.process("left", "l", []string{"Provided"}, nil, nil, nil)
	s.process("right", "r", []string{"Provided"}, nil, []string{"x"}, nil)
	s.process("right too", "r", []string{"Provided"}, nil, nil, []string{"x"})
	s.limit("Equinix", 5)
	helper := s.session()
	for i := range machines {
		s.machines = append(s.machines, provided(t, helper, fmt.Sprint(i)))
	}
	ctx := context.WithoutCancel(t.Context())
	sessions := make(chan *bmdb.Session, 1000)
	var workers, reapers sync.WaitGroup
	// No lease ends by itself: the test says who ended which session, and when.
	quiet := func(c *bmdb.Config) { c.Lease, c.Logger = time.Hour, nil }
	for range programs {
		p := newProxy(t, s.url)
		s.cutting = append(s.cutting, p)
		conn := bmdbtest.Open(t, p.url, quiet)
		workers.Go(func() { s.worker(ctx, conn, sessions, turns) })
	}
	for range 2 {
		conn := s.another(quiet)
		reapers.Go(func() { s.reaper(ctx, conn, sessions) })
	}
	over := make(chan struct{})
	reapers.Go(func() { // cuts every now and then
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
				s.cutting[rand.IntN(len(s.cutting))].next.Store(int32(beforeCommit) + rand.Int32N(2))
			}
		}
	})
	// What may be said at any moment.
	for busy := true; busy; {
		finished := make(chan struct{})
		go func() { workers.Wait(); close(finished) }()
		select {
		case <-finished:
			busy = false
		case <-time.After(100 * time.Millisecond):
		}
		for _, v := range findViolations(t, s.db) {
			t.Errorf("meanwhile: %s", v)
		}
	}
	close(sessions)
	close(over)
	reapers.Wait()
	for _, p := range s.cutting {
		p.next.Store(int32(never))
	}
	// Peace: what nobody ended is ended by those who find it.
	call := s.now()
	s.exec("UPDATE session_leases SET deadline = clock_timestamp() - interval '1 hour' WHERE session_id <> $1", helper.UUID)
	var open []uuid.UUID
	if err := s.db.QueryRow(ctx, "SELECT COALESCE(array_agg(session_id), ARRAY[]::uuid[]) FROM session_leases WHERE session_id <> $1", helper.UUID).Scan(&open); err != nil {
		t.Fatal(err)
	}
	s.reap(s.conn)
	if err := bmdb.NewChores(s.conn).Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	for _, id := range open {
		s.closed(id, call)
	}
	if n := s.int("SELECT count(*) FROM work WHERE work_id IS NOT NULL") + s.int("SELECT count(*) FROM limit_slots WHERE work_id IS NOT NULL"); n != 0 {
		t.Errorf("%d works and slots are left over", n)
	}
	checkInvariants(t, s.db)
	s.settle()
	cuts := int64(0)
	for _, p := range s.cutting {
		cuts += p.cuts.Load()
	}
	t.Logf("%d operations, %d cuts, %d sessions ended", len(s.history), cuts, len(s.ended))
	if cuts == 0 || len(s.history) < programs*turns/2 {
		t.Error("nothing was put to the test")
	}
	result, info := porcupine.CheckOperationsVerbose(lockModel, s.history, 2*time.Minute)
	if result != porcupine.Ok {
		path := t.ArtifactDir() + "/history.html"
		if err := porcupine.VisualizePath(lockModel, info, path); err != nil {
			t.Log(err)
		}
		t.Errorf("the histories of the locks are %s; see %s", result, path)
	}
}
