// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"fmt"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

// createCase is an object that is created. Without want it is accepted; otherwise want is in the message of the refusal.
type createCase struct {
	name    string
	base    string
	changes []change
	want    string
}

const (
	msgAddressForm = "address must be host, host:port or [IPv6]:port, in lower case"
	msgAddressIPv4 = "address looks like an IPv4 address but is none"
	msgAddressIPv6 = "address must have an IPv6 address in its canonical form between the brackets"
	msgAddressPort = "address must have a port between 1 and 65535, without leading zeros"
)

func machineCreateCases() []createCase {
	cases := []createCase{
		{name: "every field", base: fullMachine},
		{name: "required fields only", base: fullMachine, changes: []change{unset("spec.address"), unset("spec.deletionPolicy")}},
		{name: "the longest name", base: fullMachine, changes: []change{set("metadata.name", strings.Repeat("a", 253))}},
		{name: "providerID that is not ASCII", base: fullMachine, changes: []change{set("spec.providerID", "größe")}, want: "spec.providerID"},
		{name: "providerID as URL", base: fullMachine, changes: []change{set("spec.providerID", "https://bmc.example.org/redfish/v1/Systems/1?x=~!")}},
		{name: "providerID with a space", base: fullMachine, changes: []change{set("spec.providerID", "r7 u12")}, want: "spec.providerID"},
		{name: "providerID with a line break", base: fullMachine, changes: []change{setTo("spec.providerID", "r7-u12\n")}, want: "spec.providerID"},
		{name: "providerRef that names no object", base: fullMachine, changes: []change{set("spec.providerRef.name", "Lab")}, want: "spec.providerRef.name"},
		{name: "no spec", base: fullMachine, changes: []change{unset("spec")}, want: "spec: Required value"},
		{name: "deletionPolicy that is not carried out", base: fullMachine, changes: []change{set("spec.deletionPolicy", "Forget")}, want: "spec.deletionPolicy: Unsupported value"},
	}
	for _, address := range []string{
		"m1", "m1.lab.example.org", "m1.lab.example.org:22", "1st-machine:65535", "10.7.0.12", "10.7.0.12:1", "[fd00::12]:22",
		"[::1]:65535", "[2001:db8:0:1:1:1:1:1]:2222",
	} {
		cases = append(cases, createCase{name: "address " + address, base: fullMachine, changes: []change{setTo("spec.address", address)}})
	}
	for address, want := range map[string]string{
		"M1":                    msgAddressForm,
		"-m1":                   msgAddressForm,
		"m1-":                   msgAddressForm,
		"m1..example.org":       msgAddressForm,
		"m1.":                   msgAddressForm,
		"m1:":                   msgAddressForm,
		"m1:ssh":                msgAddressForm,
		"m1:22:22":              msgAddressForm,
		"root@m1":               msgAddressForm,
		"ssh://m1":              msgAddressForm,
		"m 1":                   msgAddressForm,
		"m1\n":                  msgAddressForm,
		"fd00::12":              msgAddressForm,
		"[fd00::12]":            msgAddressForm,
		"[fd00::12]:22:22":      msgAddressForm,
		"[FD00::12]:22":         msgAddressForm,
		"[fe80::1%eth0]:22":     msgAddressForm,
		"[m1]:22":               msgAddressForm,
		"10.7.0":                msgAddressIPv4,
		"10.7.0.256":            msgAddressIPv4,
		"010.7.0.12:22":         msgAddressIPv4,
		"10.7.0.12.13:22":       msgAddressIPv4,
		"[fd00:::12]:22":        msgAddressIPv6,
		"[fd00:0:0:0:0::12]:22": msgAddressIPv6,
		"[fd00::0012]:22":       msgAddressIPv6,
		"[10.7.0.12]:22":        msgAddressIPv6,
		"[::ffff:10.7.0.12]:22": msgAddressIPv6,
		"m1:0":                  msgAddressPort,
		"m1:022":                msgAddressPort,
		"m1:65536":              msgAddressPort,
		"m1:100000":             msgAddressPort,
		"[fd00::12]:0":          msgAddressPort,
		"10.7.0.12:99999":       msgAddressPort,
	} {
		cases = append(cases, createCase{name: "address " + address, base: fullMachine, changes: []change{setTo("spec.address", address)}, want: want})
	}
	return cases
}

const (
	msgNameClaim       = "the name of a WorkClaim becomes a label value and must have at most 63 characters"
	msgCompletionsMode = "completions may be set only with mode Once"
	msgCompletionsMany = "completions must not be above the number of names, it could never be reached"
	msgParameterKeys   = "keys of parameters must have between 1 and 63 characters, none of them NUL"
	msgBackoff         = "initialSeconds must not be above maximumSeconds, which is 3600 where it is left out"
)

func workClaimCreateCases() []createCase {
	return []createCase{
		{name: "every field", base: fullWorkClaim},
		{name: "required fields only", base: namesWorkClaim},
		{name: "the longest name", base: namesWorkClaim, changes: []change{set("metadata.name", strings.Repeat("a", 63))}},
		{name: "a longer name", base: namesWorkClaim, changes: []change{set("metadata.name", strings.Repeat("a", 64))}, want: msgNameClaim},
		{name: "no spec", base: namesWorkClaim, changes: []change{unset("spec")}, want: "spec: Required value"},
		{name: "no mode", base: namesWorkClaim, changes: []change{unset("spec.mode")}, want: "spec.mode: Required value"},

		{name: "process of the original", base: namesWorkClaim, changes: []change{set("spec.process", "ShepherdAgentStart")}},
		{name: "process of a user", base: namesWorkClaim, changes: []change{set("spec.process", "burn-in")}},
		{name: "process in snake case", base: namesWorkClaim, changes: []change{set("spec.process", "burn_in")}, want: "spec.process"},
		{name: "process with a hyphen at its end", base: namesWorkClaim, changes: []change{set("spec.process", "burn-")}, want: "spec.process"},

		{name: "completions with Drain", base: fullWorkClaim, changes: []change{set("spec.mode", "Drain")}, want: msgCompletionsMode},
		{name: "completions with Continuous", base: fullWorkClaim, changes: []change{set("spec.mode", "Continuous")}, want: msgCompletionsMode},
		{name: "Drain", base: fullWorkClaim, changes: []change{set("spec.mode", "Drain"), unset("spec.completions")}},
		{name: "Continuous", base: fullWorkClaim, changes: []change{set("spec.mode", "Continuous"), unset("spec.completions")}},
		{name: "as many completions as names", base: namesWorkClaim, changes: []change{set("spec.completions", "3")}},
		{name: "more completions than names", base: namesWorkClaim, changes: []change{set("spec.completions", "4")}, want: msgCompletionsMany},

		{name: "key in capitals", base: namesWorkClaim, changes: []change{set("spec.key", "OPS-1234_a.b")}},
		{name: "key with a slash", base: namesWorkClaim, changes: []change{set("spec.key", "ops/1234")}, want: "spec.key"},
		{name: "key with a hyphen at its end", base: namesWorkClaim, changes: []change{set("spec.key", "ops-")}, want: "spec.key"},

		{name: "the longest parameter", base: namesWorkClaim,
			changes: []change{setTo("spec.parameters", map[string]any{strings.Repeat("k", 63): strings.Repeat("ä", 1024)})}},
		{name: "a parameter without a name", base: namesWorkClaim, changes: []change{setTo("spec.parameters", map[string]any{"": "v"})}, want: msgParameterKeys},
		{name: "a parameter with a longer name", base: namesWorkClaim,
			changes: []change{setTo("spec.parameters", map[string]any{strings.Repeat("k", 64): "v"})}, want: msgParameterKeys},
		{name: "a longer parameter", base: namesWorkClaim,
			changes: []change{setTo("spec.parameters", map[string]any{"k": strings.Repeat("v", 1025)})}, want: "spec.parameters.k: Too long"},
		{name: "empty parameters", base: namesWorkClaim, changes: []change{set("spec.parameters", "{}")}, want: "spec.parameters"},
		{name: "a parameter with NUL", base: namesWorkClaim, changes: []change{setTo("spec.parameters", map[string]any{"k": "a\x00"})}, want: "spec.parameters.k"},
		{name: "a parameter with NUL in its name", base: namesWorkClaim, changes: []change{setTo("spec.parameters", map[string]any{"\x00": "v"})}, want: msgParameterKeys},
		{name: "a parameter of many lines", base: namesWorkClaim, changes: []change{setTo("spec.parameters", map[string]any{"k": "a\nb\n", "l": ""})}},
		{name: "a parameter that is no string", base: namesWorkClaim, changes: []change{set("spec.parameters", "{k: 1}")}, want: "spec.parameters.k"},

		{name: "backoff above the default maximum", base: namesWorkClaim, changes: []change{set("spec.backoff", "{initialSeconds: 3601}")}, want: msgBackoff},
		{name: "backoff at the default maximum", base: namesWorkClaim, changes: []change{set("spec.backoff", "{initialSeconds: 3600}")}},
		{name: "backoff with its end before its start", base: namesWorkClaim,
			changes: []change{set("spec.backoff", "{initialSeconds: 20, maximumSeconds: 10}")}, want: msgBackoff},
	}
}

const (
	msgTerms         = "selector must have at most 16 terms, matchLabels and matchExpressions together"
	msgLabelKeys     = "keys of labels must have between 1 and 317 characters, none of them NUL"
	msgRequirement   = "values are required with In and NotIn, and must be left out with Exists and DoesNotExist"
	selectorPath     = "spec.machines.selector"
	labelsPath       = selectorPath + ".matchLabels"
	expressionsPath  = selectorPath + ".matchExpressions"
	machinesRequired = "spec.machines: Required value"
)

func selectionCreateCases() []createCase {
	labels := func(n int) map[string]any {
		m := map[string]any{}
		for i := range n {
			m[fmt.Sprintf("example.org/key-%d", i)] = "value"
		}
		return m
	}
	expressions := func(text string) []change { return []change{set(expressionsPath, text)} }
	machines := func(text string) []change { return []change{set("spec.machines", text)} }
	return []createCase{
		{name: "no machines", base: namesWorkClaim, changes: []change{unset("spec.machines")}, want: machinesRequired},
		{name: "machines without a member", base: namesWorkClaim, changes: machines("{}"), want: "spec.machines in body should have at least 1 properties"},
		{name: "the whole pool", base: namesWorkClaim, changes: machines("{selector: {}}")},
		{name: "a whole provider", base: namesWorkClaim, changes: machines("{providerRef: {name: lab}}")},
		{name: "all members", base: namesWorkClaim, changes: machines("{names: [m1], providerRef: {name: lab}, selector: {matchLabels: {rack: r7}}}")},
		{name: "a null selector is none", base: namesWorkClaim, changes: machines("{selector: null}"), want: "spec.machines"},
		{name: "no names", base: namesWorkClaim, changes: machines("{names: []}"), want: "spec.machines.names"},
		{name: "a name twice", base: namesWorkClaim, changes: machines("{names: [m1, m2, m1]}"), want: "spec.machines.names[2]: Duplicate value"},
		{name: "a name that is none", base: namesWorkClaim, changes: machines("{names: [m1, M_2]}"), want: "spec.machines.names[1]"},
		{name: "a provider's name that is none", base: namesWorkClaim, changes: machines("{providerRef: {name: Lab_1}}"), want: "spec.machines.providerRef.name"},

		{name: "no labels", base: fullWorkClaim, changes: []change{set(labelsPath, "{}")}, want: labelsPath},
		{name: "a label of the longest key and value", base: fullWorkClaim, changes: []change{setTo(labelsPath,
			map[string]any{strings.Repeat("a", 253) + "/" + strings.Repeat("b", 63): strings.Repeat("v", 63)})}},
		{name: "a label without a value", base: fullWorkClaim, changes: []change{set(labelsPath, "{rack: ''}")}},
		{name: "a label without a key", base: fullWorkClaim, changes: []change{set(labelsPath, "{'': r7}")}, want: msgLabelKeys},
		{name: "a label of a longer key", base: fullWorkClaim, changes: []change{setTo(labelsPath, map[string]any{strings.Repeat("a", 318): "v"})}, want: msgLabelKeys},
		{name: "a label of a longer value", base: fullWorkClaim, changes: []change{setTo(labelsPath, map[string]any{"a": strings.Repeat("v", 64)})}, want: labelsPath + ".a: Too long"},
		{name: "a label of a value that is none", base: fullWorkClaim, changes: []change{set(labelsPath, "{rack: r 7}")}, want: labelsPath + ".rack"},
		{name: "a label with NUL in its key", base: fullWorkClaim, changes: []change{setTo(labelsPath, map[string]any{"a\x00": "v"})}, want: msgLabelKeys},
		{name: "15 labels and 1 expression", base: fullWorkClaim, changes: []change{setTo(labelsPath, labels(15))}},
		{name: "16 labels and 1 expression", base: fullWorkClaim, changes: []change{setTo(labelsPath, labels(16))}, want: msgTerms},
		{name: "16 labels", base: fullWorkClaim, changes: []change{setTo(labelsPath, labels(16)), unset(expressionsPath)}},
		{name: "17 labels", base: fullWorkClaim, changes: []change{setTo(labelsPath, labels(17)), unset(expressionsPath)}, want: labelsPath},

		{name: "NotIn", base: fullWorkClaim, changes: expressions("[{key: rack, operator: NotIn, values: [r7, '']}]")},
		{name: "Exists", base: fullWorkClaim, changes: expressions("[{key: rack, operator: Exists}]")},
		{name: "DoesNotExist", base: fullWorkClaim, changes: expressions("[{key: rack, operator: DoesNotExist}]")},
		{name: "In without values", base: fullWorkClaim, changes: expressions("[{key: rack, operator: In}]"), want: msgRequirement},
		{name: "NotIn without values", base: fullWorkClaim, changes: expressions("[{key: rack, operator: NotIn}]"), want: msgRequirement},
		{name: "Exists with values", base: fullWorkClaim, changes: expressions("[{key: rack, operator: Exists, values: [r7]}]"), want: msgRequirement},
		{name: "DoesNotExist with values", base: fullWorkClaim, changes: expressions("[{key: rack, operator: DoesNotExist, values: [r7]}]"), want: msgRequirement},
		{name: "In with no values", base: fullWorkClaim, changes: expressions("[{key: rack, operator: In, values: []}]"), want: expressionsPath + "[0].values"},
		{name: "no key", base: fullWorkClaim, changes: expressions("[{operator: Exists}]"), want: expressionsPath + "[0].key: Required value"},
		{name: "no operator", base: fullWorkClaim, changes: expressions("[{key: rack}]"), want: expressionsPath + "[0].operator: Required value"},
		{name: "an operator of nobody", base: fullWorkClaim, changes: expressions("[{key: rack, operator: Gt, values: ['1']}]"), want: "Unsupported value"},
		{name: "a key that is none", base: fullWorkClaim, changes: expressions("[{key: -rack, operator: Exists}]"), want: expressionsPath + "[0].key"},
		{name: "a key with an empty prefix", base: fullWorkClaim, changes: expressions("[{key: /rack, operator: Exists}]"), want: expressionsPath + "[0].key"},
		{name: "a value that is none", base: fullWorkClaim, changes: expressions("[{key: rack, operator: In, values: ['r 7']}]"), want: expressionsPath + "[0].values[0]"},
	}
}

const (
	msgNameProvider = "the name of a ProviderConfig becomes a label value and must have at most 63 characters"
	msgSSH          = "ssh must be set with type SSH, and only with it"
	msgSimulated    = "simulated must be set with type Simulated, and only with it; {} is enough"
	msgKnownHosts   = "knownHostsRef must be set with policy KnownHosts, and only with it"
	msgPercents     = "failurePercent and hangPercent together must not be above 100"
)

func providerConfigCreateCases() []createCase {
	return []createCase{
		{name: "SSH with every field", base: fullSSH},
		{name: "Simulated with every field", base: fullSimulated},
		{name: "Simulated with nothing", base: fullSimulated, changes: []change{set("spec.simulated", "{}")}},
		{name: "the longest name", base: fullSSH, changes: []change{set("metadata.name", strings.Repeat("a", 63))}},
		{name: "a longer name", base: fullSSH, changes: []change{set("metadata.name", strings.Repeat("a", 64))}, want: msgNameProvider},
		{name: "no spec", base: fullSSH, changes: []change{unset("spec")}, want: "spec: Required value"},
		{name: "no type", base: fullSSH, changes: []change{unset("spec.type")}, want: "spec.type: Required value"},
		{name: "a type that is not carried out", base: fullSSH, changes: []change{set("spec.type", "Ironic")}, want: "spec.type: Unsupported value"},

		{name: "SSH without ssh", base: fullSSH, changes: []change{unset("spec.ssh")}, want: msgSSH},
		{name: "SSH with simulated", base: fullSSH, changes: []change{set("spec.simulated", "{}")}, want: msgSimulated},
		{name: "Simulated without simulated", base: fullSimulated, changes: []change{unset("spec.simulated")}, want: msgSimulated},
		{name: "Simulated with ssh", base: fullSSH, changes: []change{set("spec.type", "Simulated"), set("spec.simulated", "{}")}, want: msgSSH},

		{name: "another user", base: fullSSH, changes: []change{set("spec.ssh.user", "_ops-1.x")}},
		{name: "a user that is an option", base: fullSSH, changes: []change{set("spec.ssh.user", "-oProxyCommand")}, want: "spec.ssh.user"},
		{name: "a user with a host", base: fullSSH, changes: []change{set("spec.ssh.user", "root@m1")}, want: "spec.ssh.user"},
		{name: "no private key", base: fullSSH, changes: []change{unset("spec.ssh.privateKeySecretRef")}, want: "spec.ssh.privateKeySecretRef: Required value"},
		{name: "a Secret's name that is none", base: fullSSH, changes: []change{set("spec.ssh.privateKeySecretRef.name", "../lab")}, want: "spec.ssh.privateKeySecretRef.name"},
		{name: "a Secret's key that is none", base: fullSSH, changes: []change{set("spec.ssh.privateKeySecretRef.key", "a/b")}, want: "spec.ssh.privateKeySecretRef.key"},
		{name: "no host keys", base: fullSSH, changes: []change{unset("spec.ssh.hostKeys")}, want: "spec.ssh.hostKeys: Required value"},
		{name: "no policy", base: fullSSH, changes: []change{unset("spec.ssh.hostKeys.policy")}, want: "spec.ssh.hostKeys.policy: Required value"},
		{name: "a policy of nobody", base: fullSSH, changes: []change{set("spec.ssh.hostKeys.policy", "Ignore")}, want: "spec.ssh.hostKeys.policy: Unsupported value"},
		{name: "KnownHosts without a list", base: fullSSH, changes: []change{unset("spec.ssh.hostKeys.knownHostsRef")}, want: msgKnownHosts},
		{name: "TrustOnFirstUse", base: fullSSH, changes: []change{set("spec.ssh.hostKeys", "{policy: TrustOnFirstUse}")}},
		{name: "TrustOnFirstUse with a list", base: fullSSH, changes: []change{set("spec.ssh.hostKeys.policy", "TrustOnFirstUse")}, want: msgKnownHosts},
		{name: "a list in another kind", base: fullSSH, changes: []change{set("spec.ssh.hostKeys.knownHostsRef.kind", "Secret")}, want: "spec.ssh.hostKeys.knownHostsRef.kind: Unsupported value"},
		{name: "a list's name that is none", base: fullSSH, changes: []change{set("spec.ssh.hostKeys.knownHostsRef.name", "a_b")}, want: "spec.ssh.hostKeys.knownHostsRef.name"},
		{name: "a list's key that is none", base: fullSSH, changes: []change{set("spec.ssh.hostKeys.knownHostsRef.key", "a/b")}, want: "spec.ssh.hostKeys.knownHostsRef.key"},

		{name: "every attempt fails or hangs", base: fullSimulated, changes: []change{set("spec.simulated", "{failurePercent: 60, hangPercent: 40}")}},
		{name: "more than every attempt", base: fullSimulated, changes: []change{set("spec.simulated", "{failurePercent: 60, hangPercent: 41}")}, want: msgPercents},
		{name: "a negative seed", base: fullSimulated, changes: []change{set("spec.simulated.seed", "-7")}},
		{name: "no limits", base: fullSSH, changes: []change{unset("spec.limits")}},
		{name: "one limit", base: fullSSH, changes: []change{set("spec.limits", "{parallelism: 0}")}},
		{name: "empty limits", base: fullSSH, changes: []change{set("spec.limits", "{}")}, want: "spec.limits"},
	}
}

func TestCreate(t *testing.T) {
	c := newClient(t)
	namespace := devtest.Namespace(t)
	for kind, cases := range map[string][]createCase{
		"Machine":        machineCreateCases(),
		"WorkClaim":      workClaimCreateCases(),
		"machines":       selectionCreateCases(),
		"ProviderConfig": providerConfigCreateCases(),
	} {
		for _, tc := range cases {
			t.Run(kind+"/"+tc.name, func(t *testing.T) {
				u := object(t, tc.base, tc.changes...)
				u.SetNamespace(namespace)
				verify(t, c.Create(t.Context(), u, client.DryRunAll), tc.want)
			})
		}
	}
}
