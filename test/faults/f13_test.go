// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"fmt"
	"slices"
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
		r.robot(manifests)
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

// robot does each of the things that robots do, one after another in random order: a short run has time for few.
func (r *rig) robot(manifests func() []client.Object) {
	r.T.Helper()
	acts := []func(objects, some []client.Object){r.delete, r.prune, r.applyAgain, r.revert}
	for _, do := range r.random.Perm(len(acts)) {
		objects := manifests()
		some := slices.Clone(objects)
		r.random.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
		const most = 8
		acts[do](objects, some[:1+r.random.IntN(most)])
		r.during(time.Duration(r.random.Int64N(int64(time.Second / 2))))
	}
}

func (r *rig) delete(_, some []client.Object) {
	r.T.Helper()
	r.Remove(some...)
	r.struck("deleted")
}

// prune deletes objects, and applies them again once they are gone.
func (r *rig) prune(_, some []client.Object) {
	r.T.Helper()
	r.Remove(some...)
	r.struck("pruned")
	r.AwaitGone(some...)
	for _, o := range some {
		r.apply(o)
	}
}

func (r *rig) applyAgain(objects, _ []client.Object) {
	r.T.Helper()
	for _, o := range objects {
		r.apply(o)
	}
	r.struck("applied again")
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

// revert suspends as many of the claims that are there and changes their parallelism, and resumes them with another one.
func (r *rig) revert(objects, some []client.Object) {
	r.T.Helper()
	left := len(some)
	for _, i := range r.random.Perm(len(objects)) {
		o := objects[i]
		if _, ok := o.(*v1alpha1.WorkClaim); !ok || left == 0 {
			continue
		}
		if r.changed(o, true) && r.changed(o, false) {
			r.struck("reverted")
			left--
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
