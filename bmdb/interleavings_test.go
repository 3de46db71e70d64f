// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// Every operation of one session is stopped before every one of its statements, while every operation of another session on the same
// machine runs to its end, or until it waits for the first. Afterwards everything must be as if one had come after the other. Which
// statements there are is asked of the operations themselves.

// move is an operation, by one of two sides of a scene.
type move struct {
	name string
	// holds: the side works on the machine to begin with.
	holds bool
	// silent: it is one statement of its own, so that there is nothing to stop before.
	silent bool
	play   func(ctx context.Context, s *scene, me *side) error
}

// side is one of the two sessions, and the program that it belongs to.
type side struct {
	conn    *bmdb.Connection
	session *bmdb.Session
	process model.Process // what it works on, in a slot of its own
	work    *bmdb.Work    // what it holds to begin with
	started *bmdb.Work    // what it has started
	other   *side
	chores  *bmdb.Chores
	name    string
}

// scene is a machine and two sides.
type scene struct {
	lane    *lane
	machine uuid.UUID
	first   side
	second  side
}

// contested is the process that both sides start.
const contested = model.ProcessAgentStart

func moves() []move {
	end := func(name string) move {
		return move{name: name, holds: true, play: func(ctx context.Context, _ *scene, me *side) error { return ends[name](ctx, me.work) }}
	}
	return []move{
		{name: "start", play: func(ctx context.Context, s *scene, me *side) (err error) {
			me.started, err = me.session.Work(ctx, contested, func(q *model.Queries) ([]uuid.UUID, error) {
				_, err := q.GetMachineTags(ctx, s.machine) // a closure that reads
				return []uuid.UUID{s.machine}, err
			})
			return err
		}},
		{name: "start batch", play: func(ctx context.Context, s *scene, me *side) error {
			works, err := batch(ctx, me.session, contested, 1, s.machine)
			if len(works) == 1 {
				me.started = works[0]
			}
			return err
		}},
		end(bmdb.EventFinished), end(bmdb.EventFinished + " data"), end(bmdb.EventFailed), end(bmdb.EventCanceled),
		{name: "tag", play: func(ctx context.Context, s *scene, me *side) error {
			return me.session.Transact(ctx, tag(ctx, s.machine, me.name))
		}},
		{name: "hold", play: func(ctx context.Context, s *scene, me *side) error {
			return hold(ctx, me.conn, me.name, s.machine)
		}},
		{name: "beat", silent: true, play: func(ctx context.Context, _ *scene, me *side) error {
			return errors.Join(me.session.Beat(ctx), me.other.session.Beat(ctx))
		}},
		{name: "reap", play: func(ctx context.Context, s *scene, me *side) error {
			if alive, err := s.lane.expire(ctx, me.other.session.UUID); err != nil || !alive {
				return err // it has closed
			}
			if err := me.chores.Reap(ctx); err != nil {
				return err
			}
			me.chores.Watch(me.other.session.UUID) // other scenes are no concern of this one
			return me.chores.Reap(ctx)
		}},
		{name: "close", holds: true, play: func(ctx context.Context, _ *scene, me *side) error { return me.session.Close(ctx) }},
	}
}

// lane plays scenes one after another.
type lane struct {
	l        *lab
	t        *testing.T
	first    *bmdb.Connection
	second   *bmdb.Connection
	name     string    // of the second program, in the database's list of connections
	db       *pgx.Conn // known to the database by the same name
	retries  *retries  // of the second program
	again    *retries  // of the first
	armed    atomic.Pointer[stop]
	finished int
}

// stop stops the first side at a boundary, once, and otherwise writes down what it sees. A transaction that is tried again comes to
// the same boundaries again.
type stop struct {
	mu      sync.Mutex
	at      *bmdb.Boundary
	seen    []bmdb.Boundary
	reached chan struct{}
	open    chan struct{}
}

func (a *lane) hook(ctx context.Context, at bmdb.Boundary) error {
	s := a.armed.Load()
	if s == nil {
		return nil
	}
	s.mu.Lock()
	here := s.at != nil && *s.at == at
	if here {
		s.at = nil
	}
	s.seen = append(s.seen, at)
	s.mu.Unlock()
	if !here {
		return nil
	}
	close(s.reached)
	select {
	case <-s.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func newLane(t *testing.T, l *lab, isolation string, n int) *lane {
	t.Helper()
	a := &lane{l: l, t: t, name: fmt.Sprintf("second %s %d", isolation, n), retries: newRetries(), again: newRetries()}
	quiet := func(c *bmdb.Config) { c.Lease, c.ForceIsolation, c.Logger = time.Minute, isolation, nil }
	a.first = bmdbtest.Open(t, l.url, quiet, func(c *bmdb.Config) { c.BeforeStatement, c.Observer = a.hook, a.again })
	a.second = bmdbtest.Open(t, l.url, quiet, named(a.name), func(c *bmdb.Config) { c.Observer = a.retries })
	config, err := pgx.ParseConfig(l.url)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["application_name"] = "bmdb " + a.name
	if a.db, err = pgx.ConnectConfig(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.db.Close(context.Background()) })
	return a
}

// expire tells whether the session still had a lease.
func (a *lane) expire(ctx context.Context, session uuid.UUID) (bool, error) {
	tag, err := a.db.Exec(ctx, "UPDATE session_leases SET deadline = clock_timestamp() - interval '1 hour' WHERE session_id = $1", session)
	return tag.RowsAffected() == 1, err
}

// setUp makes a scene for two moves.
func (a *lane) setUp(first, second move) *scene {
	a.t.Helper()
	ctx := a.t.Context()
	s := &scene{lane: a}
	s.first = side{conn: a.first, process: "first", other: &s.second, name: "first", chores: bmdb.NewChores(a.first)}
	s.second = side{conn: a.second, process: "second", other: &s.first, name: "second", chores: bmdb.NewChores(a.second)}
	for _, me := range []*side{&s.first, &s.second} {
		var err error
		if me.session, err = me.conn.StartSession(context.WithoutCancel(ctx), bmdb.WithoutMaintenance(), bmdb.WithoutBeat()); err != nil {
			a.t.Fatal(err)
		}
	}
	s.machine = provided(a.t, s.second.session, uuid.NewString())
	// A side that holds nothing has nothing that its end would have to wait for the other with.
	if first.holds { // what both want to start, so that its end makes room
		s.first.process = contested
		s.first.work = a.l.work(s.first.session, s.first.process, s.machine)
	}
	if second.holds || first.name == "reap" {
		s.second.work = a.l.work(s.second.session, s.second.process, s.machine)
	}
	return s
}

// tearDown ends both sessions, and looks again: nothing may be left over.
func (a *lane) tearDown(s *scene) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.t.Context()), patience)
	defer cancel()
	for _, me := range []*side{&s.first, &s.second} {
		if err := me.session.Close(ctx); err != nil {
			a.t.Errorf("close: %v", err)
		}
	}
}

// play plays a scene in which first is stopped at a boundary, or at none if it is nil. It returns the boundaries that first came to.
func (a *lane) play(first, second move, at *bmdb.Boundary) []bmdb.Boundary {
	t := a.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := a.setUp(first, second)
	what := first.name + " alone"
	if at != nil {
		what = fmt.Sprintf("%s before %s (%d) of %s, %s", first.name, at.Statement, at.Index, at.Operation, second.name)
	}
	stop := &stop{at: at, reached: make(chan struct{}), open: make(chan struct{})}
	a.armed.Store(stop)
	var firstErr, secondErr error
	firstDone, secondDone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(firstDone)
		firstErr = first.play(ctx, s, &s.first)
	}()
	secondFirst := false // the second move was over before the first went on
	select {
	case <-stop.reached:
		for _, r := range []*retries{a.retries, a.again} {
			select {
			case <-r.at:
			default:
			}
		}
		go func() {
			defer close(secondDone)
			secondErr = second.play(ctx, s, &s.second)
		}()
		secondFirst = a.await(ctx, secondDone)
		close(stop.open)
		<-secondDone
	case <-firstDone:
		if at != nil {
			t.Errorf("%s: never came there", what)
		}
	}
	<-firstDone
	a.armed.Store(nil)
	if at != nil {
		a.judge(what, s, first, second, firstErr, secondErr, secondFirst, *at)
		a.finished++
	} else if firstErr != nil {
		t.Errorf("%s: %v", what, firstErr)
	}
	a.tearDown(s)
	for _, v := range append(findViolations(t, a.l.db, s.machine), a.leftOver(s)...) {
		t.Errorf("%s, in the end: %s", what, v)
	}
	return stop.seen
}

// await waits until the second side is done, or can get no further before the first goes on.
func (a *lane) await(ctx context.Context, over chan struct{}) bool {
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case <-over:
			return true
		case <-a.retries.at: // it runs against what the first has not committed yet
			return false
		case <-ctx.Done():
			return false
		case <-poll.C:
			if a.l.blocked(a.name) {
				return false
			}
		}
	}
}

// judge compares what the sides were told with what is there.
func (a *lane) judge(what string, s *scene, first, second move, firstErr, secondErr error, secondFirst bool, at bmdb.Boundary) {
	t := a.t
	t.Helper()
	for _, v := range findViolations(t, a.l.db, s.machine) {
		t.Errorf("%s: %s", what, v)
	}
	for _, m := range []struct {
		move
		me  *side
		err error
	}{{first, &s.first, firstErr}, {second, &s.second, secondErr}} {
		for _, allowed := range []error{bmdb.ErrWorkConflict, bmdb.ErrNothingToDo, bmdb.ErrSessionExpired, bmdb.ErrWorkLost} {
			if errors.Is(m.err, allowed) && m.name != "hold" && m.name != "reap" && m.name != "close" {
				goto explained
			}
		}
		if m.err != nil {
			t.Errorf("%s: %s: %v", what, m.name, m.err)
		}
	explained:
		if _, isEnd := ends[m.name]; isEnd {
			got := a.l.end(m.me.work.ID())
			lost := got == bmdb.EventLost || got == bmdb.EventReleased
			told := m.err == nil && m.name != bmdb.EventCanceled // Cancel tells nothing
			if told && got != eventOf(m.name) || got != eventOf(m.name) && !lost || errors.Is(m.err, bmdb.ErrWorkLost) && !lost {
				t.Errorf("%s: %s was told %v, and the work ended as %q", what, m.name, m.err, got)
			}
		}
		if m.name == "tag" && m.err == nil && a.l.int("SELECT count(*) FROM machine_tags WHERE machine_id = $1 AND tag = $2", s.machine, m.me.name) != 1 {
			t.Errorf("%s: the tag is not there", what)
		}
	}
	if n := a.l.int(`SELECT count(*) FROM work w JOIN sessions s ON s.session_id = w.session_id
		WHERE w.work_id IS NOT NULL AND s.session_ended_at IS NOT NULL AND w.machine_id = $1`, s.machine); n != 0 {
		t.Errorf("%s: %d works of sessions that are over", what, n)
	}
	starts := []string{"start", "start batch"}
	if slices.Contains(starts, first.name) && slices.Contains(starts, second.name) && (s.first.started == nil) == (s.second.started == nil) {
		t.Errorf("%s: started %v and %v, want one of them", what, s.first.started != nil, s.second.started != nil)
	}
	// A hold that was committed before the start looked at the machine.
	decisive := []string{"Gate", "GetMachineTags", "StartOne", "StartBatch"}
	if second.name == "hold" && secondFirst && slices.Contains(decisive, at.Statement) && s.first.started != nil {
		t.Errorf("%s: started on a machine that was held", what)
	}
	select {
	case <-a.again.at: // the hold was tried again, and the start came between
	default:
		if first.name == "hold" && s.second.started != nil && !secondFirst {
			t.Errorf("%s: waited for the hold, and started", what)
		}
	}
	// A session that was over before the start came to its gate.
	if (second.name == "reap") && secondFirst && slices.Contains([]string{"Gate", "StartBatch"}, at.Statement) && s.first.started != nil {
		t.Errorf("%s: started under a session that was over", what)
	}
}

// leftOver is what may not be there once both sessions are over.
func (a *lane) leftOver(s *scene) (found []string) {
	for what, sql := range map[string]string{
		"works of sessions that are over": "SELECT count(*) FROM work WHERE work_id IS NOT NULL AND session_id IN ($1, $2)",
		"leases":                          "SELECT count(*) FROM session_leases WHERE session_id IN ($1, $2)",
		"sessions that go on":             "SELECT count(*) FROM sessions WHERE session_id IN ($1, $2) AND session_ended_at IS NULL",
	} {
		if n := a.l.int(sql, s.first.session.UUID, s.second.session.UUID); n != 0 {
			found = append(found, fmt.Sprintf("%d %s", n, what))
		}
	}
	return found
}

func TestInterleavings(t *testing.T) {
	t.Parallel()
	const lanes = 3
	for _, isolation := range []string{"", "SERIALIZABLE"} {
		name := isolation
		if name == "" {
			name = "READ COMMITTED and REPEATABLE READ"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			// Deadlocks are part of it.
			l.exec("DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET deadlock_timeout = ''20ms'''; END $$")
			l.limit("Equinix", 100)
			for _, p := range []string{"first", "second"} {
				l.process(p, p, []string{"Provided"}, nil, nil, nil)
			}
			l.process("both", "both", []string{"first", "second"}, nil, nil, nil)
			// What each operation's statements are.
			type scenery struct {
				first, second move
				at            bmdb.Boundary
			}
			var all []scenery
			dry := newLane(t, l, isolation, 0)
			for _, first := range moves() {
				if first.silent {
					continue
				}
				boundaries := slices.Compact(dry.play(first, move{}, nil))
				if len(boundaries) < 2 {
					t.Errorf("%s has only %d statements", first.name, len(boundaries))
				}
				for _, at := range boundaries {
					for _, second := range moves() {
						all = append(all, scenery{first, second, at})
					}
				}
			}
			// Scenes wait for the database more than they work.
			var next atomic.Int64
			var wg sync.WaitGroup
			played := make([]*lane, lanes)
			for i := range lanes {
				played[i] = newLane(t, l, isolation, i+1)
				wg.Go(func() {
					for !t.Failed() {
						n := int(next.Add(1)) - 1
						if n >= len(all) {
							return
						}
						played[i].play(all[n].first, all[n].second, new(all[n].at))
					}
				})
			}
			wg.Wait()
			finished := 0
			for _, a := range played {
				finished += a.finished
			}
			if finished != len(all) && !t.Failed() {
				t.Errorf("played %d of %d scenes", finished, len(all))
			}
			t.Logf("played %d scenes", finished)
		})
	}
}
