// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/deployment"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

const (
	countViews = `SELECT (SELECT count(*) FROM machine_views WHERE attached AND cluster = $1) + (SELECT count(*) FROM claim_views WHERE cluster = $1)
		+ (SELECT count(*) FROM provider_views WHERE cluster = $1)`
	sceneCluster = "scene"
	// quiet is for how long a test looks whether something happens that must not.
	quiet = 5 * time.Second
)

// scene is a cluster in which one claim is done and another is in the middle of work that does not come to an end.
type scene struct {
	*lab
	pods []*testbed.Operator
	ids  string // of all machines
	done string // the history of the claim that is done
}

var sceneMachines = append(testbed.Names("fast", 2), testbed.Names("slow", 3)...)

// sceneManifests are what is in Git. The machines of provider slow come to an end only if they end.
func (l *lab) sceneManifests(slow v1alpha1.SimulatedProvider) []client.Object {
	objects := []client.Object{l.Simulated("fast", v1alpha1.SimulatedProvider{}), l.Simulated("slow", slow)}
	for _, name := range sceneMachines {
		objects = append(objects, l.Machine(name, name[:len("fast")]))
	}
	return append(objects, l.Claim("done", "fast-000"), l.Claim("work", testbed.Names("slow", 3)...))
}

// sceneViews is how many views its manifests have.
const sceneViews = 2 + 5 + 2

func newScene(t *testing.T, plane *devenv.ControlPlane, flags ...string) *scene {
	t.Helper()
	s := &scene{lab: newLab(t, testbed.Options{Plane: plane})}
	flags = append([]string{"--lease", "5s", "--resync-interval", "1s", "--cluster-id", sceneCluster}, flags...)
	for _, name := range []string{"operator-a", "operator-b"} {
		s.pods = append(s.pods, s.Start(name, flags...))
	}
	s.Create(s.sceneManifests(testbed.Hanging())...)
	s.settle()
	s.ids, s.done = s.identities(), fmt.Sprint(s.History("done"))
	return s
}

func (s *scene) in(t *testing.T) *scene {
	sub := *s
	sub.lab = s.lab.in(t)
	return &sub
}

// settle waits until one claim is done and the other in the middle.
func (s *scene) settle() {
	s.T.Helper()
	s.AwaitRecorded("fast", 2)
	s.AwaitRecorded("slow", 3)
	s.AwaitClaim("done", v1alpha1.ReasonComplete)
	s.AwaitClaim("work", v1alpha1.ReasonWorking)
	s.AwaitCount("the slow machines are worked on", 3, testbed.CountOpen, "work")
}

func (l *lab) identities() string {
	return l.Table(l.T.Context(), "SELECT machine_id, name, provider FROM machine_identities ORDER BY name")
}

// unforgotten sees that machines and outcomes are as they were.
func (s *scene) unforgotten() {
	s.T.Helper()
	if now := s.identities(); now != s.ids {
		s.T.Errorf("the machines were:\n%s\nand are:\n%s", s.ids, now)
	}
	if now := fmt.Sprint(s.History("done")); now != s.done {
		s.T.Errorf("for the claim that is done the history was:\n%s\nand is:\n%s", s.done, now)
	}
}

// untouched sees for a while that the operators run, all views stay, and work goes on.
func (s *scene) untouched(what string, views int) {
	s.T.Helper()
	s.Always(quiet, what, func(ctx context.Context) error {
		n, err := s.Number(ctx, countViews, sceneCluster)
		if err == nil && n != views {
			err = fmt.Errorf("%d views are left of %d", n, views)
		}
		open, openErr := s.Number(ctx, testbed.CountOpen, "work")
		if openErr == nil && open != 3 {
			openErr = fmt.Errorf("%d works of 3 go on", open)
		}
		return errors.Join(err, openErr, s.alive())
	})
}

func (s *scene) alive() error {
	for _, o := range s.pods {
		if !o.Running() {
			return fmt.Errorf("%s has ended: %w", o.Name, o.Process.Err())
		}
	}
	return nil
}

// TestClusterMisbehaves takes away, one after the other, the operator's rights, its kinds, and both with the operators, while a claim is in the
// middle of its work. Nothing hangs, nothing is forgotten, and no operator ends for it.
func TestClusterMisbehaves(t *testing.T) {
	t.Parallel()
	s := newScene(t, newPlane(t))
	t.Run("RightsLost", func(t *testing.T) { s.in(t).testRightsLost() })
	t.Run("KindsNotServed", func(t *testing.T) { s.in(t).testKindsNotServed() })
	t.Run("DefinitionsDeleted", func(t *testing.T) { s.in(t).testDefinitionsDeleted() })
	t.Run("UninstalledInDisorder", func(t *testing.T) { s.in(t).testUninstalledInDisorder() })
}

// revoke takes the operator's rights in the whole cluster.
func (s *scene) revoke() {
	s.T.Helper()
	objects, err := deployment.Build(s.T.Context(), s.Plane, "config/default")
	if err != nil {
		s.T.Fatal(err)
	}
	for _, o := range objects {
		if o.GetKind() == "ClusterRoleBinding" {
			s.Remove(o)
		}
	}
	s.Eventually(testbed.Patience, "the operator has no rights", func(ctx context.Context) error {
		config, err := deployment.OperatorConfig(ctx, s.Plane)
		if err != nil {
			return err
		}
		c, err := client.New(config, client.Options{Scheme: s.Client.Scheme()})
		if err != nil {
			return err
		}
		if err := c.Get(ctx, client.ObjectKey{Namespace: s.Namespace, Name: "fast-000"}, &v1alpha1.Machine{}); !apierrors.IsForbidden(err) {
			return fmt.Errorf("it gets a machine: %w", err)
		}
		return nil
	})
}

// testRightsLost: an object that is deleted while the operator may not look is not taken for gone before it may look again.
func (s *scene) testRightsLost() {
	s.revoke()
	gone := s.Machine("fast-001", "fast")
	s.Remove(gone)
	s.AwaitGone(gone)
	s.untouched("the operator lost its rights", sceneViews)
	s.Deploy()
	s.AwaitCount("the view of what is gone has ended", sceneViews-1, countViews, sceneCluster)
	s.Create(s.Machine("fast-001", "fast"))
	s.AwaitRecorded("fast", 2)
	s.unforgotten()
}

// testKindsNotServed: an API server that does not know the kinds for a time says nothing of the objects.
func (s *scene) testKindsNotServed() {
	s.serve(false)
	s.untouched("the kinds are not served", sceneViews)
	s.serve(true)
	s.done001("served-again")
	s.unforgotten()
}

// done001 sees that the operators work.
func (s *scene) done001(claim string) {
	s.T.Helper()
	s.Create(s.Claim(claim, "fast-001"))
	s.AwaitClaim(claim, v1alpha1.ReasonComplete)
	s.Remove(s.Claim(claim))
	s.AwaitGone(s.Claim(claim))
	s.AwaitCount("its view has ended", sceneViews, countViews, sceneCluster)
}

// definitions are the CRDs.
func (s *scene) definitions() []client.Object {
	s.T.Helper()
	objects, err := deployment.Build(s.T.Context(), s.Plane, "config/crd")
	if err != nil {
		s.T.Fatal(err)
	}
	var list []client.Object
	for _, o := range objects {
		list = append(list, o)
	}
	return list
}

// serve says in the CRDs whether their version is served.
func (s *scene) serve(served bool) {
	s.T.Helper()
	patch := fmt.Appendf(nil, `[{"op": "replace", "path": "/spec/versions/0/served", "value": %t}]`, served)
	for _, d := range s.definitions() {
		if err := s.Client.Patch(s.T.Context(), d, client.RawPatch("application/json-patch+json", patch)); err != nil {
			s.T.Fatal(err)
		}
	}
	s.Eventually(testbed.Patience, fmt.Sprintf("all kinds are served: %t", served), func(ctx context.Context) error {
		for _, list := range []client.ObjectList{&v1alpha1.MachineList{}, &v1alpha1.WorkClaimList{}, &v1alpha1.ProviderConfigList{}} {
			if err := s.Client.List(ctx, list, client.InNamespace(s.Namespace)); (err == nil) != served {
				return fmt.Errorf("%T: %w", list, err)
			}
		}
		return nil
	})
}

// awaitUndefined waits until the CRDs, and so all objects, are gone.
func (s *scene) awaitUndefined(definitions []client.Object) {
	s.T.Helper()
	for _, d := range definitions {
		s.Eventually(testbed.Patience, "definition "+d.GetName()+" is gone", func(ctx context.Context) error {
			there := &unstructured.Unstructured{}
			there.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
			if err := s.Client.Get(ctx, client.ObjectKeyFromObject(d), there); !apierrors.IsNotFound(err) {
				return errors.Join(err, fmt.Errorf("it is there, with finalizers %v", there.GetFinalizers()))
			}
			return nil
		})
	}
}

// define installs the CRDs again.
func (s *scene) define() {
	s.T.Helper()
	root, err := devenv.ModuleRoot()
	if err != nil {
		s.T.Fatal(err)
	}
	if err := s.Plane.InstallCRDs(s.T.Context(), filepath.Join(root, "config", "crd", "bases")); err != nil {
		s.T.Fatal(err)
	}
}

// testDefinitionsDeleted deletes the CRDs under running operators, and with them all objects: the work is cancelled and everything goes. When they are
// back, all is as before.
func (s *scene) testDefinitionsDeleted() {
	definitions := s.definitions()
	s.Remove(definitions...)
	s.awaitUndefined(definitions)
	s.AwaitCount("no machine is held", 0, testbed.CountOpen, "work")
	s.Always(quiet, "nothing has objects", func(ctx context.Context) error {
		n, err := s.Number(ctx, testbed.CountOpen, "work")
		if err == nil && n != 0 {
			err = fmt.Errorf("%d works were started", n)
		}
		return errors.Join(err, s.alive())
	})
	for name, events := range s.History("work") {
		if got := testbed.EventNames(events); got != "Started Canceled" {
			s.T.Errorf("machine %s: %s", name, got)
		}
	}
	s.unforgotten()
	s.define()
	s.Create(s.sceneManifests(testbed.Hanging())...)
	s.settle()
	s.unforgotten()
	if err := s.alive(); err != nil {
		s.T.Error(err)
	}
	for _, o := range s.pods {
		if err := o.Ready(s.T.Context()); err != nil {
			s.T.Errorf("%s is not ready: %v", o.Name, err)
		}
	}
}

// testUninstalledInDisorder deletes the operator's rights, its pods and the CRDs at once, as "kubectl delete -k" of everything does. What hangs goes
// by the command for that, and installed again, all is as before.
func (s *scene) testUninstalledInDisorder() {
	s.revoke()
	definitions := s.definitions()
	s.Remove(definitions...)
	for _, o := range s.pods {
		o.Terminate()
	}
	s.AwaitCount("no machine is held", 0, testbed.CountOpen, "work")
	admin := filepath.Join(s.Dir, "admin.kubeconfig")
	if err := s.Plane.Kubeconfig(admin); err != nil {
		s.T.Fatal(err)
	}
	release := exec.CommandContext(s.T.Context(), filepath.Join(s.Programs, testbed.OperatorProgram), "release-finalizers", "--yes", "--kubeconfig", admin)
	release.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.Dir}
	if out, err := release.CombinedOutput(); err != nil {
		s.T.Fatalf("release finalizers: %v\n%s", err, out)
	}
	s.awaitUndefined(definitions)
	s.unforgotten()

	s.define()
	s.Deploy()
	s.Create(s.sceneManifests(testbed.Latency(100 * time.Millisecond))...)
	for _, o := range s.pods {
		o.Start()
	}
	s.AwaitClaim("work", v1alpha1.ReasonComplete)
	s.AwaitClaim("done", v1alpha1.ReasonComplete)
	s.AwaitRecorded("fast", 2)
	s.unforgotten()
	if err := s.Broken(s.T.Context(), append(testbed.Rules(), testbed.RulesAtRest()...)); err != nil {
		s.T.Error(err)
	}
}

// TestNamespacesNarrowed: what an operator does not serve any more it does not look for either.
func TestNamespacesNarrowed(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	for _, o := range s.pods {
		o.Terminate()
	}
	gone := []client.Object{s.Machine("fast-001", "fast"), s.Claim("done"), s.Simulated("fast", v1alpha1.SimulatedProvider{})}
	s.Remove(gone...)
	s.AwaitGone(gone...)
	elsewhere := s.Operator("operator-elsewhere", "--lease", "5s", "--resync-interval", "1s", "--cluster-id", sceneCluster)
	elsewhere.Flags[slices.Index(elsewhere.Flags, s.Namespace)] = "elsewhere" // a second flag would add to the first
	elsewhere.Start()
	s.Always(quiet, "another namespace is served", func(ctx context.Context) error {
		n, err := s.Number(ctx, countViews, sceneCluster)
		if err == nil && n != sceneViews {
			err = fmt.Errorf("%d views are left of %d", n, sceneViews)
		}
		return err
	})
	elsewhere.Terminate()
	for _, o := range s.pods {
		o.Start()
	}
	s.AwaitCount("the views of what is gone have ended", sceneViews-len(gone), countViews, sceneCluster)
	s.unforgotten()
}

// TestEmptyAPIServer: an API server with the cluster's ID and without its objects, as after the loss of etcd, ends nothing. What is
// applied to it is what it was, also under another name, and what is deleted in it then is gone.
func TestEmptyAPIServer(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	for _, o := range s.pods {
		if !o.Kill() {
			t.Errorf("%s was not killed", o.Name)
		}
	}
	empty := newLab(t, testbed.Options{Plane: newPlane(t), Database: s.Database, Namespace: s.Namespace})
	o := empty.Start("operator-empty", "--lease", "5s", "--resync-interval", "1s", "--cluster-id", sceneCluster)
	empty.Always(quiet, "the API server is empty", func(ctx context.Context) error {
		n, err := empty.Number(ctx, countViews, sceneCluster)
		if err == nil && n != sceneViews {
			err = fmt.Errorf("%d views are left of %d", n, sceneViews)
		}
		return err
	})
	if n := empty.Count("SELECT count(*) FROM claims WHERE claim_key = 'work' AND state = 'Running'"); n != 1 {
		t.Errorf("the claim's row: %s", empty.Table(t.Context(), "SELECT claim_key, state FROM claims"))
	}
	renamed := empty.boxed("renamed", "fast-001", "")
	renamed.Spec.ProviderRef.Name = "fast"
	var manifests []client.Object
	for _, object := range empty.sceneManifests(testbed.Latency(100 * time.Millisecond)) {
		if object.GetName() == "fast-001" {
			object = renamed
		}
		manifests = append(manifests, object)
	}
	empty.Create(manifests...)
	empty.AwaitClaim("work", v1alpha1.ReasonComplete)
	empty.AwaitClaim("done", v1alpha1.ReasonComplete)
	empty.AwaitRecorded("fast", 2)
	if now := fmt.Sprint(empty.History("done")); now != s.done {
		t.Errorf("for the claim that is done the history was:\n%s\nand is:\n%s", s.done, now)
	}
	if n := empty.Count("SELECT count(*) FROM machines"); n != len(sceneMachines) {
		t.Errorf("there are %d machines, want %d", n, len(sceneMachines))
	}
	empty.Remove(renamed)
	empty.AwaitCount("the view of what is deleted has ended", sceneViews-1, countViews, sceneCluster)
	if !o.Running() {
		t.Errorf("the operator has ended: %v", o.Process.Err())
	}
	if err := empty.Broken(t.Context(), append(testbed.Rules(), testbed.RulesAtRest()...)); err != nil {
		t.Error(err)
	}
}
