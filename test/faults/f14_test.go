// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestF14 deletes the namespace, and then the definitions of all kinds, while machines are worked on, and makes them again. Nothing hangs, and when
// the manifests are applied again all is as it would have been.
func TestF14(t *testing.T) {
	t.Parallel()
	run.spare.Lock()
	defer run.spare.Unlock()
	r := newRig(t, "F14", rigOptions{Options: testbed.Options{Plane: sparePlane(t)}, pods: 2, flags: []string{"--resync-interval", "5s"}})
	r.letGo()
	r.start()
	r.watchRules()
	var manifests []func() []client.Object
	applyAll := func() {
		for _, m := range manifests {
			for _, o := range m() {
				r.apply(o)
			}
		}
	}
	for i := range pick(2, 8) {
		manifests = append(manifests, r.gitManifestsOf(fmt.Sprintf("round-%d", i), 4, 3))
		applyAll()
		r.midWork()
		if i%2 == 0 {
			r.deleteNamespace()
			r.Deploy()
		} else {
			r.deleteDefinitions()
		}
		applyAll()
	}
	r.verify()
	r.require("namespace deleted", "definitions deleted")
}

// letGo takes the finalizers of claims whose operators were killed, at the end of earlier tests with this control plane: nobody else would, and the
// definitions could not be deleted.
func (r *rig) letGo() {
	r.T.Helper()
	var claims v1alpha1.WorkClaimList
	if err := r.Client.List(r.T.Context(), &claims); err != nil {
		r.T.Fatal(err)
	}
	for i := range claims.Items {
		freed := claims.Items[i].DeepCopy()
		freed.Finalizers = nil
		if err := r.Client.Patch(r.T.Context(), freed, client.MergeFrom(&claims.Items[i])); client.IgnoreNotFound(err) != nil {
			r.T.Fatal(err)
		}
	}
}

// midWork waits for a random moment in which machines are worked on.
func (r *rig) midWork() {
	r.T.Helper()
	r.AwaitSome("machines are worked on", "SELECT count(*) FROM work WHERE work_id IS NOT NULL")
	r.during(time.Duration(r.random.Int64N(int64(2 * time.Second))))
}

// deleteNamespace deletes the namespace with all that is in it, waits until it is gone, and makes it again.
func (r *rig) deleteNamespace() {
	r.T.Helper()
	namespace := &corev1.Namespace{}
	namespace.SetName(r.Namespace)
	r.Remove(namespace)
	r.AwaitGone(namespace)
	r.struck("namespace deleted")
	fresh := &corev1.Namespace{}
	fresh.SetName(r.Namespace)
	r.Create(fresh)
}

// finalized are the claims that something keeps from being gone.
func (r *rig) finalized(ctx context.Context) (text string) {
	var claims v1alpha1.WorkClaimList
	if err := r.Client.List(ctx, &claims); err != nil {
		return err.Error()
	}
	for _, c := range claims.Items {
		text += fmt.Sprintf(" %s/%s deleted at %v, with finalizers %v: %s;", c.Namespace, c.Name, c.DeletionTimestamp, c.Finalizers, testbed.Describe(c.Status.Conditions))
	}
	return text
}

// deleteDefinitions deletes the definitions of all kinds, waits until they are gone, and makes them again.
func (r *rig) deleteDefinitions() {
	r.T.Helper()
	ctx := r.T.Context()
	gvk := apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition")
	var list unstructured.UnstructuredList
	list.SetGroupVersionKind(schema.GroupVersionKind{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind + "List"})
	if err := r.Client.List(ctx, &list); err != nil {
		r.T.Fatal(err)
	}
	for i := range list.Items {
		r.Remove(&list.Items[i])
	}
	empty := map[string]time.Time{}
	r.Eventually(2*time.Minute, "the definitions are gone", func(ctx context.Context) error {
		for i := range list.Items {
			there := &unstructured.Unstructured{}
			there.SetGroupVersionKind(gvk)
			if err := r.Client.Get(ctx, client.ObjectKeyFromObject(&list.Items[i]), there); apierrors.IsNotFound(err) {
				continue
			} else if err != nil {
				return err
			}
			left, err := r.objectsOf(ctx, there)
			if err == nil && left == 0 {
				err = r.remind(ctx, there, empty)
			}
			conditions, _, _ := unstructured.NestedSlice(there.Object, "status", "conditions")
			return errors.Join(err, fmt.Errorf("%s is there, and has %d objects; what holds them up:%s; the API server says of it: %v", there.GetName(), left, r.finalized(ctx), conditions))
		}
		return nil
	})
	r.struck("definitions deleted")
	if err := r.Plane.InstallCRDs(ctx, "../../config/crd/bases"); err != nil {
		r.T.Fatal(err)
	}
}

// objectsOf is how many objects there are of a definition.
func (r *rig) objectsOf(ctx context.Context, definition *unstructured.Unstructured) (int, error) {
	kind, _, _ := unstructured.NestedString(definition.Object, "spec", "names", "kind")
	var list unstructured.UnstructuredList
	list.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind(kind + "List"))
	if err := r.Client.List(ctx, &list); client.IgnoreNotFound(err) != nil {
		return 0, fmt.Errorf("list objects of %s: %w", definition.GetName(), err)
	}
	return len(list.Items), nil
}

// remind touches a definition whose objects have been gone for a while; empty is since when. What deletes definitions in the API server tries again at once
// after an error, meets its own last write there, which its cache does not show yet, and then waits for an event that it leaves out, as only its own
// write was in it: it comes back to the definition five minutes later. That is no concern of operators: they have let all objects go.
func (r *rig) remind(ctx context.Context, definition *unstructured.Unstructured, empty map[string]time.Time) error {
	const patience = 20 * time.Second // it looks every five
	name := definition.GetName()
	if empty[name].IsZero() {
		empty[name] = time.Now()
	}
	if time.Since(empty[name]) < patience {
		return nil
	}
	empty[name] = time.Now()
	reminded := definition.DeepCopy()
	annotations := reminded.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations["faults/reminded"] = time.Now().UTC().Format(time.RFC3339)
	reminded.SetAnnotations(annotations)
	r.T.Logf("%s has no objects, and the API server has left it: %v", name, definition.Object["status"])
	r.struck("definitions without objects that the API server was reminded of")
	return client.IgnoreNotFound(r.Client.Patch(ctx, reminded, client.MergeFrom(definition)))
}
