// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"maps"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// patience is until when nothing needs to be shown of new objects but their end, by their UIDs. The zero value has none. It is safe for concurrent use.
type patience struct {
	mu    sync.Mutex
	until map[types.UID]time.Time
	prune int // at how many it is time to forget
}

// have begins an object's time.
func (p *patience) have(uid types.UID, now time.Time, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.until == nil {
		p.until = map[types.UID]time.Time{}
	}
	p.until[uid] = now.Add(d)
	const few = 1000
	if len(p.until) >= max(p.prune, few) {
		maps.DeleteFunc(p.until, func(_ types.UID, until time.Time) bool { return !until.After(now) })
		p.prune = 2 * len(p.until)
	}
}

// left is what is left of an object's time.
func (p *patience) left(uid types.UID, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(p.until[uid].Sub(now), 0)
}
