// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/controllers"
	"github.com/bmdb-dev/bmdb-operator/internal/worker"
)

// views is how many views the lab's cluster has of the namespace's machines, claims and providers.
func (l *lab) views() (n int) {
	l.t.Helper()
	counts, err := l.conn.CountViews(l.t.Context(), cluster, []string{l.namespace})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, c := range counts {
		n += int(c.Views)
	}
	return n
}

// rewound makes an object of the cluster speak against the database, which is not one of those that a test looks at.
func (l *lab) rewound(pool string) {
	l.t.Helper()
	t := bmdb.Testimony{Kind: bmdb.KindClaim, Pool: pool, ID: "another", Cluster: cluster, Database: l.conn.Identity().ID, Revision: 1 << 30}
	if alarms, err := l.conn.Hear(l.t.Context(), []bmdb.Testimony{t}); err != nil || len(alarms) != 1 {
		l.t.Fatal(alarms, err)
	}
}

func (l *lab) acknowledge() {
	l.t.Helper()
	if _, err := l.conn.AcknowledgeDatabase(l.t.Context(), "somebody", "looked"); err != nil {
		l.t.Fatal(err)
	}
}

// TestGoneInDoubt: views of objects that are gone end when the database is not in doubt any more, and not before. Nothing is started for a claim whose
// object is gone.
func TestGoneInDoubt(t *testing.T) {
	l := newLab(t, labOptions{allowSimulated: true})
	p, m, c := l.simulated("lab"), l.machine("m", "lab"), l.claim("c", nil, "m")
	replaced := l.claim("replaced", func(c *v1alpha1.WorkClaim) { c.Spec.Key = "first" }, "m")
	for _, o := range []client.Object{p, m, c, replaced} {
		l.reconcile(o)
	}
	l.rewound("another namespace of the cluster")
	for _, o := range []client.Object{p, m, c, replaced} {
		l.remove(o)
	}
	again := l.claim("replaced", func(c *v1alpha1.WorkClaim) { c.Spec.Key = "second" }, "m")
	for _, o := range []client.Object{p, m, c, again} {
		if result := l.reconcile(o); result.RequeueAfter <= 0 {
			t.Errorf("%T is not looked at again", o)
		}
	}
	if n := l.views(); n != 4 {
		t.Errorf("%d views are left of 4, while the database is in doubt", n)
	}
	for _, key := range []string{"c", "first"} {
		if s, err := l.conn.ClaimSnapshot(t.Context(), l.namespace, key, bmdb.ClaimLimits{}); err != nil || s.State != bmdb.ClaimRunning || !s.Suspended {
			t.Errorf("claim %s, which has no object: %+v, %v", key, s, err)
		}
	}
	l.acknowledge()
	for _, o := range []client.Object{p, m, c, again} {
		l.reconcile(o)
	}
	if n := l.views(); n != 1 {
		t.Errorf("%d views are left, want the one of the new claim", n)
	}
}

// TestDeletedInDoubt: a claim that machines may be held for stays until somebody has looked at the database, and says so.
func TestDeletedInDoubt(t *testing.T) {
	l := newLab(t, labOptions{allowSimulated: true})
	l.simulated("lab")
	l.reconcile(l.machine("m", "lab"))
	c := l.claim("c", nil, "m")
	l.reconcile(c)
	l.update(c, func() { controllerutil.AddFinalizer(c, controllers.FinalizerWork) })
	l.rewound(l.namespace)
	if done, err := l.objects.Idle(t.Context(), worker.Term{Pool: l.namespace, Key: "c", Epoch: 1}); err != nil || done {
		t.Errorf("its object is freed: %v, %v", done, err)
	}
	l.remove(c)
	if result := l.reconcile(c); result.RequeueAfter <= 0 {
		t.Error("it is not looked at again")
	}
	ready := meta.FindStatusCondition(c.Status.Conditions, "Ready")
	if !l.read(c) || ready == nil || ready.Reason != string(v1alpha1.ReasonDatabaseRewound) || ready.Status != metav1.ConditionFalse {
		t.Errorf("it says %+v", ready)
	}
	if got := l.health(c); got != status.TerminatingStatus {
		t.Errorf("kstatus says %s", got)
	}
	if s, err := l.conn.ClaimSnapshot(t.Context(), l.namespace, "c", bmdb.ClaimLimits{}); err != nil || s.State != bmdb.ClaimRunning || !s.Suspended {
		t.Errorf("the claim is %+v, %v", s, err)
	}
	l.acknowledge()
	l.reconcile(c)
	if l.read(c) {
		t.Error("it does not go")
	}
	if s, err := l.conn.ClaimSnapshot(t.Context(), l.namespace, "c", bmdb.ClaimLimits{}); err != nil || s.State != bmdb.ClaimDetached {
		t.Errorf("the claim is %+v, %v", s, err)
	}
}

// TestGoneBeforeAllHaveWitnessed: nothing is concluded from what is absent before what is there was held against the database, under a session that shows
// that it still is the same.
func TestGoneBeforeAllHaveWitnessed(t *testing.T) {
	l := newLab(t, labOptions{allowSimulated: true, unwitnessed: true})
	m := l.machine("m", "lab")
	l.reconcile(m)
	l.remove(m)
	stays := func(why string) {
		t.Helper()
		if result := l.reconcile(m); result.RequeueAfter <= 0 || l.views() != 1 {
			t.Errorf("%s: %d views, looked at again in %s", why, l.views(), result.RequeueAfter)
		}
	}
	stays("nobody has looked")
	s, err := l.conn.StartSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.objects.Trust(s.UUID)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	stays("the session is over")
	l.objects.Trust(l.session().UUID)
	l.reconcile(m)
	if n := l.views(); n != 0 {
		t.Errorf("%d views are left", n)
	}
}

// resyncViews is a view of a machine that has no object; it tells when it is listed.
type resyncViews struct {
	row    bmdb.ViewRow
	listed chan struct{}
}

// ViewsOf implements controllers.ViewLister.
func (v *resyncViews) ViewsOf(ctx context.Context, _, kind string, _ bmdb.ViewRow, _ int) ([]bmdb.ViewRow, error) {
	if kind != bmdb.KindMachine {
		return nil, nil
	}
	select {
	case v.listed <- struct{}{}:
	case <-ctx.Done():
	}
	return []bmdb.ViewRow{v.row}, nil
}

// TestResyncInDoubt: what could not be compared is compared again soon, and when it could be, at the next turn only.
func TestResyncInDoubt(t *testing.T) {
	l := newLab(t, labOptions{unwitnessed: true})
	v := &resyncViews{row: bmdb.ViewRow{View: bmdb.View{Cluster: cluster, Name: "absent", UID: "1"}, Kind: bmdb.KindMachine, Pool: l.namespace}, listed: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- controllers.NewResync(l.objects, v, time.Hour, logr.Discard()).Start(ctx) }()
	for i := range 3 {
		select {
		case <-v.listed:
		case <-time.After(30 * time.Second):
			t.Fatalf("it is not compared again; it was %d times", i)
		}
	}
	l.objects.Trust(l.session().UUID)
	// The last comparison may have begun before that.
	for more := 0; ; more++ {
		select {
		case <-v.listed:
			if more > 0 {
				t.Fatal("it is compared again although nothing is in doubt")
			}
			continue
		case <-time.After(3 * time.Second):
		}
		break
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestGivenUpAndBack: a cluster that comes back after it was given up is told to look at everything, and attaches all of it, also what it remembers to
// have said already.
func TestGivenUpAndBack(t *testing.T) {
	a := newLab(t, labOptions{allowSimulated: true})
	p, m, c := a.simulated("lab"), a.machine("m", "lab"), a.claim("c", nil, "m")
	b := newLab(t, labOptions{cluster: "cluster-b", namespace: a.namespace, database: a.url(), allowSimulated: true})
	for _, l := range []*lab{b, a} {
		for _, o := range []client.Object{p, m, c} {
			l.reconcile(o)
		}
	}
	if n, err := b.conn.TakeOverRoles(t.Context(), bmdb.Takeover{From: cluster, To: "cluster-b", Actor: "somebody"}); err != nil {
		t.Fatal(n, err)
	}
	a.reconcile(c)
	if _, err := b.conn.GiveUpViews(t.Context(), bmdb.GiveUp{Cluster: cluster, Actor: "somebody"}, nil); err != nil {
		t.Fatal(err)
	}
	if n := a.views(); n != 0 {
		t.Fatalf("%d views are left", n)
	}
	if err := a.objects.Everything(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, o := range []client.Object{p, m, c} {
		a.reconcile(o)
	}
	if n := a.views(); n != 3 {
		t.Errorf("%d views are back of 3", n)
	}
	for what, conditions := range map[string][]metav1.Condition{"machine": m.Status.Conditions, "claim": c.Status.Conditions, "provider": p.Status.Conditions} {
		managed := meta.FindStatusCondition(conditions, string(v1alpha1.ConditionManaged))
		if managed == nil || managed.Reason != string(v1alpha1.ReasonManagedElsewhere) {
			t.Errorf("%s: %+v", what, managed)
		}
	}
	if s := a.snapshot(m); slices.Contains(s.Facts, bmdb.FactViewLost) {
		t.Error("the machine has lost its view")
	}
}
