// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// Chores that wait for something in the database share one statement that asks for all of them. A program that has nothing to do asks once
// in a while; one that found something asks again soon.
const (
	tendSoon = 100 * time.Millisecond
	tendIdle = time.Second
)

// tended is a chore that is done when the database says that there is something to do. Each is a goroutine of its own: one that waits for a lock
// keeps no other waiting.
type tended struct {
	name string
	do   func(ctx context.Context) error
	wake chan struct{}
}

// tender wakes the chores that have something to do.
type tender struct {
	m      *maintenance
	chores []*tended // in the order of the columns of sqlAnythingDue
}

func newTender(m *maintenance) *tender {
	t := &tender{m: m}
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
	for wait := tendIdle; sleep(ctx, wait/2+rand.N(wait)); {
		found := false
		t.m.turn(ctx, "look for chores", func(ctx context.Context) (err error) {
			found, err = t.look(ctx)
			return err
		})
		if wait = min(2*wait, tendIdle); found {
			wait = tendSoon
		}
	}
}

func (t *tender) look(ctx context.Context) (found bool, err error) {
	due := make([]bool, len(t.chores))
	columns := make([]any, len(due))
	for i := range due {
		columns[i] = &due[i]
	}
	err = t.m.conn.read(ctx, "AnythingDue", sqlAnythingDue, nil, func() {}, func(row pgx.Rows) error { return row.Scan(columns...) })
	for i, c := range t.chores {
		if !due[i] || err != nil {
			continue
		}
		found = true
		select {
		case c.wake <- struct{}{}:
		default: // it is at it
		}
	}
	return found, err
}
