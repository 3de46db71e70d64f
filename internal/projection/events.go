// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package projection

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

// Ready is what the condition Ready says, for those who tell a transition.
type Ready struct {
	Status, Reason, Message string
	Stalled                 bool
}

// ReadyOf reads Ready of conditions; the zero Ready where there is none.
func ReadyOf(conditions []metav1.Condition) Ready {
	c := meta.FindStatusCondition(conditions, string(v1alpha1.ConditionReady))
	if c == nil {
		return Ready{}
	}
	return Ready{
		Status: string(c.Status), Reason: c.Reason, Message: c.Message,
		Stalled: meta.IsStatusConditionTrue(conditions, string(v1alpha1.ConditionStalled)),
	}
}

// Transition returns the text and type of the event that tells of a change of Ready, and false where there is nothing to tell. Reasons
// that come and go while all is well are not told: Working, BackedOff and the like are in the status. Nor is an object that was well from the
// first moment that it showed anything: nothing has changed, and fleets and bursts of claims are made of such.
func Transition(before, after Ready) (note, kind string, ok bool) {
	switch {
	case before.Status == after.Status && before.Reason == after.Reason, before.Status == "" && after.Status == string(metav1.ConditionTrue):
		return "", "", false
	case after.Stalled:
		return after.Message, corev1.EventTypeWarning, true
	case before.Stalled, before.Status != after.Status && after.Status == string(metav1.ConditionTrue), after.Reason == string(v1alpha1.ReasonSuspended),
		before.Reason == string(v1alpha1.ReasonSuspended):
		return after.Message, corev1.EventTypeNormal, true
	}
	return "", "", false
}
