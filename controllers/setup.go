// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/projection"
)

// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Config is what all controllers need to know. All fields but Namespaces are required.
type Config struct {
	// Cluster is this cluster's ID, Database the database's, Pod this pod's name.
	Cluster  string
	Database uuid.UUID
	Pod      string
	// Namespaces are those that are served; empty: all.
	Namespaces []string
	// StatusInterval is the least time between two writes to an object's status.
	StatusInterval time.Duration
	// Concurrency is how many objects of each kind are reconciled at once.
	Concurrency int
}

// serves tells whether a namespace is served. What is not served is left alone.
func (c *Config) serves(namespace string) bool {
	return len(c.Namespaces) == 0 || slices.Contains(c.Namespaces, namespace)
}

// Kube is how controllers reach the API server. All fields are required.
type Kube struct {
	// Client reads from the cache and writes.
	Client client.Client
	// Live reads from the API server.
	Live client.Reader
	// Events records what happened.
	Events events.EventRecorder
	// Clock is the local one: for conditions' transitions and intervals.
	Clock clock.PassiveClock
}

// Shower is told which revisions were shown; a *watch.Watcher is one.
type Shower interface {
	Shown(p bmdb.Pending)
}

// base is what all reconcilers share.
type base struct {
	Kube
	config Config
	status statusWriter
	shown  Shower
	inbox  *inbox
}

func newBase(config Config, kube Kube, shown Shower, inbox *inbox) base {
	return base{
		Kube: kube, config: config, shown: shown, inbox: inbox,
		status: statusWriter{client: kube.Client, clock: kube.Clock, interval: config.StatusInterval},
	}
}

// jitter draws a time around d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// Indexes of the cache.
const (
	indexKey       = "effectiveKey"
	indexMachineID = "status.machineID"
)

// AddIndexes adds the indexes that the controllers need to a manager's cache.
func AddIndexes(ctx context.Context, m manager.Manager) error {
	indexer := m.GetFieldIndexer()
	if err := indexer.IndexField(ctx, &v1alpha1.WorkClaim{}, indexKey, func(o client.Object) []string {
		return []string{o.(*v1alpha1.WorkClaim).EffectiveKey()}
	}); err != nil {
		return fmt.Errorf("index WorkClaims by key: %w", err)
	}
	if err := indexer.IndexField(ctx, &v1alpha1.Machine{}, indexMachineID, func(o client.Object) []string {
		if id := o.(*v1alpha1.Machine).Status.MachineID; id != "" {
			return []string{id}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("index Machines by machine ID: %w", err)
	}
	return nil
}

// inbox is a source of requests that do not come from the API server. Before its controller was started, requests are dropped: the
// controller then begins with all objects. It is safe for concurrent use.
type inbox struct {
	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
}

func (i *inbox) source() source.Source {
	return source.Func(func(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.queue = queue
		return nil
	})
}

// add asks for a reconciliation after a time.
func (i *inbox) add(key client.ObjectKey, after time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.queue != nil {
		i.queue.AddAfter(reconcile.Request{NamespacedName: key}, after)
	}
}

// announce records an event if Ready has changed by a write.
func (b *base) announce(object runtime.Object, before, after projection.Ready) {
	if note, kind, ok := projection.Transition(before, after); ok {
		b.Events.Eventf(object, nil, kind, after.Reason, "Reconcile", "%s", note)
	}
}
