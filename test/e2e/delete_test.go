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
	"k8s.io/utils/ptr"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

// hanging is a provider whose machines never come to an end by themselves.
func hanging() v1alpha1.SimulatedProvider {
	return v1alpha1.SimulatedProvider{HangPercent: ptr.To[int32](100)}
}

// TestDeletedInMidWork deletes a claim while machines are worked on. The work is cancelled, the object goes, and what was done counts
// when the claim is applied again.
func TestDeletedInMidWork(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	// Two, so that the one that deletes is not always the one that works.
	pods := []*operator{l.start("operator-a", "--lease", "10s"), l.start("operator-b", "--lease", "10s")}
	slow := l.simulated("slow", hanging())
	l.create(l.simulated("fast", v1alpha1.SimulatedProvider{}), slow)
	fast, hang := names("fast", 2), names("slow", 3)
	l.createFleet("fast", fast...)
	l.createFleet("slow", hang...)
	machines := append(append([]string{}, fast...), hang...)
	l.create(l.claim("work", machines...))
	l.awaitCount("the fast ones are done", len(fast), countOf, "work", "Finished")
	l.awaitCount("the others are worked on", len(hang), countOpen, "work")
	held, err := l.readClaim(t.Context(), "work")
	if err != nil {
		t.Fatal(err)
	}
	if len(held.Finalizers) == 0 {
		t.Error("the claim has no finalizer while machines are held for it")
	}

	l.remove(held)
	l.awaitGone(held)
	if n := l.count(countOpen, "work"); n != 0 {
		t.Errorf("the object is gone, and %d machines are held for it", n)
	}
	if n := l.count(countOf, "work", "Canceled"); n != len(hang) {
		t.Errorf("%d works were cancelled, want %d", n, len(hang))
	}
	for _, o := range pods {
		l.eventually(patience, "no worker of "+o.name+" goes on", func(ctx context.Context) error {
			n, err := o.gauge(ctx, "bmdb_worker_pool_in_use")
			if err == nil && n != 0 {
				err = fmt.Errorf("%v do", n)
			}
			return err
		})
	}
	if n := l.count("SELECT count(*) FROM claims WHERE claim_key = 'work' AND state = 'Detached' AND succeeded = $1 AND active = 0 AND failed = 0", len(fast)); n != 1 {
		t.Errorf("the claim's row: %s", l.table(t.Context(), "SELECT state, succeeded, active, failed FROM claims"))
	}

	if err := l.client.Get(t.Context(), key(slow), slow); err != nil {
		t.Fatal(err)
	}
	slow.Spec.Simulated = &v1alpha1.SimulatedProvider{}
	if err := l.client.Update(t.Context(), slow); err != nil {
		t.Fatal(err)
	}
	l.create(l.claim("work", machines...))
	claim := l.awaitClaim("work", v1alpha1.ReasonComplete)
	if claim.Status.Progress != "5/5" {
		t.Errorf("progress is %s", claim.Status.Progress)
	}
	history := l.history("work")
	for _, name := range fast {
		if got := eventNames(history[name]); got != "Started Finished" {
			t.Errorf("machine %s: %s", name, got)
		}
	}
	for _, name := range hang {
		if got := eventNames(history[name]); got != "Started Canceled Started Finished" {
			t.Errorf("machine %s: %s", name, got)
		}
	}
	if err := l.broken(t.Context(), append(rules(), rulesAtRest()...)); err != nil {
		t.Error(err)
	}
}

// TestNamespaceDeleted deletes a namespace in which machines are worked on: nothing hangs, and nothing is forgotten.
func TestNamespaceDeleted(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	l.start("operator-a", "--lease", "10s")
	l.create(l.simulated("slow", hanging()))
	machines := names("slow", 3)
	l.createFleet("slow", machines...)
	l.create(l.claim("work", machines...))
	l.awaitCount("the machines are worked on", len(machines), countOpen, "work")
	ids := l.table(t.Context(), "SELECT machine_id, name FROM machine_identities ORDER BY name")

	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: l.namespace}}
	l.remove(namespace)
	l.awaitGone(namespace)
	l.awaitCount("no machine is held", 0, countOpen, "work")
	l.awaitCount("the machines have lost their views", len(machines), "SELECT count(*) FROM machine_state WHERE 'ViewLost' = ANY(facts)")
	if now := l.table(t.Context(), "SELECT machine_id, name FROM machine_identities ORDER BY name"); now != ids {
		t.Errorf("the machines were:\n%s\nand are:\n%s", ids, now)
	}
	for name, events := range l.history("work") {
		if got := eventNames(events); got != "Started Canceled" {
			t.Errorf("machine %s: %s", name, got)
		}
	}

	// Applied again, all is as before.
	l.eventually(patience, "the namespace is made again", func(ctx context.Context) error {
		return l.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: l.namespace}})
	})
	l.create(l.simulated("slow", latency(100*time.Millisecond)))
	l.createFleet("slow", machines...)
	l.create(l.claim("work", machines...))
	l.awaitClaim("work", v1alpha1.ReasonComplete)
	if now := l.table(t.Context(), "SELECT machine_id, name FROM machine_identities ORDER BY name"); now != ids {
		t.Errorf("the machines were:\n%s\nand are:\n%s", ids, now)
	}
	if err := l.broken(t.Context(), append(rules(), rulesAtRest()...)); err != nil {
		t.Error(err)
	}
}
