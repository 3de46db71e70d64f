// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/controllers"
)

// over lets a claim of one machine, which has our finalizer, come to its end, and shows it.
func (l *lab) over(c *v1alpha1.WorkClaim) {
	l.t.Helper()
	l.reconcile(c)
	s := l.session()
	owned := l.own(s, c.Name)
	if err := l.admit(c.Name, owned.Epoch); err != nil {
		l.t.Fatal(err)
	}
	for _, w := range l.start(s, owned) {
		if err := w.FinishData(l.t.Context(), bmdb.Outcome{}); err != nil {
			l.t.Fatal(err)
		}
	}
	if _, err := s.ReviewClaim(l.t.Context(), owned); err != nil {
		l.t.Fatal(err)
	}
	l.reconcile(c)
	if meta.IsStatusConditionFalse(c.Status.Conditions, string(v1alpha1.ConditionFinished)) {
		l.t.Fatalf("the claim is not over: %+v", c.Status)
	}
}

// TestFinalizerGoesAfterTheEndIsShown: by its own controller, and never from another object of the name.
func TestFinalizerGoesAfterTheEndIsShown(t *testing.T) {
	l := fleet(t, 3, labOptions{})
	release, stop := controllers.ReleaseLater(l.objects)
	defer stop()
	c := l.claim("c", nil, "m00")
	l.over(c)
	name := client.ObjectKeyFromObject(c)
	if !l.held(c) {
		t.Fatal("the finalizer went with the status, which waits for it then")
	}
	if err := release(t.Context(), name); err != nil || !l.held(c) {
		t.Errorf("the finalizer went while claims come to their ends: %v", err)
	}
	l.clock.Step(time.Second)
	if err := release(t.Context(), name); err != nil || l.held(c) {
		t.Errorf("finalizers are %v: %v", c.Finalizers, err)
	}

	// Again, and another object comes between the status and the controller's turn.
	d := l.claim("d", nil, "m01")
	l.over(d)
	l.update(d, func() { d.Finalizers = nil })
	l.remove(d)
	l.clock.Step(time.Second)
	d = l.claim("d", func(c *v1alpha1.WorkClaim) { c.Finalizers = []string{controllers.FinalizerWork} }, "m01")
	if err := release(t.Context(), client.ObjectKeyFromObject(d)); err != nil || !l.held(d) {
		t.Errorf("another object of the name has finalizers %v: %v", d.Finalizers, err)
	}

	// Again, and a later term begins it anew in between.
	e := l.claim("e", nil, "m02")
	l.over(e)
	if err := l.admit("e", 1000); err != nil {
		t.Fatal(err)
	}
	l.clock.Step(time.Second)
	if err := release(t.Context(), client.ObjectKeyFromObject(e)); err != nil || !l.held(e) {
		t.Errorf("an object that a later term relies on has finalizers %v: %v", e.Finalizers, err)
	}
	if err := release(t.Context(), client.ObjectKey{Namespace: l.namespace, Name: "none"}); err != nil {
		t.Errorf("of no object: %v", err)
	}
}

// TestFinalizersGoWithTheProcess: what waits for a calm is done when the process ends, which may be the last.
func TestFinalizersGoWithTheProcess(t *testing.T) {
	l := fleet(t, 2, labOptions{})
	_, stop := controllers.ReleaseLater(l.objects)
	defer stop()
	var all []*v1alpha1.WorkClaim
	for _, name := range []string{"c", "d"} {
		c := l.claim(name, nil, map[string]string{"c": "m00", "d": "m01"}[name])
		l.over(c)
		all = append(all, c)
	}
	if err := controllers.ReleaseAtTheEnd(l.objects); err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if l.held(c) {
			t.Errorf("%s has finalizers %v", c.Name, c.Finalizers)
		}
	}
}

// TestFinalizersGoInTheEnd: also while claims come and go all the time.
func TestFinalizersGoInTheEnd(t *testing.T) {
	l := fleet(t, 2, labOptions{})
	release, stop := controllers.ReleaseLater(l.objects)
	defer stop()
	c := l.claim("c", nil, "m00")
	l.over(c)
	l.claim("d", nil, "m01")
	for epoch := range int64(59) {
		l.clock.Step(500 * time.Millisecond)
		if err := l.admit("d", epoch+1); err != nil {
			t.Fatal(err)
		}
		if err := release(t.Context(), client.ObjectKeyFromObject(c)); err != nil || !l.held(c) {
			t.Fatalf("the finalizer went after %d claims: %v", epoch+1, err)
		}
	}
	l.clock.Step(500 * time.Millisecond)
	if err := l.admit("d", 60); err != nil {
		t.Fatal(err)
	}
	if err := release(t.Context(), client.ObjectKeyFromObject(c)); err != nil || l.held(c) {
		t.Errorf("finalizers are %v after half a minute: %v", c.Finalizers, err)
	}
}

// TestOwnWritesNeedNoReads: what this replica wrote last it knows, while the cache still shows what was before.
func TestOwnWritesNeedNoReads(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", nil, "m00")
	l.reconcile(c)
	before, writes := l.liveReads.Load(), l.writes.count()
	stale := c.DeepCopy()
	for epoch := range int64(3) {
		l.cached(stale)
		if err := l.admit("c", epoch+1); err != nil {
			t.Fatal(err)
		}
		if err := l.idle("c", epoch+1); err != nil {
			t.Fatal(err)
		}
	}
	l.cached()
	if l.held(c) {
		t.Errorf("finalizers are %v", c.Finalizers)
	}
	if n := l.liveReads.Load() - before; n > 0 {
		t.Errorf("the API server was asked %d times", n)
	}
	if l.writes.count() != writes {
		t.Error("the status was written")
	}
}

// TestFirstStatusWaitsForAShortClaim: as long as nothing is to be said but that it is carried out. Its end is shown at once.
func TestFirstStatusWaitsForAShortClaim(t *testing.T) {
	l := fleet(t, 1, labOptions{stagger: time.Millisecond})
	refused := l.claim("refused", func(c *v1alpha1.WorkClaim) { c.Spec.Process = "Nonsense" }, "m00")
	if l.reconcile(refused); len(refused.Status.Conditions) == 0 {
		l.reconcile(refused) // it was another replica's turn first
	}
	l.verify(refused, metav1.ConditionFalse, v1alpha1.ReasonProcessNotAvailable, "Failed")

	c := l.claim("c", nil, "m00")
	wait := l.reconcile(c).RequeueAfter
	if len(c.Status.Conditions) > 0 || wait < 500*time.Millisecond || wait > 2*time.Second {
		t.Errorf("looks again after %s at status %+v", wait, c.Status)
	}
	s := l.session()
	owned := l.own(s, "c")
	for _, w := range l.start(s, owned) {
		if err := w.FinishData(t.Context(), bmdb.Outcome{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.ReviewClaim(t.Context(), owned); err != nil {
		t.Fatal(err)
	}
	l.objects.ClaimOver(l.namespace, "c")
	l.reconcile(c)
	l.verify(c, metav1.ConditionTrue, v1alpha1.ReasonComplete, "Current")
}
