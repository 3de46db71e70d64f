// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/controllers"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

// TestKindThatIsNotServed: an API server without the kind says nothing of the objects, whether the client learns that now or knew the kind before.
func TestKindThatIsNotServed(t *testing.T) {
	c, err := client.New(devtest.ControlPlane(t).RESTConfig(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	live := controllers.NewLive(c, "")
	gvk := schema.GroupVersionKind{Group: "live.example.org", Version: "v1", Kind: "Thing"}
	get := func(ctx context.Context, reader client.Reader) error {
		thing := &unstructured.Unstructured{}
		thing.SetGroupVersionKind(gvk)
		return reader.Get(ctx, client.ObjectKey{Namespace: "default", Name: "x"}, thing)
	}
	notServed := func(err error) bool {
		return errors.Is(err, controllers.ErrNotServed) && !apierrors.IsNotFound(err) && !meta.IsNoMatchError(err)
	}
	if err := get(t.Context(), live); !notServed(err) {
		t.Errorf("before the definition is there: %v", err)
	}
	definition := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": "things.live.example.org"},
		"spec": map[string]any{
			"group": gvk.Group, "scope": "Namespaced", "names": map[string]any{"plural": "things", "kind": gvk.Kind},
			"versions": []any{map[string]any{"name": gvk.Version, "served": true, "storage": true, "schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object"}}}},
		},
	}}
	if err := c.Create(t.Context(), definition); err != nil {
		t.Fatal(err)
	}
	until := func(what string, is func(error) bool) {
		t.Helper()
		var last error
		err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
			last = get(ctx, live)
			return is(last), nil
		})
		if err != nil {
			t.Fatalf("%s: %v: %v", what, err, last)
		}
	}
	until("an object that is not there", apierrors.IsNotFound)
	if err := c.Delete(t.Context(), definition); err != nil {
		t.Fatal(err)
	}
	until("the definition is gone", notServed)
	if err := get(t.Context(), c); !apierrors.IsNotFound(err) {
		t.Errorf("the API server itself says %v: there is nothing to tell apart", err)
	}
}

// TestAnotherAPIServer: an API server that is not the one of the start, because it was replaced or emptied, ends no view.
func TestAnotherAPIServer(t *testing.T) {
	origin, err := controllers.OriginOf(t.Context(), newLab(t, labOptions{}).client)
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, labOptions{allowSimulated: true, origin: origin})
	p, m, c := l.simulated("lab"), l.machine("m", "lab"), l.claim("c", nil, "m")
	other := newLab(t, labOptions{allowSimulated: true, origin: "another", namespace: l.namespace, database: l.url()})
	for _, o := range []client.Object{p, m, c} {
		l.reconcile(o)
		other.reconcile(o)
	}
	gone := m.DeepCopy()
	for _, o := range []client.Object{p, m, c} {
		l.remove(o)
	}
	lost := func() []bool {
		snapshot, err := l.conn.ClaimSnapshot(t.Context(), l.namespace, "c", bmdb.ClaimLimits{})
		if err != nil {
			t.Fatal(err)
		}
		providers, err := l.conn.ViewsOf(t.Context(), cluster, bmdb.KindProvider, bmdb.ViewRow{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		return []bool{slices.Contains(l.snapshot(gone).Facts, bmdb.FactViewLost), snapshot.State == bmdb.ClaimDetached, len(providers) == 0}
	}
	for _, r := range []struct {
		reconcile.Reconciler
		object client.Object
	}{{other.machines, m}, {other.claims, c}, {other.providers, p}} {
		if _, err := r.Reconcile(t.Context(), request(r.object)); !errors.Is(err, controllers.ErrAnotherAPIServer) {
			t.Errorf("%T: %v", r.object, err)
		}
	}
	if got := lost(); slices.Contains(got, true) {
		t.Errorf("another API server ended views of machine, claim, provider: %v", got)
	}
	if missing, err := other.objects.Missing(t.Context(), bmdb.Target{MachineID: l.snapshot(gone).MachineID, Pool: l.namespace, Name: "m"}); missing || !errors.Is(err, controllers.ErrAnotherAPIServer) {
		t.Errorf("machine is missing: %v, %v", missing, err)
	}
	for _, o := range []client.Object{p, m, c} {
		l.reconcile(o)
	}
	if got := lost(); slices.Contains(got, false) {
		t.Errorf("the API server that they were in did not end views of machine, claim, provider: %v", got)
	}
}
