// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

// releases are the claims that are over, whose last status is written, and that still have our finalizer: it is taken one by one, so that a burst
// of claims is told how it ended before all is tidied up behind it. What is forgotten with the process is found by the next one, which looks
// at all objects. The zero value has none. It is safe for concurrent use.
type releases struct {
	inbox inbox
	mu    sync.Mutex
	uids  map[client.ObjectKey]types.UID
}

// letGo takes our finalizer from a claim that is over and for which no machine is held: soon, or at once if nobody does so.
func (o *Objects) letGo(ctx context.Context, claim *v1alpha1.WorkClaim) error {
	name := client.ObjectKeyFromObject(claim)
	o.releases.mu.Lock()
	if o.releases.uids == nil {
		o.releases.uids = map[client.ObjectKey]types.UID{}
	}
	o.releases.uids[name] = claim.UID
	o.releases.mu.Unlock()
	if o.releases.inbox.add(name, 0) {
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
	var claim v1alpha1.WorkClaim
	if err := r.objects.client.Get(ctx, req.NamespacedName, &claim); client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("get WorkClaim %s: %w", req, err)
	}
	releases := &r.objects.releases
	releases.mu.Lock()
	uid := releases.uids[req.NamespacedName]
	releases.mu.Unlock()
	// Another object of the name may not be over.
	over := func(claim *v1alpha1.WorkClaim) bool { return claim.UID == uid }
	if err := r.objects.free(ctx, &claim, over); err != nil {
		return ctrl.Result{}, err
	}
	releases.mu.Lock()
	defer releases.mu.Unlock()
	if releases.uids[req.NamespacedName] == uid {
		delete(releases.uids, req.NamespacedName)
	}
	return ctrl.Result{}, nil
}
