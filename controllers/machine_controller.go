// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// +kubebuilder:rbac:groups=bmdb.dev,resources=machines,verbs=get;list;watch
// +kubebuilder:rbac:groups=bmdb.dev,resources=machines/status,verbs=patch

// MachineStore is what the controller of Machines needs of the database; a *bmdb.Connection is one.
type MachineStore interface {
	RegisterMachine(ctx context.Context, v bmdb.View, spec bmdb.MachineSpec) (bmdb.Registration, error)
	DetachMachine(ctx context.Context, v bmdb.View, machine uuid.UUID) error
	MachineSnapshots(ctx context.Context, ids []uuid.UUID) ([]bmdb.MachineSnapshot, error)
	MachineByName(ctx context.Context, pool, name string) (uuid.UUID, error)
	Hearer
}

// MachineReconciler records Machines in the database and shows what the database knows of them. Nothing is done to a machine here.
type MachineReconciler struct {
	base
	store   MachineStore
	objects *Objects
}

// NewMachineReconciler returns a reconciler. objects passes on what changes in the database.
func NewMachineReconciler(config Config, kube Kube, store MachineStore, shown Shower, objects *Objects) *MachineReconciler {
	r := &MachineReconciler{base: newBase(config, kube, shown, &objects.machines, &objects.copies), store: store, objects: objects}
	r.status.lane = make(chan struct{}, machinesAtOnce)
	return r
}

// machinesAtOnce is how many Machines that show something already are written at once: some hundreds in a second where the API server has nothing else
// to do, and where it has, the claims that all of that is done for come first.
const machinesAtOnce = 2

// SetupWithManager adds the controller to a manager.
func (r *MachineReconciler) SetupWithManager(m ctrl.Manager) error {
	written := predicate.Or(r.objects.watch(), predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}, statusWiped())
	return ctrl.NewControllerManagedBy(m).For(&v1alpha1.Machine{}, builder.WithPredicates(written)).
		WatchesRawSource(r.inbox.source()).
		WithOptions(r.config.options()).
		Complete(r)
}

// Reconcile brings one Machine and its row in line.
func (r *MachineReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if !r.config.serves(req.Namespace) {
		return ctrl.Result{}, nil
	}
	s := machineScope{machine: &v1alpha1.Machine{}}
	if err := r.Client.Get(ctx, req.NamespacedName, s.machine); err != nil {
		if !apierrors.IsNotFound(err) {
			return ctrl.Result{}, fmt.Errorf("get Machine %s: %w", req, err)
		}
		return r.gone(ctx, req.NamespacedName)
	}
	s.machine = latest(r.status.copies, s.machine, r.Clock.Now())
	s.view = bmdb.View{Cluster: r.config.Cluster, UID: string(s.machine.UID), Name: s.machine.Name}
	for _, phase := range []func(context.Context, *machineScope) error{r.find, r.doubt, r.register, r.read} {
		if err := phase(ctx, &s); err != nil {
			return ctrl.Result{}, r.fail(ctx, &s, err)
		}
	}
	return r.show(ctx, &s)
}

// gone ends the view of a machine whose object is gone: only if the API server itself says so, since a cache may be behind.
func (r *MachineReconciler) gone(ctx context.Context, name client.ObjectKey) (ctrl.Result, error) {
	if doubts, err := r.objects.doubts(ctx, name.Namespace); err != nil || doubts.wait > 0 {
		return ctrl.Result{RequeueAfter: doubts.wait}, err
	}
	id, err := r.store.MachineByName(ctx, name.Namespace, name.Name)
	switch {
	case errors.Is(err, bmdb.ErrNoSuchMachine):
		return ctrl.Result{}, nil
	case err != nil:
		return ctrl.Result{}, err
	}
	return ctrl.Result{}, r.detach(ctx, name, id)
}

func (r *MachineReconciler) detach(ctx context.Context, name client.ObjectKey, id uuid.UUID) error {
	snapshots, err := r.store.MachineSnapshots(ctx, []uuid.UUID{id})
	if err != nil || len(snapshots) == 0 {
		return err
	}
	acknowledge := func() {
		r.shown.Shown(bmdb.Pending{Kind: bmdb.KindMachine, Pool: name.Namespace, ID: id.String(), Rev: snapshots[0].Rev})
	}
	view := viewOf(snapshots[0].Views, r.config.Cluster)
	if view == nil {
		acknowledge() // nobody here shows it
		return nil
	}
	var live v1alpha1.Machine
	err = r.Live.Get(ctx, client.ObjectKey{Namespace: name.Namespace, Name: view.Name}, &live)
	switch {
	case err == nil:
		return nil // made again, or the cache is behind; an event follows
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("get Machine %s/%s from the API server: %w", name.Namespace, view.Name, err)
	}
	if err := r.store.DetachMachine(ctx, *view, id); err != nil {
		return err
	}
	ctrl.LoggerFrom(ctx).Info("ended the view of a machine without an object", "machineID", id)
	acknowledge()
	return nil
}

// viewOf returns a cluster's view among others, or nil.
func viewOf(views []bmdb.MachineView, cluster string) *bmdb.View {
	for i := range views {
		if views[i].Cluster == cluster {
			return &views[i].View
		}
	}
	return nil
}
