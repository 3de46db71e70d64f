// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

const (
	msgProviderRef = "providerRef is part of the machine's identity and cannot be changed: create another Machine for a machine of another provider, or restore the old value"
	msgProviderID  = "providerID is the machine's identity and cannot be changed: create another Machine for another machine, or restore the old value"

	msgProcess          = "process is part of what the key stands for and cannot be changed: create another WorkClaim, with another key"
	msgParameters       = "parameters are part of what the key stands for and cannot be changed: create another WorkClaim, with another key"
	msgParametersHas    = "parameters are part of what the key stands for and cannot be added or removed: create another WorkClaim, with another key"
	msgMachines         = "machines are part of what the key stands for and cannot be changed: create another WorkClaim, with another key"
	msgMode             = "mode is part of what the key stands for and cannot be changed: create another WorkClaim, with another key"
	msgCompletions      = "completions are part of what the key stands for and cannot be changed: create another WorkClaim, with another key"
	msgCompletionsHas   = "completions cannot be added or removed: create another WorkClaim, with another key"
	msgKey              = "key is the claim's identity and cannot be changed: create another WorkClaim to do it again"
	msgKeyHas           = "key is the claim's identity and cannot be added or removed: create another WorkClaim to do it again"
	msgProviderConfType = "type cannot be changed: create another ProviderConfig, and Machines that name it"
)

// updateCase is an object that exists and is changed. Without want the change is accepted; otherwise want is in the message
// of the refusal.
type updateCase struct {
	name    string
	changes []change
	want    string
}

func machineUpdateCases() []updateCase {
	return []updateCase{
		{name: "nothing"},
		{name: "address", changes: []change{set("spec.address", "10.7.0.13:22")}},
		{name: "address goes", changes: []change{unset("spec.address")}},
		{name: "labels", changes: []change{set("metadata.labels", "{rack: r8}")}},
		{name: "deletionPolicy goes", changes: []change{unset("spec.deletionPolicy")}},
		{name: "providerRef", changes: []change{set("spec.providerRef.name", "attic")}, want: msgProviderRef},
		{name: "providerRef goes", changes: []change{unset("spec.providerRef")}, want: "spec.providerRef: Required value"},
		{name: "providerRef's name goes", changes: []change{unset("spec.providerRef.name")}, want: "spec.providerRef.name: Required value"},
		{name: "providerID", changes: []change{set("spec.providerID", "r7-u13")}, want: msgProviderID},
		{name: "providerID goes", changes: []change{unset("spec.providerID")}, want: "spec.providerID: Required value"},
		{name: "spec goes", changes: []change{unset("spec")}, want: "spec: Required value"},
	}
}

func workClaimUpdateCases() []updateCase {
	return []updateCase{
		{name: "nothing"},
		{name: "what may change", changes: []change{
			set("spec.parallelism", "7"), set("spec.timeoutSeconds", "60"), set("spec.activeDeadlineSeconds", "100000"),
			set("spec.maxAttempts", "9"), set("spec.maxFailedMachines", "0"), set("spec.backoff", "{initialSeconds: 2, maximumSeconds: 4}"),
			set("spec.suspend", "true"), set("spec.ttlSecondsAfterFinished", "0"),
		}},
		{name: "what may go", changes: []change{
			unset("spec.parallelism"), unset("spec.timeoutSeconds"), unset("spec.activeDeadlineSeconds"), unset("spec.maxAttempts"),
			unset("spec.maxFailedMachines"), unset("spec.backoff"), unset("spec.suspend"), unset("spec.ttlSecondsAfterFinished"),
		}},
		{name: "spec goes", changes: []change{unset("spec")}, want: "spec: Required value"},
		{name: "process", changes: []change{set("spec.process", "Reboot")}, want: msgProcess},
		{name: "a parameter", changes: []change{set("spec.parameters.flavour", "other")}, want: msgParameters},
		{name: "a parameter comes", changes: []change{set("spec.parameters.colour", "blue")}, want: msgParameters},
		{name: "parameters go", changes: []change{unset("spec.parameters")}, want: msgParametersHas},
		{name: "provider of machines", changes: []change{set("spec.machines.providerRef.name", "attic")}, want: msgMachines},
		{name: "provider of machines goes", changes: []change{unset("spec.machines.providerRef")}, want: msgMachines},
		{name: "names of machines come", changes: []change{set("spec.machines.names", "[m1, m2, m3, m4, m5, m6]")}, want: msgMachines},
		{name: "a label of machines", changes: []change{set("spec.machines.selector.matchLabels.rack", "r8")}, want: msgMachines},
		{name: "an expression of machines", changes: []change{set("spec.machines.selector.matchExpressions", "[{key: rack, operator: Exists}]")}, want: msgMachines},
		{name: "selector becomes that of the whole pool", changes: []change{set("spec.machines.selector", "{}")}, want: msgMachines},
		{name: "selector goes", changes: []change{unset("spec.machines.selector")}, want: msgMachines},
		{name: "mode", changes: []change{set("spec.mode", "Drain"), unset("spec.completions")}, want: msgMode},
		{name: "completions", changes: []change{set("spec.completions", "7")}, want: msgCompletions},
		{name: "completions go", changes: []change{unset("spec.completions")}, want: msgCompletionsHas},
		{name: "key", changes: []change{set("spec.key", "other")}, want: msgKey},
		{name: "key goes", changes: []change{unset("spec.key")}, want: msgKeyHas},
	}
}

// namesUpdateCases start from a claim without any of the optional fields.
func namesUpdateCases() []updateCase {
	return []updateCase{
		{name: "the same names in another order", changes: []change{set("spec.machines.names", "[m3, m1, m2]")}},
		{name: "a name", changes: []change{set("spec.machines.names", "[m1, m2, m4]")}, want: msgMachines},
		{name: "a name comes", changes: []change{set("spec.machines.names", "[m1, m2, m3, m4]")}, want: msgMachines},
		{name: "names go", changes: []change{set("spec.machines", "{selector: {}}")}, want: msgMachines},
		{name: "parameters come", changes: []change{set("spec.parameters", "{a: b}")}, want: msgParametersHas},
		{name: "completions come, though those in effect", changes: []change{set("spec.completions", "3")}, want: msgCompletionsHas},
		{name: "key comes, though the one in effect", changes: []change{set("spec.key", "start-agents")}, want: msgKeyHas},
	}
}

func providerConfigUpdateCases() []updateCase {
	return []updateCase{
		{name: "nothing"},
		{name: "what may change", changes: []change{
			set("spec.ssh.user", "admin"), set("spec.ssh.privateKeySecretRef", "{name: other, key: id}"),
			set("spec.ssh.hostKeys", "{policy: TrustOnFirstUse}"), set("spec.limits", "{maxMachines: 0, parallelism: 0}"),
		}},
		{name: "limits go", changes: []change{unset("spec.limits")}},
		{name: "spec goes", changes: []change{unset("spec")}, want: "spec: Required value"},
		{name: "type", changes: []change{set("spec", "{type: Simulated, simulated: {}}")}, want: msgProviderConfType},
		{name: "type goes", changes: []change{unset("spec.type")}, want: "spec.type: Required value"},
	}
}

func TestUpdate(t *testing.T) {
	c := newClient(t)
	namespace := devtest.Namespace(t)
	for _, group := range []struct {
		name, base string
		cases      []updateCase
	}{
		{"Machine", fullMachine, machineUpdateCases()},
		{"WorkClaim", fullWorkClaim, workClaimUpdateCases()},
		{"names", namesWorkClaim, namesUpdateCases()},
		{"ProviderConfig", fullSSH, providerConfigUpdateCases()},
	} {
		existing := object(t, group.base)
		existing.SetNamespace(namespace)
		if err := c.Create(t.Context(), existing); err != nil {
			t.Fatal(err)
		}
		for _, tc := range group.cases {
			t.Run(group.name+"/"+tc.name, func(t *testing.T) {
				changed := existing.DeepCopy()
				for _, change := range tc.changes {
					change(t, changed)
				}
				verify(t, c.Update(t.Context(), changed, client.DryRunAll), tc.want)
			})
		}
	}
}

// TestApplyKeepsIdentity changes a machine's identity as GitOps tools do, by server-side apply with force.
func TestApplyKeepsIdentity(t *testing.T) {
	c := newClient(t)
	namespace := devtest.Namespace(t)
	for _, tc := range []struct {
		name    string
		changes []change
		want    string
	}{
		{name: "created"},
		{name: "applied again"},
		{name: "another identity", changes: []change{set("spec.providerID", "r7-u13")}, want: msgProviderID},
		{name: "another address", changes: []change{set("spec.address", "10.7.0.99")}},
		{name: "no address", changes: []change{unset("spec.address")}},
	} {
		u := object(t, fullMachine, tc.changes...)
		u.SetNamespace(namespace)
		t.Run(tc.name, func(t *testing.T) { verify(t, apply(t, c, u), tc.want) })
	}
	got := object(t, fullMachine)
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: got.GetName()}, got); err != nil {
		t.Fatal(err)
	}
	if _, found := got.Object["spec"].(map[string]any)["address"]; found {
		t.Errorf("address is still there: %v", got.Object["spec"])
	}
	if owners := got.GetManagedFields(); len(owners) != 1 || owners[0].Operation != metav1.ManagedFieldsOperationApply {
		t.Errorf("managed fields are %v, want one applier", owners)
	}
}
