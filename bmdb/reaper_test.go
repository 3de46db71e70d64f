// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// The locks of dead sessions were kept for ever by the original.
func TestReaperReleasesTheLocksOfTheDead(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	dead, other := l.session(bmdb.WithoutBeat()), l.session()
	machine := provided(t, other, "1")
	w := l.work(dead, model.ProcessAgentStart, machine)
	l.expire(dead.UUID)
	l.reap(l.another())
	if got := l.end(w.ID()); got != bmdb.EventLost {
		t.Errorf("the dead session's work ended as %q, want Lost", got)
	}
	works, err := batch(ctx, other, model.ProcessAgentStart, 1, machine)
	if err != nil || len(works) != 1 {
		t.Fatalf("start after the takeover: %d works, %v", len(works), err)
	}
	if works[0].Fence() <= w.Fence() {
		t.Errorf("fence %d after fence %d", works[0].Fence(), w.Fence())
	}
	checkInvariants(t, l.db)
}

// A reaper ends only what it has seen unchanged for long enough, and what still is as it saw it.
func TestReaperDoesNotKillTheLiving(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	alive := func(t *testing.T, l *lab, s *bmdb.Session) {
		t.Helper()
		if l.int("SELECT count(*) FROM sessions WHERE session_id = $1 AND session_ended_at IS NULL", s.UUID) != 1 ||
			l.int("SELECT count(*) FROM session_leases WHERE session_id = $1", s.UUID) != 1 {
			t.Error("a living session was ended")
		}
	}
	t.Run("whose lease runs", func(t *testing.T) {
		t.Parallel()
		l := newLab(t)
		s := l.session()
		l.reap(l.another())
		l.reap(l.another())
		alive(t, l, s)
	})
	t.Run("seen for the first time", func(t *testing.T) { // the database's clock jumped, or was away
		t.Parallel()
		l := newLab(t)
		s := l.session(bmdb.WithoutBeat())
		l.expire(s.UUID)
		chores := bmdb.NewChores(l.another())
		for range 5 {
			if err := chores.Reap(ctx); err != nil {
				t.Fatal(err)
			}
		}
		alive(t, l, s)
	})
	t.Run("that beats while it is watched", func(t *testing.T) {
		t.Parallel()
		l := newLab(t)
		s := l.session(bmdb.WithoutBeat())
		chores := bmdb.NewChores(l.another())
		for i := range 4 {
			l.exec("UPDATE session_leases SET deadline = clock_timestamp() - interval '1 hour' + $2 * interval '1 second' WHERE session_id = $1", s.UUID, i)
			if err := chores.Reap(ctx); err != nil {
				t.Fatal(err)
			}
			if chores.Watched(s.UUID) != 0 {
				t.Error("a lease that changed counts as watched")
			}
			chores.Watch()
		}
		alive(t, l, s)
	})
	t.Run("that beats at the last moment", func(t *testing.T) {
		t.Parallel()
		for what, beat := range map[string]string{
			"on a clock that agrees":    "UPDATE session_leases SET deadline = clock_timestamp() + interval '1 minute' WHERE session_id = $1",
			"on a clock that is behind": "UPDATE session_leases SET deadline = clock_timestamp() - interval '30 minutes' WHERE session_id = $1",
		} {
			t.Run(what, func(t *testing.T) {
				t.Parallel()
				g := &gates{}
				l := newLab(t)
				s := l.session(bmdb.WithoutBeat())
				l.expire(s.UUID)
				chores := bmdb.NewChores(l.another(g.config))
				if err := chores.Reap(ctx); err != nil {
					t.Fatal(err)
				}
				chores.Watch()
				stop := g.at("reap", "KillSession")
				result := make(chan error, 1)
				go func() { result <- chores.Reap(ctx) }()
				done(t, "the reaper to come to its kill", stop.reached)
				l.exec(beat, s.UUID)
				stop.open <- nil
				if err := done(t, "the reaper", result); err != nil {
					t.Fatal(err)
				}
				alive(t, l, s)
			})
		}
	})
}

// Transactions of a session that is over do not keep its reaper away by overlapping, and a session that cannot be ended at the moment
// does not keep it from the next one.
func TestReaperIsNotStarved(t *testing.T) {
	t.Parallel()
	t.Run("by overlapping transactions", func(t *testing.T) {
		t.Parallel()
		l := newLab(t, func(c *bmdb.Config) { c.MaxConnections = 16 })
		ctx := t.Context()
		s := l.session(bmdb.WithoutBeat())
		var wg sync.WaitGroup
		stop, busy := make(chan struct{}), make(chan struct{}, 1)
		for range 12 {
			wg.Go(func() {
				for {
					err := s.Transact(ctx, func(q *model.Queries) error {
						_, err := q.CountMachines(ctx)
						return err
					})
					select {
					case <-stop:
						return
					case busy <- struct{}{}:
					default:
					}
					if err != nil && !errors.Is(err, bmdb.ErrSessionExpired) {
						t.Errorf("transact: %v", err)
						return
					}
				}
			})
		}
		done(t, "load", busy)
		l.expire(s.UUID)
		l.reap(l.another())
		if l.int("SELECT count(*) FROM sessions WHERE session_id = $1 AND session_ended_at IS NOT NULL", s.UUID) != 1 {
			t.Error("the session was not ended under load")
		}
		close(stop)
		wg.Wait()
	})
	t.Run("by a session whose closure hangs", func(t *testing.T) {
		t.Parallel()
		l := newLab(t)
		ctx := t.Context()
		stuck, dead := l.session(bmdb.WithoutBeat()), l.session(bmdb.WithoutBeat())
		l.expire(stuck.UUID)
		l.exec("UPDATE session_leases SET deadline = clock_timestamp() - interval '30 minutes' WHERE session_id = $1", dead.UUID) // the later one
		tx, err := l.db.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(ctx) //nolint:errcheck // it only ends the lock
		if _, err := tx.Exec(ctx, "SELECT 1 FROM sessions WHERE session_id = $1 FOR SHARE", stuck.UUID); err != nil {
			t.Fatal(err)
		}
		chores := bmdb.NewChores(l.another(func(c *bmdb.Config) { c.Lease = 18 * time.Second }))
		if err := chores.Reap(ctx); err != nil {
			t.Fatal(err)
		}
		chores.Watch()
		turn, cancel := context.WithTimeout(ctx, bmdb.TimesOf(18*time.Second, 0).Idle) // as every turn has it
		defer cancel()
		if err := chores.Reap(turn); err == nil {
			t.Error("a turn that could not end a session reported no error")
		}
		if l.int("SELECT count(*) FROM sessions WHERE session_id = $1 AND session_ended_at IS NOT NULL", dead.UUID) != 1 {
			t.Error("a session that hangs kept the reaper from the next one")
		}
	})
}
