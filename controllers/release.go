// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

const (
	// calm is for how long this pod must not have begun a claim, nor seen one come to its end, before finalizers are taken.
	calm = time.Second
	// untidy is after what time one is taken all the same.
	untidy = 30 * time.Second
	// farewell is how long a process that ends takes those that wait at most, releasersAtOnce at once.
	farewell        = 5 * time.Second
	releasersAtOnce = 16
	// perPending is how much longer each finalizer is left alone until it is looked at again, for each that waits.
	perPending = time.Millisecond
)

// releases are the claims that are over, whose last status is written, and that still have our finalizer: it is taken one by one when no more claims
// begin or end, so that a burst of claims is told how it ended before all is tidied up behind it. Who deletes one meanwhile does not wait for that.
// What waits when the process ends is taken then; what is forgotten all the same is found by the next one, which looks at all objects. The zero value
// has none. It is safe for concurrent use.
type releases struct {
	inbox inbox
	mu    sync.Mutex
	due   map[client.ObjectKey]release
	busy  time.Time // when a claim began, or was seen to have come to its end
}

// release is a finalizer to be taken.
type release struct {
	uid   types.UID
	term  int64 // that of the object when it was over
	since time.Time
}

// of tells whether it is that of an object: another one of the name may not be over, nor this one if a later term has begun it again, as it may when the
// database was restored to a copy in which it was not.
func (r release) of(claim *v1alpha1.WorkClaim) bool {
	return claim.UID == r.uid && termOf(claim) <= r.term
}

// stir tells that a claim begins or comes to its end.
func (r *releases) stir(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = now
}

// add notes a finalizer to be taken.
func (r *releases) add(claim *v1alpha1.WorkClaim, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := client.ObjectKeyFromObject(claim)
	if r.due == nil {
		r.due = map[client.ObjectKey]release{}
	}
	due := r.due[name]
	if due.uid != claim.UID {
		due = release{uid: claim.UID, since: now}
		r.busy = now
	}
	due.term = max(due.term, termOf(claim))
	r.due[name] = due
}

// next is the finalizer to be taken from an object of a name, and after what time to come again if that is not now.
func (r *releases) next(name client.ObjectKey, clock clock.PassiveClock) (due release, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	due, now := r.due[name], clock.Now()
	if wait = min(left(r.busy, calm, now), left(due.since, untidy, now)); wait > 0 {
		wait += jitter(calm) + time.Duration(len(r.due))*perPending
	}
	return due, wait
}

// all are those that wait.
func (r *releases) all() map[client.ObjectKey]release {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.due)
}

// done forgets a finalizer that was taken.
func (r *releases) done(name client.ObjectKey, due release) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.due[name] == due {
		delete(r.due, name)
	}
}

// letGo takes our finalizer from a claim that is over and for which no machine is held: when it is calm, or at once if nobody does so.
func (o *Objects) letGo(ctx context.Context, claim *v1alpha1.WorkClaim) error {
	o.releases.add(claim, o.clock.Now())
	if o.releases.inbox.add(client.ObjectKeyFromObject(claim), jitter(calm)) {
		return nil
	}
	return o.free(ctx, claim, always)
}

// releaser is the controller that takes finalizers.
type releaser struct{ objects *Objects }

// SetupWithManager adds the controller to a manager.
func (r *releaser) SetupWithManager(m ctrl.Manager) error {
	if err := m.Add(r); err != nil {
		return fmt.Errorf("add what takes finalizers at the end: %w", err)
	}
	options := r.objects.config.options()
	options.MaxConcurrentReconciles = 1
	return ctrl.NewControllerManagedBy(m).Named("workclaim-release").WatchesRawSource(r.objects.releases.inbox.source()).WithOptions(options).Complete(r)
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (r *releaser) NeedLeaderElection() bool { return false }

// Start takes the finalizers that wait when ctx is done: it may be that no pod comes after this one.
func (r *releaser) Start(ctx context.Context) error {
	<-ctx.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(releasersAtOnce)
	for name, due := range r.objects.releases.all() {
		group.Go(func() error { return r.take(ctx, name, due) })
	}
	if err := group.Wait(); err != nil {
		r.objects.log.Info("some finalizers could not be taken; the next process does it", "error", err.Error())
	}
	return nil
}

// Reconcile takes the finalizer of one claim.
func (r *releaser) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	due, wait := r.objects.releases.next(req.NamespacedName, r.objects.clock)
	if wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	return ctrl.Result{}, r.take(ctx, req.NamespacedName, due)
}

// take takes one finalizer.
func (r *releaser) take(ctx context.Context, name client.ObjectKey, due release) error {
	var claim v1alpha1.WorkClaim
	if err := r.objects.client.Get(ctx, name, &claim); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get WorkClaim %s: %w", name, err)
	}
	if err := r.objects.free(ctx, &claim, due.of); err != nil {
		return err
	}
	r.objects.releases.done(name, due)
	return nil
}
