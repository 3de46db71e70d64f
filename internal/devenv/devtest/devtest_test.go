// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package devtest_test

import (
	"testing"

	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(devtest.Main(m)) }

// TestNamespace: two tests share a control plane, and each namespace is somebody's own and goes with its test.
func TestNamespace(t *testing.T) {
	controlPlane := devtest.ControlPlane(t)
	if devtest.ControlPlane(t) != controlPlane {
		t.Error("a second call, a second control plane")
	}
	client, err := kubernetes.NewForConfig(controlPlane.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	var name string
	t.Run("inner", func(t *testing.T) {
		if name = devtest.Namespace(t); name == devtest.Namespace(t) {
			t.Errorf("two namespaces named %s", name)
		}
		if _, err := client.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})
	namespace, err := client.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
	if err == nil && namespace.DeletionTimestamp == nil {
		t.Errorf("namespace %s is not being deleted after its test", name)
	}
}
