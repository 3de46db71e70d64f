// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

// remembered is what a status remembers of the database.
func rememberedBy(o client.Object) string {
	switch o := o.(type) {
	case *v1alpha1.Machine:
		return fmt.Sprint(o.Status.DatabaseID, " ", o.Status.Revision, " ", o.Status.MachineID)
	case *v1alpha1.WorkClaim:
		return fmt.Sprint(o.Status.DatabaseID, " ", o.Status.Revision, " ", o.Status.Progress)
	case *v1alpha1.ProviderConfig:
		return fmt.Sprint(o.Status.DatabaseID, " ", o.Status.Revision)
	}
	return ""
}

func (l *lab) doubted(reason v1alpha1.Reason, objects ...client.Object) {
	l.t.Helper()
	for _, o := range objects {
		before := rememberedBy(o)
		if result := l.reconcile(o); result.RequeueAfter <= 0 {
			l.t.Errorf("%T is not looked at again", o)
		}
		l.verify(o, metav1.ConditionFalse, reason, status.FailedStatus)
		if after := rememberedBy(o); after != before {
			l.t.Errorf("the evidence of %T was %s and is %s", o, before, after)
		}
	}
}

// TestDatabaseChanged: an operator whose URL leads to another database changes nothing but conditions, and says so.
func TestDatabaseChanged(t *testing.T) {
	l := newLab(t, labOptions{allowSimulated: true})
	p := l.simulated("lab")
	m := l.machine("m", "lab")
	c := l.claim("c", nil, "m")
	l.reconcile(m)
	l.reconcile(c)
	wrong := newLab(t, labOptions{namespace: l.namespace, namespaces: []string{l.namespace}, allowSimulated: true})
	wrong.doubted(v1alpha1.ReasonDatabaseChanged, m, c, p)
	if err := wrong.objects.Witness(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.conn.MachineByName(t.Context(), l.namespace, "m"); !errors.Is(err, bmdb.ErrNoSuchMachine) {
		t.Errorf("the machine was recorded: %v", err)
	}
	if _, err := wrong.conn.ClaimSnapshot(t.Context(), l.namespace, "c", bmdb.ClaimLimits{}); !errors.Is(err, bmdb.ErrNoSuchClaim) {
		t.Errorf("the claim was recorded: %v", err)
	}
	if alarms, err := wrong.conn.Alarms(t.Context(), 10); err != nil || len(alarms) != 3 {
		t.Errorf("alarms: %+v, %v", alarms, err)
	}
	// Back at the right one all is as before.
	for _, o := range []client.Object{m, c, p} {
		l.reconcile(o)
	}
	l.verify(m, metav1.ConditionTrue, v1alpha1.ReasonRecorded, status.CurrentStatus)
	// A person who wants the other one says so.
	if _, err := wrong.conn.AcknowledgeDatabase(t.Context(), "somebody", "moved"); err != nil {
		t.Fatal(err)
	}
	for _, o := range []client.Object{p, m, c} {
		wrong.reconcile(o)
	}
	wrong.verify(m, metav1.ConditionTrue, v1alpha1.ReasonRecorded, status.CurrentStatus)
	if m.Status.DatabaseID != wrong.conn.Identity().ID.String() || c.Status.DatabaseID != m.Status.DatabaseID || p.Status.DatabaseID != m.Status.DatabaseID {
		t.Errorf("databases %s, %s, %s after the acknowledgement", m.Status.DatabaseID, c.Status.DatabaseID, p.Status.DatabaseID)
	}
}

// TestDatabaseRewound: rows that are older than what their objects show are noticed, also of a claim that is over; nothing is taken back.
func TestDatabaseRewound(t *testing.T) {
	l := newLab(t, labOptions{allowSimulated: true})
	p := l.simulated("lab")
	m := l.machine("m", "lab")
	l.reconcile(m)
	c := l.claim("c", nil, "m")
	l.reconcile(c)
	s := l.session()
	for _, w := range l.start(s, l.own(s, "c")) {
		if err := w.FinishData(t.Context(), bmdb.Outcome{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []client.Object{m, c, p} {
		l.reconcile(o)
	}
	l.verify(c, metav1.ConditionTrue, v1alpha1.ReasonComplete, status.CurrentStatus)
	revision := m.Status.Revision
	for _, rewind := range []string{
		"UPDATE machine_state SET rev = rev - 1", "UPDATE providers SET rev = rev - 1 WHERE pool <> ''",
		"UPDATE claims SET rev = rev - 1, state = 'Running', succeeded = 0",
	} {
		bmdbtest.Exec(t, l.url(), rewind)
	}
	l.doubted(v1alpha1.ReasonDatabaseRewound, m, c, p)
	if !meta.IsStatusConditionTrue(c.Status.Conditions, string(v1alpha1.ConditionFinished)) {
		t.Error("the claim's end was taken back")
	}
	// What a person does not want is stopped before the acknowledgement.
	l.update(c, func() { c.Spec.Suspend = new(true) })
	l.doubted(v1alpha1.ReasonDatabaseRewound, c)
	if row, err := l.conn.ClaimSnapshot(t.Context(), l.namespace, "c", bmdb.ClaimLimits{}); err != nil || !row.Suspended {
		t.Errorf("a suspend in doubt does not count: %+v, %v", row, err)
	}
	if _, err := l.conn.AcknowledgeDatabase(t.Context(), "somebody", "restored"); err != nil {
		t.Fatal(err)
	}
	for _, o := range []client.Object{p, m, c} {
		l.reconcile(o)
	}
	l.verify(m, metav1.ConditionTrue, v1alpha1.ReasonRecorded, status.CurrentStatus)
	if m.Status.Revision <= revision {
		t.Errorf("the revision is %d, it was %d before the rewind", m.Status.Revision, revision)
	}
	if meta.IsStatusConditionTrue(c.Status.Conditions, string(v1alpha1.ConditionFinished)) {
		t.Error("the claim is over, although the database that counts says otherwise")
	}
}

// TestWitnessesAreAskedAgain: what is rewound while a session goes on is noticed by the objects that were shown something last, and recorded.
func TestWitnessesAreAskedAgain(t *testing.T) {
	namespace := devtest.Namespace(t)
	l := newLab(t, labOptions{allowSimulated: true, namespace: namespace, namespaces: []string{namespace}})
	l.simulated("lab")
	for _, name := range names(3) {
		l.reconcile(l.machine(name, "lab"))
	}
	alarms := func() int {
		t.Helper()
		found, err := l.conn.Alarms(t.Context(), 10)
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	if err := l.objects.Witness(t.Context()); err != nil || alarms() != 0 {
		t.Fatalf("%d alarms at the start, %v", alarms(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var witnesses sync.WaitGroup
	witnesses.Go(func() { l.objects.KeepWitnessing(ctx, 50*time.Millisecond) })
	defer witnesses.Wait()
	defer cancel()
	bmdbtest.Exec(t, l.url(), "UPDATE machine_state SET rev = rev - 1 WHERE machine_id IN (SELECT machine_id FROM machine_identities WHERE name <> 'm00')")
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(context.Context) (bool, error) { return alarms() == 2, nil })
	if err != nil {
		t.Errorf("%d of the two machines that were rewound speak against the database: %v", alarms(), err)
	}
}
