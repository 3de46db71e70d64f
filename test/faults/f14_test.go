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
	r.Eventually(2*time.Minute, "the definitions are gone", func(ctx context.Context) error {
		for i := range list.Items {
			there := &unstructured.Unstructured{}
			there.SetGroupVersionKind(gvk)
			if err := r.Client.Get(ctx, client.ObjectKeyFromObject(&list.Items[i]), there); !apierrors.IsNotFound(err) {
				return errors.Join(err, fmt.Errorf("%s is there; what holds it up: %s", list.Items[i].GetName(), r.finalized(ctx)))
			}
		}
		return nil
	})
	r.struck("definitions deleted")
	if err := r.Plane.InstallCRDs(ctx, "../../config/crd/bases"); err != nil {
		r.T.Fatal(err)
	}
}
