// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/worker"
)

// ObjectStore is what finding the objects of rows needs of the database; a *bmdb.Connection is one.
type ObjectStore interface {
	MachineSnapshots(ctx context.Context, ids []uuid.UUID) ([]bmdb.MachineSnapshot, error)
	ClaimSnapshot(ctx context.Context, pool, key string, limits bmdb.ClaimLimits) (*bmdb.ClaimSnapshot, error)
	Hearer
	Doubter
}

// Objects finds the objects of what the database speaks of, and asks their controllers to look at them. It is what the engine of workers
// and the watcher know of the cluster. It is safe for concurrent use.
type Objects struct {
	config Config
	client client.Client
	live   client.Reader
	store  ObjectStore
	clock  clock.PassiveClock
	log    logr.Logger

	machines, claims, providers inbox
	names                       names // of claims
	providerNames               names
	ends                        ends
	trust                       trust
	newest                      newest
	copies                      copies
	patience                    patience
	releases                    releases
}

var _ worker.Objects = (*Objects)(nil)

// NewObjects returns the objects of a cluster.
func NewObjects(config Config, kube Kube, store ObjectStore) *Objects {
	return &Objects{config: config, client: kube.Client, live: kube.Live, store: store, clock: kube.Clock, log: ctrl.Log.WithName("objects")}
}

// Changed implements watch.Sink. It returns false if nobody here shows what has changed.
func (o *Objects) Changed(ctx context.Context, p bmdb.Pending) (bool, error) {
	if !o.config.serves(p.Pool) {
		return true, nil // another operator's
	}
	after := o.config.turn(p.Kind, p.Pool, p.ID)
	switch p.Kind {
	case bmdb.KindMachine:
		return o.machineChanged(ctx, p, after)
	case bmdb.KindClaim:
		return o.claimChanged(ctx, p.Pool, p.ID, after)
	case bmdb.KindProvider:
		o.providers.add(client.ObjectKey{Namespace: p.Pool, Name: p.ID}, after)
		return true, nil
	default:
		return false, nil
	}
}

// Everything implements watch.Sink: it asks for a look at all objects, drawn over a while.
func (o *Objects) Everything(ctx context.Context) error {
	o.names.untold() // views may have been given up
	for _, of := range []struct {
		list client.ObjectList
		to   *inbox
	}{{&v1alpha1.ProviderConfigList{}, &o.providers}, {&v1alpha1.MachineList{}, &o.machines}, {&v1alpha1.WorkClaimList{}, &o.claims}} {
		if err := o.client.List(ctx, of.list); err != nil {
			return fmt.Errorf("list all objects: %w", err)
		}
		err := meta.EachListItem(of.list, func(object runtime.Object) error {
			if item, ok := object.(client.Object); ok {
				of.to.add(client.ObjectKeyFromObject(item), rand.N(10*time.Second))
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("list all objects: %w", err)
		}
	}
	return nil
}

func (o *Objects) machineChanged(ctx context.Context, p bmdb.Pending, after time.Duration) (bool, error) {
	var list v1alpha1.MachineList
	if err := o.client.List(ctx, &list, client.InNamespace(p.Pool), client.MatchingFields{indexMachineID: p.ID}); err != nil {
		return false, fmt.Errorf("find Machine of %s: %w", p.ID, err)
	}
	for i := range list.Items {
		o.machines.add(client.ObjectKeyFromObject(&list.Items[i]), after)
	}
	if len(list.Items) > 0 {
		return true, nil
	}
	// The object has no status yet, or is gone.
	id, err := uuid.Parse(p.ID)
	if err != nil {
		return false, fmt.Errorf("read ID of changed machine %s: %w", p.ID, err)
	}
	snapshots, err := o.store.MachineSnapshots(ctx, []uuid.UUID{id})
	if err != nil || len(snapshots) == 0 {
		return false, err
	}
	view := viewOf(snapshots[0].Views, o.config.Cluster)
	if view == nil {
		return false, nil
	}
	o.machines.add(client.ObjectKey{Namespace: p.Pool, Name: view.Name}, after)
	return true, nil
}

func (o *Objects) claimChanged(ctx context.Context, pool, key string, after time.Duration) (bool, error) {
	list, err := claimsOf(ctx, o.client, pool, key)
	if err != nil {
		return false, err
	}
	for i := range list {
		o.claims.add(client.ObjectKeyFromObject(&list[i]), max(after, o.patience.left(list[i].UID, o.clock.Now())))
	}
	if len(list) > 0 {
		return true, nil
	}
	snapshot, err := o.store.ClaimSnapshot(ctx, pool, key, bmdb.ClaimLimits{})
	if errors.Is(err, bmdb.ErrNoSuchClaim) {
		return false, nil
	}
	if err != nil || snapshot.Manager == nil || snapshot.Manager.Cluster != o.config.Cluster {
		return false, err
	}
	name := client.ObjectKey{Namespace: pool, Name: snapshot.Manager.Name}
	o.names.remember(name, key, snapshot.Manager.UID)
	o.claims.add(name, after)
	return true, nil
}

// claimsOf returns the objects with a key, the one that speaks for the key first: the oldest that is not being deleted.
func claimsOf(ctx context.Context, reader client.Reader, pool, key string) ([]v1alpha1.WorkClaim, error) {
	var list v1alpha1.WorkClaimList
	if err := reader.List(ctx, &list, client.InNamespace(pool), client.MatchingFields{indexKey: key}); err != nil {
		return nil, fmt.Errorf("find WorkClaims of key %s/%s: %w", pool, key, err)
	}
	slices.SortFunc(list.Items, func(a, b v1alpha1.WorkClaim) int {
		if x, y := a.DeletionTimestamp != nil, b.DeletionTimestamp != nil; x != y {
			if x {
				return 1
			}
			return -1
		}
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		return slices.Compare([]string{a.Name}, []string{b.Name})
	})
	return list.Items, nil
}

// Missing implements worker.Objects.
func (o *Objects) Missing(ctx context.Context, target bmdb.Target) (bool, error) {
	if target.Name == "" {
		return false, nil // made with the library; it never had an object
	}
	name := client.ObjectKey{Namespace: target.Pool, Name: target.Name}
	var m v1alpha1.Machine
	err := o.client.Get(ctx, name, &m)
	if err == nil {
		return false, nil
	}
	if !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("get Machine %s: %w", name, err)
	}
	snapshots, err := o.store.MachineSnapshots(ctx, []uuid.UUID{target.MachineID})
	if err != nil {
		return false, err
	}
	if len(snapshots) == 0 || viewOf(snapshots[0].Views, o.config.Cluster) == nil {
		return false, nil
	}
	err = o.live.Get(ctx, name, &m)
	if err == nil {
		return false, nil
	}
	if !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("get Machine %s from the API server: %w", name, err)
	}
	o.machines.add(name, 0) // its controller ends the view
	return true, nil
}

// changesTogether is for how long a change of a claim waits for others, to be looked at with them: a claim that waits for a place and gets one changes
// with each start.
const changesTogether = 500 * time.Millisecond

// ClaimChanged implements worker.Objects.
func (o *Objects) ClaimChanged(pool, key string) {
	o.look(pool, key, func(claim *v1alpha1.WorkClaim) time.Duration {
		return max(o.patience.left(claim.UID, o.clock.Now()), changesTogether)
	})
}

// look asks for a look at the objects of a claim, each after a time.
func (o *Objects) look(pool, key string, after func(*v1alpha1.WorkClaim) time.Duration) {
	ctx := context.Background() // reads the cache only
	list, err := claimsOf(ctx, o.client, pool, key)
	if err != nil {
		o.log.Info("cannot find the objects of a claim", "pool", pool, "claim", key, "error", err.Error())
		return
	}
	for i := range list {
		o.claims.add(client.ObjectKeyFromObject(&list[i]), after(&list[i]))
	}
}

// ClaimOver implements worker.Objects.
func (o *Objects) ClaimOver(pool, key string) {
	o.ends.saw(client.ObjectKey{Namespace: pool, Name: key})
	o.look(pool, key, func(*v1alpha1.WorkClaim) time.Duration { return 0 })
}

// ProviderFailed implements worker.Objects.
func (o *Objects) ProviderFailed(pool, provider string) {
	o.providers.add(client.ObjectKey{Namespace: pool, Name: provider}, 0)
}
