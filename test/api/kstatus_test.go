// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"testing"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

// state is what the conditions of an object say.
type state struct {
	name string
	base string
	// ready is the reason of Ready, True or False; also is Reconciling, Stalled or nothing.
	ready  metav1.ConditionStatus
	reason v1alpha1.Reason
	also   v1alpha1.ConditionType
	want   status.Status
}

// states are those of the API's contract with tools that compute an object's health.
func states() []state {
	const (
		yes = metav1.ConditionTrue
		no  = metav1.ConditionFalse
	)
	states := []state{
		{"Once is complete", namesWorkClaim, yes, v1alpha1.ReasonComplete, "", status.CurrentStatus},
		{"Continuous works", namesWorkClaim, yes, v1alpha1.ReasonWorking, "", status.CurrentStatus},
		{"Continuous is idle", namesWorkClaim, yes, v1alpha1.ReasonIdle, "", status.CurrentStatus},
		{"a claim's other view", namesWorkClaim, yes, v1alpha1.ReasonManagedElsewhere, "", status.CurrentStatus},
		{"a claim is suspended", namesWorkClaim, no, v1alpha1.ReasonSuspended, "", status.InProgressStatus},
		{"a machine is recorded", fullMachine, yes, v1alpha1.ReasonRecorded, "", status.CurrentStatus},
		{"a machine's other view", fullMachine, yes, v1alpha1.ReasonManagedElsewhere, "", status.CurrentStatus},
		{"a provider is recorded", fullSSH, yes, v1alpha1.ReasonRecorded, "", status.CurrentStatus},
	}
	// Works, or waits for what passes by itself.
	for _, reason := range []v1alpha1.Reason{
		v1alpha1.ReasonPending, v1alpha1.ReasonWorking, v1alpha1.ReasonNoMachineSelected, v1alpha1.ReasonNotNeeded, v1alpha1.ReasonBackedOff,
		v1alpha1.ReasonAtLimit, v1alpha1.ReasonHeld, v1alpha1.ReasonLockedBy,
	} {
		states = append(states, state{"claim: " + string(reason), namesWorkClaim, no, reason, v1alpha1.ConditionReconciling, status.InProgressStatus})
	}
	// Needs a person, or has failed.
	for base, reasons := range map[string][]v1alpha1.Reason{
		namesWorkClaim: {
			v1alpha1.ReasonNoSuchMachine, v1alpha1.ReasonProviderNotReady, v1alpha1.ReasonQuarantined, v1alpha1.ReasonProcessNotAvailable,
			v1alpha1.ReasonProcessNotConvergent, v1alpha1.ReasonKeyConflict, v1alpha1.ReasonDatabaseChanged, v1alpha1.ReasonDatabaseRewound,
			v1alpha1.ReasonDeadlineExceeded, v1alpha1.ReasonTooManyFailedMachines, v1alpha1.ReasonCompletionsUnreachable,
		},
		fullMachine: {
			v1alpha1.ReasonIdentityConflict, v1alpha1.ReasonNameConflict, v1alpha1.ReasonAddressConflict, v1alpha1.ReasonProviderNotReady,
			v1alpha1.ReasonAtLimit, v1alpha1.ReasonAddressMissing, v1alpha1.ReasonHostKeyMismatch, v1alpha1.ReasonHostKeyUnknown,
			v1alpha1.ReasonAuthenticationFailed, v1alpha1.ReasonOwnedByAnotherDatabase, v1alpha1.ReasonOwnedByAnotherMachine,
			v1alpha1.ReasonDatabaseChanged, v1alpha1.ReasonDatabaseRewound,
		},
		fullSSH: {
			v1alpha1.ReasonSecretMissing, v1alpha1.ReasonKnownHostsMissing, v1alpha1.ReasonSimulatedNotAllowed, v1alpha1.ReasonInvalidConfiguration,
			v1alpha1.ReasonDatabaseChanged, v1alpha1.ReasonDatabaseRewound,
		},
	} {
		for _, reason := range reasons {
			states = append(states, state{"person: " + string(reason), base, no, reason, v1alpha1.ConditionStalled, status.FailedStatus})
		}
	}
	return states
}

// conditions returns the conditions of a state as an object's status has them, with others that must not matter.
func (s state) conditions(generation int64) []any {
	condition := func(kind v1alpha1.ConditionType, value metav1.ConditionStatus, reason v1alpha1.Reason) any {
		return map[string]any{
			"type": string(kind), "status": string(value), "reason": string(reason), "message": "why",
			"observedGeneration": generation, "lastTransitionTime": "2026-11-22T16:00:00Z",
		}
	}
	conditions := []any{
		condition(v1alpha1.ConditionManaged, metav1.ConditionTrue, v1alpha1.ReasonManager),
		condition(v1alpha1.ConditionHeld, metav1.ConditionFalse, v1alpha1.ReasonNotHeld),
		condition(v1alpha1.ConditionFinished, metav1.ConditionFalse, v1alpha1.ReasonNotFinished),
		condition(v1alpha1.ConditionComplete, metav1.ConditionFalse, v1alpha1.ReasonNotFinished),
		condition(v1alpha1.ConditionFailed, metav1.ConditionFalse, v1alpha1.ReasonNotFailed),
		condition(v1alpha1.ConditionReady, s.ready, s.reason),
	}
	if s.also != "" {
		conditions = append(conditions, condition(s.also, metav1.ConditionTrue, s.reason))
	}
	return conditions
}

// TestHealth computes the health of an object in every state as Flux and kpt do.
func TestHealth(t *testing.T) {
	for _, s := range states() {
		t.Run(s.name, func(t *testing.T) {
			u := object(t, s.base, setTo("metadata.generation", int64(3)),
				setTo("status", map[string]any{"observedGeneration": int64(3), "conditions": s.conditions(3)}))
			verifyHealth(t, u, s.want)

			put(t, u, "metadata.generation", int64(4))
			verifyHealth(t, u, status.InProgressStatus) // whatever it was: the new spec is not taken into account yet
			put(t, u, "metadata.deletionTimestamp", "2026-11-22T16:00:00Z")
			verifyHealth(t, u, status.TerminatingStatus)
		})
	}
}

// TestHealthOfNewObjects computes the health of objects that only the API server has seen.
func TestHealthOfNewObjects(t *testing.T) {
	c := newClient(t)
	namespace := devtest.Namespace(t)
	for _, base := range []string{fullMachine, fullWorkClaim, fullSSH} {
		u := object(t, base)
		u.SetNamespace(namespace)
		if err := c.Create(t.Context(), u); err != nil {
			t.Fatal(err)
		}
		verifyHealth(t, u, status.InProgressStatus)

		u.Object["status"] = map[string]any{"observedGeneration": int64(1), "conditions": states()[0].conditions(1)}
		if err := c.Status().Update(t.Context(), u); err != nil {
			t.Fatal(err)
		}
		verifyHealth(t, u, status.CurrentStatus)

		wipe := client.RawPatch("application/json-patch+json", []byte(`[{"op": "remove", "path": "/status"}]`))
		if err := c.Status().Patch(t.Context(), u, wipe); err != nil {
			t.Fatal(err)
		}
		verifyHealth(t, u, status.InProgressStatus)
	}
}
