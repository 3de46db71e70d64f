// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"sync"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	// askers is how many questions about works a session asks at once. More than one, so that a connection that has fallen silent does not keep all works
	// from their next step.
	askers = 4
	// maxQuestion bounds how many works one of them is about.
	maxQuestion = 1000
)

// checks are the looks at whether works still have their locks. While as many questions as may be are under way, those who come wait, and share the
// next one: as with commits of ends, groups are as large as the load makes them. The zero value is ready for use. It is safe for concurrent use.
type checks struct {
	mu      sync.Mutex
	waiting []*check
	asking  int
}

// check is one look.
type check struct {
	work *Work
	done chan error // gets what came of it; ErrWorkLost: the lock is another's
}

// checkWork asks the database whether a work has its lock. The question is sent after the call.
func (s *Session) checkWork(ctx context.Context, w *Work) error {
	c := &check{work: w, done: make(chan error, 1)}
	s.checks.mu.Lock()
	s.checks.waiting = append(s.checks.waiting, c)
	ask := s.checks.asking < askers
	if ask {
		s.checks.asking++
	}
	s.checks.mu.Unlock()
	if ask {
		go s.ask()
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ask asks until nobody waits. It ends with the session.
func (s *Session) ask() {
	for {
		s.checks.mu.Lock()
		n := min(len(s.checks.waiting), maxQuestion)
		group := s.checks.waiting[:n:n]
		if s.checks.waiting = s.checks.waiting[n:]; n == 0 {
			s.checks.waiting = nil
			s.checks.asking--
		}
		s.checks.mu.Unlock()
		if n == 0 {
			return
		}
		held, err := s.conn.held(s.ctx, group)
		for _, c := range group {
			switch {
			case err != nil:
				c.done <- err
			case !held[c.work.id]:
				c.done <- ErrWorkLost
			default:
				c.done <- nil
			}
		}
	}
}

// held tells which of the works have their locks.
func (c *Connection) held(ctx context.Context, group []*check) (held map[uuid.UUID]bool, err error) {
	machines, processes, works := make([]uuid.UUID, len(group)), make([]string, len(group)), make([]uuid.UUID, len(group))
	for i, g := range group {
		machines[i], processes[i], works[i] = g.work.Machine, g.work.process, g.work.id
	}
	held = make(map[uuid.UUID]bool, len(group))
	err = c.read(ctx, "CheckWorks", sqlCheck, []any{machines, processes, works}, func() { clear(held) }, func(row pgx.Rows) error {
		var id uuid.UUID
		err := row.Scan(&id)
		held[id] = true
		return err
	})
	return held, err
}
