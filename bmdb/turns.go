// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"sync"
	"time"
)

// turns lets groups go one after the other: while one is on its way the next one gathers, so groups are as large as the load makes them. One that takes
// long, because it waits for a lock or its connection has fallen silent, does not keep the others. It is for the use of one goroutine.
type turns struct {
	long   time.Duration  // after what time a group is not waited for
	room   chan struct{}  // holds a value for each group that is on its way
	latest chan struct{}  // closed when the latest group has arrived; nil: there was none
	going  sync.WaitGroup // the groups that are on their way
}

// newTurns returns turns for at most so many groups at once.
func newTurns(most int, long time.Duration) *turns {
	return &turns{long: long, room: make(chan struct{}, most)}
}

// next waits until another group may go. false: ctx is done, and none may.
func (t *turns) next(ctx context.Context) bool {
	if t.latest != nil {
		long := time.NewTimer(t.long)
		defer long.Stop()
		select {
		case <-ctx.Done():
			return false
		case <-t.latest:
		case <-long.C:
		}
	}
	select {
	case <-ctx.Done():
		return false
	case t.room <- struct{}{}:
		return true
	}
}

// send lets a group go, after next.
func (t *turns) send(deliver func()) {
	arrived := make(chan struct{})
	t.latest = arrived
	t.going.Go(func() {
		defer close(arrived)
		defer func() { <-t.room }()
		deliver()
	})
}

// wait returns when all groups have arrived.
func (t *turns) wait() { t.going.Wait() }
