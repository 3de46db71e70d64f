// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package projection

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// MachineFacts is all that the status of a Machine is made of.
type MachineFacts struct {
	// Generation is that of the spec that was taken into account.
	Generation int64
	// Cluster is the one that shows the machine.
	Cluster string
	// Snapshot is the machine's row; nil: it is not recorded.
	Snapshot *bmdb.MachineSnapshot
	// Refusal is why the object could not be recorded as it is; nil: it was.
	Refusal *Verdict
	// Doubts is what the object says of a database that it speaks against; nil: nothing. Then only conditions change.
	Doubts *Verdict
	// Now is the time of transitions.
	Now time.Time
}

const (
	maxWork     = 32
	maxBackoffs = 32
	maxTags     = 64
	maxName     = 253
)

// Machine returns the status that shows the facts; old is the one so far.
func Machine(old *v1alpha1.MachineStatus, f MachineFacts) v1alpha1.MachineStatus {
	if f.Doubts != nil {
		s := *old.DeepCopy()
		s.ObservedGeneration = &f.Generation
		s.Conditions = conditions(old.Conditions, f.Generation, f.Now, *f.Doubts, managed(false, ""), machineHeld(f.Snapshot))
		return s
	}
	s := v1alpha1.MachineStatus{ObservedGeneration: &f.Generation}
	manages, manager := false, ""
	if m := f.Snapshot; m != nil {
		s.MachineID, s.DatabaseID, s.Revision = m.MachineID.String(), m.Standing.Database.String(), m.Standing.Revision
		s.Tags, s.Work, s.Backoffs = machineTags(m), machineWork(m.Works), machineBackoffs(m.Backoffs)
		manages, manager = managingView(m.Views, f.Cluster)
	}
	s.Conditions = conditions(old.Conditions, f.Generation, f.Now, machineVerdict(f), managed(manages, manager), machineHeld(f.Snapshot))
	return s
}

// managingView tells whether the view of a cluster manages, and if not, the cluster whose does.
func managingView(views []bmdb.MachineView, cluster string) (manages bool, manager string) {
	for _, v := range views {
		switch {
		case v.Manages && v.Cluster == cluster:
			return true, cluster
		case v.Manages:
			manager = v.Cluster
		}
	}
	return false, manager
}

// machineVerdict is the first of: what keeps the object from being recorded, what a driver wants a person to solve, all is well.
func machineVerdict(f MachineFacts) Verdict {
	switch {
	case f.Refusal != nil:
		return *f.Refusal
	case f.Snapshot == nil:
		return Verdict{Waiting, v1alpha1.ReasonNotRecorded, "The database does not know the machine yet."}
	}
	for _, failure := range f.Snapshot.Failures {
		if reason, text := splitCause(failure.Cause); needsPerson(reason) {
			return Verdict{Stalled, reason, failure.Process + ": " + text}
		}
	}
	return Verdict{Good, v1alpha1.ReasonRecorded, "The machine is recorded in the database."}
}

// splitCause takes the reason from the front of a work's cause, "Reason: text"; empty if there is none.
func splitCause(cause string) (v1alpha1.Reason, string) {
	if reason, text, ok := strings.Cut(cause, ": "); ok && !strings.ContainsAny(reason, " /.") {
		return v1alpha1.Reason(reason), text
	}
	return "", cause
}

// needsPerson tells whether a driver's reason does not pass by itself.
func needsPerson(reason v1alpha1.Reason) bool {
	return slices.Contains([]v1alpha1.Reason{
		v1alpha1.ReasonAddressMissing, v1alpha1.ReasonAddressInvalid, v1alpha1.ReasonHostKeyMismatch, v1alpha1.ReasonHostKeyUnknown,
		v1alpha1.ReasonHostKeyRevoked, v1alpha1.ReasonAuthenticationFailed, v1alpha1.ReasonNeedsSudo, v1alpha1.ReasonOwnedByAnotherDatabase,
		v1alpha1.ReasonOwnedByAnotherMachine, v1alpha1.ReasonOwnerUnclear, v1alpha1.ReasonArchitectureUnsupported,
	}, reason)
}

// machineHeld is the condition Held.
func machineHeld(m *bmdb.MachineSnapshot) condition {
	var holds []string
	if m != nil {
		for _, h := range m.Holds {
			if h.Active {
				holds = append(holds, describeHold(h))
			}
		}
	}
	if len(holds) == 0 {
		return condition{v1alpha1.ConditionHeld, false, v1alpha1.ReasonNotHeld, "No hold is on the machine."}
	}
	return condition{v1alpha1.ConditionHeld, true, v1alpha1.ReasonHeld, "Held by " + strings.Join(holds, "; ")}
}

func describeHold(h bmdb.MachineHold) string {
	text := fmt.Sprintf("%s since %s", h.Name, h.At.UTC().Format(time.RFC3339))
	if h.Owner != "" {
		text += " for " + h.Owner
	}
	if h.Until != nil {
		text += " until " + h.Until.UTC().Format(time.RFC3339)
	}
	if h.Reason != "" {
		text += ": " + h.Reason
	}
	return text
}

func machineTags(m *bmdb.MachineSnapshot) v1alpha1.MachineTags {
	var t v1alpha1.MachineTags
	if m.Provider != "" {
		t.Provided = v1alpha1.ProvidedTag{Provider: Shorten(m.Provider, maxName), ProviderID: Shorten(m.ProviderID, maxName)}
	}
	if a := m.Tags.AgentStarted; a != nil {
		t.AgentStarted = v1alpha1.AgentStartedTag{StartTime: optionalSeconds(&a.At), PublicKey: base64.StdEncoding.EncodeToString(a.PublicKey)}
	}
	custom := slices.SortedFunc(slices.Values(m.Tags.Custom), func(a, b bmdb.CustomTag) int { return strings.Compare(a.Name, b.Name) })
	for _, c := range custom[:min(len(custom), maxTags)] {
		t.Custom = append(t.Custom, v1alpha1.CustomTag{Name: c.Name, SetTime: optionalSeconds(&c.SetAt)})
	}
	return t
}

func machineWork(works []bmdb.MachineWork) []v1alpha1.MachineWork {
	var out []v1alpha1.MachineWork
	for _, w := range works[:min(len(works), maxWork)] {
		out = append(out, v1alpha1.MachineWork{
			Slot: w.Slot, Process: w.Process, WorkID: w.WorkID.String(), Claim: w.Claim,
			Holder: Shorten(w.Holder, maxName), Cluster: Shorten(w.Cluster, maxName), StartTime: optionalSeconds(&w.Start),
		})
	}
	return out
}

func machineBackoffs(backoffs []bmdb.MachineBackoff) []v1alpha1.MachineBackoff {
	longest := slices.SortedFunc(slices.Values(backoffs), func(a, b bmdb.MachineBackoff) int {
		if c := b.Until.Compare(a.Until); c != 0 {
			return c
		}
		return strings.Compare(a.Process, b.Process)
	})
	var out []v1alpha1.MachineBackoff
	for _, b := range longest[:min(len(longest), maxBackoffs)] {
		out = append(out, v1alpha1.MachineBackoff{
			Process: b.Process, Until: optionalSeconds(&b.Until), Attempts: int32(min(b.Attempts, 1<<30)),
			Cause: Shorten(b.Cause, v1alpha1.MaxCauseLength),
		})
	}
	return out
}
