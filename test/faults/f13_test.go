// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/witnessed"
)

// TestF13 has a GitOps robot that deletes, prunes, applies again and reverts the manifests of machines, claims and their provider at random,
// with other UIDs each time. Each key's work is done exactly once.
func TestF13(t *testing.T) {
	t.Parallel()
	r := newRig(t, "F13", rigOptions{pods: 2, flags: []string{"--resync-interval", "5s"}})
	r.start()
	r.watchRules()
	const claims, each = 8, 3
	manifests := r.gitManifests(claims, each)
	for _, o := range manifests() {
		r.apply(o)
	}
	over := time.Now().Add(pick(12*time.Second, 10*time.Minute))
	for time.Now().Before(over) {
		for _, do := range r.random.Perm(acts) { // in turns, as a short run has time for few
			r.robot(do, manifests())
		}
	}
	for _, o := range manifests() {
		r.apply(o)
	}
	r.verify()
	// Nobody was killed: each machine was done once, and not only recorded once.
	done := map[string]int{}
	for _, touch := range r.witness.Touches() {
		if touch.Kind == witnessed.End && touch.Error == "" {
			done[touch.Name]++
		}
	}
	for _, name := range testbed.Names("git", claims*each) {
		if done[name] != 1 {
			t.Errorf("machine %s was done %d times", name, done[name])
		}
	}
	if n := r.Count("SELECT count(*) FROM claims WHERE state = 'Complete'"); n != claims {
		t.Errorf("%d of %d claims are complete", n, claims)
	}
	r.require("deleted", "applied again", "pruned", "reverted")
}

// gitManifests returns a maker of all objects as they are in Git.
func (r *rig) gitManifests(claims, each int) func() []client.Object {
	return r.gitManifestsOf("git", claims, each)
}

// gitManifestsOf is gitManifests for machines and claims whose names begin with a prefix.
func (r *rig) gitManifestsOf(prefix string, claims, each int) func() []client.Object {
	return func() []client.Object {
		config := r.Simulated(provider, testbed.Latency(300*time.Millisecond))
		config.Spec.Limits.Parallelism = ptr.To[int32](2)
		objects := []client.Object{config}
		names := testbed.Names(prefix, claims*each)
		for _, name := range names {
			objects = append(objects, r.Machine(name, provider))
		}
		for i := range claims {
			c := r.Claim(fmt.Sprintf("%s-claim-%d", prefix, i), names[i*each:(i+1)*each]...)
			c.Spec.Key = fmt.Sprintf("%s-install-%d", prefix, i)
			c.Spec.MaxAttempts = attempts
			objects = append(objects, c)
		}
		return objects
	}
}

// acts is how many things the robot does.
const acts = 4

// robot does one thing that robots do.
func (r *rig) robot(do int, objects []client.Object) {
	r.T.Helper()
	const most = 8
	some := make([]client.Object, 1+r.random.IntN(most))
	for i := range some {
		some[i] = objects[r.random.IntN(len(objects))]
	}
	switch do {
	case 0:
		r.Remove(some...)
		r.struck("deleted")
	case 1: // pruned, and applied again once it is gone
		r.Remove(some...)
		r.struck("pruned")
		r.AwaitGone(some...)
		for _, o := range some {
			r.apply(o)
		}
	case 2:
		for _, o := range objects {
			r.apply(o)
		}
		r.struck("applied again")
	default: // what may be changed is changed, and changed back
		r.random.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
		r.revert(objects, len(some))
	}
	r.during(time.Duration(r.random.Int64N(int64(time.Second / 2))))
}

// apply makes an object unless it is there. One that is on its way out is left alone.
func (r *rig) apply(o client.Object) {
	r.T.Helper()
	fresh, ok := o.DeepCopyObject().(client.Object)
	if !ok {
		r.T.Fatalf("%T is no object", o)
	}
	fresh.SetResourceVersion("")
	fresh.SetUID("")
	r.Eventually(testbed.Patience, "apply "+o.GetName(), func(ctx context.Context) error {
		err := r.Client.Create(ctx, fresh)
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		there, ok := o.DeepCopyObject().(client.Object)
		if !ok {
			return fmt.Errorf("%T is no object", o)
		}
		if err := r.Client.Get(ctx, client.ObjectKeyFromObject(o), there); err != nil {
			return err
		}
		if there.GetDeletionTimestamp() != nil {
			return fmt.Errorf("it is being deleted, with finalizers %v", there.GetFinalizers())
		}
		return nil
	})
}

// revert suspends some of the claims that are there and changes their parallelism, and resumes them with another one.
func (r *rig) revert(objects []client.Object, some int) {
	r.T.Helper()
	for _, o := range objects {
		if _, ok := o.(*v1alpha1.WorkClaim); !ok || some == 0 {
			continue
		}
		if r.changed(o, true) && r.changed(o, false) {
			r.struck("reverted")
			some--
		}
	}
}

// changed suspends or resumes a claim, with another parallelism, and tells whether it was there.
func (r *rig) changed(o client.Object, suspend bool) bool {
	r.T.Helper()
	var c v1alpha1.WorkClaim
	err := r.Client.Get(r.T.Context(), client.ObjectKeyFromObject(o), &c)
	if err == nil {
		before := c.DeepCopy()
		c.Spec.Suspend, c.Spec.Parallelism = ptr.To(suspend), 1+r.random.Int32N(3)
		err = r.Client.Patch(r.T.Context(), &c, client.MergeFrom(before))
	}
	if client.IgnoreNotFound(err) != nil {
		r.T.Errorf("change claim %s: %v", o.GetName(), err)
	}
	return err == nil
}
