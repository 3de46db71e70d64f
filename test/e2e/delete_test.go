// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestDeletedInMidWork deletes a claim while machines are worked on. The work is cancelled, the object goes, and what was done counts
// when the claim is applied again.
func TestDeletedInMidWork(t *testing.T) {
	t.Parallel()
	l := newLab(t, testbed.Options{})
	// Two, so that the one that deletes is not always the one that works.
	pods := []*testbed.Operator{l.Start("operator-a", "--lease", "10s"), l.Start("operator-b", "--lease", "10s")}
	slow := l.Simulated("slow", testbed.Hanging())
	l.Create(l.Simulated("fast", v1alpha1.SimulatedProvider{}), slow)
	fast, hang := testbed.Names("fast", 2), testbed.Names("slow", 3)
	l.CreateFleet("fast", fast...)
	l.CreateFleet("slow", hang...)
	machines := append(append([]string{}, fast...), hang...)
	l.Create(l.Claim("work", machines...))
	l.AwaitCount("the fast ones are done", len(fast), testbed.CountOf, "work", "Finished")
	l.AwaitCount("the others are worked on", len(hang), testbed.CountOpen, "work")
	held, err := l.ReadClaim(t.Context(), "work")
	if err != nil {
		t.Fatal(err)
	}
	if len(held.Finalizers) == 0 {
		t.Error("the claim has no finalizer while machines are held for it")
	}

	l.Remove(held)
	l.AwaitGone(held)
	if n := l.Count(testbed.CountOpen, "work"); n != 0 {
		t.Errorf("the object is gone, and %d machines are held for it", n)
	}
	if n := l.Count(testbed.CountOf, "work", "Canceled"); n != len(hang) {
		t.Errorf("%d works were cancelled, want %d", n, len(hang))
	}
	for _, o := range pods {
		l.Eventually(testbed.Patience, "no worker of "+o.Name+" goes on", func(ctx context.Context) error {
			n, err := o.Gauge(ctx, "bmdb_worker_pool_in_use")
			if err == nil && n != 0 {
				err = fmt.Errorf("%v do", n)
			}
			return err
		})
	}
	if n := l.Count("SELECT count(*) FROM claims WHERE claim_key = 'work' AND state = 'Detached' AND succeeded = $1 AND active = 0 AND failed = 0", len(fast)); n != 1 {
		t.Errorf("the claim's row: %s", l.Table(t.Context(), "SELECT state, succeeded, active, failed FROM claims"))
	}

	if err := l.Client.Get(t.Context(), key(slow), slow); err != nil {
		t.Fatal(err)
	}
	slow.Spec.Simulated = &v1alpha1.SimulatedProvider{}
	if err := l.Client.Update(t.Context(), slow); err != nil {
		t.Fatal(err)
	}
	l.Create(l.Claim("work", machines...))
	claim := l.AwaitClaim("work", v1alpha1.ReasonComplete)
	if claim.Status.Progress != "5/5" {
		t.Errorf("progress is %s", claim.Status.Progress)
	}
	history := l.History("work")
	for _, name := range fast {
		if got := testbed.EventNames(history[name]); got != "Started Finished" {
			t.Errorf("machine %s: %s", name, got)
		}
	}
	for _, name := range hang {
		if got := testbed.EventNames(history[name]); got != "Started Canceled Started Finished" {
			t.Errorf("machine %s: %s", name, got)
		}
	}
	if err := l.Broken(t.Context(), append(testbed.Rules(), testbed.RulesAtRest()...)); err != nil {
		t.Error(err)
	}
}

// TestNamespaceDeleted deletes a namespace in which machines are worked on: nothing hangs, and nothing is forgotten.
func TestNamespaceDeleted(t *testing.T) {
	t.Parallel()
	l := newLab(t, testbed.Options{})
	l.Start("operator-a", "--lease", "10s")
	l.Create(l.Simulated("slow", testbed.Hanging()))
	machines := testbed.Names("slow", 3)
	l.CreateFleet("slow", machines...)
	l.Create(l.Claim("work", machines...))
	l.AwaitCount("the machines are worked on", len(machines), testbed.CountOpen, "work")
	ids := l.Table(t.Context(), "SELECT machine_id, name FROM machine_identities ORDER BY name")

	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: l.Namespace}}
	l.Remove(namespace)
	l.AwaitGone(namespace)
	l.AwaitCount("no machine is held", 0, testbed.CountOpen, "work")
	l.AwaitCount("the machines have lost their views", len(machines), "SELECT count(*) FROM machine_state WHERE 'ViewLost' = ANY(facts)")
	if now := l.Table(t.Context(), "SELECT machine_id, name FROM machine_identities ORDER BY name"); now != ids {
		t.Errorf("the machines were:\n%s\nand are:\n%s", ids, now)
	}
	for name, events := range l.History("work") {
		if got := testbed.EventNames(events); got != "Started Canceled" {
			t.Errorf("machine %s: %s", name, got)
		}
	}

	// Applied again, all is as before.
	l.Eventually(testbed.Patience, "the namespace is made again", func(ctx context.Context) error {
		return l.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: l.Namespace}})
	})
	l.Create(l.Simulated("slow", testbed.Latency(100*time.Millisecond)))
	l.CreateFleet("slow", machines...)
	l.Create(l.Claim("work", machines...))
	l.AwaitClaim("work", v1alpha1.ReasonComplete)
	if now := l.Table(t.Context(), "SELECT machine_id, name FROM machine_identities ORDER BY name"); now != ids {
		t.Errorf("the machines were:\n%s\nand are:\n%s", ids, now)
	}
	if err := l.Broken(t.Context(), append(testbed.Rules(), testbed.RulesAtRest()...)); err != nil {
		t.Error(err)
	}
}
