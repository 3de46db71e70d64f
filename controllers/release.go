// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

const (
	// calm is for how long no claim of this pod must have begun or come to its end before finalizers are taken.
	calm = time.Second
	// untidy is for how long one is left at most.
	untidy = 30 * time.Second
)

// releases are the claims that are over, whose last status is written, and that still have our finalizer: it is taken one by one when no more claims
// begin or end, so that a burst of claims is told how it ended before all is tidied up behind it. Who deletes one meanwhile does not wait for that.
// What is forgotten with the process is found by the next one, which looks at all objects. The zero value has none. It is safe for concurrent use.
type releases struct {
	inbox inbox
	mu    sync.Mutex
	of    map[client.ObjectKey]release
	busy  time.Time // when a claim began or came to its end
}

// release is a finalizer to be taken.
type release struct {
	uid   types.UID
	since time.Time
}

// stir tells that a claim begins or comes to its end.
func (r *releases) stir(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = now
}

// add notes a finalizer to be taken.
func (r *releases) add(name client.ObjectKey, uid types.UID, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of[name].uid == uid {
		return
	}
	if r.of == nil {
		r.of = map[client.ObjectKey]release{}
	}
	r.of[name] = release{uid, now}
	r.busy = now
}

// due is the object whose finalizer is to be taken, and after which time, if not now.
func (r *releases) due(name client.ObjectKey, now time.Time) (types.UID, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of, ok := r.of[name]
	if !ok {
		return "", 0
	}
	return of.uid, min(left(r.busy, calm, now), left(of.since, untidy, now))
}

// done forgets a finalizer that was taken.
func (r *releases) done(name client.ObjectKey, uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of[name].uid == uid {
		delete(r.of, name)
	}
}

// letGo takes our finalizer from a claim that is over and for which no machine is held: when it is calm, or at once if nobody does so.
func (o *Objects) letGo(ctx context.Context, claim *v1alpha1.WorkClaim) error {
	name := client.ObjectKeyFromObject(claim)
	o.releases.add(name, claim.UID, o.clock.Now())
	if o.releases.inbox.add(name, calm) {
		return nil
	}
	return o.free(ctx, claim, always)
}

// releaser is the controller that takes finalizers.
type releaser struct{ objects *Objects }

// SetupWithManager adds the controller to a manager.
func (r *releaser) SetupWithManager(m ctrl.Manager) error {
	options := r.objects.config.options()
	options.MaxConcurrentReconciles = 1
	return ctrl.NewControllerManagedBy(m).Named("workclaim-release").WatchesRawSource(r.objects.releases.inbox.source()).WithOptions(options).Complete(r)
}

// Reconcile takes the finalizer of one claim.
func (r *releaser) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	releases := &r.objects.releases
	uid, wait := releases.due(req.NamespacedName, r.objects.clock.Now())
	if wait > 0 {
		return ctrl.Result{RequeueAfter: wait + jitter(calm)}, nil
	}
	var claim v1alpha1.WorkClaim
	if err := r.objects.client.Get(ctx, req.NamespacedName, &claim); client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("get WorkClaim %s: %w", req, err)
	}
	// Another object of the name may not be over.
	over := func(claim *v1alpha1.WorkClaim) bool { return claim.UID == uid }
	if err := r.objects.free(ctx, &claim, over); err != nil {
		return ctrl.Result{}, err
	}
	releases.done(req.NamespacedName, uid)
	return ctrl.Result{}, nil
}
