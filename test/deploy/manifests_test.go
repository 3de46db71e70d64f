// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/deployment"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

// kustomizations are all of this repository, with where their objects go that name no namespace.
func kustomizations() map[string]string {
	return map[string]string{
		"config/crd":                  "",
		"config/default":              deployment.Namespace,
		"config/pool":                 "default",
		"config/prometheus":           deployment.Namespace,
		"config/samples":              "",
		"config/samples/more":         "",
		"config/examples/argocd":      "argocd",
		"config/examples/flux":        "flux-system",
		"config/examples/pools/metal": "metal",
	}
}

// warnings collects what an API server warns of.
type warnings struct {
	mu  sync.Mutex
	all []string
}

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _, message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, message)
}

func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.all
	w.all = nil
	return all
}

// TestManifestsAreAccepted builds every kustomization and has each object judged by the API server, strictly, as if it were applied.
func TestManifestsAreAccepted(t *testing.T) {
	plane, admin := newPlane(t)
	if err := plane.InstallCRDs(t.Context(), filepath.Join("testdata", "crds")); err != nil {
		t.Fatal(err)
	}
	warned := &warnings{}
	config := plane.RESTConfig()
	config.WarningHandler = warned
	c := client.NewDryRunClient(newClient(t, config))
	for _, namespace := range []string{"metal", "argocd", "flux-system"} {
		apply(t, admin, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	}
	for dir, namespace := range kustomizations() {
		t.Run(dir, func(t *testing.T) {
			objects := build(t, plane, dir)
			if len(objects) == 0 {
				t.Error("nothing is built")
			}
			for _, object := range objects {
				if namespaced, err := c.IsObjectNamespaced(object); err != nil {
					t.Error(err)
				} else if namespaced && object.GetNamespace() == "" {
					object.SetNamespace(namespace)
				}
				if object.GetNamespace() != "" && namespace != "" && object.GetNamespace() != namespace {
					t.Errorf("%s %s is in namespace %s, want %s", object.GetKind(), object.GetName(), object.GetNamespace(), namespace)
				}
				if err := c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("test"), client.ForceOwnership); err != nil {
					t.Errorf("%s %s: %v", object.GetKind(), object.GetName(), err)
				}
				if all := warned.take(); len(all) > 0 {
					t.Errorf("%s %s is warned of: %q", object.GetKind(), object.GetName(), all)
				}
			}
		})
	}
}

// TestEveryKustomizationIsKnown sees that none is left out of these tests.
func TestEveryKustomizationIsKnown(t *testing.T) {
	root := moduleRoot(t)
	parts := []string{"config/rbac", "config/manager", "config/policy"} // of config/default
	components := []string{"config/argocd"}
	var found []string
	err := filepath.WalkDir(filepath.Join(root, "config"), func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.Name() == "kustomization.yaml" {
			dir, _ := filepath.Rel(root, filepath.Dir(path))
			found = append(found, dir)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range found {
		if _, ok := kustomizations()[dir]; !ok && !slices.Contains(parts, dir) && !slices.Contains(components, dir) {
			t.Errorf("%s is tested by nobody", dir)
		}
	}
}

// TestPodIsRestricted has the Deployment's pod judged by Pod Security admission, which never refuses a Deployment, in the namespace of
// config/default, and sees that it does judge: the same pod with one field changed is refused.
func TestPodIsRestricted(t *testing.T) {
	plane, admin := newPlane(t)
	c := client.NewDryRunClient(admin)
	d := convert[appsv1.Deployment](t, find(t, build(t, plane, "config/default"), "Deployment"))
	for _, test := range []struct {
		name   string
		change func(spec *corev1.PodSpec)
		want   string // in the refusal; empty: accepted
	}{
		{"as it is", func(*corev1.PodSpec) {}, ""},
		{"as root", func(s *corev1.PodSpec) { s.SecurityContext.RunAsNonRoot = nil }, "runAsNonRoot"},
		{"user 0", func(s *corev1.PodSpec) { s.SecurityContext.RunAsUser = new(int64) }, "runAsUser=0"},
		{"without seccomp", func(s *corev1.PodSpec) { s.SecurityContext.SeccompProfile = nil }, "seccompProfile"},
		{"with capabilities", func(s *corev1.PodSpec) { s.Containers[0].SecurityContext.Capabilities = nil }, "unrestricted capabilities"},
		{"an init container that escalates", func(s *corev1.PodSpec) { s.InitContainers[0].SecurityContext.AllowPrivilegeEscalation = nil }, "allowPrivilegeEscalation"},
		{"the host's files", func(s *corev1.PodSpec) {
			s.Volumes = append(s.Volumes, corev1.Volume{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}})
		}, "hostPath"},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: *d.Spec.Template.ObjectMeta.DeepCopy(), Spec: *d.Spec.Template.Spec.DeepCopy()}
			pod.GenerateName, pod.Namespace = d.Name+"-", d.Namespace
			test.change(&pod.Spec)
			err := c.Create(t.Context(), pod)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.want != "" && !apierrors.IsForbidden(err):
				t.Errorf("error is %v, want it forbidden", err)
			case test.want != "" && !strings.Contains(err.Error(), test.want):
				t.Errorf("refused with %v, want %q", err, test.want)
			}
		})
	}
}

// TestDeployment holds what no API server checks.
func TestDeployment(t *testing.T) {
	plane, _ := newPlane(t)
	objects := build(t, plane, "config/default")
	d := convert[appsv1.Deployment](t, find(t, objects, "Deployment"))
	spec := &d.Spec.Template.Spec
	pods := labels.Set(d.Spec.Template.Labels)

	if *d.Spec.Replicas != 2 || d.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 0 {
		t.Error("an update may leave fewer than two pods")
	}
	if len(spec.InitContainers) != 1 || !slices.Equal(spec.InitContainers[0].Args, []string{"migrate"}) {
		t.Error("nobody migrates the schema before the operator starts")
	}
	for _, c := range append(slices.Clone(spec.InitContainers), spec.Containers...) {
		url := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "BMDB_DATABASE_URL" })
		if url < 0 || c.Env[url].ValueFrom == nil || c.Env[url].ValueFrom.SecretKeyRef == nil {
			t.Errorf("container %s does not have the database's URL from a Secret", c.Name)
		}
		if strings.Contains(strings.Join(c.Args, " "), "database-url") {
			t.Errorf("container %s has the database's URL where everybody on the node can read it", c.Name)
		}
		if c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem {
			t.Errorf("container %s may write to its image", c.Name)
		}
		for _, list := range []corev1.ResourceList{c.Resources.Requests, c.Resources.Limits} {
			if list.Cpu().IsZero() || list.Memory().IsZero() {
				t.Errorf("container %s has no request or limit of processor or memory", c.Name)
			}
		}
		for _, mount := range c.VolumeMounts {
			if !mount.ReadOnly {
				t.Errorf("container %s may write to %s", c.Name, mount.MountPath)
			}
		}
	}
	const ownerOnly = 0o400
	if v := spec.Volumes[0].Secret; v == nil || *v.DefaultMode != ownerOnly || spec.SecurityContext.FSGroup == nil {
		t.Errorf("the client's key is mounted as %+v, with group %v", v, spec.SecurityContext.FSGroup)
	}
	if c := spec.Containers[0]; c.StartupProbe == nil || c.LivenessProbe == nil || c.ReadinessProbe == nil {
		t.Error("the operator is not probed")
	}

	budget := convert[policyv1.PodDisruptionBudget](t, find(t, objects, "PodDisruptionBudget"))
	network := convert[networkingv1.NetworkPolicy](t, find(t, objects, "NetworkPolicy"))
	service := convert[corev1.Service](t, find(t, objects, "Service"))
	for name, selector := range map[string]*metav1.LabelSelector{
		"PodDisruptionBudget": budget.Spec.Selector, "NetworkPolicy": &network.Spec.PodSelector, "Deployment": d.Spec.Selector,
		"Service": {MatchLabels: service.Spec.Selector}, "topology": spec.TopologySpreadConstraints[0].LabelSelector,
	} {
		s, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil || s.Empty() || !s.Matches(pods) {
			t.Errorf("%s does not select the operator's pods: %v", name, err)
		}
	}
	if in := network.Spec.Ingress; len(in) != 1 || len(in[0].From) != 1 || in[0].From[0].NamespaceSelector == nil || len(in[0].Ports) != 1 {
		t.Errorf("the operator can be reached by more than those who read its metrics: %+v", in)
	}
	if !slices.Contains(network.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) || slices.ContainsFunc(network.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
		return len(r.Ports) == 0
	}) {
		t.Error("the operator can reach every port")
	}
}

// TestDefinitionsStay sees that deleting the operator deletes no definition, and so no object.
func TestDefinitionsStay(t *testing.T) {
	plane, _ := newPlane(t)
	for _, object := range build(t, plane, "config/default") {
		if object.GetKind() == "CustomResourceDefinition" || strings.HasPrefix(object.GetAPIVersion(), "bmdb.dev/") {
			t.Errorf("config/default has %s %s", object.GetKind(), object.GetName())
		}
	}
	for _, object := range build(t, plane, "config/crd") {
		if object.GetKind() != "CustomResourceDefinition" {
			t.Errorf("config/crd has %s %s", object.GetKind(), object.GetName())
		}
	}
}

// TestNamespaceCanBeChanged builds the operator for another namespace, as an overlay does.
func TestNamespaceCanBeChanged(t *testing.T) {
	plane, _ := newPlane(t)
	objects := build(t, plane, overlay(t, "namespace: elsewhere\nresources: [%s]\n", "config/default"))
	for _, object := range objects {
		if n := object.GetNamespace(); n != "" && n != "elsewhere" {
			t.Errorf("%s %s is in %s", object.GetKind(), object.GetName(), n)
		}
		subjects, _, _ := unstructured.NestedSlice(object.Object, "subjects")
		for _, subject := range subjects {
			if n := subject.(map[string]any)["namespace"]; n != "elsewhere" {
				t.Errorf("%s %s is for a ServiceAccount in %v", object.GetKind(), object.GetName(), n)
			}
		}
	}
	if n := find(t, objects, "Namespace").GetName(); n != "elsewhere" {
		t.Errorf("the namespace is %s", n)
	}
}

// TestPoolIsBoundWhereItIsApplied builds the right of a pool in two namespaces.
func TestPoolIsBoundWhereItIsApplied(t *testing.T) {
	plane, _ := newPlane(t)
	for _, pool := range []string{"metal", "edge"} {
		binding := find(t, build(t, plane, overlay(t, "namespace: "+pool+"\nresources: [%s]\n", "config/pool")), "RoleBinding")
		subjects, _, _ := unstructured.NestedSlice(binding.Object, "subjects")
		if subject := subjects[0].(map[string]any); binding.GetNamespace() != pool || subject["namespace"] != deployment.Namespace || subject["name"] != deployment.Name {
			t.Errorf("in %s: %v", binding.GetNamespace(), subject)
		}
	}
}

// overlay makes a kustomization of text, with the path of a directory of this module in it.
func overlay(t *testing.T, text, dir string) string {
	t.Helper()
	overlay := t.TempDir()
	// Roots are named relative to the overlay.
	relative, err := filepath.Rel(overlay, filepath.Join(moduleRoot(t), dir))
	if err != nil {
		t.Fatal(err)
	}
	head := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
	if err := os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(head+strings.ReplaceAll(text, "%s", relative)), 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay
}

// TestHealthChecksCanBeMerged adds the health checks to a configuration of Argo CD in both ways that their comments name.
func TestHealthChecksCanBeMerged(t *testing.T) {
	plane, c := newPlane(t)
	dir := overlay(t, "namespace: argocd\nresources: [argocd-cm.yaml]\ncomponents: [%s]\n", "config/argocd")
	existing := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: argocd-cm}\ndata: {url: https://argocd.example.org}\n"
	if err := os.WriteFile(filepath.Join(dir, "argocd-cm.yaml"), []byte(existing), 0o600); err != nil {
		t.Fatal(err)
	}
	merged := convert[corev1.ConfigMap](t, find(t, build(t, plane, dir), "ConfigMap"))
	verifyChecks(t, merged.Data)

	namespace := devtest.Namespace(t)
	apply(t, c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "argocd-cm", Namespace: namespace}, Data: map[string]string{"url": merged.Data["url"]}})
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := plane.Kubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}
	kubectl := exec.CommandContext(t.Context(), plane.Kubectl(), "--kubeconfig", kubeconfig, "-n", namespace, "patch", "configmap", "argocd-cm",
		"--patch-file", filepath.Join(moduleRoot(t), "config", "argocd", "argocd-cm.yaml"))
	if out, err := kubectl.CombinedOutput(); err != nil {
		t.Fatalf("patch: %v\n%s", err, out)
	}
	var patched corev1.ConfigMap
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "argocd-cm"}, &patched); err != nil {
		t.Fatal(err)
	}
	verifyChecks(t, patched.Data)
}

func verifyChecks(t *testing.T, data map[string]string) {
	t.Helper()
	if data["url"] == "" {
		t.Error("what was there is gone")
	}
	for _, kind := range []string{"Machine", "ProviderConfig", "WorkClaim"} {
		if !strings.Contains(data["resource.customizations.health.bmdb.dev_"+kind], "return health") {
			t.Errorf("there is no health check of %s in %v", kind, data)
		}
	}
}

var _ rest.WarningHandler = (*warnings)(nil)
