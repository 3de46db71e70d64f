// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package deploy_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/deployment"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

// rights is a place where the operator's rights are tried.
type rights struct {
	admin, operator client.Client // the second is the operator's ServiceAccount
	pool, elsewhere string        // namespaces with config/pool and without
}

func newRights(t *testing.T) *rights {
	t.Helper()
	plane, admin := newPlane(t)
	r := &rights{admin: admin, pool: devtest.Namespace(t), elsewhere: devtest.Namespace(t)}
	if err := deployment.Install(t.Context(), plane, r.pool); err != nil {
		t.Fatal(err)
	}
	config, err := deployment.OperatorConfig(t.Context(), plane)
	if err != nil {
		t.Fatal(err)
	}
	r.operator = newClient(t, config)
	return r
}

// TestRightsByReview asks the API server what the operator may do.
func TestRightsByReview(t *testing.T) {
	r := newRights(t)
	const no, yes = false, true
	for _, test := range []struct {
		verb, group, resource, namespace, name string
		want                                   bool
	}{
		{"get", "", "secrets", r.pool, "any", yes},
		{"get", "", "configmaps", r.pool, "any", yes},
		{"list", "", "secrets", r.pool, "", no},
		{"watch", "", "secrets", r.pool, "", no},
		{"update", "", "secrets", r.pool, "any", no},
		{"list", "", "configmaps", r.pool, "", no},
		{"get", "", "secrets", r.elsewhere, "any", no},
		{"get", "", "secrets", deployment.Namespace, "bmdb-operator-database", no},
		{"get", "", "secrets", "kube-system", "any", no},
		{"list", "", "secrets", "", "", no},
		{"get", "", "namespaces", "", "kube-system", yes},
		{"get", "", "namespaces", "", r.pool, no},
		{"list", "", "namespaces", "", "", no},
		{"get", "", "nodes", "", "any", no},
		{"list", "", "nodes", "", "", no},
		{"list", "", "pods", "", "", no},
		{"create", "", "pods", r.pool, "", no},
		{"create", "", "pods/exec", deployment.Namespace, "any", no},
		{"create", "apps", "deployments", r.pool, "", no},
		{"create", "batch", "jobs", r.pool, "", no},
		{"create", "", "serviceaccounts/token", deployment.Namespace, deployment.Name, no},
		{"impersonate", "", "users", "", "anybody", no},
		{"create", "rbac.authorization.k8s.io", "rolebindings", r.pool, "", no},
		{"escalate", "rbac.authorization.k8s.io", "clusterroles", "", deployment.Name, no},
		{"get", "coordination.k8s.io", "leases", deployment.Namespace, "any", no},
		{"patch", "apiextensions.k8s.io", "customresourcedefinitions", "", "machines.bmdb.dev", no},
		{"patch", "admissionregistration.k8s.io", "validatingadmissionpolicies", "", "bmdb-operator-writes-no-spec", no},
		{"create", "events.k8s.io", "events", r.pool, "", yes},
		{"list", "events.k8s.io", "events", r.pool, "", no},
		{"watch", "bmdb.dev", "machines", "", "", yes},
		{"patch", "bmdb.dev", "machines/status", r.pool, "any", yes},
		{"create", "bmdb.dev", "machines", r.pool, "", no},
		{"patch", "bmdb.dev", "machines", r.pool, "any", no},
		{"update", "bmdb.dev", "machines", r.pool, "any", no},
		{"delete", "bmdb.dev", "machines", r.pool, "any", no},
		{"patch", "bmdb.dev", "providerconfigs", r.pool, "any", no},
		{"delete", "bmdb.dev", "providerconfigs", r.pool, "any", no},
		{"create", "bmdb.dev", "workclaims", r.pool, "", no},
		{"update", "bmdb.dev", "workclaims", r.pool, "any", no},
		{"deletecollection", "bmdb.dev", "workclaims", r.pool, "", no},
		{"patch", "bmdb.dev", "workclaims", r.pool, "any", yes}, // see TestRightsByCall
		{"delete", "bmdb.dev", "workclaims", r.pool, "any", yes},
	} {
		resource, subresource, _ := strings.Cut(test.resource, "/")
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: test.verb, Group: test.group, Resource: resource, Subresource: subresource, Namespace: test.namespace, Name: test.name,
			},
		}}
		if err := r.operator.Create(t.Context(), review); err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed != test.want {
			t.Errorf("%s %s %s/%s of group %q: allowed is %t, want %t", test.verb, test.resource, test.namespace, test.name, test.group, review.Status.Allowed, test.want)
		}
	}
}

// TestRightsByCall tries what the operator must not be able to do, and what it must. What RBAC alone would let it do, it does not get past
// config/policy.
func TestRightsByCall(t *testing.T) {
	r := newRights(t)
	machine := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "m1", Namespace: r.pool}}
	machine.Spec.ProviderRef.Name, machine.Spec.ProviderID = "lab", "m1"
	claim := &v1alpha1.WorkClaim{ObjectMeta: metav1.ObjectMeta{
		Name: "c1", Namespace: r.pool, Labels: map[string]string{"team": "metal"}, Annotations: map[string]string{"note": "theirs"}, Finalizers: []string{"example.org/theirs"},
	}}
	claim.Spec.Process, claim.Spec.Mode, claim.Spec.Machines.Names = v1alpha1.ProcessAgentStart, v1alpha1.WorkModeOnce, []string{"m1"}
	apply(t, r.admin, machine)
	apply(t, r.admin, claim)
	for _, namespace := range []string{r.pool, r.elsewhere} {
		apply(t, r.admin, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: namespace}})
	}
	patch := func(object client.Object, json string) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			copied, ok := object.DeepCopyObject().(client.Object)
			if !ok {
				return fmt.Errorf("%T is no object", copied)
			}
			return r.operator.Patch(ctx, copied, client.RawPatch("application/merge-patch+json", []byte(json)))
		}
	}
	get := func(object client.Object, namespace, name string) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			return r.operator.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object)
		}
	}
	list := func(all client.ObjectList, options ...client.ListOption) func(ctx context.Context) error {
		return func(ctx context.Context) error { return r.operator.List(ctx, all, options...) }
	}
	// A policy is obeyed a moment after it was made.
	trial := client.NewDryRunClient(r.operator)
	eventually(t, "config/policy is obeyed", func(ctx context.Context) error {
		if err := trial.Patch(ctx, claim.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"spec": {"parallelism": 9}}`))); err == nil {
			return errors.New("a spec was written")
		}
		return nil
	})
	for _, test := range []struct {
		name    string
		do      func(ctx context.Context) error
		refusal string // in the refusal; empty: allowed
	}{
		{"get a Secret of a pool", get(&corev1.Secret{}, r.pool, "s"), ""},
		{"get a Secret elsewhere", get(&corev1.Secret{}, r.elsewhere, "s"), `cannot get resource "secrets"`},
		{"list Secrets of a pool", list(&corev1.SecretList{}, client.InNamespace(r.pool)), `cannot list resource "secrets"`},
		{"list all Secrets", list(&corev1.SecretList{}), `cannot list resource "secrets"`},
		{"list nodes", list(&corev1.NodeList{}), `cannot list resource "nodes"`},
		{"list pods", list(&corev1.PodList{}), `cannot list resource "pods"`},
		{"list machines", list(&v1alpha1.MachineList{}), ""},
		{"read this cluster's ID", get(&corev1.Namespace{}, "", "kube-system"), ""},
		{"write a machine's spec", patch(machine, `{"spec": {"address": "192.0.2.1:22"}}`), `cannot patch resource "machines"`},
		{"write a machine's labels", patch(machine, `{"metadata": {"labels": {"a": "b"}}}`), `cannot patch resource "machines"`},
		{"delete a machine", func(ctx context.Context) error { return r.operator.Delete(ctx, machine.DeepCopy()) }, `cannot delete resource "machines"`},
		{"create a claim", func(ctx context.Context) error {
			another := claim.DeepCopy()
			another.Name, another.ResourceVersion = "c2", ""
			return r.operator.Create(ctx, another)
		}, `cannot create resource "workclaims"`},
		{"write a claim's spec", patch(claim, `{"spec": {"parallelism": 9}}`), "the operator does not write a spec"},
		{"write a claim's labels", patch(claim, `{"metadata": {"labels": {"team": "other"}}}`), "the operator does not write labels"},
		{"add a label", patch(claim, `{"metadata": {"labels": {"new": ""}}}`), "the operator does not write labels"},
		{"add an annotation", patch(claim, `{"metadata": {"annotations": {"new": ""}}}`), "the operator does not write the annotations of others"},
		{"write an annotation", patch(claim, `{"metadata": {"annotations": {"note": "mine"}}}`), "the operator does not write the annotations of others"},
		{"take away an annotation", patch(claim, `{"metadata": {"annotations": null}}`), "the operator does not write the annotations of others"},
		{"add its annotation", patch(claim, `{"metadata": {"annotations": {"bmdb.dev/work-term": "1"}}}`), ""},
		{"take away its annotation", patch(claim, `{"metadata": {"annotations": {"bmdb.dev/work-term": null}}}`), ""},
		{"take away another's finalizer", patch(claim, `{"metadata": {"finalizers": []}}`), "the operator does not write the finalizers of others"},
		{"add its finalizer", patch(claim, `{"metadata": {"finalizers": ["example.org/theirs", "bmdb.dev/work"]}}`), ""},
		{"take away its finalizer", patch(claim, `{"metadata": {"finalizers": ["example.org/theirs"]}}`), ""},
		{"bind itself more", func(ctx context.Context) error {
			return r.operator.Create(ctx, &rbacv1.RoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: "more", Namespace: r.elsewhere},
				RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "bmdb-operator-pool"},
			})
		}, `cannot create resource "rolebindings"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.do(t.Context())
			switch {
			case test.refusal == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.refusal != "" && err == nil:
				t.Error("allowed")
			case test.refusal != "" && (!apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), test.refusal)):
				t.Errorf("error is %v, want %q", err, test.refusal)
			}
		})
	}
	// People are not affected.
	if err := r.admin.Get(t.Context(), client.ObjectKeyFromObject(claim), claim); err != nil {
		t.Fatal(err)
	}
	claim.Spec.Parallelism, claim.Labels["team"], claim.Finalizers = 2, "other", nil
	if err := r.admin.Update(t.Context(), claim); err != nil {
		t.Errorf("an administrator is refused: %v", err)
	}
}
