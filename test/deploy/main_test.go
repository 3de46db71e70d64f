// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package deploy_test holds the manifests in config against a real API server with Pod Security admission, and runs what the Dockerfile
// builds as the Deployment says: with its arguments, its Secrets, its ServiceAccount's rights, its user, and a root file system that it
// cannot write to. What remains untried is what only a kubelet does.
package deploy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/deployment"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/statedir"
)

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard())
	os.Exit(devtest.Main(suite{m}).Run())
}

// suite removes the image after the tests.
type suite struct{ tests *testing.M }

func (s suite) Run() int {
	code := s.tests.Run()
	if err := image.remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

const (
	// patience bounds waits for what should come soon, on a machine whose cores are busy with other tests too.
	patience     = 2 * time.Minute
	pollInterval = 100 * time.Millisecond
)

// installed makes the manifests' objects, once.
var installed struct {
	sync.Mutex
	done bool
}

// newPlane returns the control plane of this package's tests, with the operator installed, and a client of its administrator.
func newPlane(t *testing.T) (*devenv.ControlPlane, client.Client) {
	t.Helper()
	plane := devtest.ControlPlane(t)
	installed.Lock()
	defer installed.Unlock()
	if !installed.done {
		if err := deployment.Install(t.Context(), plane); err != nil {
			t.Fatal(err)
		}
		installed.done = true
	}
	return plane, newClient(t, plane.RESTConfig())
}

func newClient(t *testing.T, config *rest.Config) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// build returns the objects of a kustomization.
func build(t *testing.T, plane *devenv.ControlPlane, dir string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := deployment.Build(t.Context(), plane, dir)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// convert makes an object of a kustomization what its type is.
func convert[T any](t *testing.T, object *unstructured.Unstructured) *T {
	t.Helper()
	var typed T
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, &typed, true); err != nil {
		t.Fatalf("read %s %s: %v", object.GetKind(), object.GetName(), err)
	}
	return &typed
}

// find returns the only object of a kind.
func find(t *testing.T, objects []*unstructured.Unstructured, kind string) *unstructured.Unstructured {
	t.Helper()
	var found *unstructured.Unstructured
	for _, object := range objects {
		if object.GetKind() == kind {
			if found != nil {
				t.Fatalf("there are several of kind %s", kind)
			}
			found = object
		}
	}
	if found == nil {
		t.Fatalf("there is none of kind %s", kind)
	}
	return found
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	root, err := devenv.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// eventually waits until check succeeds, and ends the test when it has not after a time.
func eventually(t *testing.T, what string, check func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	last := errors.New("nothing was looked at")
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, patience, last)
		case <-ticker.C:
		}
	}
}

// apply makes an object as it is, and waits for its namespace to be usable.
func apply(t *testing.T, c client.Client, object client.Object) {
	t.Helper()
	if err := c.Create(t.Context(), object); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatalf("create %T %s: %v", object, object.GetName(), err)
	}
}

// image is what the Dockerfile builds, made by the first test that asks. It is process-wide on purpose: all tests run the same.
var image imageBuilder

type imageBuilder struct {
	mu  sync.Mutex
	dir *statedir.Dir
	img *containerImage
	err error // of the build; the next test would fail the same way
}

// build returns the image.
func (b *imageBuilder) build(t *testing.T) *containerImage {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == nil && b.err == nil {
		if b.dir, b.err = statedir.New("", "bmdb-image", nil); b.err == nil {
			b.img, b.err = buildImage(moduleRoot(t), filepath.Join(b.dir.Path, "context"), filepath.Join(b.dir.Path, "root"))
		}
	}
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.img
}

func (b *imageBuilder) remove() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == nil {
		return nil
	}
	err := b.dir.Remove()
	b.dir = nil
	return err
}
