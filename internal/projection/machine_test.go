// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package projection_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/projection"
)

func machine(change func(m *bmdb.MachineSnapshot)) *bmdb.MachineSnapshot {
	m := &bmdb.MachineSnapshot{
		MachineID: uuid.MustParse("6f0c0000-0000-4000-8000-000000000001"), Rev: 118, Standing: bmdb.Standing{Database: database, Revision: 118}, Pool: "metal", Name: "r7-u12", Provider: "lab", ProviderID: "id",
		Views: []bmdb.MachineView{{View: bmdb.View{Cluster: here, UID: "u", Name: "r7-u12"}, Manages: true}},
	}
	if change != nil {
		change(m)
	}
	return m
}

func TestMachineConditions(t *testing.T) {
	failure := func(cause string) *bmdb.MachineSnapshot {
		return machine(func(m *bmdb.MachineSnapshot) {
			m.Failures = []bmdb.MachineFailure{{Process: "AgentStart", Attempts: 1, Cause: cause}}
		})
	}
	for _, test := range []struct {
		name  string
		facts projection.MachineFacts
		want  string
	}{
		{"not recorded", projection.MachineFacts{}, "Reconciling NotRecorded"},
		{"recorded", projection.MachineFacts{Snapshot: machine(nil)}, "Ready+Managed Recorded"},
		{"managed elsewhere", projection.MachineFacts{Snapshot: machine(func(m *bmdb.MachineSnapshot) {
			m.Views = []bmdb.MachineView{{View: bmdb.View{Cluster: "b"}, Manages: true}, {View: bmdb.View{Cluster: here}}}
		})}, "Ready Recorded"},
		{"conflict", projection.MachineFacts{Refusal: &projection.Verdict{State: projection.Stalled, Reason: v1alpha1.ReasonNameConflict, Message: "no"}}, "Stalled NameConflict"},
		{"conflict of a recorded one", projection.MachineFacts{
			Snapshot: machine(nil), Refusal: &projection.Verdict{State: projection.Stalled, Reason: v1alpha1.ReasonAddressConflict, Message: "no"},
		}, "Managed+Stalled AddressConflict"},
		{"a person is needed", projection.MachineFacts{Snapshot: failure("HostKeyMismatch: it shows another key")}, "Managed+Stalled HostKeyMismatch"},
		{"passes by itself", projection.MachineFacts{Snapshot: failure("Unreachable: no answer")}, "Ready+Managed Recorded"},
		{"no reason", projection.MachineFacts{Snapshot: failure("something: HostKeyMismatch")}, "Ready+Managed Recorded"},
		{"held", projection.MachineFacts{Snapshot: machine(func(m *bmdb.MachineSnapshot) {
			m.Holds = []bmdb.MachineHold{{Name: "dimm", Owner: "oncall", Reason: "bad DIMM", At: now, Active: true}}
		})}, "Ready+Managed+Held Recorded"},
		{"was held", projection.MachineFacts{Snapshot: machine(func(m *bmdb.MachineSnapshot) {
			m.Holds = []bmdb.MachineHold{{Name: "dimm", At: now, Until: &now}}
		})}, "Ready+Managed Recorded"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.facts.Cluster, test.facts.Now = here, now
			got := projection.Machine(&v1alpha1.MachineStatus{}, test.facts)
			if s := summary(got.Conditions); s != test.want {
				t.Errorf("conditions are %q, want %q", s, test.want)
			}
			if meta.FindStatusCondition(got.Conditions, "Held") == nil || meta.FindStatusCondition(got.Conditions, "Managed") == nil {
				t.Error("a condition that is always there is not")
			}
		})
	}
}

func TestMachineSaysWhoHoldsIt(t *testing.T) {
	until := now.Add(time.Hour)
	m := machine(func(m *bmdb.MachineSnapshot) {
		m.Holds = []bmdb.MachineHold{{Name: "dimm", Owner: "oncall", Reason: "bad DIMM B2", At: now, Until: &until, Active: true}}
	})
	got := projection.Machine(&v1alpha1.MachineStatus{}, projection.MachineFacts{Snapshot: m, Cluster: here, Now: now})
	want := "Held by dimm since 2026-11-22T12:00:00Z for oncall until 2026-11-22T13:00:00Z: bad DIMM B2"
	if c := meta.FindStatusCondition(got.Conditions, "Held"); c.Message != want {
		t.Errorf("message is %q, want %q", c.Message, want)
	}
}

func TestMachineShowsTheRow(t *testing.T) {
	id, at := uuid.New(), metav1.NewTime(now.Truncate(time.Second))
	m := machine(func(m *bmdb.MachineSnapshot) {
		m.Tags = bmdb.MachineTags{
			AgentStarted: &bmdb.AgentStartedTag{At: now, PublicKey: []byte{1, 2, 3}},
			Custom:       []bmdb.CustomTag{{Name: "b", SetAt: now}, {Name: "a", SetAt: now}},
		}
		m.Works = []bmdb.MachineWork{{Process: "AgentStart", Slot: "access", WorkID: id, Claim: "k", Holder: "pod-1", Cluster: here, Start: now}}
		for i := range 40 {
			m.Backoffs = append(m.Backoffs, bmdb.MachineBackoff{Process: fmt.Sprint("p", i), Until: now.Add(time.Duration(i) * time.Hour), Attempts: 1, Cause: "c"})
		}
	})
	got := projection.Machine(&v1alpha1.MachineStatus{}, projection.MachineFacts{Generation: 3, Snapshot: m, Cluster: here, Now: now})
	if got.MachineID != m.MachineID.String() || got.DatabaseID != database.String() || got.Revision != 118 || *got.ObservedGeneration != 3 {
		t.Errorf("identity is wrong: %+v", got)
	}
	tags := v1alpha1.MachineTags{
		Provided:     v1alpha1.ProvidedTag{Provider: "lab", ProviderID: "id"},
		AgentStarted: v1alpha1.AgentStartedTag{StartTime: &at, PublicKey: "AQID"},
		Custom:       []v1alpha1.CustomTag{{Name: "a", SetTime: &at}, {Name: "b", SetTime: &at}},
	}
	if diff := cmp.Diff(tags, got.Tags); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	work := []v1alpha1.MachineWork{{Slot: "access", Process: "AgentStart", WorkID: id.String(), Claim: "k", Holder: "pod-1", Cluster: here, StartTime: &at}}
	if diff := cmp.Diff(work, got.Work); diff != "" {
		t.Errorf("work (-want +got):\n%s", diff)
	}
	if len(got.Backoffs) != 32 || got.Backoffs[0].Process != "p39" {
		t.Errorf("%d backoffs, the first of %s: want the 32 that last longest", len(got.Backoffs), got.Backoffs[0].Process)
	}
}

func TestProviderConfig(t *testing.T) {
	refusal := &projection.Verdict{State: projection.Stalled, Reason: v1alpha1.ReasonSecretMissing, Message: "no"}
	state := &bmdb.ProviderState{Machines: 12, Rev: 3, Standing: bmdb.Standing{Database: database, Revision: 3}, Manages: true, Manager: here}
	for _, test := range []struct {
		name  string
		facts projection.ProviderFacts
		want  string
	}{
		{"not recorded", projection.ProviderFacts{}, "Reconciling NotRecorded"},
		{"recorded", projection.ProviderFacts{State: state}, "Ready+Managed Recorded"},
		{"refused", projection.ProviderFacts{State: state, Refusal: refusal}, "Managed+Stalled SecretMissing"},
		{"refused before", projection.ProviderFacts{Refusal: refusal}, "Stalled SecretMissing"},
		{"managed elsewhere", projection.ProviderFacts{State: &bmdb.ProviderState{Manager: "b"}}, "Ready Recorded"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.facts.Now = now
			got := projection.ProviderConfig(&v1alpha1.ProviderConfigStatus{}, test.facts)
			if s := summary(got.Conditions); s != test.want {
				t.Errorf("conditions are %q, want %q", s, test.want)
			}
			if test.facts.State == state && (*got.Machines.Managed != 12 || got.Revision != 3) {
				t.Errorf("row is not shown: %+v", got)
			}
		})
	}
}

func TestTransitions(t *testing.T) {
	ready := func(status, reason string, stalled bool) projection.Ready {
		return projection.Ready{Status: status, Reason: reason, Message: reason, Stalled: stalled}
	}
	for _, test := range []struct {
		name          string
		before, after projection.Ready
		kind          string
	}{
		{"first look", projection.Ready{}, ready("False", "Pending", false), ""},
		{"recorded", projection.Ready{}, ready("True", "Recorded", false), ""},
		{"recorded after it could not be", ready("False", "NotRecorded", false), ready("True", "Recorded", false), "Normal"},
		{"complete at once", projection.Ready{}, ready("True", "Complete", false), ""},
		{"stalled at once", projection.Ready{}, ready("False", "NoSuchMachine", true), "Warning"},
		{"the same", ready("True", "Recorded", false), ready("True", "Recorded", false), ""},
		{"waits", ready("False", "Working", false), ready("False", "BackedOff", false), ""},
		{"complete", ready("False", "Working", false), ready("True", "Complete", false), "Normal"},
		{"stalled", ready("False", "Working", false), ready("False", "Quarantined", true), "Warning"},
		{"stalled for another reason", ready("False", "Quarantined", true), ready("False", "NoSuchMachine", true), "Warning"},
		{"goes on", ready("False", "Quarantined", true), ready("False", "Working", false), "Normal"},
		{"suspended", ready("False", "Working", false), ready("False", "Suspended", false), "Normal"},
		{"resumed", ready("False", "Suspended", false), ready("False", "Pending", false), "Normal"},
		{"continuous idles", ready("True", "Working", false), ready("True", "Idle", false), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, kind, ok := projection.Transition(test.before, test.after)
			if ok != (test.kind != "") || kind != test.kind {
				t.Errorf("event of type %q (%v), want %q", kind, ok, test.kind)
			}
		})
	}
}
