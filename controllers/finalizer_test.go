// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/controllers"
	"github.com/bmdb-dev/bmdb-operator/internal/worker"
)

// admit admits a claim in a term that goes on, for the first time in that term.
func (l *lab) admit(key string, epoch int64) error {
	l.t.Helper()
	return l.objects.Admit(l.t.Context(), worker.Term{Pool: l.namespace, Key: key, Epoch: epoch}, func(context.Context) error { return nil })
}

// idle frees a claim that was admitted in a term.
func (l *lab) idle(key string, epoch int64) error {
	l.t.Helper()
	done, err := l.objects.Idle(l.t.Context(), worker.Term{Pool: l.namespace, Key: key, Epoch: epoch, Admitted: true})
	if err == nil && !done {
		return errBusy
	}
	return err
}

var (
	errBusy = errors.New("other pods hold machines for it")
	errOver = errors.New("the term is over")
)

func (l *lab) held(c *v1alpha1.WorkClaim) bool {
	l.t.Helper()
	return l.read(c) && slices.Contains(c.Finalizers, controllers.FinalizerWork)
}

// TestFinalizerOfALaterTerm: what an earlier term does late takes nothing from a later one, that of the same pod or of another, wherever it
// comes in between.
func TestFinalizerOfALaterTerm(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", nil, "m00")
	l.reconcile(c)
	admit := func(epoch int64) {
		t.Helper()
		if err := l.admit("c", epoch); err != nil {
			t.Fatal(err)
		}
	}
	admit(3)
	admit(4) // finds the finalizer there
	if err := l.idle("c", 3); err != nil {
		t.Fatal(err)
	}
	if !l.held(c) {
		t.Error("an earlier term took the finalizer of the later one")
	}
	// Between the look of the earlier term and its patch.
	l.beforePatch(func() { admit(5) })
	if err := l.idle("c", 4); err != nil {
		t.Fatal(err)
	}
	if !l.held(c) {
		t.Error("an earlier term took the finalizer that a later one had just come to rely on")
	}
	over := func(context.Context) error { return errOver }
	if err := l.objects.Admit(t.Context(), worker.Term{Pool: l.namespace, Key: "c", Epoch: 4}, over); !errors.Is(err, errOver) {
		t.Errorf("an earlier term is admitted after the later one: %v", err)
	}
	if err := l.idle("c", 4); err != nil || !l.held(c) {
		t.Errorf("the finalizer of the later term is gone: %v", err)
	}
	if err := l.idle("c", 5); err != nil || l.held(c) || c.Annotations[controllers.AnnotationTerm] != "" {
		t.Errorf("finalizers %v and annotations %v after the last term: %v", c.Finalizers, c.Annotations, err)
	}
}

// TestFinalizerIsAddedAgain: a term that was idle, or a cache that shows what was, is no reason to start without the finalizer.
func TestFinalizerIsAddedAgain(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", nil, "m00")
	l.reconcile(c)
	if err := l.admit("c", 3); err != nil {
		t.Fatal(err)
	}
	l.read(c)
	stale := c.DeepCopy()
	if err := l.idle("c", 3); err != nil || l.held(c) {
		t.Fatalf("finalizers are %v: %v", c.Finalizers, err)
	}
	l.cached(stale)
	if err := l.admit("c", 3); err != nil {
		t.Fatal(err)
	}
	l.cached()
	if !l.held(c) {
		t.Error("admitted without a finalizer, which only the cache still had")
	}
	// And the other way round: only the cache does not have it yet.
	stale = c.DeepCopy()
	stale.Finalizers, stale.Annotations = nil, nil
	l.cached(stale)
	if err := l.idle("c", 3); err != nil || l.held(c) {
		t.Errorf("an idle claim has finalizers %v, which the cache did not show yet: %v", c.Finalizers, err)
	}
}

// TestFinalizerOfAnotherDatabase: a term that only a copy of an object knows of keeps nobody from the claim.
func TestFinalizerOfAnotherDatabase(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", func(c *v1alpha1.WorkClaim) {
		c.Finalizers, c.Annotations = []string{controllers.FinalizerWork}, map[string]string{controllers.AnnotationTerm: "999"}
	}, "m00")
	l.reconcile(c)
	if err := l.admit("c", 3); err != nil {
		t.Fatal(err)
	}
	if err := l.idle("c", 3); err != nil || l.held(c) {
		t.Errorf("finalizers are %v: %v", c.Finalizers, err)
	}
}

// TestFinalizerWhileOthersWork: a pod that is idle does not free a claim for which another pod still works.
func TestFinalizerWhileOthersWork(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", nil, "m00")
	l.reconcile(c)
	s := l.session()
	owned := l.own(s, "c")
	if err := l.admit("c", owned.Epoch); err != nil {
		t.Fatal(err)
	}
	works := l.start(s, owned)
	if err := l.idle("c", owned.Epoch+1); !errors.Is(err, errBusy) || !l.held(c) {
		t.Errorf("freed while a machine is held: %v", err)
	}
	if err := works[0].Fail(t.Context(), &bmdb.Backoff{}, "Unreachable: no answer"); err != nil {
		t.Fatal(err)
	}
	if err := l.idle("c", owned.Epoch+1); err != nil || l.held(c) {
		t.Errorf("finalizers are %v: %v", c.Finalizers, err)
	}
}

// TestClaimIsLeftAlone: the object of a claim that stays admitted, or that waits, is not written again turn by turn.
func TestClaimIsLeftAlone(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", nil, "m00")
	l.reconcile(c)
	if err := l.admit("c", 3); err != nil {
		t.Fatal(err)
	}
	turns := func(do func() error) {
		t.Helper()
		l.read(c)
		version := c.ResourceVersion
		for range 3 {
			if err := do(); err != nil {
				t.Fatal(err)
			}
			l.reconcile(c)
		}
		if c.ResourceVersion != version {
			t.Errorf("the object was written: version %s instead of %s", c.ResourceVersion, version)
		}
	}
	turns(func() error {
		return l.objects.Admit(t.Context(), worker.Term{Pool: l.namespace, Key: "c", Epoch: 3, Admitted: true}, nil)
	})
	if err := l.idle("c", 3); err != nil {
		t.Fatal(err)
	}
	turns(func() error { return l.idle("c", 3) })
}

// TestProviderBecomesReady: a claim whose provider was not ready looks again by itself, and is carried out when it is.
func TestProviderBecomesReady(t *testing.T) {
	l := newLab(t, labOptions{allowSimulated: true})
	l.reconcile(l.machine("m00", "lab"))
	c := l.claim("c", func(c *v1alpha1.WorkClaim) { c.Spec.Machines.ProviderRef.Name = "lab" }, "m00")
	l.clock.SetTime(c.CreationTimestamp.Add(time.Minute))
	if result := l.reconcile(c); result.RequeueAfter <= 0 || result.RequeueAfter > time.Minute {
		t.Errorf("looked at again after %s", result.RequeueAfter)
	}
	l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonProviderNotReady, status.FailedStatus)
	s := l.session()
	if owned, err := s.OwnClaims(t.Context(), 10); err != nil || len(owned) != 0 {
		t.Fatalf("%d claims are to be owned: %v", len(owned), err)
	}
	l.simulated("lab")
	polls := l.workers.polls
	l.reconcile(c)
	l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonPending, status.InProgressStatus)
	if l.workers.polls == polls {
		t.Error("nobody was asked to take the claim up")
	}
	l.own(s, "c")
}

// beforePatch does something once, right before the next patch of an object arrives.
func (l *lab) beforePatch(do func()) { l.patching = do }

// cached lets lists of claims show these until the next call.
func (l *lab) cached(claims ...*v1alpha1.WorkClaim) { l.stale = claims }

func (l *lab) list(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
	claims, ok := list.(*v1alpha1.WorkClaimList)
	if !ok || l.stale == nil {
		return listByIndex(ctx, c, list, opts...)
	}
	for _, claim := range l.stale {
		claims.Items = append(claims.Items, *claim.DeepCopy())
	}
	return nil
}

func (l *lab) patch(ctx context.Context, c client.WithWatch, object client.Object, patch client.Patch, opts ...client.PatchOption) error {
	if do := l.patching; do != nil {
		l.patching = nil
		do()
	}
	return c.Patch(ctx, object, patch, opts...)
}
