// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package testbed gives tests whole operator processes against a real API server and a real database: it starts, kills and stops them,
// makes objects, waits for what must come, and asks the database in SQL for what must hold.
package testbed

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/deployment"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

// logsEnv names the environment variable with a directory that the operators' logs are kept in.
const logsEnv = "BMDB_E2E_LOGS"

// Lab is what a test has: a namespace of a control plane, a database, and operators that serve the one from the other. Its methods
// fail the test; they are for the test's goroutine unless they say otherwise.
type Lab struct {
	T         *testing.T
	Dir       string // for logs and the like
	Programs  string // directory
	Plane     *devenv.ControlPlane
	Client    client.Client // without a cache; safe for concurrent use
	Namespace string
	Database  string        // URL
	DB        *pgxpool.Pool // safe for concurrent use
	operators *[]*Operator  // all that were ever started, of subtests too
}

// Options are what a lab may have of its own. But for Programs, the zero value has a fresh database and a fresh namespace of the shared
// control plane.
type Options struct {
	// Programs are what its operators run. Required.
	Programs  *Programs
	Plane     *devenv.ControlPlane
	Database  string
	Namespace string
}

// New makes a lab, whose operators end with the test.
func New(t *testing.T, options Options) *Lab {
	t.Helper()
	l := &Lab{
		T: t, Programs: options.Programs.Build(t), Plane: options.Plane, Database: options.Database, Namespace: options.Namespace, operators: &[]*Operator{},
	}
	if l.Database == "" {
		l.Database = bmdbtest.NewURL(t)
	}
	l.Dir = logDir(t)
	if l.Plane == nil {
		l.Plane = devtest.ControlPlane(t)
	}
	l.Client = newClient(t, l.Plane)
	db, err := pgxpool.New(t.Context(), l.Database)
	if err != nil {
		t.Fatalf("connect to test database: %v", err)
	}
	l.DB = db
	t.Cleanup(l.end)
	l.makeNamespace(options.Namespace)
	l.Deploy()
	return l
}

// Deploy gives the operators of the lab the rights of the deployed operator's ServiceAccount, and no others.
func (l *Lab) Deploy() {
	l.T.Helper()
	if err := deployment.Install(l.T.Context(), l.Plane, l.Namespace); err != nil {
		l.T.Fatal(err)
	}
	config, err := deployment.OperatorConfig(l.T.Context(), l.Plane)
	if err != nil {
		l.T.Fatal(err)
	}
	if err := devenv.WriteKubeconfig(l.kubeconfig(), config); err != nil {
		l.T.Fatal(err)
	}
}

func logDir(t *testing.T) string {
	t.Helper()
	kept := os.Getenv(logsEnv)
	if kept == "" {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(kept, filepath.Base(t.Name())+"-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func newClient(t *testing.T, plane *devenv.ControlPlane) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(plane.RESTConfig(), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (l *Lab) makeNamespace(name string) {
	l.T.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if name == "" {
		namespace.GenerateName = "e2e-"
	}
	if err := l.Client.Create(l.T.Context(), namespace); err != nil && !apierrors.IsAlreadyExists(err) {
		l.T.Fatalf("make namespace: %v", err)
	}
	l.Namespace = namespace.Name
}

// kubeconfig is that of operators.
func (l *Lab) kubeconfig() string { return filepath.Join(l.Dir, "kubeconfig") }

func (l *Lab) environ() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.Dir, "KUBECONFIG=" + l.kubeconfig(), "BMDB_DATABASE_URL=" + l.Database}
}

// In is the lab as a subtest uses it. What the subtest starts ends with it.
func (l *Lab) In(t *testing.T) *Lab {
	sub := *l
	sub.T = t
	return &sub
}
