// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// firstHindrance and lastHindrance bound how long a claim starts nothing after what its work needs could not be read.
	firstHindrance = time.Second
	lastHindrance  = 30 * time.Second
)

// hindrance keeps a claim from starting work that would be cancelled before it begins, over and over: what the work needs could not be read.
// That is no fault of the machine, so there is no backoff and no attempt is used up, but a pause that grows until something could be read.
// It is safe for concurrent use.
type hindrance struct {
	mu    sync.Mutex
	cause string
	pause time.Duration
	until time.Time
}

// meet records that something could not be read, now. What began before the pause did does not make it longer.
func (h *hindrance) meet(cause string, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cause = cause
	if now.Before(h.until) {
		return
	}
	h.pause = min(max(2*h.pause, firstHindrance), lastHindrance)
	h.until = now.Add(h.pause/2 + rand.N(h.pause/2))
}

// pass records that all could be read, and tells whether that is news. A pause that goes on ends by itself.
func (h *hindrance) pass() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	news := h.cause != ""
	h.cause, h.pause = "", 0
	return news
}

// left is how long nothing is to be started.
func (h *hindrance) left(now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(h.until.Sub(now), 0)
}

// why is what could not be read last; empty: all could.
func (h *hindrance) why() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cause
}
