// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/controllers"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
)

// cluster is a control plane of its own: some of the definitions are missing in it, as when somebody has begun to delete them.
type cluster struct {
	t          *testing.T
	plane      *devenv.ControlPlane
	client     client.Client
	kubeconfig string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	plane, err := devenv.Start(t.Context(), devenv.Options{CRDDirs: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	k := &cluster{t: t, plane: plane, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	if k.client, err = client.New(plane.RESTConfig(), client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	if err := plane.Kubeconfig(k.kubeconfig); err != nil {
		t.Fatal(err)
	}
	return k
}

// install installs the definitions of some kinds.
func (k *cluster) install(kinds ...string) {
	k.t.Helper()
	root, err := devenv.ModuleRoot()
	if err != nil {
		k.t.Fatal(err)
	}
	dir := k.t.TempDir()
	for _, kind := range kinds {
		name := "bmdb.dev_" + kind + ".yaml"
		text, err := os.ReadFile(filepath.Join(root, "config", "crd", "bases", name))
		if err != nil {
			k.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			k.t.Fatal(err)
		}
	}
	if err := k.plane.InstallCRDs(k.t.Context(), dir); err != nil {
		k.t.Fatal(err)
	}
}

func (k *cluster) machine(namespace, name string, finalizers ...string) *v1alpha1.Machine {
	k.t.Helper()
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Finalizers: finalizers}}
	m.Spec.ProviderRef.Name, m.Spec.ProviderID = "lab", name
	k.create(m)
	return m
}

func (k *cluster) create(o client.Object) {
	k.t.Helper()
	if err := k.client.Create(k.t.Context(), o); err != nil {
		k.t.Fatal(err)
	}
}

// finalizers returns an object's finalizers, and whether there is one.
func (k *cluster) finalizers(o client.Object) ([]string, bool) {
	k.t.Helper()
	err := k.client.Get(k.t.Context(), client.ObjectKeyFromObject(o), o)
	if client.IgnoreNotFound(err) != nil {
		k.t.Fatal(err)
	}
	return o.GetFinalizers(), err == nil
}

// release runs the command.
func (k *cluster) release(args ...string) (string, error) {
	k.t.Helper()
	return execute(k.t, nil, append([]string{"release-finalizers", "--kubeconfig", k.kubeconfig}, args...)...)
}

const (
	ours   = "bmdb.dev/work"
	future = "bmdb.dev/decommission" // of a version that this one does not know
	theirs = "example.org/theirs"
)

func TestReleaseFinalizers(t *testing.T) {
	k := newCluster(t)
	if out, err := k.release("--yes"); err != nil || out != "released 0 objects\n" {
		t.Errorf("without any definition: %q, %v", out, err)
	}
	k.install("machines", "workclaims")
	for _, name := range []string{"metal", "edge"} {
		k.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	kept := k.machine("metal", "kept", future, theirs)
	kept.Annotations = map[string]string{"note": "theirs", controllers.AnnotationTerm: "7"}
	if err := k.client.Update(t.Context(), kept); err != nil {
		t.Fatal(err)
	}
	elsewhere := k.machine("edge", "elsewhere", future)
	free := k.machine("metal", "free", theirs)
	claim := &v1alpha1.WorkClaim{ObjectMeta: metav1.ObjectMeta{Name: "deleted", Namespace: "metal", Finalizers: []string{ours}}}
	claim.Spec.Process, claim.Spec.Mode, claim.Spec.Machines.Names = v1alpha1.ProcessAgentStart, v1alpha1.WorkModeOnce, []string{"kept"}
	k.create(claim)
	if err := k.client.Delete(t.Context(), claim); err != nil {
		t.Fatal(err)
	}

	if _, err := k.release(); err == nil || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("without being told to: %v", err)
	}
	const all = "Machine edge/elsewhere: bmdb.dev/decommission\nMachine metal/kept: bmdb.dev/decommission\n" +
		"WorkClaim metal/deleted: bmdb.dev/work, which is being deleted\n"
	if out, err := k.release("--dry-run"); err != nil || out != all+"would release 3 objects; nothing was changed\n" {
		t.Errorf("dry run: %q, %v", out, err)
	}
	if _, there := k.finalizers(claim); !there {
		t.Error("the dry run has changed something")
	}

	if out, err := k.release("--yes", "--namespaces", "edge"); err != nil || out != "Machine edge/elsewhere: bmdb.dev/decommission\nreleased 1 objects\n" {
		t.Errorf("one namespace: %q, %v", out, err)
	}
	if f, there := k.finalizers(elsewhere); !there || len(f) > 0 {
		t.Errorf("elsewhere has %q, %t", f, there)
	}
	if f, _ := k.finalizers(kept); len(f) != 2 {
		t.Errorf("what was not asked for has %q", f)
	}

	if out, err := k.release("--yes"); err != nil || !strings.HasSuffix(out, "released 2 objects\n") {
		t.Errorf("the rest: %q, %v", out, err)
	}
	if _, there := k.finalizers(claim); there {
		t.Error("the deleted claim is still there")
	}
	for _, m := range []*v1alpha1.Machine{kept, free} {
		if f, there := k.finalizers(m); !there || !slices.Equal(f, []string{theirs}) {
			t.Errorf("%s has %q, %t", m.Name, f, there)
		}
	}
	if len(kept.Annotations) != 1 || kept.Annotations["note"] == "" {
		t.Errorf("annotations are %v", kept.Annotations)
	}
	if out, err := k.release("--yes"); err != nil || out != "released 0 objects\n" {
		t.Errorf("again: %q, %v", out, err)
	}
	k.releasePages()
	k.releaseInVain()
}

// releasePages goes through more objects than fit on a page.
func (k *cluster) releasePages() {
	k.t.Helper()
	const n = 7
	for i := range n {
		k.machine("edge", fmt.Sprintf("m%d", i), ours)
	}
	var out bytes.Buffer
	if err := (&releaser{out: &out, page: 2}).run(k.t.Context(), k.plane.RESTConfig()); err != nil {
		k.t.Errorf("in pages: %v", err)
	}
	if lines := strings.Count(out.String(), "\n"); lines != n+1 {
		k.t.Errorf("in pages: %s", out.String())
	}
}

// restorer puts a finalizer back as soon as it hears that it was taken off.
type restorer struct {
	k *cluster
	m *v1alpha1.Machine
}

// Write implements io.Writer.
func (r *restorer) Write(p []byte) (int, error) {
	if !bytes.HasPrefix(p, []byte("Machine")) {
		return len(p), nil
	}
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata": {"finalizers": ["`+ours+`"]}}`))
	if err := r.k.client.Patch(r.k.t.Context(), r.m, patch); err != nil && !apierrors.IsNotFound(err) {
		return 0, err
	}
	return len(p), nil
}

// releaseInVain releases an object that somebody else does not let go.
func (k *cluster) releaseInVain() {
	k.t.Helper()
	m := k.machine("metal", "wanted", ours)
	if err := (&releaser{out: &restorer{k, m}}).run(k.t.Context(), k.plane.RESTConfig()); !errors.Is(err, errReturned) {
		k.t.Errorf("while an operator runs: %v", err)
	}
}
