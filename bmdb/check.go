// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	// slowQuestion is after what time a question about works is not waited for: a connection that has fallen silent does not keep all works from their
	// next step.
	slowQuestion = 50 * time.Millisecond
	// maxQuestion bounds how many works one of them is about.
	maxQuestion = 256
)

// check is one look at whether a work has its lock.
type check struct {
	work *Work
	done chan error // gets what came of it; ErrWorkLost: the lock is another's
}

// checkWork asks the database whether a work has its lock. The question is sent after the call.
func (s *Session) checkWork(ctx context.Context, w *Work) error {
	c := &check{work: w, done: make(chan error, 1)}
	select {
	case s.checks <- c:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.Done():
		return context.Cause(s.ctx)
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.Done():
		return context.Cause(s.ctx)
	}
}

// askChecks asks for those that wait, all in one question.
func (s *Session) askChecks(ctx context.Context) {
	const questions = 4
	asks := newTurns(questions, slowQuestion)
	defer asks.wait()
	for asks.next(ctx) {
		var group []*check
		select {
		case <-ctx.Done():
			return
		case c := <-s.checks:
			group = append(group, c)
		}
		for len(group) < maxQuestion && len(s.checks) > 0 {
			group = append(group, <-s.checks)
		}
		asks.send(func() { s.answer(ctx, group) })
	}
}

// answer tells each of a group what the database says.
func (s *Session) answer(ctx context.Context, group []*check) {
	held, err := s.conn.held(ctx, group)
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
