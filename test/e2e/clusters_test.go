// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
)

// clustersLimit is the parallelism of the provider in TestTwoClusters, over all clusters.
const clustersLimit = 3

// clusterFleet is how many machines it has: enough to go on until the cluster that began is destroyed.
const clusterFleet = 60

// TestTwoClusters has the same manifests in two clusters with two operators each, and one database. One of them manages, the other shows; limits and keys
// hold across both. The first is destroyed while it works: its role passes, and the work goes on. A third, empty, gets the manifests then: it
// reports what was done.
func TestTwoClusters(t *testing.T) {
	t.Parallel()
	first := newLab(t, labOptions{plane: newPlane(t)})
	second := newLab(t, labOptions{plane: newPlane(t), database: first.database, namespace: first.namespace})
	flags := []string{"--lease", "3s", "--manager-takeover-after", "6s"}
	var doomed []*operator
	for i, l := range []*lab{first, second} {
		for j := range 2 {
			o := l.start(fmt.Sprintf("operator-%d-%d", i, j), append(flags, "--cluster-id", fmt.Sprintf("cluster-%d", i))...)
			if l == first {
				doomed = append(doomed, o)
			}
		}
	}
	over := first.watchLimit(clustersLimit)
	first.create(first.clusterManifests()...)
	first.awaitRecorded("lab", clusterFleet)
	second.create(second.clusterManifests()...)
	second.awaitRecorded("lab", clusterFleet)
	first.awaitClaim("short", v1alpha1.ReasonComplete)
	second.awaitManaged("short", metav1.ConditionFalse)
	if a, b := first.outcomes()["short"], second.awaitOutcome("short", "it shows what was done", first.outcomes()["short"]); a != b {
		t.Errorf("the clusters show different outcomes:\n%s\n%s", a, b)
	}

	t.Run("SuspendedInEither", func(t *testing.T) {
		second := second.in(t)
		second.suspend("long", true)
		first.in(t).awaitClaim("long", v1alpha1.ReasonSuspended)
		second.suspend("long", false)
		first.in(t).awaitClaim("long", v1alpha1.ReasonWorking)
	})
	t.Run("OneOfTwoDeleted", func(t *testing.T) {
		second := second.in(t)
		started := second.count("SELECT count(*) FROM work_history WHERE event = 'Canceled'")
		claim := second.clusterClaim()
		second.remove(claim)
		second.awaitGone(claim)
		second.create(second.clusterClaim())
		second.awaitClaim("long", v1alpha1.ReasonManagedElsewhere)
		if n := second.count("SELECT count(*) FROM work_history WHERE event = 'Canceled'"); n != started {
			t.Errorf("%d works were cancelled by the deletion of one of two views", n-started)
		}
	})

	// The first cluster goes for good, while it works.
	second.eventually(patience, "the first cluster works", func(ctx context.Context) error {
		return second.some(ctx, "SELECT count(*) FROM work w JOIN sessions s ON s.session_id = w.session_id WHERE w.work_id IS NOT NULL AND s.session_cluster = 'cluster-0'")
	})
	for _, o := range doomed {
		if !o.kill() {
			t.Errorf("%s was not killed", o.name)
		}
	}
	if err := first.plane.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"short", "long"} {
		second.awaitManaged(name, metav1.ConditionTrue)
	}
	second.awaitClaim("long", v1alpha1.ReasonComplete)
	for name, c := range second.conditions(v1alpha1.ConditionManaged) {
		if c.Status != metav1.ConditionTrue {
			t.Errorf("%s: Managed=%s, %s: %s", name, c.Status, c.Reason, c.Message)
		}
	}
	if n := second.count("SELECT count(*) FROM audit_log WHERE event = 'Manages' AND cluster = 'cluster-1' AND cause LIKE '%cluster-0%'"); n < clusterFleet+3 {
		t.Errorf("%d takeovers are in the audit log, want those of %d machines, 2 claims and a provider", n, clusterFleet)
	}
	if err := over(); err != nil {
		t.Error(err)
	}

	second.awaitAgents(names("m", clusterFleet)...)
	outcomes, history := second.outcomes(), second.everythingDone()
	third := newLab(t, labOptions{plane: newPlane(t), database: first.database, namespace: first.namespace})
	third.start("operator-2-0", append(flags, "--cluster-id", "cluster-2")...)
	third.create(third.clusterManifests()...)
	third.verifyRestored(outcomes, history, second.uids())
}

// TestDeletedWhileAway deletes objects while no operator runs: the next one finds their views. It compares all objects again and again then, and writes
// nothing.
func TestDeletedWhileAway(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	o := l.start("operator-a", "--lease", "3s", "--resync-interval", "1s")
	keyed := l.claim("c", "m-000")
	keyed.Spec.Key = "not-its-name"
	l.create(l.simulated("lab", v1alpha1.SimulatedProvider{}))
	l.createFleet("lab", "m-000", "m-001")
	l.create(keyed)
	l.awaitClaim("c", v1alpha1.ReasonComplete)
	l.eventually(patience, "the claim's object is free", func(ctx context.Context) error {
		c, err := l.readClaim(ctx, "c")
		if err == nil && len(c.Finalizers) > 0 {
			err = fmt.Errorf("it has %v", c.Finalizers)
		}
		return err
	})
	o.terminate()
	l.remove(keyed, l.machine("m-001", "lab"), l.simulated("lab", v1alpha1.SimulatedProvider{}))
	l.awaitGone(keyed, l.machine("m-001", "lab"), l.simulated("lab", v1alpha1.SimulatedProvider{}))
	o.start()
	l.awaitCount("no object of the claim is known", 0, "SELECT count(*) FROM claim_views")
	l.awaitCount("no object of the provider is known", 0, "SELECT count(*) FROM provider_views")
	l.awaitCount("one object of a machine is known", 1, "SELECT count(*) FROM machine_views WHERE attached")
	l.awaitAgents("m-000") // the last that there is to show of it
	m, err := l.readMachine(t.Context(), "m-000")
	if err != nil {
		t.Fatal(err)
	}
	rows := l.count("SELECT sum(rev) FROM machine_state")
	l.always(5*time.Second, "a resync writes nothing", func(ctx context.Context) error {
		now, err := l.readMachine(ctx, "m-000")
		if err == nil && now.ResourceVersion != m.ResourceVersion {
			err = fmt.Errorf("the object was written: %s, before %s", now.ResourceVersion, m.ResourceVersion)
		}
		return err
	})
	if now := l.count("SELECT sum(rev) FROM machine_state"); now != rows {
		t.Errorf("rows were written: revisions %d, before %d", now, rows)
	}
}

func newPlane(t *testing.T) *devenv.ControlPlane {
	t.Helper()
	plane, err := devenv.Start(t.Context(), devenv.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	return plane
}

// clusterManifests are those of TestTwoClusters, as they would be in Git.
func (l *lab) clusterManifests() []client.Object {
	provider := l.simulated("lab", latency(time.Second))
	provider.Spec.Limits.Parallelism = ptr.To[int32](clustersLimit)
	objects := []client.Object{provider, l.clusterClaim(), l.claim("short", "m-000")}
	for _, name := range names("m", clusterFleet) {
		objects = append(objects, l.machine(name, "lab"))
	}
	return objects
}

// clusterClaim takes as long as it takes to destroy a cluster.
func (l *lab) clusterClaim() *v1alpha1.WorkClaim {
	return l.claim("long", names("m", clusterFleet)[1:]...)
}

// watchLimit looks all the time whether more works go on at once than may. The function that it returns ends that and says what was seen.
func (l *lab) watchLimit(limit int) func() error {
	ctx, cancel := context.WithCancel(l.t.Context())
	l.t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() {
		var failed error
		ticker := time.NewTicker(pollInterval)
		defer ticker.Stop()
		for ctx.Err() == nil {
			n, err := l.number(ctx, "SELECT count(*) FROM work WHERE work_id IS NOT NULL")
			if err == nil && n > limit {
				failed = fmt.Errorf("%d works went on at once, the limit is %d", n, limit)
			}
			select {
			case <-ctx.Done():
			case <-ticker.C:
			}
		}
		done <- failed
	}()
	return func() error { cancel(); return <-done }
}

// some is nil if a count is above zero.
func (l *lab) some(ctx context.Context, query string, args ...any) error {
	n, err := l.number(ctx, query, args...)
	if err == nil && n == 0 {
		err = errors.New("there is none")
	}
	return err
}

func (l *lab) suspend(claim string, suspend bool) {
	l.t.Helper()
	c, err := l.readClaim(l.t.Context(), claim)
	if err != nil {
		l.t.Fatal(err)
	}
	before := c.DeepCopy()
	c.Spec.Suspend = &suspend
	if err := l.client.Patch(l.t.Context(), c, client.MergeFrom(before)); err != nil {
		l.t.Fatal(err)
	}
}

// awaitManaged waits until a claim says whether this cluster's object manages.
func (l *lab) awaitManaged(claim string, managed metav1.ConditionStatus) {
	l.t.Helper()
	l.eventually(patience, fmt.Sprintf("claim %s is Managed=%s", claim, managed), func(ctx context.Context) error {
		c, err := l.readClaim(ctx, claim)
		if err != nil {
			return err
		}
		if is := condition(c.Status.Conditions, v1alpha1.ConditionManaged); is.Status != managed {
			return fmt.Errorf("it is Managed=%s, %s: %s", is.Status, is.Reason, is.Message)
		}
		return nil
	})
}

// awaitOutcome waits until the status of an object says the same as another's.
func (l *lab) awaitOutcome(name, what, outcome string) (is string) {
	l.t.Helper()
	l.eventually(patience, what, func(ctx context.Context) error {
		all, err := l.readOutcomes(ctx)
		if err != nil {
			return err
		}
		if is = all[name]; is != outcome {
			return fmt.Errorf("it says %s, not %s", is, outcome)
		}
		return nil
	})
	return is
}
