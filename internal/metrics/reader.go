// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// Database is what is counted in; a *bmdb.Connection is one.
type Database interface {
	OldestSession(ctx context.Context) (uuid.UUID, error)
	WorkGauges(ctx context.Context) (map[string]bmdb.WorkGauge, error)
	FleetGauges(ctx context.Context, pause time.Duration) (bmdb.FleetGauges, error)
	ConnectionsInUse() (inUse, most int)
}

// Sources are where a Reader finds what it shows.
type Sources struct {
	Database Database
	// Session is the pod's, or nil.
	Session func() *bmdb.Session
	// Claims reads this cluster's WorkClaims, out of a cache.
	Claims client.Reader
	// Backlog is how many changes are not shown yet, and for how long the oldest has waited.
	Backlog func() (pending int, oldest time.Duration)
}

const (
	// readEvery is between two looks at what is cheap: one statement, and one more in the pod that counts for its cluster.
	readEvery = 20 * time.Second
	// fleetPause is between two pages of a count of all machines, and fleetRest, for each page, before the next count: what counting costs the
	// database in a minute does not grow with the fleet, and counts of a large one are older.
	fleetPause = time.Second
	fleetRest  = 15 * time.Second
	// startEvery is how often it is looked whether there is a session, and whether this pod counts; neither asks the database for more.
	startEvery = 3 * time.Second
	readTime   = 10 * time.Second
	fleetTime  = 30 * time.Minute
)

// Reader is a manager's Runnable that reads what metrics show and nobody tells of: what a scrape gets was read some seconds ago. What the
// database must be asked is counted by one pod of each cluster, the one with the oldest session; if two count for a moment, both are right.
type Reader struct {
	metrics *Metrics
	from    Sources
	log     logr.Logger

	counts  atomic.Bool // this pod counts for its cluster
	mu      sync.Mutex
	fleet   *bmdb.FleetGauges
	fleetAt time.Time
}

// NewReader returns a reader whose findings m shows.
func NewReader(m *Metrics, from Sources, log logr.Logger) *Reader {
	return &Reader{metrics: m, from: from, log: log}
}

// NeedLeaderElection is false: each pod reads what is its own.
func (r *Reader) NeedLeaderElection() bool { return false }

// Start reads until ctx is done.
func (r *Reader) Start(ctx context.Context) error {
	var both sync.WaitGroup
	both.Go(func() { repeat(ctx, r.read) })
	both.Go(func() { repeat(ctx, r.readFleet) })
	both.Wait()
	return nil
}

// repeat does something at once, and then again and again, after times drawn around those that it returns.
func repeat(ctx context.Context, do func(ctx context.Context) time.Duration) {
	for ctx.Err() == nil {
		wait := do(ctx)
		t := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// read makes the next snapshot. What cannot be read is left out of it.
func (r *Reader) read(ctx context.Context) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	s := &snapshot{}
	oldest, err := r.from.Database.OldestSession(ctx)
	s.databaseUp = err == nil
	own := r.from.Session()
	r.counts.Store(err == nil && own != nil && own.UUID == oldest)
	if r.counts.Load() {
		if s.works, err = r.from.Database.WorkGauges(ctx); err != nil {
			r.log.V(1).Info("cannot count works", "error", err.Error())
		}
		r.mu.Lock()
		s.fleet, s.fleetAt = r.fleet, r.fleetAt
		r.mu.Unlock()
	}
	s.inUse, s.connections = r.from.Database.ConnectionsInUse()
	s.pending, s.oldestPending = r.from.Backlog()
	if s.claims, err = r.countClaims(ctx); err != nil {
		r.log.V(1).Info("cannot count claims", "error", err.Error())
	}
	r.metrics.snapshot.Store(s)
	if own == nil {
		return startEvery
	}
	return readEvery
}

// readFleet counts all machines, in the pod that does.
func (r *Reader) readFleet(ctx context.Context) time.Duration {
	if !r.counts.Load() {
		r.found(nil)
		return startEvery
	}
	ctx, cancel := context.WithTimeout(ctx, fleetTime)
	defer cancel()
	fleet, err := r.from.Database.FleetGauges(ctx, fleetPause)
	if err != nil {
		r.log.V(1).Info("cannot count machines", "error", err.Error())
		return readEvery // the former count says when it was made
	}
	r.found(&fleet)
	return max(readEvery, time.Duration(fleet.Pages)*fleetRest)
}

func (r *Reader) found(fleet *bmdb.FleetGauges) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fleet, r.fleetAt = fleet, time.Now()
}

func (r *Reader) countClaims(ctx context.Context) (map[claimKind]int, error) {
	var list v1alpha1.WorkClaimList
	// Nothing of them is changed or kept.
	if err := r.from.Claims.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, err
	}
	counts := map[claimKind]int{}
	for i := range list.Items {
		counts[kindOf(list.Items[i].Status.Conditions)]++
	}
	return counts, nil
}

// kindOf names the state that conditions say, as kstatus would, and why. States and reasons are a few words of the API.
func kindOf(conditions []metav1.Condition) claimKind {
	is := func(t v1alpha1.ConditionType) bool { return meta.IsStatusConditionTrue(conditions, string(t)) }
	ready := meta.FindStatusCondition(conditions, string(v1alpha1.ConditionReady))
	switch {
	case ready == nil:
		return claimKind{state: "New"}
	case is(v1alpha1.ConditionComplete):
		return claimKind{"Complete", ready.Reason}
	case is(v1alpha1.ConditionFailed):
		return claimKind{"Failed", ready.Reason}
	case is(v1alpha1.ConditionStalled):
		return claimKind{"Stalled", ready.Reason}
	case is(v1alpha1.ConditionReconciling):
		return claimKind{"Reconciling", ready.Reason}
	case ready.Status == metav1.ConditionTrue:
		return claimKind{"Ready", ready.Reason}
	}
	return claimKind{"Suspended", ready.Reason}
}
