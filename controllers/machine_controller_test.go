// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

func TestMachineIsRecorded(t *testing.T) {
	l := newLab(t, labOptions{})
	m := l.machine("m", "lab")
	if got := l.health(m); got != status.InProgressStatus {
		t.Errorf("new Machine is %s", got)
	}
	l.reconcile(m)
	l.verify(m, metav1.ConditionTrue, v1alpha1.ReasonRecorded, status.CurrentStatus)
	if *m.Status.ObservedGeneration != m.Generation || m.Status.DatabaseID != l.conn.Identity().ID.String() || m.Status.Tags.Provided.Provider != "lab" {
		t.Errorf("status is %+v", m.Status)
	}
	if got := l.shown.last(); got != (bmdb.Pending{Kind: bmdb.KindMachine, Pool: l.namespace, ID: m.Status.MachineID, Rev: m.Status.Revision}) {
		t.Errorf("acknowledged %+v", got)
	}
	if got := l.recorded(); len(got) != 0 {
		t.Errorf("nothing has changed, and events are %q", got)
	}
	if len(m.Finalizers) != 0 {
		t.Errorf("a Machine that is retained has finalizers %v", m.Finalizers)
	}
}

func TestNothingIsWrittenWithoutAChange(t *testing.T) {
	l := newLab(t, labOptions{})
	m := l.machine("m", "lab")
	l.reconcile(m)
	n, version := l.writes.count(), m.ResourceVersion
	for range 3 {
		l.clock.Step(time.Hour)
		l.reconcile(m)
	}
	if l.writes.count() != n || m.ResourceVersion != version {
		t.Errorf("%d writes without a change", l.writes.count()-n)
	}
}

// TestStatusInterval: an object is written at most once in an interval, and the last state is not lost.
func TestStatusInterval(t *testing.T) {
	l := newLab(t, labOptions{interval: 5 * time.Second})
	m := l.machine("m", "lab")
	l.reconcile(m)
	l.clock.SetTime(time.Now()) // the API server's, which the interval is counted from
	l.update(m, func() { m.Labels = map[string]string{"rack": "r7"} })
	result := l.reconcile(m)
	if l.writes.count() != 1 || result.RequeueAfter <= 0 || result.RequeueAfter > 6*time.Second {
		t.Errorf("%d writes, again after %s", l.writes.count(), result.RequeueAfter)
	}
	acknowledged := l.shown.last().Rev
	l.clock.Step(6 * time.Second)
	l.reconcile(m)
	if l.writes.count() != 2 || m.Status.Revision <= acknowledged || l.shown.last().Rev != m.Status.Revision {
		t.Errorf("%d writes, revision %d, acknowledged %d and then %d", l.writes.count(), m.Status.Revision, acknowledged, l.shown.last().Rev)
	}
}

// TestStatusOnAnotherClock: a pod whose clock is not the API server's writes as often as any other.
func TestStatusOnAnotherClock(t *testing.T) {
	for _, ahead := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		t.Run(ahead.String(), func(t *testing.T) {
			l := newLab(t, labOptions{interval: 5 * time.Second})
			l.clock.SetTime(time.Now().Add(ahead))
			m := l.machine("m", "lab")
			l.reconcile(m)
			l.update(m, func() { m.Labels = map[string]string{"rack": "r7"} })
			if result := l.reconcile(m); l.writes.count() != 1 || result.RequeueAfter <= 0 || result.RequeueAfter > 6*time.Second {
				t.Errorf("%d writes within the interval, again after %s", l.writes.count(), result.RequeueAfter)
			}
			l.clock.Step(6 * time.Second)
			l.reconcile(m)
			if l.writes.count() != 2 {
				t.Errorf("%d writes after the interval", l.writes.count())
			}
			// Another replica, which has not written.
			l.update(m, func() { m.Labels["rack"] = "r8" })
			second := newLab(t, labOptions{namespace: l.namespace, database: l.url(), pod: "pod-2", interval: 5 * time.Second})
			second.clock.SetTime(time.Now().Add(ahead))
			if second.reconcile(m); second.writes.count() != 1 {
				t.Error("a replica whose clock is another never writes")
			}
		})
	}
}

// TestStatusIsRebuilt: a status is a view that may be wiped.
func TestStatusIsRebuilt(t *testing.T) {
	l := newLab(t, labOptions{})
	m := l.machine("m", "lab")
	l.reconcile(m)
	before := m.Status.DeepCopy()
	m.Status = v1alpha1.MachineStatus{ObservedGeneration: new(int64(-1))}
	if err := l.client.Status().Update(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	l.reconcile(m)
	if diff := cmp.Diff(before, &m.Status); diff != "" {
		t.Errorf("status (-before +after):\n%s", diff)
	}
}

func TestLabelsAreMirrored(t *testing.T) {
	l := newLab(t, labOptions{})
	m := l.machine("m", "lab")
	l.update(m, func() {
		m.Labels = map[string]string{
			"rack": "r7", "example.org/model": "r6515", "app.kubernetes.io/name": "x", "node.k8s.io/x": "x", "kustomize.toolkit.fluxcd.io/name": "x",
			"argocd.argoproj.io/instance": "x", "argoproj.io/other": "y",
		}
	})
	l.reconcile(m)
	want := map[string]string{"rack": "r7", "example.org/model": "r6515", "argoproj.io/other": "y"}
	if diff := cmp.Diff(want, l.snapshot(m).Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	l.update(m, func() { m.Labels = nil })
	l.reconcile(m)
	if got := l.snapshot(m).Labels; len(got) != 0 {
		t.Errorf("labels are %v", got)
	}
}

func (l *lab) snapshot(m *v1alpha1.Machine) bmdb.MachineSnapshot {
	l.t.Helper()
	snapshots, err := l.conn.MachineSnapshots(l.t.Context(), []uuid.UUID{uuid.MustParse(m.Status.MachineID)})
	if err != nil || len(snapshots) != 1 {
		l.t.Fatalf("%d snapshots: %v", len(snapshots), err)
	}
	return snapshots[0]
}

// TestMachineConflicts: nothing is recorded, the other party is named, and the conflict clears by itself.
func TestMachineConflicts(t *testing.T) {
	for _, test := range []struct {
		name   string
		reason v1alpha1.Reason
		change func(second *v1alpha1.Machine)
	}{
		{"same identity", v1alpha1.ReasonIdentityConflict, func(m *v1alpha1.Machine) { m.Spec.ProviderID = "first" }},
		{"same address", v1alpha1.ReasonAddressConflict, func(m *v1alpha1.Machine) { m.Spec.Address = "10.0.0.1:22" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t, labOptions{})
			first, second := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "first"}}, &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "second"}}
			for _, m := range []*v1alpha1.Machine{first, second} {
				m.Spec.ProviderRef.Name, m.Spec.ProviderID = "lab", m.Name
			}
			first.Spec.Address = "10.0.0.1:22"
			test.change(second)
			l.create(first)
			l.create(second)
			l.reconcile(first)
			result := l.reconcile(second)
			l.verify(second, metav1.ConditionFalse, test.reason, status.FailedStatus)
			l.verify(first, metav1.ConditionTrue, v1alpha1.ReasonRecorded, status.CurrentStatus)
			if message := meta.FindStatusCondition(second.Status.Conditions, "Ready").Message; !strings.Contains(message, "first") {
				t.Errorf("message %q does not name the other", message)
			}
			if result.RequeueAfter <= 0 || result.RequeueAfter > time.Minute {
				t.Errorf("looked at again after %s", result.RequeueAfter)
			}
			l.remove(first)
			l.reconcile(first)
			l.reconcile(second)
			l.verify(second, metav1.ConditionTrue, v1alpha1.ReasonRecorded, status.CurrentStatus)
		})
	}
}

func TestMachineAtLimit(t *testing.T) {
	l := newLab(t, labOptions{allowSimulated: true})
	p := l.simulated("lab")
	l.update(p, func() { p.Spec.Limits.MaxMachines = new(int32(1)) })
	l.reconcile(p)
	first, second := l.machine("first", "lab"), l.machine("second", "lab")
	l.reconcile(first)
	l.reconcile(second)
	l.verify(second, metav1.ConditionFalse, v1alpha1.ReasonAtLimit, status.FailedStatus)
	l.update(p, func() { p.Spec.Limits.MaxMachines = new(int32(2)) })
	l.reconcile(p)
	l.reconcile(second)
	l.verify(second, metav1.ConditionTrue, v1alpha1.ReasonRecorded, status.CurrentStatus)
}

// TestMachineDeleted: only a NotFound of the API server ends the view, in a namespace that is served; the row stays, and is found again.
func TestMachineDeleted(t *testing.T) {
	l := newLab(t, labOptions{})
	m := l.machine("m", "lab")
	l.reconcile(m)
	id := m.Status.MachineID
	if slices.Contains(l.snapshot(m).Facts, bmdb.FactViewLost) {
		t.Fatal("the view is lost before the object is")
	}
	gone := m.DeepCopy()
	l.remove(m)
	narrow := newLab(t, labOptions{namespace: l.namespace, database: l.url(), namespaces: []string{"another"}})
	narrow.reconcile(gone)
	if slices.Contains(l.snapshot(gone).Facts, bmdb.FactViewLost) {
		t.Error("a namespace that is not served has lost its view")
	}
	l.reconcile(m)
	if !slices.Contains(l.snapshot(gone).Facts, bmdb.FactViewLost) {
		t.Error("the object is gone, its view is not")
	}
	again := l.machine("m", "lab")
	l.reconcile(again)
	if again.Status.MachineID != id || slices.Contains(l.snapshot(again).Facts, bmdb.FactViewLost) {
		t.Errorf("made again, the machine is %s instead of %s, with facts %v", again.Status.MachineID, id, l.snapshot(again).Facts)
	}
}

// TestMachineOfAnotherCluster: the second cluster's object shows the machine and is Ready; its spec does not count.
func TestMachineOfAnotherCluster(t *testing.T) {
	l := newLab(t, labOptions{})
	m := l.machine("m", "lab")
	l.reconcile(m)
	id := m.Status.MachineID
	other := newLab(t, labOptions{cluster: "cluster-b", namespace: l.namespace, database: l.url()})
	other.reconcile(m)
	if got := meta.FindStatusCondition(m.Status.Conditions, "Managed"); got.Reason != string(v1alpha1.ReasonManagedElsewhere) || !strings.Contains(got.Message, cluster) {
		t.Errorf("Managed is %+v", got)
	}
	l.verify(m, metav1.ConditionTrue, v1alpha1.ReasonRecorded, status.CurrentStatus)
	if m.Status.MachineID != id {
		t.Errorf("machine ID is %s and was %s", m.Status.MachineID, id)
	}
}

func TestMachineShowsItsWork(t *testing.T) {
	l := newLab(t, labOptions{allowSimulated: true})
	l.simulated("lab")
	m := l.machine("m", "lab")
	l.reconcile(m)
	c := l.claim("c", nil, "m")
	l.reconcile(c)
	s := l.session()
	works := l.start(s, l.own(s, "c"))
	l.reconcile(m)
	if len(m.Status.Work) != 1 || m.Status.Work[0].Claim != "c" || m.Status.Work[0].Holder != "pod-1" || m.Status.Work[0].Cluster != cluster {
		t.Errorf("work is %+v", m.Status.Work)
	}
	if err := works[0].Fail(t.Context(), &bmdb.Backoff{Initial: time.Minute}, "HostKeyMismatch: it shows another key"); err != nil {
		t.Fatal(err)
	}
	l.recorded()
	l.reconcile(m)
	l.verify(m, metav1.ConditionFalse, v1alpha1.ReasonHostKeyMismatch, status.FailedStatus)
	if len(m.Status.Work) != 0 || len(m.Status.Backoffs) != 1 || m.Status.Backoffs[0].Attempts != 1 {
		t.Errorf("work %+v, backoffs %+v", m.Status.Work, m.Status.Backoffs)
	}
	if got := l.recorded(); len(got) != 1 || !strings.HasPrefix(got[0], "Warning HostKeyMismatch") {
		t.Errorf("events are %q", got)
	}
}

// TestReplicasDoNotWriteTwice: whoever comes second finds it written; whoever acted on an old copy is refused, and compares anew.
func TestReplicasDoNotWriteTwice(t *testing.T) {
	l := newLab(t, labOptions{})
	m := l.machine("m", "lab")
	second := newLab(t, labOptions{namespace: l.namespace, database: l.url(), pod: "pod-2"})
	l.reconcile(m)
	second.reconcile(m)
	if second.writes.count() != 0 {
		t.Errorf("the second replica wrote %d times", second.writes.count())
	}
}

func TestAPIServerIsDown(t *testing.T) {
	l := newLab(t, labOptions{})
	m := l.machine("m", "lab")
	l.writes.fail = errDown
	if _, err := l.machines.Reconcile(t.Context(), request(m)); err == nil || len(l.shown.all) != 0 {
		t.Errorf("error %v, acknowledged %v", err, l.shown.all)
	}
	l.writes.fail = nil
	l.reconcile(m)
	l.verify(m, metav1.ConditionTrue, v1alpha1.ReasonRecorded, status.CurrentStatus)
}
