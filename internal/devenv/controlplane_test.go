// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package devenv_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var widgets = schema.GroupVersionResource{Group: "devenv.test", Version: "v1", Resource: "widgets"}

// TestControlPlane goes through a control plane's life. One test for all of it, because each start takes seconds.
func TestControlPlane(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dir := t.TempDir()
	controlPlane, err := devenv.Start(ctx, devenv.Options{CRDDirs: []string{"testdata/crds"}, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := controlPlane.Stop(); err != nil {
			t.Error(err)
		}
	}()

	t.Run("CRDs are installed", func(t *testing.T) { testCRDs(ctx, t, controlPlane) })
	t.Run("deletions end", func(t *testing.T) { testDeletions(ctx, t, controlPlane) })
	t.Run("RBAC", func(t *testing.T) { testRBAC(ctx, t, controlPlane) })
	t.Run("kubectl", func(t *testing.T) { testKubectl(ctx, t, controlPlane) })
	t.Run("API server restarts", func(t *testing.T) { testRestart(ctx, t, controlPlane) })

	if err := controlPlane.Stop(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left after Stop: %v, %v", left, err)
	}
	for _, process := range processesWith(t, dir) {
		t.Errorf("runs after Stop: %s", process)
	}
}

func testCRDs(ctx context.Context, t *testing.T, controlPlane *devenv.ControlPlane) {
	root, err := devenv.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	if err := controlPlane.InstallCRDs(ctx, filepath.Join(root, "config", "crd", "bases"), "testdata/crds"); err != nil {
		t.Fatalf("the module's own, and others a second time: %v", err)
	}
	machines := schema.GroupVersionResource{Group: "bmdb.dev", Version: "v1alpha1", Resource: "machines"}
	for _, resource := range []schema.GroupVersionResource{widgets, machines} {
		if _, err := dynamicClient(t, controlPlane.RESTConfig()).Resource(resource).List(ctx, metav1.ListOptions{}); err != nil {
			t.Errorf("list %s: %v", resource.Resource, err)
		}
	}
	if err := controlPlane.InstallCRDs(ctx, "testdata"); err != nil {
		t.Errorf("a directory without CRDs: %v", err)
	}
	if err := controlPlane.InstallCRDs(ctx, "testdata/absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that does not exist: got %v", err)
	}
}

func testDeletions(ctx context.Context, t *testing.T, controlPlane *devenv.ControlPlane) {
	namespace := makeNamespace(ctx, t, controlPlane.RESTConfig(), "deleted")
	client := dynamicClient(t, controlPlane.RESTConfig()).Resource(widgets).Namespace(namespace)
	owner, err := client.Create(ctx, widget("owner"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	owned := widget("owned")
	owned.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "devenv.test/v1", Kind: "Widget", Name: "owner", UID: owner.GetUID()}})
	if _, err := client.Create(ctx, owned, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := client.Delete(ctx, "owner", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	waitGone(ctx, t, "what a deleted owner owned", func(ctx context.Context) error {
		_, err := client.Get(ctx, "owned", metav1.GetOptions{})
		return err
	})

	if _, err := client.Create(ctx, widget("inside"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	namespaces := clientset(t, controlPlane.RESTConfig()).CoreV1().Namespaces()
	if err := namespaces.Delete(ctx, namespace, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	waitGone(ctx, t, "a deleted namespace", func(ctx context.Context) error {
		_, err := namespaces.Get(ctx, namespace, metav1.GetOptions{})
		return err
	})
}

func testRBAC(ctx context.Context, t *testing.T, controlPlane *devenv.ControlPlane) {
	config, err := controlPlane.UserConfig("somebody", "some-group")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := clientset(t, config).CoreV1().Namespaces().List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a user without rights: got %v, want forbidden", err)
	}
}

func testKubectl(ctx context.Context, t *testing.T, controlPlane *devenv.ControlPlane) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := controlPlane.Kubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, controlPlane.Kubectl(), "--kubeconfig", kubeconfig, "auth", "can-i", "*", "*").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "yes") {
		t.Errorf("kubectl auth can-i: %v: %s", err, out)
	}
	out, err = exec.CommandContext(ctx, controlPlane.Kubectl(), "--kubeconfig", kubeconfig, "version").CombinedOutput()
	if err != nil || strings.Contains(string(out), "$Format") || strings.Count(string(out), "v1.") < 2 {
		t.Errorf("kubectl version: %v: %s", err, out)
	}
}

func testRestart(ctx context.Context, t *testing.T, controlPlane *devenv.ControlPlane) {
	config := controlPlane.RESTConfig()
	namespace := makeNamespace(ctx, t, config, "kept")
	namespaces := clientset(t, config).CoreV1().Namespaces()
	if err := controlPlane.KillAPIServer(); err != nil {
		t.Fatal(err)
	}
	if _, err := namespaces.Get(ctx, namespace, metav1.GetOptions{}); err == nil {
		t.Fatal("the API server still answers after it was killed")
	}
	for range 2 { // the second does nothing
		if err := controlPlane.StartAPIServer(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := namespaces.Get(ctx, namespace, metav1.GetOptions{}); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func makeNamespace(ctx context.Context, t *testing.T, config *rest.Config, name string) string {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := clientset(t, config).CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return name
}

func waitGone(ctx context.Context, t *testing.T, what string, get func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		err := get(ctx)
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		t.Fatalf("%s is still there: %v", what, err)
	}
}

func widget(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "devenv.test/v1", "kind": "Widget", "metadata": map[string]any{"name": name},
	}}
}

func dynamicClient(t *testing.T, config *rest.Config) dynamic.Interface {
	t.Helper()
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func clientset(t *testing.T, config *rest.Config) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if httpClient, err := rest.HTTPClientFor(config); err == nil {
			httpClient.CloseIdleConnections()
		}
	})
	return client
}

// processesWith lists the processes that have text in their command line.
func processesWith(t *testing.T, text string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(line), text) {
			found = append(found, file+": "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
