// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

// apply applies an object on the server, with force, as the only owner of its fields in these tests.
func apply(t *testing.T, c client.Client, u *unstructured.Unstructured) error {
	t.Helper()
	return c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(u), client.FieldOwner("test"), client.ForceOwnership)
}

// kubectl runs kubectl as an administrator of the tests' cluster and returns what it printed.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	controlPlane := devtest.ControlPlane(t)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := controlPlane.Kubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), controlPlane.Kubectl(), append([]string{"--kubeconfig", kubeconfig}, args...)...)
	var stderr strings.Builder
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// TestSamples applies the samples as their readers do. kubectl refuses fields that the API does not know.
func TestSamples(t *testing.T) {
	root, err := devenv.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t)
	for _, dir := range []string{"config/samples", "config/samples/more"} {
		dir = filepath.Join(root, dir)
		for _, again := range []string{"first", "again"} {
			t.Log(again + ":\n" + kubectl(t, "apply", "--server-side", "-k", dir))
		}
		verifyKustomizationIsComplete(t, dir)
	}

	var claims v1alpha1.WorkClaimList
	if err := c.List(t.Context(), &claims, client.InNamespace("metal")); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for i := range claims.Items {
		spec := claims.Items[i].Spec
		kinds[fmt.Sprintf("%s, names: %t, completions: %t", spec.Mode, len(spec.Machines.Names) > 0, spec.Completions > 0)]++
	}
	want := map[string]int{
		"Once, names: true, completions: false":        1,
		"Once, names: false, completions: true":        1,
		"Drain, names: false, completions: false":      1,
		"Continuous, names: false, completions: false": 1,
	}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("samples of claims (-want +got):\n%s", diff)
	}
}

// verifyKustomizationIsComplete fails for a sample that stands in a directory and is not applied.
func verifyKustomizationIsComplete(t *testing.T, dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var kustomization struct {
		Resources []string `json:"resources"`
	}
	if err := yaml.Unmarshal(text, &kustomization); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		if name := filepath.Base(file); name != "kustomization.yaml" {
			names = append(names, name)
		}
	}
	slices.Sort(kustomization.Resources)
	if diff := cmp.Diff(names, kustomization.Resources); diff != "" {
		t.Errorf("%s: files and resources of the kustomization differ:\n%s", dir, diff)
	}
}

func TestDefaults(t *testing.T) {
	c := newClient(t)
	namespace := devtest.Namespace(t)
	for _, tc := range []struct {
		name    string
		base    string
		changes []change
		want    string // the spec
	}{
		{
			name: "Machine", base: fullMachine, changes: []change{unset("spec.address"), unset("spec.deletionPolicy")},
			want: `{providerRef: {name: lab}, providerID: r7-u12, deletionPolicy: Retain}`,
		},
		{
			name: "WorkClaim", base: namesWorkClaim,
			want: `{process: AgentStart, mode: Once, machines: {names: [m1, m2, m3]}, parallelism: 1, timeoutSeconds: 600, maxAttempts: 5,
				backoff: {initialSeconds: 30, maximumSeconds: 3600}}`,
		},
		{
			name: "WorkClaim with half a backoff", base: namesWorkClaim,
			changes: []change{set("spec.backoff", "{initialSeconds: 7}"), set("spec.machines", "{selector: {}}"), set("spec.mode", "Drain")},
			want: `{process: AgentStart, mode: Drain, machines: {selector: {}}, parallelism: 1, timeoutSeconds: 600, maxAttempts: 5,
				backoff: {initialSeconds: 7, maximumSeconds: 3600}}`,
		},
		{
			name: "WorkClaim with an empty backoff", base: namesWorkClaim, changes: []change{set("spec.backoff", "{}")},
			want: `{process: AgentStart, mode: Once, machines: {names: [m1, m2, m3]}, parallelism: 1, timeoutSeconds: 600, maxAttempts: 5,
				backoff: {initialSeconds: 30, maximumSeconds: 3600}}`,
		},
		{
			name: "ProviderConfig", base: fullSimulated, changes: []change{set("spec.simulated", "{}")},
			want: `{type: Simulated, simulated: {}}`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := object(t, tc.base, tc.changes...)
			u.SetNamespace(namespace)
			// What a writer says about the status of a new object does not count.
			u.Object["status"] = map[string]any{"observedGeneration": int64(1)}
			if err := c.Create(t.Context(), u, client.DryRunAll); err != nil {
				t.Fatal(err)
			}
			want := map[string]any{}
			if err := yaml.Unmarshal([]byte(tc.want), &want); err != nil {
				t.Fatal(err)
			}
			got, err := yaml.Marshal(u.Object["spec"])
			if err != nil {
				t.Fatal(err)
			}
			wanted, err := yaml.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(wanted), string(got)); diff != "" {
				t.Errorf("spec (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(map[string]any{"observedGeneration": int64(-1)}, u.Object["status"]); diff != "" {
				t.Errorf("status of a new object (-want +got):\n%s", diff)
			}
		})
	}
}

// TestGreatestClaim writes a claim that is as big as its bounds allow: its rules stay within what the API server lets them
// cost.
func TestGreatestClaim(t *testing.T) {
	c := newClient(t)
	names := make([]any, 1000)
	for i := range names {
		names[i] = fmt.Sprintf("%s%04d", strings.Repeat("m", 249), i)
	}
	parameters := map[string]any{}
	for i := range 32 {
		parameters[fmt.Sprintf("%s%02d", strings.Repeat("k", 61), i)] = strings.Repeat("\U0001F5A5", 1024)
	}
	values := make([]any, 32)
	for i := range values {
		values[i] = fmt.Sprintf("%s%02d", strings.Repeat("v", 61), i)
	}
	expressions := make([]any, 16)
	for i := range expressions {
		key := fmt.Sprintf("%s/%s%02d", strings.Repeat("a", 253), strings.Repeat("k", 61), i)
		expressions[i] = map[string]any{"key": key, "operator": "In", "values": values}
	}
	u := object(t, namesWorkClaim, setTo("spec.machines.names", names), setTo("spec.parameters", parameters),
		setTo("spec.machines.selector", map[string]any{"matchExpressions": expressions}), set("spec.completions", "1000"))
	u.SetNamespace(devtest.Namespace(t))
	if err := c.Create(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(names)
	put(t, u, "spec.machines.names", names)
	put(t, u, "spec.parallelism", int64(2))
	if err := c.Update(t.Context(), u); err != nil {
		t.Fatal(err)
	}
}
