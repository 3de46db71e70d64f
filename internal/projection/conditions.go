// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package projection turns what the database knows into the status of objects: pure functions, without I/O, and with no clock but an
// argument. It is the only place that computes conditions.
package projection

import (
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

// State is what is to be thought of an object, in the terms of kstatus.
type State int

// The states.
const (
	// Good: all is as it should be.
	Good State = iota
	// Waiting: something goes on, or is waited for that passes by itself.
	Waiting
	// Stalled: only a person can make it go on.
	Stalled
	// Suspended: a person has stopped it.
	Suspended
)

// Verdict is what the condition Ready says of an object, and why.
type Verdict struct {
	State   State
	Reason  v1alpha1.Reason
	Message string
}

// condition is one condition, without what it has in common with the others.
type condition struct {
	kind    v1alpha1.ConditionType
	status  bool
	reason  v1alpha1.Reason
	message string
}

// maxMessage bounds messages: they are for people, and for the screen.
const maxMessage = 1024

// Shorten bounds a text to n characters.
func Shorten(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	runes := []rune(text)
	return string(runes[:n-1]) + "…"
}

// conditions returns Ready, the others, and what kstatus reads of them. Of conditions that were there already the time of the last
// transition is kept.
func conditions(old []metav1.Condition, generation int64, now time.Time, v Verdict, others ...condition) []metav1.Condition {
	all := append([]condition{{v1alpha1.ConditionReady, v.State == Good, v.Reason, v.Message}}, others...)
	switch v.State {
	case Waiting:
		all = append(all, condition{v1alpha1.ConditionReconciling, true, v.Reason, v.Message})
	case Stalled:
		all = append(all, condition{v1alpha1.ConditionStalled, true, v.Reason, v.Message})
	case Good, Suspended:
	}
	out := make([]metav1.Condition, 0, len(all))
	for _, c := range all {
		n := metav1.Condition{
			Type: string(c.kind), Status: metav1.ConditionFalse, Reason: string(c.reason), Message: Shorten(c.message, maxMessage),
			ObservedGeneration: generation, LastTransitionTime: seconds(now),
		}
		if c.status {
			n.Status = metav1.ConditionTrue
		}
		for i := range old {
			if old[i].Type == n.Type && old[i].Status == n.Status {
				n.LastTransitionTime = old[i].LastTransitionTime
			}
		}
		out = append(out, n)
	}
	return out
}

// seconds is a time as the API keeps it.
func seconds(t time.Time) metav1.Time { return metav1.NewTime(t.UTC().Truncate(time.Second)) }

// optionalSeconds is nil for no time.
func optionalSeconds(t *time.Time) *metav1.Time {
	if t == nil || t.IsZero() {
		return nil
	}
	s := seconds(*t)
	return &s
}

// managed is the condition Managed.
func managed(manages bool, manager string) condition {
	if manages {
		return condition{v1alpha1.ConditionManaged, true, v1alpha1.ReasonManager, "This object's spec is the one that counts."}
	}
	if manager == "" {
		return condition{v1alpha1.ConditionManaged, false, v1alpha1.ReasonNotRecorded, "The database does not know this object."}
	}
	return condition{v1alpha1.ConditionManaged, false, v1alpha1.ReasonManagedElsewhere, "The object of cluster " + manager + " manages."}
}
