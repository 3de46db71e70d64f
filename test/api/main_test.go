// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package api_test holds the resources against a real API server: what it accepts, refuses, defaults and shows.
package api_test

import (
	"os"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

func TestMain(m *testing.M) { os.Exit(devtest.Main(m).Run()) }

// newClient returns a client of the API server that the tests of this package share.
func newClient(t *testing.T) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(devtest.ControlPlane(t).RESTConfig(), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Objects that are valid, have a value in every field of their spec, and leave room for each field to take its least and
// its greatest value alone.
const (
	fullMachine = `
apiVersion: bmdb.dev/v1alpha1
kind: Machine
metadata: {name: r7-u12, labels: {rack: r7}}
spec:
  providerRef: {name: lab}
  providerID: r7-u12
  address: 10.7.0.12:22
  deletionPolicy: Retain`

	fullWorkClaim = `
apiVersion: bmdb.dev/v1alpha1
kind: WorkClaim
metadata: {name: start-agents-r7}
spec:
  process: AgentStart
  parameters: {flavour: plain}
  machines:
    providerRef: {name: lab}
    selector:
      matchLabels: {rack: r7}
      matchExpressions:
      - {key: example.org/model, operator: In, values: [r6515]}
  mode: Once
  completions: 6
  key: reinstall-2026-11
  parallelism: 3
  timeoutSeconds: 600
  activeDeadlineSeconds: 86400
  maxAttempts: 5
  maxFailedMachines: 3
  backoff: {initialSeconds: 1, maximumSeconds: 604800}
  suspend: false
  ttlSecondsAfterFinished: 86400`

	namesWorkClaim = `
apiVersion: bmdb.dev/v1alpha1
kind: WorkClaim
metadata: {name: start-agents}
spec:
  process: AgentStart
  mode: Once
  machines: {names: [m1, m2, m3]}`

	fullSSH = `
apiVersion: bmdb.dev/v1alpha1
kind: ProviderConfig
metadata: {name: lab}
spec:
  type: SSH
  ssh:
    user: root
    privateKeySecretRef: {name: lab-ssh, key: ssh-privatekey}
    hostKeys: {policy: KnownHosts, knownHostsRef: {kind: ConfigMap, name: lab-known-hosts, key: known_hosts}}
  limits: {maxMachines: 500, parallelism: 20}`

	fullSimulated = `
apiVersion: bmdb.dev/v1alpha1
kind: ProviderConfig
metadata: {name: simulated}
spec:
  type: Simulated
  simulated: {latencyMilliseconds: 200, failurePercent: 0, hangPercent: 0, seed: 7}`
)

// object parses YAML and applies changes to it.
func object(t *testing.T, text string, changes ...change) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
		t.Fatalf("parse object: %v", err)
	}
	for _, c := range changes {
		c(t, u)
	}
	return u
}

// change is one change to an object.
type change func(t *testing.T, u *unstructured.Unstructured)

// set writes a field. The path has dots between names; the value is YAML.
func set(path, value string) change {
	return func(t *testing.T, u *unstructured.Unstructured) {
		t.Helper()
		var v any
		if err := yaml.Unmarshal([]byte(value), &v); err != nil {
			t.Fatalf("parse %q: %v", value, err)
		}
		put(t, u, path, v)
	}
}

// setTo writes a field as it is.
func setTo(path string, value any) change {
	return func(t *testing.T, u *unstructured.Unstructured) {
		t.Helper()
		put(t, u, path, value)
	}
}

func put(t *testing.T, u *unstructured.Unstructured, path string, value any) {
	t.Helper()
	fields := strings.Split(path, ".")
	parent := u.Object
	for _, f := range fields[:len(fields)-1] {
		child, ok := parent[f].(map[string]any)
		if !ok {
			child = map[string]any{}
			parent[f] = child
		}
		parent = child
	}
	parent[fields[len(fields)-1]] = value
}

// unset removes a field.
func unset(path string) change {
	return func(_ *testing.T, u *unstructured.Unstructured) {
		unstructured.RemoveNestedField(u.Object, strings.Split(path, ".")...)
	}
}

// verify holds an answer of the API server against what is wanted: nothing means accepted, anything else must be in the
// message of a refusal.
func verify(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("refused: %v", err)
	case want != "" && err == nil:
		t.Errorf("accepted, want a refusal with %q", want)
	case want != "" && !apierrors.IsInvalid(err):
		t.Errorf("error is %v, want Invalid with %q", err, want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("refused with %v, want %q", err, want)
	}
}
