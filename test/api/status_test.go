// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	ac "github.com/bmdb-dev/bmdb-operator/api/v1alpha1/applyconfiguration/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
	"github.com/bmdb-dev/bmdb-operator/test/argocd"
)

const (
	anID    = "6f0c1f44-3f5e-4c55-9a53-3b7c4f8d1e01"
	aCause  = "dial 10.7.0.12:22: connection refused"
	aHolder = "bmdb-operator-0"
)

var aTime = metav1.NewTime(time.Date(2026, 11, 22, 16, 0, 0, 0, time.UTC))

// verifyHealth computes the health of an object as Flux and kpt do, and as Argo CD does.
func verifyHealth(t *testing.T, u *unstructured.Unstructured, want status.Status) {
	t.Helper()
	got, err := status.Compute(u)
	if err != nil {
		t.Fatal(err)
	}
	if got.Status != want {
		t.Errorf("health is %s (%s), want %s", got.Status, got.Message, want)
	}
	root, err := devenv.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	checks, err := argocd.Shipped(root)
	if err != nil {
		t.Fatal(err)
	}
	health, message, err := checks.Health(u)
	if err != nil {
		t.Fatal(err)
	}
	if wanted := argocd.Of(u, want); health != wanted {
		t.Errorf("Argo CD says that health is %s (%s), want %s", health, message, wanted)
	}
}

func readyAC(reason v1alpha1.Reason, value metav1.ConditionStatus) *metav1ac.ConditionApplyConfiguration {
	return metav1ac.Condition().WithType(string(v1alpha1.ConditionReady)).WithStatus(value).WithReason(string(reason)).
		WithMessage("3 machines are done, 1 is backed off").WithObservedGeneration(1).WithLastTransitionTime(aTime)
}

func machineStatusAC(name, namespace string) *ac.MachineApplyConfiguration {
	held := metav1ac.Condition().WithType(string(v1alpha1.ConditionHeld)).WithStatus(metav1.ConditionFalse).
		WithReason(string(v1alpha1.ReasonNotHeld)).WithMessage("").WithLastTransitionTime(aTime)
	return ac.Machine(name, namespace).WithStatus(ac.MachineStatus().
		WithObservedGeneration(1).WithMachineID(anID).WithDatabaseID(anID).WithRevision(118).
		WithConditions(readyAC(v1alpha1.ReasonRecorded, metav1.ConditionTrue), held).
		WithTags(ac.MachineTags().
			WithProvided(ac.ProvidedTag().WithProvider("lab").WithProviderID("r7-u12")).
			WithAgentStarted(ac.AgentStartedTag().WithStartTime(aTime).WithPublicKey("FbvpbcVM5vDb5bmDHNbQbJzMHSmZkOQVmLcBVGFR2oI=")).
			WithCustom(ac.CustomTag().WithName("BurnedIn").WithSetTime(aTime))).
		WithWork(
			ac.MachineWork().WithSlot("access").WithProcess("AgentStart").WithWorkID(anID).WithClaim("start-agents").
				WithHolder(aHolder).WithCluster(anID).WithStartTime(aTime),
			ac.MachineWork().WithSlot("burn-in").WithProcess("burn-in").WithWorkID(anID)).
		WithBackoffs(ac.MachineBackoff().WithProcess("Reboot").WithUntil(aTime).WithAttempts(2).WithCause(aCause)))
}

func workClaimStatusAC(name, namespace string) *ac.WorkClaimApplyConfiguration {
	return ac.WorkClaim(name, namespace).WithStatus(ac.WorkClaimStatus().
		WithObservedGeneration(1).WithKey("reinstall-2026-11").WithDatabaseID(anID).WithRevision(7).
		WithConditions(readyAC(v1alpha1.ReasonWorking, metav1.ConditionFalse)).
		WithProgress("4/6").WithSucceeded(4).WithActive(2).WithFailed(0).
		WithWork(ac.ClaimWork().WithMachine("m5").WithWorkID(anID).WithAttempt(1).WithHolder(aHolder).WithStartTime(aTime).
			WithStep("upload agent").WithPercent(40)).
		WithFailures(ac.ClaimFailure().WithMachine("m6").WithAttempts(2).WithCause(aCause)).
		WithSkippedMachines("m3").
		WithStartTime(aTime).WithCompletionTime(aTime))
}

func providerConfigStatusAC(name, namespace string) *ac.ProviderConfigApplyConfiguration {
	return ac.ProviderConfig(name, namespace).WithStatus(ac.ProviderConfigStatus().
		WithObservedGeneration(1).WithDatabaseID(anID).WithRevision(1).
		WithConditions(readyAC(v1alpha1.ReasonSecretMissing, metav1.ConditionFalse)).
		WithMachines(ac.ProviderMachines().WithManaged(10)))
}

// TestStatus applies a status with every field, as the operator does, and looks at it as people do.
func TestStatus(t *testing.T) {
	c := newClient(t)
	namespace := devtest.Namespace(t)
	for _, tc := range []struct {
		base    string
		status  func(name, namespace string) runtime.ApplyConfiguration
		columns string // of kubectl get -o wide; AGE stands for an age
	}{
		{
			fullMachine, func(n, ns string) runtime.ApplyConfiguration { return machineStatusAC(n, ns) }, `
NAME     PROVIDER  READY  REASON    WORK                HELD   AGE  ADDRESS       MACHINE-ID                            AGENT
r7-u12   lab       True   Recorded  AgentStart          False  AGE  10.7.0.12:22  6f0c1f44-3f5e-4c55-9a53-3b7c4f8d1e01  AGE`,
		},
		{
			fullWorkClaim, func(n, ns string) runtime.ApplyConfiguration { return workClaimStatusAC(n, ns) }, `
NAME             PROCESS     DONE  ACTIVE  FAILED  STATE    AGE  MODE  KEY                MESSAGE
start-agents-r7  AgentStart  4/6   2       0       Working  AGE  Once  reinstall-2026-11  3 machines are done, 1 is backed off`,
		},
		{
			fullSSH, func(n, ns string) runtime.ApplyConfiguration { return providerConfigStatusAC(n, ns) }, `
NAME  TYPE  READY  REASON         MACHINES  AGE
lab   SSH   False  SecretMissing  10        AGE`,
		},
	} {
		u := object(t, tc.base)
		u.SetNamespace(namespace)
		t.Run(u.GetKind(), func(t *testing.T) {
			if err := c.Create(t.Context(), u); err != nil {
				t.Fatal(err)
			}
			before := u.DeepCopy()
			if err := c.Status().Apply(t.Context(), tc.status(u.GetName(), namespace), client.FieldOwner("bmdb-operator")); err != nil {
				t.Fatal(err)
			}
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(u), u); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before.Object["spec"], u.Object["spec"]); diff != "" {
				t.Errorf("spec after the status was applied (-want +got):\n%s", diff)
			}
			verifyAllSet(t, u)
			printed := kubectl(t, "get", strings.ToLower(u.GetKind())+".bmdb.dev", "-n", namespace, "-o", "wide")
			if diff := cmp.Diff(columns(tc.columns), columns(printed)); diff != "" {
				t.Errorf("kubectl get (-want +got):\n%s", diff)
			}
		})
	}
}

// verifyAllSet fails for a field of the status that the schema knows and the object does not have: the apply
// configurations and the schema are of the same types.
func verifyAllSet(t *testing.T, u *unstructured.Unstructured) {
	t.Helper()
	schemaOfStatus := readCRDs(t)[u.GetKind()].Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["status"]
	walk("status", &schemaOfStatus, func(path string, _ *schema) {
		if strings.Contains(path, "[]") {
			return
		}
		if _, found, err := unstructured.NestedFieldNoCopy(u.Object, strings.Split(path, ".")...); err != nil || !found {
			t.Errorf("%s is not there after it was applied: %v", path, err)
		}
	})
}

// columns are the cells of what kubectl get prints, without their widths, and with AGE for ages.
func columns(text string) [][]string {
	var rows [][]string
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		var cells []string
		for cell := range strings.SplitSeq(line, "  ") {
			cell = strings.TrimSpace(cell)
			if _, err := time.ParseDuration(strings.ReplaceAll(cell, "d", "h")); err == nil && cell != "0" {
				cell = "AGE"
			}
			if cell != "" {
				cells = append(cells, cell)
			}
		}
		rows = append(rows, cells)
	}
	return rows
}

// TestStatusIsValidated writes statuses that would mislead their readers.
func TestStatusIsValidated(t *testing.T) {
	c := newClient(t)
	namespace := devtest.Namespace(t)
	failures := func(n int) []any {
		list := make([]any, n)
		for i := range list {
			list[i] = map[string]any{"machine": fmt.Sprintf("m%d", i)}
		}
		return list
	}
	for _, tc := range []struct {
		name   string
		base   string
		change change
		want   string
	}{
		{"an empty status", fullMachine, set("status", "{}"), "in body should have at least 1 properties"},
		{"an ID that is none", fullMachine, set("status.machineID", strings.Repeat("x", 36)), "status.machineID"},
		{"a condition twice", fullMachine, setTo("status.conditions", append(states()[0].conditions(1), states()[0].conditions(1)...)), "Duplicate value"},
		{"a slot twice", fullMachine, set("status.work",
			"[{slot: a, process: p, workID: "+anID+"}, {slot: a, process: q, workID: "+anID+"}]"), "Duplicate value"},
		{"a field of nobody is dropped", fullMachine, set("status.phase", "Ready"), ""},
		{"percent in tens", fullWorkClaim, set("status.work", "[{machine: m1, workID: "+anID+", percent: 50}]"), ""},
		{"percent in ones", fullWorkClaim, set("status.work", "[{machine: m1, workID: "+anID+", percent: 55}]"), "multiple of 10"},
		{"the most failures", fullWorkClaim, setTo("status.failures", failures(v1alpha1.MaxListedMachines)), ""},
		{"more failures", fullWorkClaim, setTo("status.failures", failures(v1alpha1.MaxListedMachines+1)), "status.failures: Too many"},
		{"the longest cause", fullWorkClaim, setTo("status.failures",
			[]any{map[string]any{"machine": "m1", "cause": strings.Repeat("ä", v1alpha1.MaxCauseLength)}}), ""},
		{"a longer cause", fullWorkClaim, setTo("status.failures",
			[]any{map[string]any{"machine": "m1", "cause": strings.Repeat("ä", v1alpha1.MaxCauseLength+1)}}), "status.failures[0].cause: Too long"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := object(t, tc.base)
			u.SetNamespace(namespace)
			u.SetName("")
			u.SetGenerateName("status-")
			if err := c.Create(t.Context(), u); err != nil {
				t.Fatal(err)
			}
			tc.change(t, u)
			verify(t, c.Status().Update(t.Context(), u), tc.want)
			if _, found, _ := unstructured.NestedFieldNoCopy(u.Object, "status", "phase"); found && tc.want == "" {
				t.Error("a field that the schema does not know was kept")
			}
		})
	}
}
