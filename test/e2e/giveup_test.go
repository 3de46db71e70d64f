// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestGivenUpCluster destroys one of two clusters for ever. What it said counts until a person gives it up: its suspend, its smaller limit, and its views of
// what is deleted in the other cluster.
func TestGivenUpCluster(t *testing.T) {
	t.Parallel()
	first := newLab(t, testbed.Options{Plane: newPlane(t)})
	second := newLab(t, testbed.Options{Plane: newPlane(t), Database: first.Database, Namespace: first.Namespace})
	flags := []string{"--lease", "3s", "--manager-takeover-after", "0"}
	doomed := first.Start("operator-0", append(flags, "--cluster-id", "cluster-0")...)
	second.Start("operator-1", append(flags, "--cluster-id", "cluster-1")...)
	machines := testbed.Names("m", 5)
	for _, l := range []*lab{first, second} {
		provider, held := l.Simulated("lab", testbed.Hanging()), l.Claim("held", machines[2:4]...)
		if l == first {
			provider.Spec.Limits.Parallelism, held.Spec.Suspend = ptr.To[int32](1), ptr.To(true)
		}
		l.Create(provider)
		l.CreateFleet("lab", machines...)
		l.Create(l.Claim("long", machines[:2]...), held)
		l.AwaitCount("the cluster has the claims", 2, "SELECT count(*) FROM claim_views WHERE cluster = $1", map[*lab]string{first: "cluster-0", second: "cluster-1"}[l])
	}
	first.AwaitClaim("held", v1alpha1.ReasonSuspended)
	second.AwaitClaim("held", v1alpha1.ReasonManagedElsewhere)
	const views = "SELECT count(*) FROM claim_views WHERE claim_key = $1"
	second.AwaitCount("both clusters have the claim", 2, views, "long")
	if !doomed.Kill() {
		t.Error("the operator of the first cluster was not killed")
	}
	if err := first.Plane.Stop(); err != nil {
		t.Fatal(err)
	}
	if out, err := second.Run(second.Database, "give-up", "cluster-0", "--yes", "--actor", "somebody"); err == nil || !strings.Contains(out, "operator-0") {
		t.Errorf("while the cluster may live: %v\n%s", err, out)
	}
	second.AwaitCount("the second cluster goes on with the work", 1,
		"SELECT count(*) FROM work w JOIN sessions s ON s.session_id = w.session_id WHERE w.work_id IS NOT NULL AND s.session_cluster = 'cluster-1'")

	long, last := second.Claim("long"), second.Machine(machines[4], "lab")
	second.Remove(long, last)
	second.AwaitGone(long, last)
	second.AwaitCount("the second cluster's view of the claim ends", 1, views, "long")
	second.AwaitCount("its view of the machine ends", len(machines)-1, "SELECT count(*) FROM machine_views WHERE cluster = 'cluster-1' AND attached")
	const lost = "SELECT count(*) FROM machine_state WHERE 'ViewLost' = ANY(facts)"
	if open, gone := second.Count(testbed.CountOpen, "long"), second.Count(lost); open != 1 || gone != 0 {
		t.Errorf("without the second cluster's objects %d works go on, and %d machines are left alone", open, gone)
	}
	shown := second.Command("give-up", "cluster-0")
	if !strings.Contains(shown, "Cluster cluster-0 has 8 such views") {
		t.Errorf("what is shown before:\n%s", shown)
	}
	if out := second.Command("give-up", "cluster-0", "--yes", "--actor", "somebody"); out != "gave up views of 5 machines, 2 claims and 1 providers of cluster cluster-0 for somebody\n" {
		t.Errorf("it says %s", out)
	}
	second.AwaitCount("the works of the deleted claim are cancelled", 1, testbed.CountOf, "long", "Canceled")
	second.AwaitCount("nothing goes on for it", 0, testbed.CountOpen, "long")
	second.AwaitCount("neither the suspend nor the limit counts any more", 2, testbed.CountOpen, "held")
	second.AwaitCount("the machine that nobody has an object of is left alone", 1, lost)
	second.awaitManaged("held", metav1.ConditionTrue)
	if n := second.Count("SELECT count(*) FROM audit_log WHERE event = 'GivenUp' AND actor = 'somebody'"); n != 8 {
		t.Errorf("%d views that were given up are in the audit log", n)
	}
	if err := second.Broken(t.Context(), testbed.Rules()); err != nil {
		t.Error(err)
	}
}
