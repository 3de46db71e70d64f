// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/process"
	"github.com/bmdb-dev/bmdb-operator/internal/worker"
)

// ClaimStore is what the controller of WorkClaims needs of the database; a *bmdb.Connection is one.
type ClaimStore interface {
	AttachClaim(ctx context.Context, v bmdb.View, spec bmdb.ClaimSpec, runnable bool) (bmdb.Attachment, error)
	DetachClaim(ctx context.Context, v bmdb.View, pool, key string) (remaining int64, err error)
	ClaimSnapshot(ctx context.Context, pool, key string, limits bmdb.ClaimLimits) (*bmdb.ClaimSnapshot, error)
	Processes(ctx context.Context, pool string) ([]bmdb.ProcessState, error)
	ClaimHearer
}

// Workers carries out claims in this pod; a *worker.Engine does. None of its methods waits.
type Workers interface {
	// Owns tells whether this pod owns the claim, and what keeps it from starting work for it.
	Owns(pool, key string) (owns bool, wait worker.Wait)
	// Holds tells whether this pod works on a machine for the claim.
	Holds(pool, key string) bool
	// Poll makes the pod look for claims without an owner.
	Poll()
	// Wake makes the owner of the claim look again at what can be started.
	Wake(pool, key string)
	// CancelClaim cancels what the pod does for the claim.
	CancelClaim(pool, key string)
}

// Selections tells which providers a claim needs; a *drivers.Opener does.
type Selections interface {
	Candidates(ctx context.Context, spec *bmdb.ClaimSpec) ([]string, error)
}

// WorkClaimReconciler brings WorkClaims to the database and shows what is done for them.
type WorkClaimReconciler struct {
	base
	store      ClaimStore
	workers    Workers
	selections Selections
	processes  process.Set
	objects    *Objects
}

// NewWorkClaimReconciler returns a reconciler. processes are those that this version carries out.
func NewWorkClaimReconciler(config Config, kube Kube, store ClaimStore, workers Workers, selections Selections, processes process.Set, shown Shower, objects *Objects) *WorkClaimReconciler {
	return &WorkClaimReconciler{
		base: newBase(config, kube, shown, &objects.claims, &objects.copies), store: store, workers: workers, selections: selections, processes: processes, objects: objects,
	}
}

// SetupWithManager adds the controller to a manager.
func (r *WorkClaimReconciler) SetupWithManager(m ctrl.Manager) error {
	if err := (&releaser{r.objects}).SetupWithManager(m); err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(m).
		For(&v1alpha1.WorkClaim{}, builder.WithPredicates(predicate.Or(r.objects.watch(), predicate.GenerationChangedPredicate{}, statusWiped(), r.objects.toLetGo()))).
		Watches(&v1alpha1.ProviderConfig{}, handler.EnqueueRequestsFromMapFunc(r.claimsOfPool), builder.WithPredicates(readyChanged())).
		WatchesRawSource(r.inbox.source()).
		WithOptions(r.config.options()).
		Complete(r)
}

// claimsOfPool returns the claims that may start or stop to be carried out when a provider of their pool changes.
func (r *WorkClaimReconciler) claimsOfPool(ctx context.Context, object client.Object) []reconcile.Request {
	var list v1alpha1.WorkClaimList
	if err := r.Client.List(ctx, &list, client.InNamespace(object.GetNamespace())); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "cannot list WorkClaims", "namespace", object.GetNamespace())
		return nil
	}
	var requests []reconcile.Request
	for i := range list.Items {
		if !meta.IsStatusConditionTrue(list.Items[i].Status.Conditions, string(v1alpha1.ConditionFinished)) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return requests
}

// Reconcile brings one WorkClaim and its row in line.
func (r *WorkClaimReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if !r.config.serves(req.Namespace) {
		return ctrl.Result{}, nil
	}
	s := claimScope{claim: &v1alpha1.WorkClaim{}, name: req.NamespacedName}
	if err := r.Client.Get(ctx, req.NamespacedName, s.claim); err != nil {
		if !apierrors.IsNotFound(err) {
			return ctrl.Result{}, fmt.Errorf("get WorkClaim %s: %w", req, err)
		}
		return r.gone(ctx, req.NamespacedName)
	}
	s.claim = latest(r.status.copies, s.claim, r.Clock.Now())
	s.key = s.claim.EffectiveKey()
	s.view = bmdb.View{Cluster: r.config.Cluster, UID: string(s.claim.UID), Name: s.claim.Name}
	if wait, err := r.replaced(ctx, &s); err != nil || wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, err
	}
	r.objects.names.remember(s.name, s.key, s.view.UID)
	if !s.claim.DeletionTimestamp.IsZero() {
		return r.finish(ctx, &s)
	}
	for _, phase := range []func(context.Context, *claimScope) error{r.findTwin, r.judge, r.recall, r.doubt, r.attach} {
		if err := phase(ctx, &s); err != nil {
			return ctrl.Result{}, r.fail(ctx, &s, err)
		}
	}
	if wait := r.wait(&s); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	if err := r.read(ctx, &s); err != nil {
		return ctrl.Result{}, r.fail(ctx, &s, err)
	}
	return r.show(ctx, &s)
}

// deletePoll is how often it is looked whether the works of a claim that is being deleted have ended.
const deletePoll = 300 * time.Millisecond

// finish takes a claim that is being deleted from the database, and lets its object go when no machine is held for it any more, as far as the database
// can be believed.
func (r *WorkClaimReconciler) finish(ctx context.Context, s *claimScope) (ctrl.Result, error) {
	remaining, doubts, err := r.detach(ctx, s.view, s.name.Namespace, s.key)
	switch {
	case err != nil || doubts.wait > 0 && doubts.reason == "":
		return ctrl.Result{RequeueAfter: doubts.wait}, err
	case doubts.wait > 0:
		s.doubts = deletedInDoubt(doubts.reason)
		return r.show(ctx, s)
	}
	if remaining > 0 {
		r.workers.CancelClaim(s.name.Namespace, s.key)
		return ctrl.Result{RequeueAfter: jitter(deletePoll)}, nil
	}
	if controllerutil.ContainsFinalizer(s.claim, FinalizerWork) {
		if err := r.objects.free(ctx, s.claim, always); err != nil {
			return ctrl.Result{}, err
		}
		ctrl.LoggerFrom(ctx).Info("let a deleted claim go", "key", s.key)
	}
	return ctrl.Result{}, nil
}

// replaced takes the claim of an earlier object from the database whose name this one has, with another key: nothing else tells that the earlier is
// gone. A cache may be behind, and this one the earlier.
func (r *WorkClaimReconciler) replaced(ctx context.Context, s *claimScope) (wait time.Duration, err error) {
	before := r.objects.names.recall(s.name)
	if before.key == "" || before.key == s.key {
		return 0, nil
	}
	var live v1alpha1.WorkClaim
	if err := r.Live.Get(ctx, s.name, &live); err != nil {
		return 0, client.IgnoreNotFound(err) // its going is on its way here
	}
	if string(live.UID) == before.uid || live.EffectiveKey() == before.key {
		return 0, nil
	}
	remaining, doubts, err := r.detach(ctx, bmdb.View{Cluster: r.config.Cluster, UID: before.uid, Name: s.name.Name}, s.name.Namespace, before.key)
	if remaining > 0 {
		r.workers.CancelClaim(s.name.Namespace, before.key)
	}
	return doubts.wait, err
}

// gone takes a claim whose object is gone from the database: only if the API server itself says so, since a cache may be behind.
func (r *WorkClaimReconciler) gone(ctx context.Context, name client.ObjectKey) (ctrl.Result, error) {
	known := r.objects.names.recall(name)
	if known.key == "" {
		known.key = name.Name
	}
	var live v1alpha1.WorkClaim
	err := r.Live.Get(ctx, name, &live)
	switch {
	case err == nil && (known.uid == "" || string(live.UID) == known.uid):
		return ctrl.Result{}, nil // the cache is behind; an event follows
	case err != nil && !apierrors.IsNotFound(err):
		return ctrl.Result{}, fmt.Errorf("get WorkClaim %s from the API server: %w", name, err)
	}
	snapshot, err := r.store.ClaimSnapshot(ctx, name.Namespace, known.key, bmdb.ClaimLimits{})
	if errors.Is(err, bmdb.ErrNoSuchClaim) {
		r.objects.names.forget(name)
		return ctrl.Result{}, nil
	}
	if err != nil {
		return ctrl.Result{}, err
	}
	if known.uid == "" && snapshot.Manager != nil && snapshot.Manager.Cluster == r.config.Cluster && snapshot.Manager.Name == name.Name {
		known.uid = snapshot.Manager.UID
	}
	remaining, doubts, err := r.detach(ctx, bmdb.View{Cluster: r.config.Cluster, UID: known.uid, Name: name.Name}, name.Namespace, known.key)
	if err != nil || doubts.wait > 0 {
		return ctrl.Result{RequeueAfter: doubts.wait}, err
	}
	if remaining > 0 {
		r.workers.CancelClaim(name.Namespace, known.key)
	}
	r.objects.names.forget(name)
	r.shown.Shown(bmdb.Pending{Kind: bmdb.KindClaim, Pool: name.Namespace, ID: known.key, Rev: snapshot.Rev})
	// Another object with the key speaks for it from now on.
	r.objects.ClaimChanged(name.Namespace, known.key)
	return ctrl.Result{}, nil
}
