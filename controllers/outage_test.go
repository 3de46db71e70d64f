// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"strings"
	"testing"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

// TestDatabaseIsDown: new objects say so, the others are left alone, and nothing is acknowledged.
func TestDatabaseIsDown(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	old := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "m00", Namespace: l.namespace}}
	l.read(old)
	m, c := l.machine("new", "lab"), l.claim("new", nil, "new")
	p := &v1alpha1.ProviderConfig{ObjectMeta: metav1.ObjectMeta{Name: "new"}}
	p.Spec.Type, p.Spec.Simulated = v1alpha1.ProviderTypeSimulated, &v1alpha1.SimulatedProvider{}
	l.create(p)
	acknowledged := len(l.shown.all)
	l.conn.Close()
	for _, object := range []client.Object{m, c, p} {
		r := l.machines
		switch object.(type) {
		case *v1alpha1.WorkClaim:
			r = l.claims
		case *v1alpha1.ProviderConfig:
			r = l.providers
		}
		if _, err := r.Reconcile(t.Context(), request(object)); err == nil {
			t.Errorf("%T: no error", object)
		}
		l.read(object)
		l.verify(object, metav1.ConditionFalse, v1alpha1.ReasonNotRecorded, status.InProgressStatus)
	}
	if !strings.Contains(message(c), "tried again") {
		t.Errorf("message is %q", message(c))
	}
	version := old.ResourceVersion
	if _, err := l.machines.Reconcile(t.Context(), request(old)); err == nil {
		t.Error("no error")
	}
	if l.read(old); old.ResourceVersion != version {
		t.Error("an object that had a status was written")
	}
	if len(l.shown.all) != acknowledged {
		t.Errorf("acknowledged %v", l.shown.all[acknowledged:])
	}
}

// TestEverythingIsLookedAt by all controllers.
func TestEverythingIsLookedAt(t *testing.T) {
	l := fleet(t, 2, labOptions{})
	l.claim("c", nil, "m00")
	if err := l.objects.Everything(t.Context()); err != nil {
		t.Error(err)
	}
}
