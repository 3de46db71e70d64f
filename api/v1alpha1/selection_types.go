// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MachineSelection selects machines of the pool. A machine is selected when every member that is present selects it; at
// least one must be present.
// +kubebuilder:validation:MinProperties=1
type MachineSelection struct {
	// names of machines. A selection with names is closed: it never grows.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
	Names []string `json:"names,omitempty"`

	// providerRef selects the machines of one provider.
	// +optional
	ProviderRef ProviderConfigReference `json:"providerRef,omitempty,omitzero"`

	// selector selects machines by their labels. {} selects the whole pool, and nothing else does.
	// +optional
	Selector *LabelSelector `json:"selector,omitempty"`
}

// LabelSelector selects by labels. It has the JSON of metav1.LabelSelector and its meaning: all terms must match, and no
// term at all matches everything. Unlike that type it has bounds, at most 16 terms and 32 values in each.
// +kubebuilder:validation:XValidation:rule="(has(self.matchLabels) ? size(self.matchLabels) : 0) + (has(self.matchExpressions) ? size(self.matchExpressions) : 0) <= 16",message="selector must have at most 16 terms, matchLabels and matchExpressions together"
// +kubebuilder:validation:MinProperties=0
type LabelSelector struct {
	// matchLabels are labels that must be there with exactly these values.
	// +optional
	// +mapType=atomic
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=16
	// +kubebuilder:validation:XValidation:rule="self.all(k, size(k) >= 1 && size(k) <= 317 && !k.contains('\\x00'))",message="keys of labels must have between 1 and 317 characters, none of them NUL"
	MatchLabels map[string]LabelValue `json:"matchLabels,omitempty"`

	// matchExpressions are requirements that must all be met.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	MatchExpressions []LabelSelectorRequirement `json:"matchExpressions,omitempty"`
}

// LabelValue is the value of a label.
// +kubebuilder:validation:MinLength=0
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:Pattern="^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
type LabelValue string

// LabelSelectorOperator relates a label's key to values.
// +kubebuilder:validation:Enum=In;NotIn;Exists;DoesNotExist
type LabelSelectorOperator string

// The operators of a LabelSelectorRequirement.
const (
	// LabelSelectorOpIn is met where the label is there with one of the values.
	LabelSelectorOpIn LabelSelectorOperator = "In"
	// LabelSelectorOpNotIn is met where the label is not there, or has none of the values.
	LabelSelectorOpNotIn LabelSelectorOperator = "NotIn"
	// LabelSelectorOpExists is met where the label is there.
	LabelSelectorOpExists LabelSelectorOperator = "Exists"
	// LabelSelectorOpDoesNotExist is met where the label is not there.
	LabelSelectorOpDoesNotExist LabelSelectorOperator = "DoesNotExist"
)

// LabelSelectorRequirement is one term of a selector that relates a key to values.
// +kubebuilder:validation:XValidation:rule="self.operator in ['In', 'NotIn'] == has(self.values)",message="values are required with In and NotIn, and must be left out with Exists and DoesNotExist"
type LabelSelectorRequirement struct {
	// key of the label.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=317
	// +kubebuilder:validation:Pattern="^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
	Key string `json:"key,omitempty"`

	// operator is In, NotIn, Exists or DoesNotExist.
	// +required
	Operator LabelSelectorOperator `json:"operator,omitempty"`

	// values are those that In and NotIn compare with; left out with the other operators.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Values []LabelValue `json:"values,omitempty"`
}

// ToLabelSelector returns the selector as the type that metav1.LabelSelectorAsSelector takes: nil for nil, which selects
// nothing there. The result shares no memory with s. The keys of matchLabels are not checked by the API; that function
// reports those that are none.
func (s *LabelSelector) ToLabelSelector() *metav1.LabelSelector {
	if s == nil {
		return nil
	}
	out := &metav1.LabelSelector{}
	for key, value := range s.MatchLabels {
		metav1.AddLabelToSelector(out, key, string(value))
	}
	for _, r := range s.MatchExpressions {
		term := metav1.LabelSelectorRequirement{Key: r.Key, Operator: metav1.LabelSelectorOperator(r.Operator)}
		for _, value := range r.Values {
			term.Values = append(term.Values, string(value))
		}
		out.MatchExpressions = append(out.MatchExpressions, term)
	}
	return out
}
