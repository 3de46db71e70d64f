// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	ac "github.com/bmdb-dev/bmdb-operator/api/v1alpha1/applyconfiguration/api/v1alpha1"
)

// FieldOwner owns all that the operator writes to objects.
const FieldOwner = client.FieldOwner("bmdb-operator")

// staleRetry is when an object is looked at again whose copy in the cache was older than the object.
const staleRetry = 200 * time.Millisecond

// statusWriter writes statuses. It is the only one that does, and safe for concurrent use.
type statusWriter struct {
	client   client.StatusClient
	clock    clock.PassiveClock
	interval time.Duration // least time between two writes to an object; 0: none
	own      *writeTimes
	copies   *copies
	lane     chan struct{} // holds as many values as objects that show something may be written at once; nil: any number
}

// write makes status the object's, by server-side apply. Nothing is written if the object has it already; nothing is written, and a
// wait is returned, while the last write is not an interval ago, unless this one is final. An object that was changed or written by
// another replica in the meantime is not overwritten: then the caller comes again after the wait, and compares anew. The object is as
// it was read, and is not changed.
func (w *statusWriter) write(ctx context.Context, object client.Object, current, status any, final bool) (written bool, wait time.Duration, err error) {
	if equality.Semantic.DeepEqual(current, status) {
		return false, 0, nil
	}
	if wait := w.early(object); wait > 0 && !final {
		return false, wait, nil
	}
	configuration, result, err := statusConfiguration(object, status)
	if err != nil {
		return false, 0, err
	}
	if w.lane != nil && readyOf(object).Status != "" {
		select {
		case w.lane <- struct{}{}:
			defer func() { <-w.lane }()
		case <-ctx.Done():
			return false, 0, fmt.Errorf("write status of %s/%s: %w", object.GetNamespace(), object.GetName(), context.Cause(ctx))
		}
	}
	err = w.client.Status().Apply(ctx, configuration, FieldOwner, client.ForceOwnership)
	switch {
	case apierrors.IsConflict(err):
		return false, staleRetry, nil
	case apierrors.IsNotFound(err):
		return false, 0, nil // its deletion is on its way here
	case err != nil:
		return false, 0, fmt.Errorf("write status of %s/%s: %w", object.GetNamespace(), object.GetName(), err)
	}
	if w.interval > 0 {
		w.own.add(object.GetUID(), w.clock.Now(), w.interval)
	}
	// That the API server's answer cannot be read means only that the next write waits for the cache.
	if after, err := result(); err == nil {
		w.copies.wrote(object, after, w.clock.Now())
	}
	return true, 0, nil
}

// early returns how long it is until an object may be written again. The time of the last write is in the object itself, in whole
// seconds, and so the same for all replicas; but it is by the API server's clock. Where ours is another it tells nothing, and only what this
// replica has written counts.
func (w *statusWriter) early(object client.Object) time.Duration {
	if w.interval <= 0 {
		return 0
	}
	now := w.clock.Now()
	wait := left(w.own.last(object.GetUID()), w.interval, now)
	for _, f := range object.GetManagedFields() {
		if f.Manager == string(FieldOwner) && f.Subresource == "status" && f.Operation == metav1.ManagedFieldsOperationApply && f.Time != nil {
			// The second that it was written in counts as a whole.
			wait = max(wait, left(f.Time.Time, w.interval+time.Second, now))
		}
	}
	return wait
}

// left is what is left of an interval since some moment. A moment in the future was told by another clock: nothing is left.
func left(since time.Time, interval time.Duration, now time.Time) time.Duration {
	if wait := since.Add(interval).Sub(now); wait > 0 && wait <= interval {
		return wait
	}
	return 0
}

// writeTimes is when this replica wrote to objects, as far as that was an interval ago or less. It is safe for concurrent use.
type writeTimes struct {
	mu    sync.Mutex
	at    map[types.UID]time.Time
	prune int // at how many it is time to forget
}

func (t *writeTimes) last(uid types.UID) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.at[uid]
}

func (t *writeTimes) add(uid types.UID, now time.Time, interval time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.at == nil {
		t.at = map[types.UID]time.Time{}
	}
	t.at[uid] = now
	const few = 1000
	if len(t.at) >= max(t.prune, few) {
		maps.DeleteFunc(t.at, func(_ types.UID, at time.Time) bool { return left(at, interval, now) == 0 })
		t.prune = 2 * len(t.at)
	}
}

// statusConfiguration returns the apply configuration of an object's status. The UID keeps it from making an object that is gone, the
// resource version from overwriting what the caller has not seen. result is the object as it was left by applying the configuration, to which
// the client writes the API server's answer.
func statusConfiguration(object client.Object, status any) (_ runtime.ApplyConfiguration, result func() (client.Object, error), err error) {
	switch o := object.(type) {
	case *v1alpha1.Machine:
		c, after := ac.Machine(o.Name, o.Namespace).WithUID(o.UID).WithResourceVersion(o.ResourceVersion).WithStatus(ac.MachineStatus()), o.DeepCopy()
		return c, func() (client.Object, error) {
			after.ResourceVersion, after.Status = value(c.ResourceVersion), v1alpha1.MachineStatus{}
			return after, convert(c.Status, &after.Status)
		}, convert(status, c.Status)
	case *v1alpha1.WorkClaim:
		c, after := ac.WorkClaim(o.Name, o.Namespace).WithUID(o.UID).WithResourceVersion(o.ResourceVersion).WithStatus(ac.WorkClaimStatus()), o.DeepCopy()
		return c, func() (client.Object, error) {
			after.ResourceVersion, after.Status = value(c.ResourceVersion), v1alpha1.WorkClaimStatus{}
			return after, convert(c.Status, &after.Status)
		}, convert(status, c.Status)
	case *v1alpha1.ProviderConfig:
		c, after := ac.ProviderConfig(o.Name, o.Namespace).WithUID(o.UID).WithResourceVersion(o.ResourceVersion).WithStatus(ac.ProviderConfigStatus()), o.DeepCopy()
		return c, func() (client.Object, error) {
			after.ResourceVersion, after.Status = value(c.ResourceVersion), v1alpha1.ProviderConfigStatus{}
			return after, convert(c.Status, &after.Status)
		}, convert(status, c.Status)
	default:
		return nil, nil, fmt.Errorf("write status: %T has none", object)
	}
}

// value is what a field of an apply configuration says; nil says nothing.
func value(field *string) string {
	if field == nil {
		return ""
	}
	return *field
}

// convert makes a status an apply configuration, or the other way round: both have the same JSON.
func convert(status, configuration any) error {
	data, err := json.Marshal(status)
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	if err := json.Unmarshal(data, configuration); err != nil {
		return fmt.Errorf("decode status: %w", err)
	}
	return nil
}
