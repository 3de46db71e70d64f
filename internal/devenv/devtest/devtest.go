// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package devtest shares one control plane among the tests of a process. Tests are kept apart by namespaces:
//
//	func TestMain(m *testing.M) { os.Exit(devtest.Main(m).Run()) }
//
//	func TestSomething(t *testing.T) {
//		config := devtest.ControlPlane(t).RESTConfig()
//		namespace := devtest.Namespace(t)
//		...
//	}
package devtest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
)

// cleanupTimeout bounds what a test's cleanup asks of the API server.
const cleanupTimeout = 10 * time.Second

// shared is the control plane of this process's tests. It is process-wide on purpose: one takes seconds and 400 MB.
var shared struct {
	sync.Mutex
	controlPlane *devenv.ControlPlane
	err          error // of the start; the next test would fail the same way
}

// Runner runs the tests of a package: testing.M, or what goleak.VerifyTestMain takes.
type Runner interface{ Run() int }

// Main wraps the tests of a package so that what they share is ended after the last of them. For TestMain.
func Main(m Runner) Runner { return runner{m} }

type runner struct{ tests Runner }

// Run implements Runner.
func (r runner) Run() int {
	code := r.tests.Run()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := postgres.CloseShared(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func stop() error {
	shared.Lock()
	defer shared.Unlock()
	if shared.controlPlane == nil {
		return nil
	}
	err := shared.controlPlane.Stop()
	shared.controlPlane = nil
	return err
}

// ControlPlane returns the control plane of this process, started by the first test that asks, with the module's CRDs. It
// fails the test when it cannot be started. A test that kills its API server must start one of its own.
func ControlPlane(t testing.TB) *devenv.ControlPlane {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.controlPlane == nil && shared.err == nil {
		shared.controlPlane, shared.err = devenv.Start(context.Background(), devenv.Options{})
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.controlPlane
}

// Namespace makes a namespace with a name that no other test has and deletes it, without waiting, when the test ends.
func Namespace(t testing.TB) string {
	t.Helper()
	client, err := kubernetes.NewForConfig(ControlPlane(t).RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	namespaces := client.CoreV1().Namespaces()
	created, err := namespaces.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("make namespace: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		if err := namespaces.Delete(ctx, created.Name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("delete namespace %s: %v", created.Name, err)
		}
	})
	return created.Name
}
