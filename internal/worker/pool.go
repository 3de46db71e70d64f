// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// wantedFor is how long a claim counts as one that wants places after it has asked for them.
	wantedFor = 2 * time.Second
	// levelEvery is how often those that wait are looked at, while places are free that are left to others.
	levelEvery = wantedFor / 8
)

// pool bounds how many machines are worked on at once. Claims get equal parts of it, but for those that want less (max-min fairness). Of those that wait,
// the one is served next that has the fewest places, and of these the first. What others wanted a moment ago is left to them: a claim whose machines hang,
// and keep their places for long, would else take one more whenever none of the others happens to wait, and have nearly all in the end. No claim starves, as
// one whose works have ended has as few as any. It is safe for concurrent use.
type pool struct {
	size    int
	observe func(inUse, size int)

	mu      sync.Mutex
	used    int
	shares  map[*share]bool
	waiting []*waiter
	soon    bool // who waits is served in a moment
	later   bool // and looked at later
}

// share is what a claim has of a pool. Its methods are for one goroutine.
type share struct {
	pool *pool
	has  func() int64 // how many places it has; safe for concurrent use

	// The pool's mutex guards these.
	wanted int       // how many it could use in all, when it last asked
	asked  time.Time // when that was
	waits  bool
}

// waiter waits for places.
type waiter struct {
	share  *share
	want   int
	served chan int // gets how many it was given
}

func newPool(size int, observe func(inUse, size int)) *pool {
	observe(0, size)
	return &pool{size: size, observe: observe, shares: map[*share]bool{}}
}

// share returns the share of somebody who says how many places it has. Its holder calls forget.
func (p *pool) share(has func() int64) *share { return &share{pool: p, has: has} }

// tryTake takes up to want places, as far as there are free ones that are neither left to others nor waited for by somebody who has as few, and returns how many.
func (s *share) tryTake(want int) int {
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ask(s, want)
	return p.takeFree(s, want)
}

// take waits for places, at least one and up to want, and returns how many it got.
func (s *share) take(ctx context.Context, want int) (int, error) {
	p := s.pool
	p.mu.Lock()
	p.ask(s, want)
	if n := p.takeFree(s, want); n > 0 {
		p.mu.Unlock()
		return n, nil
	}
	w := &waiter{share: s, want: want, served: make(chan int, 1)}
	p.waiting = append(p.waiting, w)
	s.waits = true
	p.look()
	p.mu.Unlock()
	select {
	case n := <-w.served:
		return n, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	i := slices.Index(p.waiting, w)
	if i >= 0 {
		p.leave(i)
	}
	p.mu.Unlock()
	if i < 0 { // it was served meanwhile
		p.give(<-w.served)
	}
	return 0, ctx.Err()
}

// back returns those of the places that were taken last which could not be used, and says how many were.
func (s *share) back(unused, used int) {
	if unused == 0 {
		return
	}
	s.pool.mu.Lock()
	s.wanted = int(s.has()) + used
	s.pool.mu.Unlock()
	s.pool.give(unused)
}

// forget ends a share. Places that it still has are given back as ever.
func (s *share) forget() {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	delete(s.pool.shares, s)
}

// ask notes what somebody wants.
func (p *pool) ask(s *share, want int) {
	p.shares[s] = true
	s.wanted, s.asked = int(s.has())+want, time.Now()
}

func (p *pool) takeFree(s *share, want int) int {
	if slices.ContainsFunc(p.waiting, func(w *waiter) bool { return w.share.has() <= s.has() }) {
		return 0
	}
	n := max(min(want, p.size-p.used), 0)
	if n > 1 || s.has() > 0 { // one place is nobody's loss
		n = min(n, max(p.level()-int(s.has()), 0))
	}
	p.count(n)
	return n
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

// look has those looked at later that wait although places are free.
func (p *pool) look() {
	if len(p.waiting) > 0 && p.used < p.size && !p.later {
		p.later = true
		time.AfterFunc(levelEvery, p.serve)
	}
}

// serve gives free places to those that wait, to each as many as are its part.
func (p *pool) serve() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.soon, p.later = false, false
	level := 0
	for len(p.waiting) > 0 && p.used < p.size {
		next, fewest := 0, p.waiting[0].share.has()
		for i, w := range p.waiting[1:] {
			if n := w.share.has(); n < fewest {
				next, fewest = i+1, n
			}
		}
		if level == 0 {
			level = p.level()
		}
		part := level - int(fewest)
		if part <= 0 && fewest > 0 {
			break // nor is there anything for those that have more
		}
		w := p.waiting[next]
		n := max(min(w.want, part, p.size-p.used), 1)
		p.leave(next)
		p.count(n)
		w.served <- n
	}
	p.look()
}

// leave takes a waiter out.
func (p *pool) leave(i int) {
	p.waiting[i].share.waits = false
	p.waiting = slices.Delete(p.waiting, i, i+1)
}

// level is how many places each may have, so that those that want fewer have what they want and the others equal parts of the rest; at least one.
func (p *pool) level() int {
	now := time.Now()
	wants := make([]int, 0, len(p.shares))
	for s := range p.shares {
		has := int(s.has())
		switch {
		case s.waits || now.Sub(s.asked) < wantedFor:
			wants = append(wants, max(has, s.wanted))
		case has > 0:
			wants = append(wants, has)
		default:
			delete(p.shares, s)
		}
	}
	slices.Sort(wants)
	rest := p.size
	for i, want := range wants {
		if part := rest / (len(wants) - i); want > part {
			return max(part, 1)
		}
		rest -= want
	}
	return p.size
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
