// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

func TestAddToScheme(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"Machine", "MachineList", "WorkClaim", "WorkClaimList", "ProviderConfig", "ProviderConfigList"} {
		if !scheme.Recognizes(v1alpha1.SchemeGroupVersion.WithKind(kind)) {
			t.Errorf("%s is not registered", kind)
		}
	}
}

// TestZeroIsAbsent says that what a Go program leaves out is not sent: an empty value would be refused, or hide a default.
func TestZeroIsAbsent(t *testing.T) {
	for want, object := range map[string]any{
		`{"metadata":{"name":"m1"},"spec":{"providerRef":{"name":"lab"},"providerID":"m1"}}`: &v1alpha1.Machine{
			ObjectMeta: metav1.ObjectMeta{Name: "m1"},
			Spec:       v1alpha1.MachineSpec{ProviderRef: v1alpha1.ProviderConfigReference{Name: "lab"}, ProviderID: "m1"},
		},
		`{"metadata":{"name":"all"},"spec":{"process":"AgentStart","machines":{"selector":{}},"mode":"Drain"}}`: &v1alpha1.WorkClaim{
			ObjectMeta: metav1.ObjectMeta{Name: "all"},
			Spec: v1alpha1.WorkClaimSpec{
				Process: v1alpha1.ProcessAgentStart, Mode: v1alpha1.WorkModeDrain,
				Machines: v1alpha1.MachineSelection{Selector: &v1alpha1.LabelSelector{}},
			},
		},
		`{"metadata":{"name":"sim"},"spec":{"type":"Simulated","simulated":{}}}`: &v1alpha1.ProviderConfig{
			ObjectMeta: metav1.ObjectMeta{Name: "sim"},
			Spec:       v1alpha1.ProviderConfigSpec{Type: v1alpha1.ProviderTypeSimulated, Simulated: &v1alpha1.SimulatedProvider{}},
		},
	} {
		got, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("JSON (-want +got):\n%s", diff)
		}
		unstructured, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
		if err != nil {
			t.Fatal(err)
		}
		if status, found := unstructured["status"]; found {
			t.Errorf("as unstructured object it has status %v", status)
		}
	}
}

func TestEffective(t *testing.T) {
	names := v1alpha1.MachineSelection{Names: []string{"m1", "m2"}}
	pool := v1alpha1.MachineSelection{Selector: &v1alpha1.LabelSelector{}}
	for _, tc := range []struct {
		name        string
		spec        v1alpha1.WorkClaimSpec
		key         string
		completions int32
	}{
		{"names", v1alpha1.WorkClaimSpec{Mode: v1alpha1.WorkModeOnce, Machines: names}, "claim", 2},
		{"fewer than names", v1alpha1.WorkClaimSpec{Mode: v1alpha1.WorkModeOnce, Machines: names, Completions: 1}, "claim", 1},
		{"no names", v1alpha1.WorkClaimSpec{Mode: v1alpha1.WorkModeOnce, Machines: pool}, "claim", 1},
		{"key", v1alpha1.WorkClaimSpec{Mode: v1alpha1.WorkModeOnce, Machines: pool, Completions: 7, Key: "key"}, "key", 7},
		{"Drain", v1alpha1.WorkClaimSpec{Mode: v1alpha1.WorkModeDrain, Machines: names}, "claim", 0},
		{"Continuous", v1alpha1.WorkClaimSpec{Mode: v1alpha1.WorkModeContinuous, Machines: pool}, "claim", 0},
	} {
		claim := &v1alpha1.WorkClaim{ObjectMeta: metav1.ObjectMeta{Name: "claim"}, Spec: tc.spec}
		if got := claim.EffectiveKey(); got != tc.key {
			t.Errorf("%s: key is %q, want %q", tc.name, got, tc.key)
		}
		if got := claim.EffectiveCompletions(); got != tc.completions {
			t.Errorf("%s: completions are %d, want %d", tc.name, got, tc.completions)
		}
	}
}

func TestParameterStrings(t *testing.T) {
	spec := v1alpha1.WorkClaimSpec{}
	if got := spec.ParameterStrings(); got != nil {
		t.Errorf("of none: %v, want nil", got)
	}
	spec.Parameters = map[string]v1alpha1.ParameterValue{"a": "b"}
	got := spec.ParameterStrings()
	if diff := cmp.Diff(map[string]string{"a": "b"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	got["a"] = "c"
	if spec.Parameters["a"] != "b" {
		t.Error("the copy shares memory with the spec")
	}
}

// TestToLabelSelector holds the conversion against the JSON: both types have the same.
func TestToLabelSelector(t *testing.T) {
	var none *v1alpha1.LabelSelector
	if none.ToLabelSelector() != nil {
		t.Error("nil is converted to something")
	}
	for _, tc := range []struct {
		text    string
		matches []labels.Set
		not     []labels.Set
	}{
		{`{}`, []labels.Set{{}, {"rack": "r7"}}, nil},
		{`{"matchLabels":{"rack":"r7"}}`, []labels.Set{{"rack": "r7", "x": "y"}}, []labels.Set{{}, {"rack": "r8"}}},
		{
			`{"matchLabels":{"rack":"r7"},"matchExpressions":[{"key":"model","operator":"In","values":["a","b"]},{"key":"bad","operator":"DoesNotExist"}]}`,
			[]labels.Set{{"rack": "r7", "model": "b"}},
			[]labels.Set{{"rack": "r7"}, {"rack": "r7", "model": "c"}, {"rack": "r7", "model": "a", "bad": ""}},
		},
	} {
		var selector v1alpha1.LabelSelector
		if err := json.Unmarshal([]byte(tc.text), &selector); err != nil {
			t.Fatal(err)
		}
		converted := selector.ToLabelSelector()
		got, err := json.Marshal(converted)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.text, string(got)); diff != "" {
			t.Errorf("JSON (-want +got):\n%s", diff)
		}
		compiled, err := metav1.LabelSelectorAsSelector(converted)
		if err != nil {
			t.Fatal(err)
		}
		for _, set := range tc.matches {
			if !compiled.Matches(set) {
				t.Errorf("%s does not match %v", tc.text, set)
			}
		}
		for _, set := range tc.not {
			if compiled.Matches(set) {
				t.Errorf("%s matches %v", tc.text, set)
			}
		}
	}
	// The API bounds the keys of matchLabels and does not check them.
	wrong := &v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{"not a key": "v"}}
	if _, err := metav1.LabelSelectorAsSelector(wrong.ToLabelSelector()); err == nil || !strings.Contains(err.Error(), "not a key") {
		t.Errorf("error of a wrong key is %v", err)
	}
}
