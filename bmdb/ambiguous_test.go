// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// newProxiedLab is a lab whose program reaches the database through a proxy.
func newProxiedLab(t *testing.T, options ...func(*bmdb.Config)) (*lab, *proxy) {
	t.Helper()
	l := newLab(t)
	p := newProxy(t, l.url)
	l.conn.Close()
	l.conn = bmdbtest.Open(t, p.url, options...)
	return l, p
}

// A connection that breaks while COMMIT is under way says nothing. What came of an end is read back.
func TestAmbiguousEndIsReadBack(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		for at, where := range map[cut]string{beforeCommit: "before", afterCommit: "after"} {
			t.Run(name+" "+where, func(t *testing.T) {
				t.Parallel()
				l, p := newProxiedLab(t)
				s := l.session(bmdb.WithoutBeat())
				w := l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
				p.next.Store(int32(at))
				err := end(t.Context(), w)
				if p.cuts.Load() != 1 {
					t.Fatal("the connection was not cut")
				}
				// A closure is not run again blindly: its caller decides.
				if name == bmdb.EventFinished && at == beforeCommit {
					if !errors.Is(err, bmdb.ErrAmbiguous) {
						t.Fatalf("%v, want ErrAmbiguous", err)
					}
					if w.Context().Err() != nil {
						t.Error("the work is over, and its end is not known")
					}
					err = end(t.Context(), w)
				}
				if err != nil {
					t.Errorf("%v", err)
				}
				if got := l.end(w.ID()); got != eventOf(name) {
					t.Errorf("it ended as %q", got)
				}
				if w.Context().Err() == nil || s.Works() != 0 {
					t.Error("the work goes on")
				}
				checkInvariants(t, l.db)
			})
		}
	}
}

// A group whose commit nobody heard of is settled member by member: one that somebody else has ended says nothing of the others.
func TestAmbiguousGroupWithStaleMember(t *testing.T) {
	t.Parallel()
	for at, where := range map[cut]string{beforeCommit: "before", afterCommit: "after"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			g := &gates{}
			l, p := newProxiedLab(t, g.config)
			s := l.session(bmdb.WithoutBeat())
			var works []*bmdb.Work
			for i := range 5 {
				works = append(works, l.work(s, model.ProcessAgentStart, provided(t, s, fmt.Sprint(i))))
			}
			errs := make([]error, len(works))
			var wg sync.WaitGroup
			finish := func(i int) {
				wg.Go(func() { errs[i] = works[i].FinishData(t.Context(), bmdb.Outcome{AgentPublicKey: keyOf(works[i])}) })
			}
			var stops []*gate
			for i := range 2 {
				stop := g.at("end", "LockMachines")
				stops = append(stops, stop)
				finish(i)
				done(t, "a committer", stop.reached)
			}
			stale := works[3]
			l.exec(`INSERT INTO work_history SELECT machine_id, work_id, 1, process, 'Lost', clock_timestamp(), NULL, session_id, pool, claim_key, fence, attempt, 0, ''
				FROM work WHERE work_id = $1`, stale.ID())
			l.exec("UPDATE work SET work_id = NULL, state = 2 WHERE work_id = $1", stale.ID())
			for i := 2; i < len(works); i++ {
				finish(i)
			}
			gathered := g.at("end", "COMMIT")
			stops[0].open <- nil // its own commit, and then the group's
			done(t, "the first commit", gathered.reached)
			group := g.at("end", "COMMIT")
			gathered.open <- nil
			done(t, "the group's commit", group.reached)
			p.next.Store(int32(at))
			group.open <- nil
			eventually(t, "the cut", func() bool { return p.cuts.Load() == 1 })
			stops[1].open <- nil
			wg.Wait()
			for i, err := range errs {
				switch {
				case i == 3 && !errors.Is(err, bmdb.ErrWorkLost):
					t.Errorf("the stale member: %v, want ErrWorkLost", err)
				case i != 3 && err != nil:
					t.Errorf("member %d: %v", i, err)
				case i != 3 && l.end(works[i].ID()) != bmdb.EventFinished:
					t.Errorf("member %d ended as %q", i, l.end(works[i].ID()))
				}
			}
			checkInvariants(t, l.db)
		})
	}
}

// An end that is tried again, and had succeeded, is not lost, and does not write its facts again over what came after it.
func TestEndAgainAfterItSucceeded(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	l.process("Tagger", "Tagger", nil, nil, []string{"done"}, []string{"todo"})
	s := l.session(bmdb.WithoutBeat())
	machine := provided(t, s, "1")
	w := l.work(s, "Tagger", machine)
	outcome := bmdb.Outcome{AgentPublicKey: keyOf(w), HardwareReport: []byte("report")}
	first := bmdb.CopyWork(w) // as a caller that gave up waiting has it
	if err := first.FinishData(ctx, outcome); err != nil {
		t.Fatal(err)
	}
	err := s.Transact(ctx, func(q *model.Queries) error {
		return errors.Join(q.MachineDeleteAgentStarted(ctx, machine),
			q.MachineDeleteTag(ctx, model.MachineDeleteTagParams{MachineID: machine, Tag: "done"}),
			q.MachineSetTag(ctx, model.MachineSetTagParams{MachineID: machine, Tag: "todo"}))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.FinishData(ctx, outcome); err != nil {
		t.Errorf("an end that had succeeded: %v", err)
	}
	if n := l.int("SELECT count(*) FROM machine_agent_started") + l.int("SELECT count(*) FROM machine_tags WHERE tag = 'done'"); n != 0 {
		t.Error("it wrote its facts again")
	}
	if n := l.int("SELECT count(*) FROM machine_tags WHERE tag = 'todo'"); n != 1 {
		t.Error("it cleared its tags again")
	}
	checkInvariants(t, l.db)
}

// What came of a start is read back.
func TestAmbiguousStartIsReadBack(t *testing.T) {
	t.Parallel()
	starts := map[string]func(ctx context.Context, s *bmdb.Session, machine uuid.UUID) (*bmdb.Work, error){
		"general": func(ctx context.Context, s *bmdb.Session, machine uuid.UUID) (*bmdb.Work, error) {
			return s.Work(ctx, model.ProcessAgentStart, constantly(machine))
		},
		"batch": func(ctx context.Context, s *bmdb.Session, machine uuid.UUID) (*bmdb.Work, error) {
			works, err := batch(ctx, s, model.ProcessAgentStart, 1, machine)
			if len(works) == 0 {
				return nil, errors.Join(bmdb.ErrNothingToDo, err)
			}
			return works[0], err
		},
	}
	for name, start := range starts {
		for at, where := range map[cut]string{beforeCommit: "before", afterCommit: "after"} {
			t.Run(name+" "+where, func(t *testing.T) {
				t.Parallel()
				l, p := newProxiedLab(t)
				l.limit("Equinix", 1)
				s := l.session(bmdb.WithoutBeat())
				machine := provided(t, s, "1")
				p.next.Store(int32(at))
				w, err := start(t.Context(), s, machine)
				if p.cuts.Load() != 1 {
					t.Fatal("the connection was not cut")
				}
				held := l.int("SELECT count(*) FROM work WHERE work_id IS NOT NULL")
				switch at {
				case beforeCommit:
					if err == nil || held != 0 {
						t.Errorf("%v, %d works held", err, held)
					}
					if w, err = start(t.Context(), s, machine); err != nil {
						t.Fatalf("the second try: %v", err)
					}
				case afterCommit, never:
					if err != nil || held != 1 {
						t.Fatalf("%v, %d works held", err, held)
					}
				}
				if err := w.Check(t.Context()); err != nil {
					t.Errorf("check: %v", err)
				}
				if w.Fence() == 0 || w.Pool() != "default" || w.Provider() != "Equinix" || w.Attempt() != 1 {
					t.Errorf("work with fence %d, pool %q, provider %q, attempt %d", w.Fence(), w.Pool(), w.Provider(), w.Attempt())
				}
				if err := w.Finish(t.Context(), nil); err != nil {
					t.Errorf("finish: %v", err)
				}
				checkInvariants(t, l.db)
			})
		}
	}
}

// An ID is made once for an operation: a machine whose making nobody heard of is not made twice, and nobody is told that it was not.
func TestAmbiguousTransactIsSaidToBe(t *testing.T) {
	t.Parallel()
	for at, where := range map[cut]string{beforeCommit: "before", afterCommit: "after"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			l, p := newProxiedLab(t)
			s := l.session(bmdb.WithoutBeat())
			p.next.Store(int32(at))
			var machine model.Machine
			err := s.Transact(t.Context(), func(q *model.Queries) (err error) {
				machine, err = q.NewMachine(t.Context())
				return err
			})
			if !errors.Is(err, bmdb.ErrAmbiguous) {
				t.Errorf("%v, want ErrAmbiguous", err)
			}
			want := int64(0)
			if at == afterCommit {
				want = 1
			}
			if n := l.int("SELECT count(*) FROM machines WHERE machine_id = $1", machine.MachineID); n != want || l.int("SELECT count(*) FROM machines") != want {
				t.Errorf("%d machines, want %d", n, want)
			}
		})
	}
}

// A session whose start nobody heard of either lives, or is found dead by its first beat.
func TestAmbiguousSessionStart(t *testing.T) {
	t.Parallel()
	for at, where := range map[cut]string{beforeCommit: "before", afterCommit: "after"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			l, p := newProxiedLab(t)
			p.next.Store(int32(at))
			s := l.session(bmdb.WithoutBeat())
			err := s.Beat(t.Context())
			if at == afterCommit && err != nil {
				t.Errorf("beat: %v", err)
			}
			if at == beforeCommit && !errors.Is(err, bmdb.ErrSessionExpired) {
				t.Errorf("beat: %v, want ErrSessionExpired", err)
			}
		})
	}
}

// A Finish that only writes is one round trip, and so are a start of a batch and an end that is data.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	l, p := newProxiedLab(t, func(c *bmdb.Config) { c.MaxConnections = 1 })
	ctx := t.Context()
	s := l.session(bmdb.WithoutBeat())
	trips := func(what string, want int64, do func() error) {
		t.Helper()
		before := p.syncs.Load()
		if err := do(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := p.syncs.Load() - before; want > 0 && got != want {
			t.Errorf("%s took %d round trips, want %d", what, got, want)
		}
	}
	one := int64(0)
	for range 2 { // the first prepares the statements
		machine := provided(t, s, uuid.NewString())
		var works []*bmdb.Work
		trips("a start of a batch", one, func() (err error) {
			works, err = batch(ctx, s, model.ProcessAgentStart, 1, machine)
			return err
		})
		trips("a finish that only writes", one, func() error { return works[0].Finish(ctx, agentOf(ctx, works[0])) })
		var w *bmdb.Work
		trips("a start in the general form that reads once", 2*one, func() (err error) {
			w, err = s.Work(ctx, model.ProcessUnitTest1, func(q *model.Queries) ([]uuid.UUID, error) {
				_, err := q.GetMachinesForAgentStart(ctx, 1)
				return []uuid.UUID{machine}, err
			})
			return err
		})
		trips("a finish that is data", one, func() error {
			return w.FinishData(ctx, bmdb.Outcome{AgentPublicKey: keyOf(w), HardwareReport: []byte("x")})
		})
		w = l.work(s, model.ProcessUnitTest1, machine)
		trips("a failure", one, func() error { return w.Fail(ctx, nil, "x") })
		one = 1
	}
}
