// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"time"
)

// ServeOwner is Serve with an owner that a test has a hand in.
func (e *Engine) ServeOwner(ctx context.Context, owner Owner) { e.serve(ctx, owner) }

// YieldEvery makes an engine that does not serve yet leave places to other pods that often.
func (e *Engine) YieldEvery(d time.Duration) { e.lines.yieldEvery = d }

// Pool is a pool by itself.
type Pool struct{ pool *pool }

// NewPool returns a pool that nobody observes.
func NewPool(size int) Pool { return Pool{newPool(size, func(int, int) {})} }

// Share is the share of somebody who has so many places.
func (p Pool) Share(has func() int64) Share { return Share{p.pool.share(has)} }

// Share is a share of a pool.
type Share struct{ share *share }

// Take is the share's.
func (s Share) Take(ctx context.Context, want int) (int, error) { return s.share.take(ctx, want) }

// Back is the share's.
func (s Share) Back(unused, used int) { s.share.back(unused, used) }

// Forget is the share's.
func (s Share) Forget() { s.share.forget() }

// Give is the pool's.
func (p Pool) Give(n int) { p.pool.give(n) }

// Used is how many places are taken.
func (p Pool) Used() int {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	return p.pool.used
}

// Waiting is how many wait for places.
func (p Pool) Waiting() int {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	return len(p.pool.waiting)
}
