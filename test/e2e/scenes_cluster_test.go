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
	pods []*operator
	ids  string // of all machines
	done string // the history of the claim that is done
}

var sceneMachines = append(names("fast", 2), names("slow", 3)...)

// sceneManifests are what is in Git. The machines of provider slow come to an end only if they end.
func (l *lab) sceneManifests(slow v1alpha1.SimulatedProvider) []client.Object {
	objects := []client.Object{l.simulated("fast", v1alpha1.SimulatedProvider{}), l.simulated("slow", slow)}
	for _, name := range sceneMachines {
		objects = append(objects, l.machine(name, name[:len("fast")]))
	}
	return append(objects, l.claim("done", "fast-000"), l.claim("work", names("slow", 3)...))
}

// sceneViews is how many views its manifests have.
const sceneViews = 2 + 5 + 2

func newScene(t *testing.T, plane *devenv.ControlPlane, flags ...string) *scene {
	t.Helper()
	s := &scene{lab: newLab(t, labOptions{plane: plane})}
	flags = append([]string{"--lease", "5s", "--resync-interval", "1s", "--cluster-id", sceneCluster}, flags...)
	for _, name := range []string{"operator-a", "operator-b"} {
		s.pods = append(s.pods, s.start(name, flags...))
	}
	s.create(s.sceneManifests(hanging())...)
	s.settle()
	s.ids, s.done = s.identities(), fmt.Sprint(s.history("done"))
	return s
}

func (s *scene) in(t *testing.T) *scene {
	sub := *s
	sub.lab = s.lab.in(t)
	return &sub
}

// settle waits until one claim is done and the other in the middle.
func (s *scene) settle() {
	s.t.Helper()
	s.awaitRecorded("fast", 2)
	s.awaitRecorded("slow", 3)
	s.awaitClaim("done", v1alpha1.ReasonComplete)
	s.awaitClaim("work", v1alpha1.ReasonWorking)
	s.awaitCount("the slow machines are worked on", 3, countOpen, "work")
}

func (l *lab) identities() string {
	return l.table(l.t.Context(), "SELECT machine_id, name, provider FROM machine_identities ORDER BY name")
}

// unforgotten sees that machines and outcomes are as they were.
func (s *scene) unforgotten() {
	s.t.Helper()
	if now := s.identities(); now != s.ids {
		s.t.Errorf("the machines were:\n%s\nand are:\n%s", s.ids, now)
	}
	if now := fmt.Sprint(s.history("done")); now != s.done {
		s.t.Errorf("for the claim that is done the history was:\n%s\nand is:\n%s", s.done, now)
	}
}

// untouched sees for a while that the operators run, all views stay, and work goes on.
func (s *scene) untouched(what string, views int) {
	s.t.Helper()
	s.always(quiet, what, func(ctx context.Context) error {
		n, err := s.number(ctx, countViews, sceneCluster)
		if err == nil && n != views {
			err = fmt.Errorf("%d views are left of %d", n, views)
		}
		open, openErr := s.number(ctx, countOpen, "work")
		if openErr == nil && open != 3 {
			openErr = fmt.Errorf("%d works of 3 go on", open)
		}
		return errors.Join(err, openErr, s.alive())
	})
}

func (s *scene) alive() error {
	for _, o := range s.pods {
		if !o.running() {
			return fmt.Errorf("%s has ended: %w", o.name, o.process.Err())
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
	s.t.Helper()
	objects, err := deployment.Build(s.t.Context(), s.plane, "config/default")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, o := range objects {
		if o.GetKind() == "ClusterRoleBinding" {
			s.remove(o)
		}
	}
	s.eventually(patience, "the operator has no rights", func(ctx context.Context) error {
		config, err := deployment.OperatorConfig(ctx, s.plane)
		if err != nil {
			return err
		}
		c, err := client.New(config, client.Options{Scheme: s.client.Scheme()})
		if err != nil {
			return err
		}
		if err := c.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: "fast-000"}, &v1alpha1.Machine{}); !apierrors.IsForbidden(err) {
			return fmt.Errorf("it gets a machine: %w", err)
		}
		return nil
	})
}

// testRightsLost: an object that is deleted while the operator may not look is not taken for gone before it may look again.
func (s *scene) testRightsLost() {
	s.revoke()
	gone := s.machine("fast-001", "fast")
	s.remove(gone)
	s.awaitGone(gone)
	s.untouched("the operator lost its rights", sceneViews)
	s.deploy()
	s.awaitCount("the view of what is gone has ended", sceneViews-1, countViews, sceneCluster)
	s.create(s.machine("fast-001", "fast"))
	s.awaitRecorded("fast", 2)
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
	s.t.Helper()
	s.create(s.claim(claim, "fast-001"))
	s.awaitClaim(claim, v1alpha1.ReasonComplete)
	s.remove(s.claim(claim))
	s.awaitGone(s.claim(claim))
	s.awaitCount("its view has ended", sceneViews, countViews, sceneCluster)
}

// definitions are the CRDs.
func (s *scene) definitions() []client.Object {
	s.t.Helper()
	objects, err := deployment.Build(s.t.Context(), s.plane, "config/crd")
	if err != nil {
		s.t.Fatal(err)
	}
	var list []client.Object
	for _, o := range objects {
		list = append(list, o)
	}
	return list
}

// serve says in the CRDs whether their version is served.
func (s *scene) serve(served bool) {
	s.t.Helper()
	patch := fmt.Appendf(nil, `[{"op": "replace", "path": "/spec/versions/0/served", "value": %t}]`, served)
	for _, d := range s.definitions() {
		if err := s.client.Patch(s.t.Context(), d, client.RawPatch("application/json-patch+json", patch)); err != nil {
			s.t.Fatal(err)
		}
	}
	s.eventually(patience, fmt.Sprintf("all kinds are served: %t", served), func(ctx context.Context) error {
		for _, list := range []client.ObjectList{&v1alpha1.MachineList{}, &v1alpha1.WorkClaimList{}, &v1alpha1.ProviderConfigList{}} {
			if err := s.client.List(ctx, list, client.InNamespace(s.namespace)); (err == nil) != served {
				return fmt.Errorf("%T: %w", list, err)
			}
		}
		return nil
	})
}

// awaitUndefined waits until the CRDs, and so all objects, are gone.
func (s *scene) awaitUndefined(definitions []client.Object) {
	s.t.Helper()
	for _, d := range definitions {
		s.eventually(patience, "definition "+d.GetName()+" is gone", func(ctx context.Context) error {
			there := &unstructured.Unstructured{}
			there.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
			if err := s.client.Get(ctx, client.ObjectKeyFromObject(d), there); !apierrors.IsNotFound(err) {
				return errors.Join(err, fmt.Errorf("it is there, with finalizers %v", there.GetFinalizers()))
			}
			return nil
		})
	}
}

// define installs the CRDs again.
func (s *scene) define() {
	s.t.Helper()
	root, err := devenv.ModuleRoot()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.plane.InstallCRDs(s.t.Context(), filepath.Join(root, "config", "crd", "bases")); err != nil {
		s.t.Fatal(err)
	}
}

// testDefinitionsDeleted deletes the CRDs under running operators, and with them all objects: the work is cancelled and everything goes. When they are
// back, all is as before.
func (s *scene) testDefinitionsDeleted() {
	definitions := s.definitions()
	s.remove(definitions...)
	s.awaitUndefined(definitions)
	s.awaitCount("no machine is held", 0, countOpen, "work")
	s.always(quiet, "nothing has objects", func(ctx context.Context) error {
		n, err := s.number(ctx, countOpen, "work")
		if err == nil && n != 0 {
			err = fmt.Errorf("%d works were started", n)
		}
		return errors.Join(err, s.alive())
	})
	for name, events := range s.history("work") {
		if got := eventNames(events); got != "Started Canceled" {
			s.t.Errorf("machine %s: %s", name, got)
		}
	}
	s.unforgotten()
	s.define()
	s.create(s.sceneManifests(hanging())...)
	s.settle()
	s.unforgotten()
	if err := s.alive(); err != nil {
		s.t.Error(err)
	}
	for _, o := range s.pods {
		if err := o.ready(s.t.Context()); err != nil {
			s.t.Errorf("%s is not ready: %v", o.name, err)
		}
	}
}

// testUninstalledInDisorder deletes the operator's rights, its pods and the CRDs at once, as "kubectl delete -k" of everything does. What hangs goes
// by the command for that, and installed again, all is as before.
func (s *scene) testUninstalledInDisorder() {
	s.revoke()
	definitions := s.definitions()
	s.remove(definitions...)
	for _, o := range s.pods {
		o.terminate()
	}
	s.awaitCount("no machine is held", 0, countOpen, "work")
	admin := filepath.Join(s.dir, "admin.kubeconfig")
	if err := s.plane.Kubeconfig(admin); err != nil {
		s.t.Fatal(err)
	}
	release := exec.CommandContext(s.t.Context(), filepath.Join(s.programs, operatorProgram), "release-finalizers", "--yes", "--kubeconfig", admin)
	release.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir}
	if out, err := release.CombinedOutput(); err != nil {
		s.t.Fatalf("release finalizers: %v\n%s", err, out)
	}
	s.awaitUndefined(definitions)
	s.unforgotten()

	s.define()
	s.deploy()
	s.create(s.sceneManifests(latency(100 * time.Millisecond))...)
	for _, o := range s.pods {
		o.start()
	}
	s.awaitClaim("work", v1alpha1.ReasonComplete)
	s.awaitClaim("done", v1alpha1.ReasonComplete)
	s.awaitRecorded("fast", 2)
	s.unforgotten()
	if err := s.broken(s.t.Context(), append(rules(), rulesAtRest()...)); err != nil {
		s.t.Error(err)
	}
}

// TestNamespacesNarrowed: what an operator does not serve any more it does not look for either.
func TestNamespacesNarrowed(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	for _, o := range s.pods {
		o.terminate()
	}
	gone := []client.Object{s.machine("fast-001", "fast"), s.claim("done"), s.simulated("fast", v1alpha1.SimulatedProvider{})}
	s.remove(gone...)
	s.awaitGone(gone...)
	elsewhere := s.operator("operator-elsewhere", "--lease", "5s", "--resync-interval", "1s", "--cluster-id", sceneCluster)
	elsewhere.flags[slices.Index(elsewhere.flags, s.namespace)] = "elsewhere" // a second flag would add to the first
	elsewhere.start()
	s.always(quiet, "another namespace is served", func(ctx context.Context) error {
		n, err := s.number(ctx, countViews, sceneCluster)
		if err == nil && n != sceneViews {
			err = fmt.Errorf("%d views are left of %d", n, sceneViews)
		}
		return err
	})
	elsewhere.terminate()
	for _, o := range s.pods {
		o.start()
	}
	s.awaitCount("the views of what is gone have ended", sceneViews-len(gone), countViews, sceneCluster)
	s.unforgotten()
}

// TestEmptyAPIServer: an API server with the cluster's ID and without its objects, as after the loss of etcd, ends nothing. What is
// applied to it is what it was, also under another name, and what is deleted in it then is gone.
func TestEmptyAPIServer(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	for _, o := range s.pods {
		if !o.kill() {
			t.Errorf("%s was not killed", o.name)
		}
	}
	empty := newLab(t, labOptions{plane: newPlane(t), database: s.database, namespace: s.namespace})
	o := empty.start("operator-empty", "--lease", "5s", "--resync-interval", "1s", "--cluster-id", sceneCluster)
	empty.always(quiet, "the API server is empty", func(ctx context.Context) error {
		n, err := empty.number(ctx, countViews, sceneCluster)
		if err == nil && n != sceneViews {
			err = fmt.Errorf("%d views are left of %d", n, sceneViews)
		}
		return err
	})
	if n := empty.count("SELECT count(*) FROM claims WHERE claim_key = 'work' AND state = 'Running'"); n != 1 {
		t.Errorf("the claim's row: %s", empty.table(t.Context(), "SELECT claim_key, state FROM claims"))
	}
	renamed := empty.boxed("renamed", "fast-001", "")
	renamed.Spec.ProviderRef.Name = "fast"
	var manifests []client.Object
	for _, object := range empty.sceneManifests(latency(100 * time.Millisecond)) {
		if object.GetName() == "fast-001" {
			object = renamed
		}
		manifests = append(manifests, object)
	}
	empty.create(manifests...)
	empty.awaitClaim("work", v1alpha1.ReasonComplete)
	empty.awaitClaim("done", v1alpha1.ReasonComplete)
	empty.awaitRecorded("fast", 2)
	if now := fmt.Sprint(empty.history("done")); now != s.done {
		t.Errorf("for the claim that is done the history was:\n%s\nand is:\n%s", s.done, now)
	}
	if n := empty.count("SELECT count(*) FROM machines"); n != len(sceneMachines) {
		t.Errorf("there are %d machines, want %d", n, len(sceneMachines))
	}
	empty.remove(renamed)
	empty.awaitCount("the view of what is deleted has ended", sceneViews-1, countViews, sceneCluster)
	if !o.running() {
		t.Errorf("the operator has ended: %v", o.process.Err())
	}
	if err := empty.broken(t.Context(), append(rules(), rulesAtRest()...)); err != nil {
		t.Error(err)
	}
}
