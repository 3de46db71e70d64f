// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
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
	// Stagger is for how long replicas draw apart before they write what all of them know, so that mostly one of them writes and the
	// others find it written. 0: not at all.
	Stagger time.Duration
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
	waited *once
}

func newBase(config Config, kube Kube, shown Shower, inbox *inbox, copies *copies) base {
	return base{
		Kube: kube, config: config, shown: shown, inbox: inbox, waited: &once{},
		status: statusWriter{client: kube.Client, clock: kube.Clock, interval: config.StatusInterval, own: &writeTimes{}, copies: copies},
	}
}

const (
	// reconcileTimeout bounds one reconciliation: neither a database nor an API server that does not answer keeps the others waiting.
	reconcileTimeout = 30 * time.Second
	tellTimeout      = 5 * time.Second
	retryFirst       = 50 * time.Millisecond
	retryLast        = 15 * time.Second
)

// options are how all controllers are run: on every replica, with retries that come soon after an outage is over.
func (c *Config) options() controller.Options {
	return controller.Options{
		MaxConcurrentReconciles: c.Concurrency, NeedLeaderElection: new(false), ReconciliationTimeout: reconcileTimeout,
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](retryFirst, retryLast),
	}
}

// telling returns a context to write a status in when the reconciliation's own time may be over.
func telling(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), tellTimeout)
}

// unrecorded is what a new object says while the database does not answer; those that say something already are left alone.
func unrecorded(object client.Object, err error) *projection.Verdict {
	if readyOf(object).Status != "" {
		return nil
	}
	return &projection.Verdict{
		State: projection.Waiting, Reason: v1alpha1.ReasonNotRecorded, Message: "It could not be recorded yet, and is tried again: " + err.Error(),
	}
}

// turn is this pod's place in the order of replicas for a thing.
func (c *Config) turn(parts ...string) time.Duration {
	if c.Stagger < time.Millisecond {
		return 0
	}
	h := fnv.New32a()
	for _, part := range append([]string{c.Pod}, parts...) {
		h.Write([]byte(part + "\x00"))
	}
	return time.Duration(h.Sum32()%uint32(c.Stagger/time.Millisecond)) * time.Millisecond //nolint:gosec // A part of a second.
}

// fresh is the age up to which all replicas are taken to look at an object at the same moment.
const fresh = 2 * time.Second

// stagger returns how long this replica leaves the first status of a new object to others.
func (b *base) stagger(object client.Object, name string) time.Duration {
	if readyOf(object).Status != "" || b.Clock.Since(object.GetCreationTimestamp().Time) > fresh || !b.waited.first(object.GetUID()) {
		return 0
	}
	return b.config.turn(object.GetNamespace(), name)
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

// add asks for a reconciliation after a time, and tells whether there is a controller to do it.
func (i *inbox) add(key client.ObjectKey, after time.Duration) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.queue == nil {
		return false
	}
	i.queue.AddAfter(reconcile.Request{NamespacedName: key}, after)
	return true
}

// once tells what is seen for the first time. It forgets now and then: it is about moments. It is safe for concurrent use.
type once struct {
	mu   sync.Mutex
	seen map[types.UID]bool
}

func (o *once) first(uid types.UID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.seen[uid] {
		return false
	}
	const most = 10_000
	if o.seen == nil || len(o.seen) > most {
		o.seen = map[types.UID]bool{}
	}
	o.seen[uid] = true
	return true
}

// announce records an event if Ready has changed by a write.
func (b *base) announce(object runtime.Object, before, after projection.Ready) {
	if note, kind, ok := projection.Transition(before, after); ok {
		b.Events.Eventf(object, nil, kind, after.Reason, "Reconcile", "%s", note)
	}
}
