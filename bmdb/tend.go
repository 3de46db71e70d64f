// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// Whoever waits for something in the database shares one statement that asks for all of them: the chores, OwnClaims and PendingProjections. A program
// that has nothing to do asks once in a while; where chores found something, one or the other of those who look asks again soon: what all of them
// see at the same moment, all of them do.
const (
	tendSoon = 100 * time.Millisecond
	tendIdle = 1075 * time.Millisecond
	// tendLate is for how long a look that succeeded tells that looks are taken.
	tendLate = 3 * tendIdle
)

// tended is a chore that is done when the database says that there is something to do. Each is a goroutine of its own: one that waits for a lock
// keeps no other waiting.
type tended struct {
	name string
	do   func(ctx context.Context) error
	wake chan struct{}
}

// tender wakes the chores that have something to do, and those who wait for what a session sees.
type tender struct {
	m      *maintenance
	of     *Session
	chores []*tended // in the order of the columns of sqlAnythingDue
}

func newTender(m *maintenance, s *Session) *tender {
	t := &tender{m: m, of: s}
	for _, c := range []tended{
		{name: "promote", do: m.promote},
		{name: "fill processes", do: m.conn.fillProcesses},
		{name: "arrange limits", do: m.conn.arrangeLimits},
		{name: "spread", do: (&spreader{conn: m.conn, from: firstMachineText}).turn},
	} {
		c.wake = make(chan struct{}, 1)
		t.chores = append(t.chores, &c)
	}
	return t
}

// loops are the tender's own and those of its chores.
func (t *tender) loops() []func(context.Context) {
	loops := []func(context.Context){t.watch}
	for _, c := range t.chores {
		loops = append(loops, func(ctx context.Context) {
			for {
				select {
				case <-ctx.Done():
					return
				case <-c.wake:
					t.m.turn(ctx, c.name, c.do)
				}
			}
		})
	}
	return loops
}

// watch asks what there is to do until ctx is done.
func (t *tender) watch(ctx context.Context) {
	for wait := tendIdle; sleep(ctx, wait*8/9+rand.N(wait*2/9)); {
		found, lookers := false, int64(1)
		t.m.turn(ctx, "look for chores", func(ctx context.Context) (err error) {
			found, lookers, err = t.look(ctx)
			return err
		})
		wait = min(2*wait, tendIdle)
		if found {
			wait = min(time.Duration(max(lookers, 1))*tendSoon, tendIdle)
		}
	}
}

// look tells whether a chore has something to do, and how many programs look.
func (t *tender) look(ctx context.Context) (found bool, lookers int64, err error) {
	due := make([]bool, len(t.chores)+2)
	columns := make([]any, len(due), len(due)+1)
	for i := range due {
		columns[i] = &due[i]
	}
	columns = append(columns, &lookers)
	c := t.m.conn
	if err := c.read(ctx, "AnythingDue", sqlAnythingDue, t.of.unownedArgs(), func() {}, func(row pgx.Rows) error { return row.Scan(columns...) }); err != nil {
		return false, 0, err
	}
	for i, chore := range t.chores {
		if due[i] {
			found = true
			hint(chore.wake) // else it is at it
		}
	}
	if due[len(t.chores)] {
		hint(t.of.unowned)
	}
	if due[len(t.chores)+1] {
		hint(c.pending.seen)
	}
	c.pending.looked.Store(int64(now()))
	return found, lookers, nil
}

// hint wakes who waits for a channel, if nothing did so already.
func hint(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}
