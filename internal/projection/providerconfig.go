// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package projection

import (
	"time"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// ProviderFacts is all that the status of a ProviderConfig is made of.
type ProviderFacts struct {
	// Generation is that of the spec that was taken into account.
	Generation int64
	// State is the provider's row; nil: it is not recorded.
	State *bmdb.ProviderState
	// Refusal is why no work can be done to its machines; nil: it can.
	Refusal *Verdict
	// Doubts is what the object says of a database that it speaks against; nil: nothing. Then only conditions change.
	Doubts *Verdict
	// Now is the time of transitions.
	Now time.Time
}

// ProviderConfig returns the status that shows the facts; old is the one so far.
func ProviderConfig(old *v1alpha1.ProviderConfigStatus, f ProviderFacts) v1alpha1.ProviderConfigStatus {
	if f.Doubts != nil {
		s := *old.DeepCopy()
		s.ObservedGeneration = &f.Generation
		s.Conditions = conditions(old.Conditions, f.Generation, f.Now, *f.Doubts, managed(false, ""))
		return s
	}
	s := v1alpha1.ProviderConfigStatus{ObservedGeneration: &f.Generation}
	v := Verdict{Good, v1alpha1.ReasonRecorded, "Work may be done to the provider's machines."}
	manages, manager := false, ""
	if p := f.State; p != nil {
		s.DatabaseID, s.Revision = p.Standing.Database.String(), p.Standing.Revision
		s.Machines.Managed = count(p.Machines)
		manages, manager = p.Manages, p.Manager
	} else {
		v = Verdict{Waiting, v1alpha1.ReasonNotRecorded, "The database does not know the provider yet."}
	}
	if f.Refusal != nil {
		v = *f.Refusal
	}
	s.Conditions = conditions(old.Conditions, f.Generation, f.Now, v, managed(manages, manager))
	return s
}
