// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// maintenance is the part of one program in the chores that all programs share. Each of them does each chore, with jitter, and no chore
// needs a leader: what another has done already is found done.
type maintenance struct {
	conn *Connection
	seen map[uuid.UUID]sighting // leases as the reaper first saw them
	last boottime               // when the reaper last got an answer
}

// sighting is a lease, and for how long this program has seen it unchanged while the database answered.
type sighting struct {
	deadline time.Time
	watched  time.Duration
}

func newMaintenance(c *Connection) *maintenance {
	return &maintenance{conn: c, seen: map[uuid.UUID]sighting{}, last: now()}
}

const (
	sweepEvery = 10 * time.Second
	sweepPage  = 200
)

// chores are those of a session's program.
func (m *maintenance) chores(s *Session) []func(context.Context) {
	return append(newTender(m, s).loops(),
		m.every("reap", m.conn.lease.poll(), m.reap),
		m.every("sweep", min(sweepEvery, m.conn.lease.length), m.sweep),
		m.every("retain", retainEvery, m.conn.retain),
	)
}

// every does a chore at an interval, drawn up to twice as long so that programs that started together drift apart. Errors are logged;
// the next turn tries again.
func (m *maintenance) every(name string, interval time.Duration, do func(ctx context.Context) error) func(context.Context) {
	return func(ctx context.Context) {
		for sleep(ctx, interval/2+rand.N(interval)) {
			m.turn(ctx, name, do)
		}
	}
}

// turn does a chore once.
func (m *maintenance) turn(ctx context.Context, name string, do func(ctx context.Context) error) {
	turn, cancel := context.WithTimeout(ctx, max(m.conn.lease.idle(), 5*time.Second))
	defer cancel()
	if err := do(turn); err != nil && ctx.Err() == nil {
		m.conn.log.WarnContext(ctx, "chore failed; it is tried again", "chore", name, "error", err)
	}
}

// reap ends sessions whose deadline is over by a grace, and that this program itself has seen unchanged for half a lease while the
// database answered: neither a clock that jumps nor an outage of the database kills the living. It is looked at from the moment the
// lease has run out, so that watching costs no time that the deadline does not.
func (m *maintenance) reap(ctx context.Context) error {
	looked := now()
	type expired struct {
		Session  uuid.UUID
		Deadline time.Time
		Over     bool
	}
	var leases []expired
	err := m.conn.read(ctx, "Leases", sqlLeases, []any{m.conn.lease.grace().Milliseconds()}, func() { leases = nil }, func(row pgx.Rows) error {
		l, err := pgx.RowToStructByPos[expired](row)
		leases = append(leases, l)
		return err
	})
	if err != nil {
		m.last = now()
		return err
	}
	// Time in which the database did not answer does not count as watching.
	elapsed := min(looked.sub(m.last), 3*m.conn.lease.poll())
	m.last = looked
	still := make(map[uuid.UUID]sighting, len(leases))
	for _, l := range leases {
		s, known := m.seen[l.Session]
		if !known || !s.deadline.Equal(l.Deadline) {
			s = sighting{deadline: l.Deadline}
		} else {
			s.watched += elapsed
		}
		still[l.Session] = s
	}
	m.seen = still
	var failed []error
	for _, l := range leases {
		if l.Over && m.seen[l.Session].watched >= m.conn.lease.watch() {
			failed = append(failed, m.kill(ctx, l.Session, l.Deadline))
		}
	}
	return errors.Join(failed...)
}

// kill ends one session in a transaction of its own, and then its works. A session whose identity row is locked, by a closure of the dead
// that the server has yet to end, waits for the next turn: it must not keep the others waiting.
func (m *maintenance) kill(ctx context.Context, session uuid.UUID, deadline time.Time) error {
	killed := false
	ending, cancel := context.WithTimeout(ctx, max(m.conn.lease.poll(), 500*time.Millisecond))
	defer cancel()
	err := m.conn.transact(ending, "reap", func(_ context.Context, tx *Tx) error {
		killed = false
		tx.queueRows("KillSession", sqlKillSession, []any{session, deadline, m.conn.lease.grace().Milliseconds()}, func(pgx.Rows) error {
			killed = true
			return nil
		})
		return nil
	})
	if err != nil {
		return fmt.Errorf("end session %s: %w", session, err)
	}
	if !killed {
		return nil
	}
	delete(m.seen, session)
	m.conn.log.WarnContext(ctx, "ended a dead session", "session", session)
	return m.conn.endWorksOf(ctx, session, EventLost, "session expired", m.conn.config.RuntimeInfo)
}

// sweep is the backstop: it ends works that nobody will end any more, and frees slots of limits whose work is gone.
func (m *maintenance) sweep(ctx context.Context) error {
	var orphans, slots, overdue bool
	err := m.conn.read(ctx, "AnythingToSweep", sqlAnythingToSweep, []any{m.conn.lease.length.Milliseconds()}, func() {}, func(row pgx.Rows) error {
		return row.Scan(&orphans, &slots, &overdue)
	})
	if err == nil && orphans {
		err = m.endOrphans(ctx)
	}
	if slots {
		err = errors.Join(err, m.conn.transact(ctx, "sweep", func(_ context.Context, tx *Tx) error {
			tx.queue("FreeLostSlots", sqlFreeLostSlots)
			return nil
		}))
	}
	if overdue {
		err = errors.Join(err, m.endOverdue(ctx))
	}
	return err
}

// endOrphans ends works that nobody will end any more.
func (m *maintenance) endOrphans(ctx context.Context) error {
	var lost []endRequest
	err := m.conn.read(ctx, "Orphans", sqlOrphans, []any{m.conn.lease.length.Milliseconds(), sweepPage}, func() { lost = nil }, func(row pgx.Rows) error {
		r := endRequest{event: EventLost}
		err := row.Scan(&r.machine, &r.process, &r.work, &r.cause)
		lost = append(lost, r)
		return err
	})
	if err != nil {
		return err
	}
	n, failed := m.conn.endAll(ctx, "sweep", m.conn.config.RuntimeInfo, lost)
	if n > 0 {
		m.conn.log.WarnContext(ctx, "swept works that nobody ended", "works", n)
	}
	return failed
}

// endOverdue ends claims over their deadline that nobody owns, and that no owner's review will end.
func (m *maintenance) endOverdue(ctx context.Context) error {
	type claim struct {
		Pool, Key                  string
		Epoch, Rev, Deadline, Done int64
	}
	var overdue []claim
	err := m.conn.read(ctx, "OverdueUnowned", sqlOverdueUnowned, []any{sweepPage}, func() { overdue = nil }, func(row pgx.Rows) error {
		c, err := pgx.RowToStructByPos[claim](row)
		overdue = append(overdue, c)
		return err
	})
	for _, c := range overdue {
		err = errors.Join(err, m.conn.transact(ctx, "end overdue claim", func(_ context.Context, tx *Tx) error {
			tx.queue("EndOverdue", sqlEndOverdue, c.Pool, c.Key, c.Epoch, c.Rev, overdueMessage(c.Deadline, c.Done))
			return nil
		}))
	}
	return err
}

// promote evaluates machines again whose time has come: the end of a backoff or of a hold, or a silence that has become too long.
func (m *maintenance) promote(ctx context.Context) error {
	var ids []uuid.UUID
	err := m.conn.read(ctx, "DueTimers", sqlDueTimers, []any{sweepPage}, func() { ids = nil }, func(row pgx.Rows) error {
		var id uuid.UUID
		err := row.Scan(&id)
		ids = append(ids, id)
		return err
	})
	if err != nil || len(ids) == 0 {
		return err
	}
	return m.conn.reevaluate(ctx, "promote", ids)
}

// reevaluate brings the work rows of machines up to date. It locks the machines, passing over those that somebody else has locked:
// whoever that is evaluates them too.
func (c *Connection) reevaluate(ctx context.Context, op string, ids []uuid.UUID) error {
	return c.transact(ctx, op, func(ctx context.Context, tx *Tx) error {
		var locked []uuid.UUID
		tx.queueRows("LockForReview", sqlLockForReview, []any{ids}, func(row pgx.Rows) error {
			var id uuid.UUID
			err := row.Scan(&id)
			locked = append(locked, id)
			return err
		})
		if err := tx.flush(ctx); err != nil {
			return err
		}
		tx.recompute(locked, 0)
		return nil
	})
}
