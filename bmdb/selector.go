// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// SelectorOperator relates a label's key to values.
type SelectorOperator string

// The operators of a SelectorTerm, with the meaning that they have in Kubernetes.
const (
	SelectorIn           SelectorOperator = "In"           // the label is there with one of the values
	SelectorNotIn        SelectorOperator = "NotIn"        // the label is not there, or has none of the values
	SelectorExists       SelectorOperator = "Exists"       // the label is there
	SelectorDoesNotExist SelectorOperator = "DoesNotExist" // the label is not there
)

// Selector selects machines by their labels: all of its terms must match. One without terms selects every machine.
type Selector struct {
	// MatchLabels are labels that must be there with exactly these values.
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
	// MatchExpressions are terms that must all match.
	MatchExpressions []SelectorTerm `json:"matchExpressions,omitempty"`
}

// SelectorTerm is one term of a Selector.
type SelectorTerm struct {
	Key      string           `json:"key"`
	Operator SelectorOperator `json:"operator"`
	// Values are what In and NotIn compare with; the other operators have none.
	Values []string `json:"values,omitempty"`
}

const (
	maxTerms  = 16
	maxValues = 32
	maxNames  = 1000
)

// validate keeps selectors within the bounds that their queries are made for. It may be called on nil.
func (s *Selector) validate() error {
	if s == nil {
		return nil
	}
	if n := len(s.MatchLabels) + len(s.MatchExpressions); n > maxTerms {
		return fmt.Errorf("selector has %d terms: at most %d", n, maxTerms)
	}
	for _, t := range s.MatchExpressions {
		switch t.Operator {
		case SelectorIn, SelectorNotIn:
			if len(t.Values) == 0 || len(t.Values) > maxValues {
				return fmt.Errorf("selector term of key %q has %d values: %s needs between 1 and %d", t.Key, len(t.Values), t.Operator, maxValues)
			}
		case SelectorExists, SelectorDoesNotExist:
			if len(t.Values) > 0 {
				return fmt.Errorf("selector term of key %q has values: %s has none", t.Key, t.Operator)
			}
		default:
			return fmt.Errorf("selector term of key %q has the unknown operator %q", t.Key, t.Operator)
		}
		if t.Key == "" {
			return errors.New("selector term has no key")
		}
	}
	return nil
}

// canonical returns the terms in an order that depends on nothing but their meaning, those of MatchLabels as In.
func (s *Selector) canonical() []SelectorTerm {
	terms := []SelectorTerm{}
	if s == nil {
		return terms
	}
	for k, v := range s.MatchLabels {
		terms = append(terms, SelectorTerm{Key: k, Operator: SelectorIn, Values: []string{v}})
	}
	for _, t := range s.MatchExpressions {
		values := slices.Clone(t.Values)
		slices.Sort(values)
		terms = append(terms, SelectorTerm{Key: t.Key, Operator: t.Operator, Values: slices.Compact(values)})
	}
	slices.SortFunc(terms, func(a, b SelectorTerm) int {
		return strings.Compare(a.sortKey(), b.sortKey())
	})
	return terms
}

func (t SelectorTerm) sortKey() string {
	return t.Key + "\x00" + string(t.Operator) + "\x00" + strings.Join(t.Values, "\x00")
}
