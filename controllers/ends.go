// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// ends is when it is this replica's turn to show that a claim is over, by pool and key: at once if it saw the end as the claim's owner, else
// a while after it first heard of it, when it mostly finds it shown. It forgets now and then: it is about moments. It is safe for concurrent
// use.
type ends struct {
	mu    sync.Mutex
	turns map[client.ObjectKey]time.Time
}

// saw makes it this replica's turn.
func (e *ends) saw(claim client.ObjectKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(claim, time.Time{})
}

// left returns how long it is until this replica's turn, which is after some time if it hears of the end for the first time.
func (e *ends) left(claim client.ObjectKey, now time.Time, after time.Duration) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	turn, heard := e.turns[claim]
	if !heard {
		turn = now.Add(after)
		e.set(claim, turn)
	}
	return max(turn.Sub(now), 0)
}

func (e *ends) set(claim client.ObjectKey, turn time.Time) {
	const most = 10_000
	if e.turns == nil || len(e.turns) > most {
		e.turns = map[client.ObjectKey]time.Time{}
	}
	e.turns[claim] = turn
}
