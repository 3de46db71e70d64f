// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// copies are the objects as this replica's last writes left them, for as long as the cache may be behind: without them each write that
// follows another would be refused, and the object read from the API server. A copy stands in only for versions that our own writes have
// replaced, each made on condition that nobody else had written in between: nothing is inferred from the order of versions, and what anybody
// else writes is seen as soon as the cache shows it. The zero value is empty. It is safe for concurrent use.
type copies struct {
	mu    sync.Mutex
	by    map[types.UID]copied
	prune int // at how many it is time to forget
}

// copied is what is known of one object.
type copied struct {
	object   client.Object
	replaced []string // resource versions
	at       time.Time
}

// copiesKept is for how long a copy is of use: a cache is behind for moments.
const copiesKept = time.Minute

// wrote remembers that before was made after by a write that was refused if the object had another version.
func (c *copies) wrote(before, after client.Object, now time.Time) {
	if after.GetResourceVersion() == before.GetResourceVersion() || after.GetResourceVersion() == "" {
		return // nothing changed, or it is not known to which version
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	replaced := []string{before.GetResourceVersion()}
	if known, ok := c.by[after.GetUID()]; ok && known.object.GetResourceVersion() == before.GetResourceVersion() {
		replaced = append(known.replaced, replaced...)
	}
	if c.by == nil {
		c.by = map[types.UID]copied{}
	}
	c.by[after.GetUID()] = copied{after, replaced, now}
	const few = 1000
	if len(c.by) >= max(c.prune, few) {
		maps.DeleteFunc(c.by, func(_ types.UID, k copied) bool { return now.Sub(k.at) > copiesKept })
		c.prune = 2 * len(c.by)
	}
}

// latest returns what an object of the cache has become by our own writes, or the object itself.
func latest[T client.Object](c *copies, cached T, now time.Time) T {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.by[cached.GetUID()]
	switch {
	case !ok || known.object.GetResourceVersion() == cached.GetResourceVersion():
		return cached
	case now.Sub(known.at) <= copiesKept && slices.Contains(known.replaced, cached.GetResourceVersion()):
		if object, ok := known.object.DeepCopyObject().(T); ok {
			return object
		}
	}
	delete(c.by, cached.GetUID()) // somebody else has written since, or the cache will not catch up
	return cached
}

// ours tells whether an object is as one of our latest writes left it, or was before it.
func (c *copies) ours(object client.Object) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.by[object.GetUID()]
	return ok && (known.object.GetResourceVersion() == object.GetResourceVersion() || slices.Contains(known.replaced, object.GetResourceVersion()))
}
