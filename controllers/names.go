// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// names remembers the keys and UIDs of objects by their names, for when the objects are gone. It is lost with the process: claims that
// were deleted while no operator ran are found by their rows. It is safe for concurrent use.
type names struct {
	mu   sync.Mutex
	keys map[client.ObjectKey]remembered
}

// remembered is what is known of an object that may be gone.
type remembered struct {
	key, uid string
	// generation and runnable are what the database was last told of it; generation 0: nothing.
	generation int64
	runnable   bool
	// manages is what the database answered.
	manages bool
}

func (n *names) remember(name client.ObjectKey, key, uid string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.keys[name]; old.key != key || old.uid != uid {
		n.set(name, remembered{key: key, uid: uid})
	}
}

// attached remembers what the database was told.
func (n *names) attached(name client.ObjectKey, r remembered) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.set(name, r)
}

// untold forgets what the database was told, so that it is told again.
func (n *names) untold() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, r := range n.keys {
		n.keys[name] = remembered{key: r.key, uid: r.uid}
	}
}

func (n *names) set(name client.ObjectKey, r remembered) {
	if n.keys == nil {
		n.keys = map[client.ObjectKey]remembered{}
	}
	n.keys[name] = r
}

func (n *names) recall(name client.ObjectKey) remembered {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.keys[name]
}

func (n *names) forget(name client.ObjectKey) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.keys, name)
}
