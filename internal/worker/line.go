// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"slices"
	"sync"
)

// lines are where claims of this pod stand that wait for a place under a provider's limit. Whoever ends work of the provider wakes the
// first, and so does a look now and then for places that other pods have given back: as many claims look as there may be places for, however
// many wait. Who looked in vain stands at the end again, so that each has its turn. It is safe for concurrent use.
type lines struct {
	mu      sync.Mutex
	waiting map[lineID][]*claimLoop
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

// any tells whether somebody stands in a line.
func (s *lines) any(id lineID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting[id]) > 0
}

// next calls the first of a line, which leaves all lines. If it is called for a place, nobody else needs to look when it has taken that.
func (s *lines) next(id lineID, how call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting[id]) == 0 {
		return
	}
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
		s.next(id, calledToLook)
	}
}
