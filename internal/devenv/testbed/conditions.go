// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

// Condition returns a condition; the zero one if it is not there.
func Condition(list []metav1.Condition, kind v1alpha1.ConditionType) metav1.Condition {
	if c := meta.FindStatusCondition(list, string(kind)); c != nil {
		return *c
	}
	return metav1.Condition{}
}

// ConditionIs tells whether a condition has a reason.
func ConditionIs(list []metav1.Condition, kind v1alpha1.ConditionType, reason v1alpha1.Reason) bool {
	return Condition(list, kind).Reason == string(reason)
}

// IsTrue tells whether a condition is true; one that is not there is not.
func IsTrue(list []metav1.Condition, kind v1alpha1.ConditionType) bool {
	return meta.IsStatusConditionTrue(list, string(kind))
}

// Describe is the condition Ready, for people.
func Describe(list []metav1.Condition) string {
	c := Condition(list, v1alpha1.ConditionReady)
	return fmt.Sprintf("Ready=%s, %s: %s", c.Status, c.Reason, c.Message)
}
