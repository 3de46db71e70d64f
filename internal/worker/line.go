// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"slices"
	"sync"
	"time"
)

const (
	// yieldFor is for how long free places of a provider are left to other pods: each of them has probed by then.
	yieldFor = 5 * pollEvery / 2
	// yieldEvery is how often that happens at most: what it costs, while work goes on, is bounded by their ratio.
	yieldEvery = 16 * yieldFor
)

// lines are where claims of this pod stand that wait for a place under a provider's limit. Whoever ends work of the provider wakes the
// first, and so does a look now and then for places that other pods have given back: as many claims look as there may be places for, however
// many wait. Who looked in vain stands at the end again, so that each has its turn.
//
// A pod knows of a free place sooner than others, and would take its own places again for as long as it has a use for them. Now and then, when work
// ends that was started with the last place, it leaves what is free to others for a while, not knowing whether they wait: nothing is started under
// that limit, and nobody is called.
//
// It is safe for concurrent use.
type lines struct {
	yieldEvery time.Duration

	mu      sync.Mutex
	waiting map[lineID][]*claimLoop
	yielded map[lineID]time.Time // when places were left to others the last time
}

type lineID struct{ pool, provider string }

// join makes a claim stand in the lines of providers. They must not be those it stands in already.
func (s *lines) join(l *claimLoop, providers []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting == nil {
		s.waiting = map[lineID][]*claimLoop{}
	}
	for _, p := range providers {
		id := lineID{l.id.pool, p}
		s.waiting[id] = append(s.waiting[id], l)
	}
	l.lines = slices.Clone(providers)
}

// call is how a claim was called out of its line.
type call int

const (
	notCalled      call = iota
	calledToLook        // there may be a place
	calledForPlace      // there is one
)

// leave takes a claim out of all lines. It tells whether the claim stood there, or was called out of them since it left them last, and
// whether for a place.
func (s *lines) leave(l *claimLoop) (stood, place bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stood, place = len(l.lines) > 0 || l.called != notCalled, l.called == calledForPlace
	s.remove(l)
	l.called = notCalled
	return stood, place
}

func (s *lines) remove(l *claimLoop) {
	for _, p := range l.lines {
		id := lineID{l.id.pool, p}
		if rest := slices.DeleteFunc(s.waiting[id], func(o *claimLoop) bool { return o == l }); len(rest) > 0 {
			s.waiting[id] = rest
		} else {
			delete(s.waiting, id)
		}
	}
	l.lines = nil
}

// stands tells whether a claim stands in a line.
func (s *lines) stands(l *claimLoop) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(l.lines) > 0
}

// yield leaves the places of a provider to other pods if it is time for that, when work has ended that was started with the last of them.
func (s *lines) yield(id lineID, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.yielded == nil {
		s.yielded = map[lineID]time.Time{}
	}
	if last, ok := s.yielded[id]; !ok {
		s.yielded[id] = now.Add(-yieldFor) // it has just begun to use any
	} else if now.Sub(last) >= s.yieldEvery {
		s.yielded[id] = now
	}
}

// left is for how long the places of a provider are left to other pods still.
func (s *lines) left(id lineID, now time.Time) time.Duration {
	last, ok := s.yielded[id]
	if !ok {
		return 0
	}
	return max(0, yieldFor-now.Sub(last))
}

// open returns those of some providers that are not left to other pods at the moment, not nil, and after which time more are.
func (s *lines) open(pool string, providers []string, now time.Time) (open []string, pause time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	open = []string{}
	for _, p := range providers {
		left := s.left(lineID{pool, p}, now)
		if left == 0 {
			open = append(open, p)
		} else if pause == 0 || left < pause {
			pause = left
		}
	}
	return open, pause
}

// call calls the first of a line for a place that is free, as soon as that is not left to other pods. It tells whether somebody stands there.
func (s *lines) call(id lineID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting[id]) == 0 {
		return false
	}
	if left := s.left(id, time.Now()); left > 0 {
		time.AfterFunc(left, func() { s.call(id) })
	} else {
		s.first(id, calledForPlace)
	}
	return true
}

// next calls the first of a line to look, unless places are left to other pods.
func (s *lines) next(id lineID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting[id]) > 0 && s.left(id, time.Now()) == 0 {
		s.first(id, calledToLook)
	}
}

// first calls the first of a line, which leaves all lines. If it is called for a place, nobody else needs to look when it has taken that.
func (s *lines) first(id lineID, how call) {
	first := s.waiting[id][0]
	s.remove(first)
	first.called = how
	first.nudge()
}

// probe calls the first of each line.
func (s *lines) probe() {
	s.mu.Lock()
	ids := make([]lineID, 0, len(s.waiting))
	for id := range s.waiting {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.next(id)
	}
}
