// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
)

// This file opens what tests need to bring about by hand what otherwise takes time.

// WithoutBeat makes a session that dies of its lease.
var WithoutBeat = withoutBeat

// Beat beats once, now.
func (s *Session) Beat(ctx context.Context) error { return s.beat(ctx) }

// Actor is who the session's starts and ends are by, in history.
func (s *Session) Actor() string { return s.actor() }

// Distrust makes the session believe that its last good beat is longer ago than it may be, as it finds itself after its process or its
// machine stood still. Nothing is told to those who wait on timers.
func (s *Session) Distrust() { s.trusted.Store(int64(now()) - 1) }

// BeatWithout makes the session compare what it does with a database that knows none of it, as of a beat that was sent at a moment.
func (s *Session) BeatWithout(ctx context.Context, sent LocalTime) {
	s.compare(ctx, boottime(sent), nil)
}

// LocalTime is a reading of the clock that sessions trust.
type LocalTime int64

// Now reads that clock.
func Now() LocalTime { return LocalTime(now()) }

// Chores are what one program does for all, one turn at a time.
type Chores struct{ m *maintenance }

// NewChores returns the chores of a program that has just started.
func NewChores(c *Connection) *Chores { return &Chores{newMaintenance(c)} }

// Reap looks at the leases once, and ends what it has watched for long enough.
func (c *Chores) Reap(ctx context.Context) error { return c.m.reap(ctx) }

// Watch makes leases of the last look count as watched for long enough; all of them, if none is named.
func (c *Chores) Watch(sessions ...uuid.UUID) {
	for id, s := range c.m.seen {
		if len(sessions) == 0 || slices.Contains(sessions, id) {
			s.watched = c.m.conn.lease.watch()
			c.m.seen[id] = s
		}
	}
}

// Watched is for how long the reaper has seen a lease unchanged.
func (c *Chores) Watched(session uuid.UUID) time.Duration { return c.m.seen[session].watched }

// Sweep and Promote do one turn.
func (c *Chores) Sweep(ctx context.Context) error { return c.m.sweep(ctx) }

// Promote does one turn.
func (c *Chores) Promote(ctx context.Context) error { return c.m.promote(ctx) }

// LeaseTimes is the arithmetic of a lease.
type LeaseTimes struct {
	Beat, Margin, Grace, Poll, Idle, Watch, Takeover, Trusted time.Duration
}

// TimesOf returns the arithmetic of a lease of a length, where the clocks of the database differ by up to an offset.
func TimesOf(length, offset time.Duration) LeaseTimes {
	l := lease{length: length, offset: offset}
	return LeaseTimes{
		Beat: l.beat(), Margin: l.margin(), Grace: l.grace(), Poll: l.poll(), Idle: l.idle(), Watch: l.watch(), Takeover: l.takeover(),
		Trusted: l.trusted(0).sub(0),
	}
}

// Next and Delay are the period after a period, and for how long the machine is left alone in it, in seconds.
func (b *Backoff) Next(last int64) int64 { return b.next(last) }

// Delay is for how long a machine is left alone in a period.
func (b *Backoff) Delay(period int64) int64 { return b.delay(period) }

// Reevaluate brings the work rows of machines up to date.
func (c *Connection) Reevaluate(ctx context.Context, machines ...uuid.UUID) error {
	return c.reevaluate(ctx, "reevaluate", machines)
}

// CopyWork returns a work that does not know what happens to the other.
func CopyWork(w *Work) *Work {
	c := w.session.newWork(started{Machine: w.Machine, ID: w.id, Pool: w.pool, Provider: w.provider, Fence: w.fence, Attempt: w.attempt, Sets: w.sets, Clears: w.clears}, w.process, w.claimKey, w.begun, 0)
	w.tried.Store(true)
	return c
}

// ExecRecorded runs a query as a closure's executor does.
func (c *Connection) ExecRecorded(ctx context.Context, sql string, args ...any) error {
	return c.transact(ctx, "test", func(ctx context.Context, tx *Tx) error {
		_, err := newRecorder(tx, c.newMadeMachines()).Exec(ctx, sql, args...)
		return err
	})
}

// ErrRetry makes a transaction try again.
var ErrRetry = errRetry

// Question is a statement with arguments, and the index that answers it.
type Question struct {
	SQL   string
	Args  []any
	Index string
}

// IdleQuestions are asked by every program all the time, and mostly find nothing.
func IdleQuestions() map[string]Question {
	return map[string]Question{
		"anything due":         {sqlAnythingDue, []any{uuid.Nil, "cluster-a", []string{}, nil}, "machine_state_dirty"},
		"anything waiting":     {sqlAnythingDue, []any{uuid.Nil, "cluster-a", []string{}, nil}, "projection_pending"},
		"anything to sweep":    {sqlAnythingToSweep, []any{1000}, "work_"},
		"works at a beat":      {sqlBeat, []any{uuid.Nil, 1000, 1000}, "work_"},
		"machines to show":     {sqlDirtyMachines, []any{uuid.Nil.String(), 100}, "machine_state_dirty"},
		"timers that are due":  {sqlDueTimers, []any{100}, "work_waiting"},
		"works nobody ends":    {sqlOrphans, []any{1000, 100}, "work_"},
		"works of a session":   {sqlSessionWorks, []any{uuid.Nil, 1000}, "work_"},
		"works to hand over":   {sqlWorksOfSession, []any{uuid.Nil, 100}, "work_"},
		"slots without a work": {sqlFreeLostSlots, nil, "work"},
	}
}

// PlansMade counts the plans of statements that a connection of the pool has made for whatever parameters, and those that it has made for the
// parameters of one call, but for what sets the connection up. CockroachDB, which decides by itself, is not asked.
func (c *Connection) PlansMade(ctx context.Context) (generic, custom int64, err error) {
	if c.dialect == cockroach {
		return 1, 0, nil
	}
	err = c.pool.QueryRow(ctx, "SELECT COALESCE(sum(generic_plans), 0)::bigint, COALESCE(sum(custom_plans), 0)::bigint FROM pg_prepared_statements WHERE statement NOT LIKE '%set_config%'").Scan(&generic, &custom)
	return generic, custom, err
}

// RowsTouched are how many rows of tables the only connection of the pool has read and written since it was made. CockroachDB does not count
// them: then ok is false.
func (c *Connection) RowsTouched(ctx context.Context) (read, written int64, ok bool, err error) {
	if c.dialect == cockroach {
		return 0, 0, false, nil
	}
	// What a connection has counted is not to be seen before it was flushed, which happens once a second, or now.
	if _, err := c.pool.Exec(ctx, "SELECT pg_stat_force_next_flush()"); err != nil {
		return 0, 0, false, err
	}
	err = c.pool.QueryRow(ctx, `SELECT COALESCE(sum(seq_tup_read + idx_tup_fetch), 0)::bigint, COALESCE(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint
		FROM pg_stat_user_tables`).Scan(&read, &written)
	return read, written, true, err
}
