// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// witness is an object that was shown something of the database.
type witness struct {
	kind  string // one of the Kind constants of bmdb
	key   client.ObjectKey
	since time.Time // when it was last shown something new, as far as that is known
}

// object is one to read the witness into.
func (w witness) object() client.Object {
	switch w.kind {
	case bmdb.KindMachine:
		return &v1alpha1.Machine{}
	case bmdb.KindClaim:
		return &v1alpha1.WorkClaim{}
	default:
		return &v1alpha1.ProviderConfig{}
	}
}

// newestKept is how many objects are remembered that were shown something last: fewer than a Hear holds against the database at once.
const newestKept = 500

// newest remembers the objects that were shown something of the database last, by whichever pod. It is safe for concurrent use.
type newest struct {
	mu   sync.Mutex
	list []witness // the latest at the end; some more than once
}

// begin remembers the newest of all objects, before what is noted.
func (n *newest) begin(all []witness) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b witness) int { return a.since.Compare(b.since) })
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(all[max(0, len(all)-newestKept):], n.list...)
	n.trim()
}

func (n *newest) note(w witness) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, w)
	if len(n.list) > 4*newestKept {
		n.trim()
	}
}

// trim forgets all but the newest, each of which is left once. It is called under the mutex.
func (n *newest) trim() {
	type name struct {
		kind string
		key  client.ObjectKey
	}
	seen := map[name]bool{}
	kept := make([]witness, 0, newestKept)
	for _, w := range slices.Backward(n.list) {
		if id := (name{w.kind, w.key}); !seen[id] && len(kept) < newestKept {
			seen[id] = true
			kept = append(kept, w)
		}
	}
	slices.Reverse(kept)
	n.list = kept
}

func (n *newest) latest() []witness {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.trim()
	return slices.Clone(n.list)
}

// watch is a predicate that lets nothing pass, and notes the objects that are shown something new.
func (o *Objects) watch() predicate.Predicate {
	return predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return false }, DeleteFunc: func(event.DeleteEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
		UpdateFunc: func(e event.UpdateEvent) bool {
			before, after := o.config.testimonyOf(e.ObjectOld), o.config.testimonyOf(e.ObjectNew)
			if before.Revision != after.Revision || before.Database != after.Database {
				o.newest.note(witness{kind: after.Kind, key: client.ObjectKeyFromObject(e.ObjectNew)})
			}
			return false
		},
	}
}

// readySince is when an object's Ready changed last.
func readySince(object client.Object) (since time.Time) {
	var conditions []metav1.Condition
	switch o := object.(type) {
	case *v1alpha1.Machine:
		conditions = o.Status.Conditions
	case *v1alpha1.WorkClaim:
		conditions = o.Status.Conditions
	case *v1alpha1.ProviderConfig:
		conditions = o.Status.Conditions
	}
	if ready := meta.FindStatusCondition(conditions, string(v1alpha1.ConditionReady)); ready != nil {
		since = ready.LastTransitionTime.Time
	}
	return since
}
