// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"slices"
	"sync"
	"time"
)

// pool bounds how many machines are worked on at once. Of those that wait, the one is served next that has the fewest places, and of these the first:
// a claim whose machines hang, and keep their places for long, takes no more of them than any other. No claim starves, as one whose works have
// ended has as few as any. It is safe for concurrent use.
type pool struct {
	size    int
	observe func(inUse, size int)

	mu      sync.Mutex
	used    int
	waiting []*waiter
	soon    bool // who waits is served in a moment
}

// waiter waits for places.
type waiter struct {
	want   int
	has    func() int64 // how many it has
	served chan int     // gets how many it was given
}

func newPool(size int, observe func(inUse, size int)) *pool {
	observe(0, size)
	return &pool{size: size, observe: observe}
}

// tryTake takes up to want places, as far as there are free ones that nobody waits for, and returns how many.
func (p *pool) tryTake(want int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.takeFree(want)
}

func (p *pool) takeFree(want int) int {
	if len(p.waiting) > 0 {
		return 0
	}
	n := max(min(want, p.size-p.used), 0)
	p.count(n)
	return n
}

// take waits for places, at least one and up to want, for somebody who has so many, and returns how many it got.
func (p *pool) take(ctx context.Context, want int, has func() int64) (int, error) {
	p.mu.Lock()
	if n := p.takeFree(want); n > 0 {
		p.mu.Unlock()
		return n, nil
	}
	w := &waiter{want: want, has: has, served: make(chan int, 1)}
	p.waiting = append(p.waiting, w)
	p.mu.Unlock()
	select {
	case n := <-w.served:
		return n, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	i := slices.Index(p.waiting, w)
	if i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	}
	p.mu.Unlock()
	if i < 0 { // it was served meanwhile
		p.give(<-w.served)
	}
	return 0, ctx.Err()
}

// give returns n places. Who waits for them gets them a moment later: ends come together, and a start of many costs hardly more than one of one.
func (p *pool) give(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count(-n)
	if len(p.waiting) > 0 && p.used < p.size && !p.soon {
		p.soon = true
		time.AfterFunc(gatherTime, p.serve)
	}
}

// serve gives free places to those that wait, to each as many as are its share.
func (p *pool) serve() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.soon = false
	for len(p.waiting) > 0 && p.used < p.size {
		next, fewest := 0, p.waiting[0].has()
		for i, w := range p.waiting[1:] {
			if n := w.has(); n < fewest {
				next, fewest = i+1, n
			}
		}
		w, share := p.waiting[next], p.size/(len(p.waiting)+1)-int(fewest)
		n := max(min(w.want, share, p.size-p.used), 1)
		p.waiting = slices.Delete(p.waiting, next, next+1)
		p.count(n)
		w.served <- n
	}
}

func (p *pool) count(n int) {
	if n != 0 {
		p.used += n
		p.observe(p.used, p.size)
	}
}

// full tells whether no place is free.
func (p *pool) full() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used >= p.size
}
