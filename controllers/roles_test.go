// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// TestRolePasses: what the second cluster's objects say counts from when they manage, and not before.
func TestRolePasses(t *testing.T) {
	a := newLab(t, labOptions{allowSimulated: true})
	p := a.simulated("lab")
	m := a.machine("m", "lab")
	c := a.claim("c", nil, "m")
	b := newLab(t, labOptions{cluster: "cluster-b", namespace: a.namespace, database: a.url(), allowSimulated: true})
	for _, l := range []*lab{a, b} {
		l.reconcile(p)
		l.reconcile(m)
		l.reconcile(c)
	}
	b.update(m, func() { m.Spec.Address = "192.0.2.7:22" })
	b.update(c, func() { c.Spec.Parallelism = 7 })
	counts := func() (address string, parallelism int64) {
		t.Helper()
		s := b.session()
		defer func() {
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		return b.snapshot(m).Address, b.own(s, "c").Spec.Parallelism
	}
	b.reconcile(m)
	b.reconcile(c)
	if address, parallelism := counts(); address != "" || parallelism != 1 {
		t.Errorf("the spec of a cluster that does not manage counts: address %q, parallelism %d", address, parallelism)
	}
	n, err := b.conn.TakeOverRoles(t.Context(), bmdb.Takeover{From: cluster, To: "cluster-b", Actor: "somebody", Cause: "a test"})
	if err != nil || n != 3 {
		t.Fatalf("%d roles passed: %v", n, err)
	}
	b.reconcile(p)
	b.reconcile(m)
	b.reconcile(c)
	if address, parallelism := counts(); address != "192.0.2.7:22" || parallelism != 7 {
		t.Errorf("the spec of the new manager does not count: address %q, parallelism %d", address, parallelism)
	}
	for what, managed := range map[string]bool{
		"machine":  meta.IsStatusConditionTrue(m.Status.Conditions, string(v1alpha1.ConditionManaged)),
		"claim":    meta.IsStatusConditionTrue(c.Status.Conditions, string(v1alpha1.ConditionManaged)),
		"provider": meta.IsStatusConditionTrue(p.Status.Conditions, string(v1alpha1.ConditionManaged)),
	} {
		if !managed {
			t.Errorf("%s: the new manager's object does not say that it manages", what)
		}
	}
	// The former manager comes back with what it has believed all the time.
	a.update(m, func() { m.Spec.Address = "192.0.2.8:22" })
	a.update(c, func() { c.Spec.Parallelism = 8 })
	a.reconcile(m)
	a.reconcile(c)
	if address, parallelism := counts(); address != "192.0.2.7:22" || parallelism != 7 {
		t.Errorf("the spec of the former manager counts: address %q, parallelism %d", address, parallelism)
	}
}

// TestRoleOfADeletedView: where the managing view went, any other takes its place when it is looked at.
func TestRoleOfADeletedView(t *testing.T) {
	a := newLab(t, labOptions{allowSimulated: true})
	p := a.simulated("lab")
	m := a.machine("m", "lab")
	c := a.claim("c", nil, "m")
	b := newLab(t, labOptions{cluster: "cluster-b", namespace: a.namespace, database: a.url(), allowSimulated: true})
	for _, l := range []*lab{a, b} {
		l.reconcile(p)
		l.reconcile(m)
		l.reconcile(c)
	}
	if err := b.conn.DetachMachine(t.Context(), bmdb.View{Cluster: cluster, UID: string(m.UID), Name: "m"}, b.snapshot(m).MachineID); err != nil {
		t.Fatal(err)
	}
	if _, err := b.conn.DetachClaim(t.Context(), bmdb.View{Cluster: cluster, UID: string(c.UID), Name: "c"}, a.namespace, "c"); err != nil {
		t.Fatal(err)
	}
	b.reconcile(m)
	b.reconcile(c)
	if !meta.IsStatusConditionTrue(m.Status.Conditions, string(v1alpha1.ConditionManaged)) || !meta.IsStatusConditionTrue(c.Status.Conditions, string(v1alpha1.ConditionManaged)) {
		t.Errorf("nobody took the roles: %+v, %+v", m.Status.Conditions, c.Status.Conditions)
	}
}

// TestReplacedUnderAnotherKey: of an object that was made again with another key before anybody looked, the former key's claim loses its view.
func TestReplacedUnderAnotherKey(t *testing.T) {
	l := newLab(t, labOptions{allowSimulated: true})
	l.simulated("lab")
	l.reconcile(l.machine("m", "lab"))
	keyed := func(key string) *v1alpha1.WorkClaim {
		return l.claim("c", func(c *v1alpha1.WorkClaim) { c.Spec.Key = key }, "m")
	}
	first := keyed("first")
	l.reconcile(first)
	l.remove(first)
	l.reconcile(keyed("second"))
	for key, want := range map[string]string{"first": bmdb.ClaimDetached, "second": bmdb.ClaimRunning} {
		if c, err := l.conn.ClaimSnapshot(t.Context(), l.namespace, key, bmdb.ClaimLimits{}); err != nil || c.State != want {
			t.Errorf("claim %s is %+v, %v; want %s", key, c, err, want)
		}
	}
}
