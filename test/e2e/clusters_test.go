// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// clustersLimit is the parallelism of the provider in TestTwoClusters, over all clusters.
const clustersLimit = 3

// clusterFleet is how many machines it has. With clusterSlow for each step, clustersLimit at once, they take minutes: works go on until the cluster that
// began is destroyed, however long the parts before that take. The rest is made clusterQuick.
const (
	clusterFleet = 60
	clusterSlow  = 6 * time.Second
	clusterQuick = 300 * time.Millisecond
)

// TestTwoClusters has the same manifests in two clusters with two operators each, and one database. One of them manages, the other shows; limits and keys
// hold across both. The first is destroyed while it works: its role passes, and the work goes on. A third, empty, gets the manifests then: it
// reports what was done.
func TestTwoClusters(t *testing.T) {
	t.Parallel()
	first := newLab(t, testbed.Options{Plane: newPlane(t)})
	second := newLab(t, testbed.Options{Plane: newPlane(t), Database: first.Database, Namespace: first.Namespace})
	flags := []string{"--lease", "3s", "--manager-takeover-after", "6s"}
	var doomed []*testbed.Operator
	for i, l := range []*lab{first, second} {
		for j := range 2 {
			o := l.Start(fmt.Sprintf("operator-%d-%d", i, j), append(flags, "--cluster-id", fmt.Sprintf("cluster-%d", i))...)
			if l == first {
				doomed = append(doomed, o)
			}
		}
	}
	over := first.watchLimit(clustersLimit)
	first.Create(first.clusterManifests(clusterSlow)...)
	first.AwaitRecorded("lab", clusterFleet)
	second.Create(second.clusterManifests(clusterSlow)...)
	second.AwaitRecorded("lab", clusterFleet)
	first.AwaitClaim("short", v1alpha1.ReasonComplete)
	second.awaitManaged("short", metav1.ConditionFalse)
	if a, b := first.outcomes()["short"], second.awaitOutcome("short", "it shows what was done", first.outcomes()["short"]); a != b {
		t.Errorf("the clusters show different outcomes:\n%s\n%s", a, b)
	}

	t.Run("SuspendedInEither", func(t *testing.T) {
		second := second.in(t)
		second.suspend("long", true)
		first.in(t).AwaitClaim("long", v1alpha1.ReasonSuspended)
		second.suspend("long", false)
		first.in(t).AwaitClaim("long", v1alpha1.ReasonWorking)
	})
	t.Run("OneOfTwoDeleted", func(t *testing.T) {
		second := second.in(t)
		started := second.Count("SELECT count(*) FROM work_history WHERE event = 'Canceled'")
		claim := second.clusterClaim()
		second.Remove(claim)
		second.AwaitGone(claim)
		second.Create(second.clusterClaim())
		second.AwaitClaim("long", v1alpha1.ReasonManagedElsewhere)
		if n := second.Count("SELECT count(*) FROM work_history WHERE event = 'Canceled'"); n != started {
			t.Errorf("%d works were cancelled by the deletion of one of two views", n-started)
		}
	})

	// The first cluster goes for good, while it works.
	second.Eventually(testbed.Patience, "the first cluster works", func(ctx context.Context) error {
		return second.Some(ctx, "SELECT count(*) FROM work w JOIN sessions s ON s.session_id = w.session_id WHERE w.work_id IS NOT NULL AND s.session_cluster = 'cluster-0'")
	})
	for _, o := range doomed {
		if !o.Kill() {
			t.Errorf("%s was not killed", o.Name)
		}
	}
	if err := first.Plane.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"short", "long"} {
		second.awaitManaged(name, metav1.ConditionTrue)
	}
	second.setLatency("lab", clusterQuick)
	second.AwaitClaim("long", v1alpha1.ReasonComplete)
	for name, c := range second.conditions(v1alpha1.ConditionManaged) {
		if c.Status != metav1.ConditionTrue {
			t.Errorf("%s: Managed=%s, %s: %s", name, c.Status, c.Reason, c.Message)
		}
	}
	if n := second.Count("SELECT count(*) FROM audit_log WHERE event = 'Manages' AND cluster = 'cluster-1' AND cause LIKE '%cluster-0%'"); n < clusterFleet+3 {
		t.Errorf("%d takeovers are in the audit log, want those of %d machines, 2 claims and a provider", n, clusterFleet)
	}
	if err := over(); err != nil {
		t.Error(err)
	}

	second.awaitAgents(testbed.Names("m", clusterFleet)...)
	outcomes, history := second.outcomes(), second.everythingDone()
	third := newLab(t, testbed.Options{Plane: newPlane(t), Database: first.Database, Namespace: first.Namespace})
	third.Start("operator-2-0", append(flags, "--cluster-id", "cluster-2")...)
	third.Create(third.clusterManifests(clusterQuick)...)
	third.verifyRestored(outcomes, history, second.uids())
}

// TestDeletedWhileAway deletes objects while no operator runs: the next one finds their views. It compares all objects again and again then, and writes
// nothing.
func TestDeletedWhileAway(t *testing.T) {
	t.Parallel()
	l := newLab(t, testbed.Options{})
	o := l.Start("operator-a", "--lease", "3s", "--resync-interval", "1s")
	keyed := l.Claim("c", "m-000")
	keyed.Spec.Key = "not-its-name"
	l.Create(l.Simulated("lab", v1alpha1.SimulatedProvider{}))
	l.CreateFleet("lab", "m-000", "m-001")
	l.Create(keyed)
	l.AwaitClaim("c", v1alpha1.ReasonComplete)
	l.Eventually(testbed.Patience, "the claim's object is free", func(ctx context.Context) error {
		c, err := l.ReadClaim(ctx, "c")
		if err == nil && len(c.Finalizers) > 0 {
			err = fmt.Errorf("it has %v", c.Finalizers)
		}
		return err
	})
	o.Terminate()
	l.Remove(keyed, l.Machine("m-001", "lab"), l.Simulated("lab", v1alpha1.SimulatedProvider{}))
	l.AwaitGone(keyed, l.Machine("m-001", "lab"), l.Simulated("lab", v1alpha1.SimulatedProvider{}))
	o.Start()
	l.AwaitCount("no object of the claim is known", 0, "SELECT count(*) FROM claim_views")
	l.AwaitCount("no object of the provider is known", 0, "SELECT count(*) FROM provider_views")
	l.AwaitCount("one object of a machine is known", 1, "SELECT count(*) FROM machine_views WHERE attached")
	l.awaitAgents("m-000") // the last that there is to show of it
	m, err := l.ReadMachine(t.Context(), "m-000")
	if err != nil {
		t.Fatal(err)
	}
	rows := l.Count("SELECT sum(rev) FROM machine_state")
	l.Always(5*time.Second, "a resync writes nothing", func(ctx context.Context) error {
		now, err := l.ReadMachine(ctx, "m-000")
		if err == nil && now.ResourceVersion != m.ResourceVersion {
			err = fmt.Errorf("the object was written: %s, before %s", now.ResourceVersion, m.ResourceVersion)
		}
		return err
	})
	if now := l.Count("SELECT sum(rev) FROM machine_state"); now != rows {
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

// clusterManifests are those of TestTwoClusters, as they would be in Git, with what a step takes.
func (l *lab) clusterManifests(step time.Duration) []client.Object {
	provider := l.Simulated("lab", testbed.Latency(step))
	provider.Spec.Limits.Parallelism = ptr.To[int32](clustersLimit)
	objects := []client.Object{provider, l.clusterClaim(), l.Claim("short", "m-000")}
	for _, name := range testbed.Names("m", clusterFleet) {
		objects = append(objects, l.Machine(name, "lab"))
	}
	return objects
}

// clusterClaim is of all machines but that of the short one.
func (l *lab) clusterClaim() *v1alpha1.WorkClaim {
	return l.Claim("long", testbed.Names("m", clusterFleet)[1:]...)
}

// watchLimit looks all the time whether more works go on at once than may. The function that it returns ends that and says what was seen.
func (l *lab) watchLimit(limit int) func() error {
	ctx, cancel := context.WithCancel(l.T.Context())
	l.T.Cleanup(cancel)
	done := make(chan error, 1)
	go func() {
		var failed error
		ticker := time.NewTicker(testbed.PollInterval)
		defer ticker.Stop()
		for ctx.Err() == nil {
			n, err := l.Number(ctx, "SELECT count(*) FROM work WHERE work_id IS NOT NULL")
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

func (l *lab) setLatency(provider string, step time.Duration) {
	l.T.Helper()
	slow, quick := l.Simulated(provider, testbed.Latency(clusterSlow)), l.Simulated(provider, testbed.Latency(step))
	if err := l.Client.Patch(l.T.Context(), quick, client.MergeFrom(slow)); err != nil {
		l.T.Fatal(err)
	}
}

func (l *lab) suspend(claim string, suspend bool) {
	l.T.Helper()
	c, err := l.ReadClaim(l.T.Context(), claim)
	if err != nil {
		l.T.Fatal(err)
	}
	before := c.DeepCopy()
	c.Spec.Suspend = &suspend
	if err := l.Client.Patch(l.T.Context(), c, client.MergeFrom(before)); err != nil {
		l.T.Fatal(err)
	}
}

// awaitManaged waits until a claim says whether this cluster's object manages.
func (l *lab) awaitManaged(claim string, managed metav1.ConditionStatus) {
	l.T.Helper()
	l.Eventually(testbed.Patience, fmt.Sprintf("claim %s is Managed=%s", claim, managed), func(ctx context.Context) error {
		c, err := l.ReadClaim(ctx, claim)
		if err != nil {
			return err
		}
		if is := testbed.Condition(c.Status.Conditions, v1alpha1.ConditionManaged); is.Status != managed {
			return fmt.Errorf("it is Managed=%s, %s: %s", is.Status, is.Reason, is.Message)
		}
		return nil
	})
}

// awaitOutcome waits until the status of an object says the same as another's.
func (l *lab) awaitOutcome(name, what, outcome string) (is string) {
	l.T.Helper()
	l.Eventually(testbed.Patience, what, func(ctx context.Context) error {
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
