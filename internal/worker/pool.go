// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

// pool bounds how many machines are worked on at once. Who waits is served in turn, so that no claim starves. It is safe for concurrent
// use.
type pool struct {
	slots   *semaphore.Weighted
	size    int
	used    atomic.Int64
	observe func(inUse, size int)
}

func newPool(size int, observe func(inUse, size int)) *pool {
	observe(0, size)
	return &pool{slots: semaphore.NewWeighted(int64(size)), size: size, observe: observe}
}

// tryTake takes up to want slots, as far as there are free ones that nobody waits for, and returns how many.
func (p *pool) tryTake(want int) int {
	n := 0
	for n < want && p.slots.TryAcquire(1) {
		n++
	}
	p.count(n)
	return n
}

// take waits for one slot.
func (p *pool) take(ctx context.Context) error {
	if err := p.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	p.count(1)
	return nil
}

// give returns n slots.
func (p *pool) give(n int) {
	if n == 0 {
		return
	}
	p.count(-n)
	p.slots.Release(int64(n))
}

func (p *pool) count(n int) {
	if n != 0 {
		p.observe(int(p.used.Add(int64(n))), p.size)
	}
}

// full tells whether no slot is free.
func (p *pool) full() bool { return int(p.used.Load()) >= p.size }
