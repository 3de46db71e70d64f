// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/drivers"
	"github.com/bmdb-dev/bmdb-operator/internal/projection"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// +kubebuilder:rbac:groups=bmdb.dev,resources=providerconfigs,verbs=get;list;watch
// +kubebuilder:rbac:groups=bmdb.dev,resources=providerconfigs/status,verbs=patch

// recheck is how often it is looked whether a ProviderConfig can still be used. Secrets are not watched, to which the operator has no
// right; each start of work reads them anyway.
const recheck = 30 * time.Second

// ProviderStore is what the controller of ProviderConfigs needs of the database; a *bmdb.Connection is one.
type ProviderStore interface {
	AttachProvider(ctx context.Context, v bmdb.View, l bmdb.ProviderLimits) error
	DetachProvider(ctx context.Context, v bmdb.View, pool, provider string) error
	ProviderSnapshot(ctx context.Context, cluster, pool, provider string) (bmdb.ProviderState, error)
	Hearer
}

// DriverOpener opens drivers, which says whether a ProviderConfig can be used; a *drivers.Opener is one.
type DriverOpener interface {
	OpenConfig(ctx context.Context, config *v1alpha1.ProviderConfig) (provider.Driver, error)
}

// ProviderConfigReconciler brings the limits of ProviderConfigs to the database and shows whether they can be used.
type ProviderConfigReconciler struct {
	base
	store   ProviderStore
	drivers DriverOpener
	objects *Objects
	names   *names // UIDs of objects, for when they are gone
}

// NewProviderConfigReconciler returns a reconciler. objects passes on what changes in the database.
func NewProviderConfigReconciler(config Config, kube Kube, store ProviderStore, opener DriverOpener, shown Shower, objects *Objects) *ProviderConfigReconciler {
	return &ProviderConfigReconciler{base: newBase(config, kube, shown, &objects.providers, &objects.copies), store: store, drivers: opener, objects: objects, names: &objects.providerNames}
}

// SetupWithManager adds the controller to a manager.
func (r *ProviderConfigReconciler) SetupWithManager(m ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(m).
		For(&v1alpha1.ProviderConfig{}, builder.WithPredicates(predicate.Or(r.objects.watch(), predicate.GenerationChangedPredicate{}, statusWiped()))).
		WatchesRawSource(r.inbox.source()).
		WithOptions(r.config.options()).
		Complete(r)
}

// Reconcile brings one ProviderConfig and its row in line.
func (r *ProviderConfigReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if !r.config.serves(req.Namespace) {
		return ctrl.Result{}, nil
	}
	config := &v1alpha1.ProviderConfig{}
	if err := r.Client.Get(ctx, req.NamespacedName, config); err != nil {
		if !apierrors.IsNotFound(err) {
			return ctrl.Result{}, fmt.Errorf("get ProviderConfig %s: %w", req, err)
		}
		return r.gone(ctx, req.NamespacedName)
	}
	config = latest(r.status.copies, config, r.Clock.Now())
	r.names.remember(req.NamespacedName, config.Name, string(config.UID))
	if doubts, err := r.doubt(ctx, config); err != nil || doubts != nil {
		if doubts != nil {
			return r.show(ctx, config, nil, nil, doubts)
		}
		return ctrl.Result{}, err
	}
	refusal, state, err := r.bring(ctx, config)
	if err != nil {
		if refusal = unrecorded(config, err); refusal == nil {
			return ctrl.Result{}, err
		}
		var cancel context.CancelFunc
		ctx, cancel = telling(ctx)
		defer cancel()
	}
	result, showErr := r.show(ctx, config, state, refusal, nil)
	return result, errors.Join(err, showErr)
}

// doubt finds out whether the object speaks against the database.
func (r *ProviderConfigReconciler) doubt(ctx context.Context, config *v1alpha1.ProviderConfig) (*projection.Verdict, error) {
	if config.Status.DatabaseID == "" {
		return nil, nil
	}
	state, err := r.store.ProviderSnapshot(ctx, r.config.Cluster, config.Namespace, config.Name)
	if err != nil {
		return nil, err
	}
	return r.config.doubt(ctx, r.store, config, state.Standing, false)
}

// bring brings the limits to the database, and reads what it knows. refusal is why the provider cannot be used.
func (r *ProviderConfigReconciler) bring(ctx context.Context, config *v1alpha1.ProviderConfig) (refusal *projection.Verdict, state *bmdb.ProviderState, err error) {
	if refusal, err = r.try(ctx, config); err != nil {
		return nil, nil, err
	}
	view := bmdb.View{Cluster: r.config.Cluster, UID: string(config.UID), Name: config.Name}
	if err := r.store.AttachProvider(ctx, view, limitsOf(config)); err != nil {
		return nil, nil, err
	}
	read, err := r.store.ProviderSnapshot(ctx, r.config.Cluster, config.Namespace, config.Name)
	if err != nil {
		return nil, nil, err
	}
	return refusal, &read, nil
}

// show writes the status.
func (r *ProviderConfigReconciler) show(ctx context.Context, config *v1alpha1.ProviderConfig, state *bmdb.ProviderState, refusal, doubts *projection.Verdict) (ctrl.Result, error) {
	status := projection.ProviderConfig(&config.Status, projection.ProviderFacts{
		Generation: config.Generation, State: state, Refusal: refusal, Doubts: doubts, Now: r.Clock.Now(),
	})
	written, wait, err := r.status.write(ctx, config, config.Status, status, false)
	if err != nil {
		return ctrl.Result{}, err
	}
	if written {
		r.announce(config, projection.ReadyOf(config.Status.Conditions), projection.ReadyOf(status.Conditions))
	}
	if wait == 0 && doubts != nil {
		wait = jitter(doubtRetry)
	}
	if wait == 0 && state != nil {
		r.shown.Shown(bmdb.Pending{Kind: bmdb.KindProvider, Pool: config.Namespace, ID: config.Name, Rev: state.Rev})
		wait = jitter(recheck)
	}
	return ctrl.Result{RequeueAfter: wait}, nil
}

// try opens the driver, to find out whether that works. An error passes by itself; a refusal needs a person.
func (r *ProviderConfigReconciler) try(ctx context.Context, config *v1alpha1.ProviderConfig) (*projection.Verdict, error) {
	driver, err := r.drivers.OpenConfig(ctx, config)
	var refused *drivers.NotReadyError
	switch {
	case errors.As(err, &refused):
		return &projection.Verdict{State: projection.Stalled, Reason: refused.Reason, Message: refused.Message}, nil
	case err != nil:
		return nil, err
	}
	if err := driver.Close(); err != nil {
		return nil, fmt.Errorf("close driver of ProviderConfig %s/%s: %w", config.Namespace, config.Name, err)
	}
	return nil, nil
}

func limitsOf(config *v1alpha1.ProviderConfig) bmdb.ProviderLimits {
	return bmdb.ProviderLimits{
		Pool: config.Namespace, Provider: config.Name, MaxMachines: wide(config.Spec.Limits.MaxMachines), Parallelism: wide(config.Spec.Limits.Parallelism),
	}
}

func wide(n *int32) *int64 {
	if n == nil {
		return nil
	}
	return new(int64(*n))
}

// gone takes the view of an object that is gone from the provider: its machines and works stay.
func (r *ProviderConfigReconciler) gone(ctx context.Context, name client.ObjectKey) (ctrl.Result, error) {
	if doubts, err := r.objects.doubts(ctx, name.Namespace); err != nil || doubts.wait > 0 {
		return ctrl.Result{RequeueAfter: doubts.wait}, err
	}
	var live v1alpha1.ProviderConfig
	err := r.Live.Get(ctx, name, &live)
	switch {
	case err == nil:
		return ctrl.Result{}, nil // made again, or the cache is behind; an event follows
	case !apierrors.IsNotFound(err):
		return ctrl.Result{}, fmt.Errorf("get ProviderConfig %s from the API server: %w", name, err)
	}
	view := bmdb.View{Cluster: r.config.Cluster, UID: r.names.recall(name).uid, Name: name.Name}
	if err := r.store.DetachProvider(ctx, view, name.Namespace, name.Name); err != nil {
		return ctrl.Result{}, err
	}
	r.names.forget(name)
	state, err := r.store.ProviderSnapshot(ctx, r.config.Cluster, name.Namespace, name.Name)
	if err != nil {
		return ctrl.Result{}, err
	}
	r.shown.Shown(bmdb.Pending{Kind: bmdb.KindProvider, Pool: name.Namespace, ID: name.Name, Rev: state.Rev})
	return ctrl.Result{}, nil
}
