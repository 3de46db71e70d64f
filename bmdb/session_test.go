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

// Everything that a takeover waits for is under twice the lease, and a holder gives up before anyone may end its session.
func TestLeaseArithmetic(t *testing.T) {
	t.Parallel()
	for _, length := range []time.Duration{time.Second, 3 * time.Second, 5 * time.Second, 15 * time.Second, time.Minute, 10 * time.Minute} {
		for _, offset := range []time.Duration{0, 500 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s offset %s", length, offset), func(t *testing.T) {
				t.Parallel()
				l := bmdb.TimesOf(length, offset)
				// A lease shorter than three seconds is for tests of one node.
				if (length >= 3*time.Second || offset == 0) && l.Takeover >= 2*length {
					t.Errorf("a takeover may take %s, which is not under twice the lease", l.Takeover)
				}
				if sum := length + l.Grace + 2*l.Poll + l.Idle; l.Takeover < sum {
					t.Errorf("a takeover of %s leaves something out: lease, grace, two polls and a closure of the dead are %s", l.Takeover, sum)
				}
				if l.Trusted != length-l.Margin || l.Trusted >= length {
					t.Errorf("the holder trusts its session for %s of %s", l.Trusted, length)
				}
				if l.Beat*3 > l.Trusted {
					t.Errorf("two lost beats of %s end a session that is trusted for %s", l.Beat, l.Trusted)
				}
				if l.Watch > length {
					t.Errorf("watching takes %s, longer than the lease", l.Watch)
				}
				if l.Grace < offset {
					t.Errorf("grace of %s is under the clocks' offset", l.Grace)
				}
			})
		}
	}
}

// An error of the database is not the end of a session: the first one ended the original's.
func TestFirstTransientErrorDoesNotEndSession(t *testing.T) {
	t.Parallel()
	l := newLab(t, named("beating"))
	s := l.session(bmdb.WithoutBeat())
	if err := s.Beat(t.Context()); err != nil {
		t.Fatalf("beat: %v", err)
	}
	// The next beat finds its table gone, one after that finds it again.
	l.exec("ALTER TABLE session_leases RENAME TO elsewhere")
	for range 3 {
		if err := s.Beat(t.Context()); err == nil || errors.Is(err, bmdb.ErrSessionExpired) {
			t.Errorf("beat while the database has no leases: %v, want another error", err)
		}
	}
	if s.Expired() {
		t.Error("an error ended the session")
	}
	l.exec("ALTER TABLE elsewhere RENAME TO session_leases")
	if err := s.Beat(t.Context()); err != nil {
		t.Errorf("beat after the errors: %v", err)
	}
}

// The same, by the loop that beats: connections break under it.
func TestSessionSurvivesBrokenConnections(t *testing.T) {
	t.Parallel()
	l := newLab(t, named("broken"), func(c *bmdb.Config) { c.Lease = 6 * time.Second })
	s := l.session()
	for range 3 {
		last := s.LastBeat()
		eventually(t, "a beat's connection to be there", func() bool {
			return l.int("SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'bmdb broken') x") > 0
		})
		eventually(t, "a beat after the connections broke", func() bool { return s.LastBeat().After(last) || s.Expired() })
	}
	if s.Expired() {
		t.Error("broken connections ended the session")
	}
}

// What has expired stays expired: a beat does not bring it back.
func TestBeatDoesNotReviveAnExpiredLease(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.session(bmdb.WithoutBeat())
	l.expire(s.UUID)
	if err := beat(t.Context(), s); !errors.Is(err, bmdb.ErrSessionExpired) {
		t.Errorf("beat of an expired lease: %v, want ErrSessionExpired", err)
	}
}

// The loop that beats ends the session when the database says that it is over.
func TestBeatThatFindsNoLeaseEndsSession(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *bmdb.Config) { c.Lease = 6 * time.Second })
	s := l.session()
	l.expire(s.UUID)
	done(t, "the session to be lost", s.Done())
	if !s.Expired() || !errors.Is(context.Cause(s.Context()), bmdb.ErrSessionExpired) {
		t.Errorf("expired %v, cause %v", s.Expired(), context.Cause(s.Context()))
	}
}

// A session that still believes in itself, and whose lease has run out in the database, starts nothing.
func TestExpiredSessionStartsNothing(t *testing.T) {
	t.Parallel()
	for what, end := range map[string]string{
		"lease run out":       "UPDATE session_leases SET deadline = clock_timestamp() - interval '1 second' WHERE session_id = $1",
		"lease gone":          "DELETE FROM session_leases WHERE session_id = $1",
		"ended by another":    "UPDATE sessions SET session_ended_at = clock_timestamp() WHERE session_id = $1",
		"ended, lease behind": "UPDATE sessions SET session_ended_at = clock_timestamp(), session_end_reason = 'expired' WHERE session_id = $1",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			l := newLab(t)
			s := l.session(bmdb.WithoutBeat())
			machine := provided(t, s, "1")
			l.exec(end, s.UUID)
			if s.Expired() {
				t.Fatal("the session knows already")
			}
			if w, err := s.Work(ctx, model.ProcessAgentStart, constantly(machine)); !errors.Is(err, bmdb.ErrSessionExpired) || w != nil {
				t.Errorf("start: %v, want ErrSessionExpired", err)
			}
			if w, err := batch(ctx, s, model.ProcessAgentStart, 1, machine); len(w) != 0 {
				t.Errorf("batch start: %d works, %v", len(w), err)
			}
			if err := s.Transact(ctx, tag(ctx, machine, "x")); !errors.Is(err, bmdb.ErrSessionExpired) {
				t.Errorf("transact: %v, want ErrSessionExpired", err)
			}
			if n := l.int("SELECT count(*) FROM work_history") + l.int("SELECT count(*) FROM machine_tags"); n != 0 {
				t.Error("something was written")
			}
		})
	}
}

func tag(ctx context.Context, machine uuid.UUID, name string) func(*model.Queries) error {
	return func(q *model.Queries) error {
		return q.MachineSetTag(ctx, model.MachineSetTagParams{MachineID: machine, Tag: name})
	}
}

// Where a session is lost, its works are told before anyone else can have their machines.
func TestLostSessionCancelsItsWorksBeforeTheTakeover(t *testing.T) {
	t.Parallel()
	short := func(c *bmdb.Config) { c.Lease = 2 * time.Second }
	l := newLab(t, short)
	s := l.session(bmdb.WithoutBeat())
	machine := provided(t, s, "1")
	w := l.work(s, model.ProcessAgentStart, machine)
	reaper := start(t, l.another(short))
	eventually(t, "the takeover", func() bool {
		works, err := batch(t.Context(), reaper, model.ProcessAgentStart, 1, machine)
		if err != nil {
			t.Fatal(err)
		}
		return len(works) == 1
	})
	if w.Context().Err() == nil {
		t.Error("another works on the machine, and the first was not told to stop")
	}
	if err := w.Check(t.Context()); !errors.Is(err, bmdb.ErrWorkLost) {
		t.Errorf("check: %v, want ErrWorkLost", err)
	}
	if err := w.Finish(t.Context(), nil); !errors.Is(err, bmdb.ErrWorkLost) {
		t.Errorf("finish: %v, want ErrWorkLost", err)
	}
	if got := l.end(w.ID()); got != bmdb.EventLost {
		t.Errorf("the first work ended as %q", got)
	}
	checkInvariants(t, l.db)
}

// A process that stood still begins no further step, although nobody has told it anything and the database still has its lock.
func TestCheckAfterSuspension(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.session()
	w := l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
	if err := w.Check(t.Context()); err != nil {
		t.Fatalf("check: %v", err)
	}
	s.Distrust()
	for what, err := range map[string]error{"check": w.Check(t.Context()), "checkpoint": w.Checkpoint(t.Context(), []byte("x"))} {
		if !errors.Is(err, bmdb.ErrWorkLost) || !errors.Is(err, bmdb.ErrSessionExpired) {
			t.Errorf("%s after a suspension: %v, want ErrWorkLost and ErrSessionExpired", what, err)
		}
	}
	if _, err := s.Work(t.Context(), model.ProcessUnitTest1, constantly(w.Machine)); !errors.Is(err, bmdb.ErrSessionExpired) {
		t.Errorf("start after a suspension: %v, want ErrSessionExpired", err)
	}
	// Nobody has taken it over: what was done may still be committed.
	if err := w.FinishData(t.Context(), bmdb.Outcome{}); err != nil {
		t.Errorf("finish: %v", err)
	}
}

// A process stands still after it has asked about its work, and the answer is there when it wakes: it is of before.
func TestSuspensionBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	for name, ask := range map[string]func(ctx context.Context, w *bmdb.Work) error{
		"check":      func(ctx context.Context, w *bmdb.Work) error { return w.Check(ctx) },
		"checkpoint": func(ctx context.Context, w *bmdb.Work) error { return w.Checkpoint(ctx, []byte("x")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, named("sleeper"))
			s := l.session()
			w := l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
			release := l.lock("LOCK TABLE work")
			answer := make(chan error, 1)
			go func() { answer <- ask(t.Context(), w) }()
			eventually(t, "the question to wait", func() bool { return l.blocked("sleeper") })
			s.Distrust()
			release()
			if err := done(t, "the answer", answer); !errors.Is(err, bmdb.ErrSessionExpired) {
				t.Errorf("the step after a suspension: %v, want ErrSessionExpired", err)
			}
		})
	}
}

// A look at a work, and a work's end, do not wait for those of others that wait in the database.
func TestWhoWaitsKeepsNobody(t *testing.T) {
	t.Parallel()
	two := func(t *testing.T) (l *lab, first, second *bmdb.Work) {
		t.Parallel()
		l = newLab(t, named("patient"))
		s := l.session()
		return l, l.work(s, model.ProcessAgentStart, provided(t, s, "1")), l.work(s, model.ProcessAgentStart, provided(t, s, "2"))
	}
	t.Run("check", func(t *testing.T) {
		l, first, second := two(t)
		release := l.lock("LOCK TABLE work")
		answers := make(chan error, 2)
		go func() { answers <- first.Check(t.Context()) }()
		eventually(t, "the first question to wait", func() bool { return l.waiting("patient") == 1 })
		go func() { answers <- second.Check(t.Context()) }()
		eventually(t, "the second to be asked", func() bool { return l.waiting("patient") == 2 })
		release()
		for range 2 {
			if err := done(t, "the answer", answers); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("end", func(t *testing.T) {
		l, first, second := two(t)
		release := l.lock("SELECT 1 FROM machine_state WHERE machine_id = $1 FOR UPDATE", first.Machine)
		ends := make(chan error, 2)
		end := func(w *bmdb.Work) { ends <- w.FinishData(t.Context(), bmdb.Outcome{}) }
		go end(first)
		eventually(t, "the first end to wait", func() bool { return l.blocked("patient") })
		go end(second)
		for range 2 {
			if err := done(t, "an end", ends); err != nil {
				t.Error(err)
			}
			if l.end(second.ID()) != bmdb.EventFinished {
				t.Error("the first to end is the one that waited")
			}
			release()
		}
	})
}

// A session that closes hands over at once.
func TestCloseHandsOver(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s, other := l.session(), l.session()
	var works []*bmdb.Work
	for i := range 3 {
		works = append(works, l.work(s, model.ProcessAgentStart, provided(t, s, fmt.Sprint(i))))
	}
	closeSession(t, s)
	for _, w := range works {
		if w.Context().Err() == nil {
			t.Error("the context of a closed session's work goes on")
		}
		if got := l.end(w.ID()); got != bmdb.EventReleased {
			t.Errorf("work ended as %q, want Released", got)
		}
		l.work(other, model.ProcessAgentStart, w.Machine)
	}
	if _, err := s.Work(ctx, model.ProcessUnitTest1, constantly(works[0].Machine)); !errors.Is(err, bmdb.ErrSessionExpired) {
		t.Errorf("start under a closed session: %v", err)
	}
	rows, err := l.conn.GetSession(ctx, s.UUID)
	if err != nil || len(rows) != 1 || !rows[0].SessionEndedAt.Valid || rows[0].SessionEndReason.String != "closed" {
		t.Errorf("session: %+v, %v", rows, err)
	}
	if n := l.int("SELECT count(*) FROM session_leases WHERE session_id = $1", s.UUID); n != 0 {
		t.Error("the lease is left behind")
	}
	closeSession(t, s)
	checkInvariants(t, l.db)
}

// SIGTERM ends a program's context. The original's sessions were left to die then.
func TestSessionClosesWithItsContext(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := l.conn.StartSession(ctx, bmdb.WithoutMaintenance())
	if err != nil {
		t.Fatal(err)
	}
	w := l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
	cancel()
	eventually(t, "the work to be released", func() bool { return l.end(w.ID()) == bmdb.EventReleased })
	closeSession(t, s)
	if n := l.int("SELECT count(*) FROM sessions WHERE session_id = $1 AND session_end_reason = 'closed'", s.UUID); n != 1 {
		t.Error("the session was not closed")
	}
}

// A closing session ends its lease before anything else, so that what its workers do meanwhile starts nothing.
func TestCloseFirstExpiresItsLease(t *testing.T) {
	t.Parallel()
	g := &gates{}
	l := newLab(t, g.config)
	s := l.session(bmdb.WithoutBeat())
	l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
	stop := g.at("end works of session", "LockMachines")
	closed := make(chan error, 1)
	go func() { closed <- s.Close(context.WithoutCancel(t.Context())) }()
	done(t, "the close to come to its works", stop.reached)
	if n := l.int("SELECT count(*) FROM session_leases WHERE session_id = $1 AND deadline > clock_timestamp()", s.UUID); n != 0 {
		t.Error("the lease runs while the works are released")
	}
	if err := beat(t.Context(), s); !errors.Is(err, bmdb.ErrSessionExpired) {
		t.Errorf("beat while closing: %v", err)
	}
	stop.open <- nil
	if err := done(t, "the close", closed); err != nil {
		t.Errorf("close: %v", err)
	}
}

// A beat compares what the database believes with what the program does.
func TestBeatComparesWorks(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("ended in the database", func(t *testing.T) {
		t.Parallel()
		l := newLab(t)
		s := l.session(bmdb.WithoutBeat())
		w := l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
		l.exec("UPDATE work SET work_id = NULL, state = 0")
		if err := beat(ctx, s); err != nil {
			t.Fatal(err)
		}
		if w.Context().Err() == nil || !errors.Is(context.Cause(w.Context()), bmdb.ErrWorkLost) || s.Works() != 0 {
			t.Error("a work that the database ended goes on")
		}
	})
	t.Run("known to the database alone", func(t *testing.T) {
		t.Parallel()
		l := newLab(t)
		s := l.session(bmdb.WithoutBeat())
		old, young := l.work(s, model.ProcessAgentStart, provided(t, s, "1")), l.work(s, model.ProcessAgentStart, provided(t, s, "2"))
		// The starts of a program whose answers were lost.
		unknown := []uuid.UUID{uuid.New(), uuid.New()}
		l.exec("UPDATE work SET work_id = $2 WHERE work_id = $1", old.ID(), unknown[0])
		l.exec("UPDATE work SET work_id = $2 WHERE work_id = $1", young.ID(), unknown[1])
		l.exec("UPDATE work_history SET work_id = $2 WHERE work_id = $1", old.ID(), unknown[0])
		l.exec("UPDATE work_history SET work_id = $2 WHERE work_id = $1", young.ID(), unknown[1])
		l.exec("UPDATE work SET started_at = started_at - interval '10 minutes' WHERE work_id = $1", unknown[0])
		if err := beat(ctx, s); err != nil {
			t.Fatal(err)
		}
		if l.end(unknown[0]) != bmdb.EventReleased {
			t.Error("a work that no worker knows is kept")
		}
		if l.end(unknown[1]) != "" {
			t.Error("a work that may be a start under way was released")
		}
	})
	t.Run("started while the beat was under way", func(t *testing.T) {
		t.Parallel()
		g := &gates{}
		l := newLab(t, g.config)
		s := l.session(bmdb.WithoutBeat())
		machine := provided(t, s, "1")
		stop := g.at("start", "COMMIT")
		started := make(chan *bmdb.Work, 1)
		go func() {
			w, err := s.Work(ctx, model.ProcessAgentStart, constantly(machine))
			if err != nil {
				t.Errorf("start: %v", err)
			}
			started <- w
		}()
		done(t, "the start to come to its commit", stop.reached)
		sent := bmdb.Now() // and answered before the commit
		stop.open <- nil
		w := done(t, "the start", started)
		s.BeatWithout(ctx, sent)
		if w.Context().Err() != nil {
			t.Error("a beat that could not know the work ended it")
		}
	})
}

// A pool in which there is always somebody before the session, and which commits what these do, is no reason to give the works up.
func TestSessionWhosePoolIsBusyLives(t *testing.T) {
	t.Parallel()
	const lease, holders, held = 3 * time.Second, 3, 150 * time.Millisecond
	l := newLab(t, func(c *bmdb.Config) { c.Lease, c.MaxConnections = lease, 1 })
	s := l.session()
	l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
	over := time.Now().Add(2 * lease)
	var wg sync.WaitGroup
	for i := range holders {
		machine := provided(t, s, fmt.Sprint("busy", i))
		wg.Go(func() {
			for time.Now().Before(over) && !s.Expired() {
				err := s.Transact(t.Context(), func(q *model.Queries) error {
					<-time.After(held)
					return q.MachineSetAgentHeartbeat(t.Context(), model.MachineSetAgentHeartbeatParams{MachineID: machine, AgentHeartbeatAt: time.Now()})
				})
				if err != nil {
					t.Logf("transact: %v", err) // a few may be too late, which is of no concern here
				}
			}
		})
	}
	wg.Wait()
	if s.Expired() {
		t.Error("the session is over")
	}
}

// A session whose works can no longer be committed gives up: it would only keep others away from their machines.
func TestSessionWhoseWorkCannotBeCommittedEnds(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *bmdb.Config) { c.Lease, c.MaxConnections = 3*time.Second, 1 })
	s := l.session()
	l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
	inside, leave, left := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var once sync.Once
	go func() { // takes the only connection, and keeps it
		left <- s.Transact(t.Context(), func(*model.Queries) error {
			once.Do(func() { close(inside) })
			<-leave
			return errInjected
		})
	}()
	done(t, "the closure", inside)
	done(t, "the session to give up", s.Done())
	close(leave)
	if err := done(t, "the closure's end", left); !errors.Is(err, errInjected) {
		t.Errorf("transact: %v", err)
	}
}

// A start that had passed its gate when its session began to close is released too, and not left to a sweep. One that has to be tried again finds its
// session closed.
func TestCloseReleasesAStartUnderWay(t *testing.T) {
	t.Parallel()
	g := &gates{}
	l := newLab(t, g.config, named("closing"))
	s := l.session(bmdb.WithoutBeat())
	machine := provided(t, s, "1")
	stop := g.at("start", "COMMIT")
	started := make(chan *bmdb.Work, 1)
	go func() {
		w, err := s.Work(t.Context(), model.ProcessAgentStart, constantly(machine))
		if err != nil && !errors.Is(err, bmdb.ErrSessionExpired) {
			t.Errorf("start: %v", err)
		}
		started <- w
	}()
	done(t, "the start to come to its commit", stop.reached)
	closed := make(chan error, 1)
	go func() { closed <- s.Close(context.WithoutCancel(t.Context())) }()
	eventually(t, "the close to wait for the start", func() bool { return l.blocked("closing") })
	stop.open <- nil
	w := done(t, "the start", started)
	if err := done(t, "the close", closed); err != nil {
		t.Errorf("close: %v", err)
	}
	if w != nil {
		if w.Context().Err() == nil {
			t.Error("a work of a closed session goes on")
		}
		if got := l.end(w.ID()); got != bmdb.EventReleased {
			t.Errorf("the work ended as %q, want Released", got)
		}
	}
	if open := l.int("SELECT count(*) FROM work WHERE work_id IS NOT NULL"); open != 0 {
		t.Errorf("%d works of the closed session are open", open)
	}
	checkInvariants(t, l.db)
}

// A close whose last commit nobody heard of is over all the same.
func TestAmbiguousClose(t *testing.T) {
	t.Parallel()
	for at, where := range map[cut]string{beforeCommit: "before", afterCommit: "after"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			l, p := newProxiedLab(t)
			s := l.session(bmdb.WithoutBeat())
			p.next.Store(int32(at))
			closeSession(t, s)
			if p.cuts.Load() != 1 || l.int("SELECT count(*) FROM sessions WHERE session_end_reason = 'closed'") != 1 {
				t.Error("the session was not closed")
			}
		})
	}
}
