// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-logr/logr"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

const patience = 2 * time.Minute

// TestRunWithTheGeneratedRights carries out a claim, takes one away in mid-work, and ends in good order, with no rights but those in
// config/rbac.
func TestRunWithTheGeneratedRights(t *testing.T) {
	plane := devtest.ControlPlane(t)
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(plane.RESTConfig(), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	namespace := devtest.Namespace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	config := Config{
		DatabaseURL: bmdbtest.NewURL(t), LogLevel: "info", LogFormat: "json", Kubeconfig: restricted(t, c, plane), Namespaces: []string{namespace},
		Lease: 5 * time.Second, WorkConcurrency: 4, WorkGrace: time.Second, StatusInterval: time.Second, ResyncInterval: time.Hour, AllowSimulated: true, AgentDir: t.TempDir(),
		Reconciles: 4, DatabaseConnections: 4, MetricsAddress: "0", HealthAddress: "0", PodName: "pod-1",
	}
	ended, log := make(chan error, 1), &logged{}
	go func() { ended <- run(ctx, config, log) }()
	// Before it says something, it sets where all in the process log to: clients of the test too.
	eventually(t, "the operator logs", log.something)

	create := func(o client.Object) {
		t.Helper()
		o.SetNamespace(namespace)
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for name, hang := range map[string]int32{"good": 0, "hangs": 100} {
		p := &v1alpha1.ProviderConfig{ObjectMeta: metav1.ObjectMeta{Name: name}}
		p.Spec.Type, p.Spec.Simulated = v1alpha1.ProviderTypeSimulated, &v1alpha1.SimulatedProvider{HangPercent: &hang}
		create(p)
		m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}}
		m.Spec.ProviderRef.Name, m.Spec.ProviderID = name, name
		create(m)
		claim := &v1alpha1.WorkClaim{ObjectMeta: metav1.ObjectMeta{Name: name}}
		claim.Spec.Process, claim.Spec.Mode, claim.Spec.Machines.Names = v1alpha1.ProcessAgentStart, v1alpha1.WorkModeOnce, []string{name}
		create(claim)
	}
	claim := func(name string) *v1alpha1.WorkClaim {
		return &v1alpha1.WorkClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}}
	}
	reason := func(name, want string) func() error {
		return func() error {
			got := claim(name)
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(got), got); err != nil {
				return err
			}
			if ready := meta.FindStatusCondition(got.Status.Conditions, "Ready"); ready == nil || ready.Reason != want {
				return fmt.Errorf("Ready is %+v", ready)
			}
			return nil
		}
	}
	eventually(t, "the claim is complete", reason("good", "Complete"))
	eventually(t, "the other claim works", reason("hangs", "Working"))
	if err := c.Delete(t.Context(), claim("hangs")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deleted claim is gone", func() error {
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "hangs"}, claim("hangs")); !apierrors.IsNotFound(err) {
			return errors.Join(errors.New("it is not"), err)
		}
		return nil
	})
	foreignLines(t)
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the operator ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the operator does not end")
	}
	log.verify(t)
}

// TestToldToEndBeforeItHasBegun is no failure, wherever it waits for an answer.
func TestToldToEndBeforeItHasBegun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	silent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path { // what clients ask for before they ask for anything
		case "/api":
			fmt.Fprint(w, `{"kind": "APIVersions", "versions": ["v1"]}`)
		case "/apis":
			fmt.Fprint(w, `{"kind": "APIGroupList", "apiVersion": "v1", "groups": []}`)
		case "/api/v1":
			fmt.Fprint(w, `{"kind": "APIResourceList", "groupVersion": "v1", "resources": [{"name": "namespaces", "kind": "Namespace", "verbs": ["get"]}]}`)
		default:
			cancel()
			<-r.Context().Done()
		}
	}))
	defer silent.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := devenv.WriteKubeconfig(kubeconfig, &rest.Config{Host: silent.URL}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	err := operate(ctx, Config{Kubeconfig: kubeconfig, PodName: "pod-1"}, log, logr.FromSlogHandler(log.Handler()))
	if err == nil || !asTold(ctx, err) {
		t.Errorf("ended with %v", err)
	}
	if !asTold(ctx, bmdbtest.Open(t, bmdbtest.NewURL(t)).RegisterCluster(ctx, "cluster-a")) {
		t.Error("registering the cluster ended otherwise")
	}
	if asTold(ctx, errUnready) || asTold(t.Context(), context.Canceled) {
		t.Error("a failure is taken for the end that it was told to come to")
	}
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// restricted returns a kubeconfig of a user who has the rights of the operator and no others.
func restricted(t *testing.T, c client.Client, plane *devenv.ControlPlane) string {
	t.Helper()
	root, err := devenv.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"role.yaml", "pool_role.yaml"} {
		text, err := os.ReadFile(filepath.Join(root, "config", "rbac", file))
		if err != nil {
			t.Fatal(err)
		}
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal(text, &role); err != nil {
			t.Fatal(err)
		}
		binding := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: role.Name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "operator"}},
		}
		for _, o := range []client.Object{&role, binding} {
			if err := c.Create(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
	}
	config, err := plane.UserConfig("operator")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := devenv.WriteKubeconfig(file, config); err != nil {
		t.Fatal(err)
	}
	return file
}
