// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Defaults of a ClaimSpec.
const (
	defaultParallelism    = 1
	defaultTimeoutSeconds = 600
	defaultMaxAttempts    = 5
	defaultBackoffInitial = 30
	defaultBackoffMaximum = 3600
)

// selection is which machines a claim is for, as its row has it.
type selection struct {
	Names    []string  `json:"names,omitempty"`
	Provider string    `json:"provider,omitempty"`
	Selector *Selector `json:"selector,omitempty"`
}

// normalized returns the spec with its defaults, names sorted, and nothing in it that s shares.
func (s ClaimSpec) normalized() ClaimSpec {
	s.Names = slices.Clone(s.Names)
	slices.Sort(s.Names)
	s.Names = slices.Compact(s.Names)
	if s.Mode != ModeOnce {
		s.Completions = nil
	} else if s.Completions == nil {
		n := max(int64(len(s.Names)), 1)
		s.Completions = &n
	}
	orDefault := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	orDefault(&s.Parallelism, defaultParallelism)
	orDefault(&s.TimeoutSeconds, defaultTimeoutSeconds)
	orDefault(&s.MaxAttempts, defaultMaxAttempts)
	orDefault(&s.BackoffInitialSeconds, defaultBackoffInitial)
	orDefault(&s.BackoffMaximumSeconds, max(defaultBackoffMaximum, s.BackoffInitialSeconds))
	return s
}

// validate checks a normalized spec.
func (s *ClaimSpec) validate() error {
	switch {
	case s.Pool == "" || s.Key == "" || s.Process == "":
		return errors.New("pool, key and process must not be empty")
	case s.Mode != ModeOnce && s.Mode != ModeDrain && s.Mode != ModeContinuous:
		return fmt.Errorf("mode %q is unknown: %s, %s or %s", s.Mode, ModeOnce, ModeDrain, ModeContinuous)
	case len(s.Names) == 0 && s.Provider == "" && s.Selector == nil:
		return errors.New("no machines are selected: set names, provider or selector; a selector without terms is the whole pool")
	case len(s.Names) > maxNames:
		return fmt.Errorf("%d names are too many: at most %d", len(s.Names), maxNames)
	case s.Completions != nil && *s.Completions < 1:
		return fmt.Errorf("completions is %d: at least 1", *s.Completions)
	case s.Completions != nil && len(s.Names) > 0 && *s.Completions > int64(len(s.Names)):
		return fmt.Errorf("completions is %d and there are %d names: it could never be reached", *s.Completions, len(s.Names))
	case s.Parallelism < 0 || s.TimeoutSeconds < 0 || s.MaxAttempts < 0 || s.BackoffInitialSeconds < 0 || s.BackoffMaximumSeconds < 0:
		return errors.New("parallelism, timeout, attempts and backoff must not be negative")
	case s.ActiveDeadlineSeconds != nil && *s.ActiveDeadlineSeconds < 1:
		return fmt.Errorf("active deadline is %d seconds: at least 1", *s.ActiveDeadlineSeconds)
	case s.MaxFailedMachines != nil && *s.MaxFailedMachines < 0:
		return fmt.Errorf("the maximum of failed machines is %d: at least 0", *s.MaxFailedMachines)
	}
	return s.Selector.validate()
}

// hash stands for everything that the key of a normalized spec stands for, whatever the order in which it was written.
func (s *ClaimSpec) hash() (string, error) {
	text, err := json.Marshal(struct {
		Process, Mode, Provider string
		Names                   []string
		Selects                 bool
		Terms                   []SelectorTerm
		Parameters              map[string]string
		Completions             *int64
	}{s.Process, s.Mode, s.Provider, append([]string{}, s.Names...), s.Selector != nil, s.Selector.canonical(), parametersOf(s.Parameters), s.Completions})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// parametersOf makes no difference between no parameters and an empty set of them.
func parametersOf(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// columns returns what of a spec is kept as text.
func (s *ClaimSpec) columns() (selected, parameters string, err error) {
	sel, err := json.Marshal(selection{Names: s.Names, Provider: s.Provider, Selector: s.Selector})
	if err != nil {
		return "", "", err
	}
	par, err := json.Marshal(parametersOf(s.Parameters))
	return string(sel), string(par), err
}

func (s *ClaimSpec) setColumns(selected, parameters string) error {
	var sel selection
	if err := json.Unmarshal([]byte(selected), &sel); err != nil {
		return fmt.Errorf("read selection of claim %s: %w", s.Key, err)
	}
	s.Names, s.Provider, s.Selector = sel.Names, sel.Provider, sel.Selector
	if err := json.Unmarshal([]byte(parameters), &s.Parameters); err != nil {
		return fmt.Errorf("read parameters of claim %s: %w", s.Key, err)
	}
	return nil
}

// termSeparator is between the values of a term, and each has a sign in front; see selectedByLabels.
const termSeparator = "\x1f"

// selectionArgs are the parameters that all statements over a selection begin with.
func (s *ClaimSpec) selectionArgs() []any {
	terms := s.Selector.canonical()
	labels, ops, vals := make([]string, len(terms)), make([]string, len(terms)), make([]string, len(terms))
	for i, t := range terms {
		labels[i], ops[i] = t.Key, string(t.Operator)
		signed := make([]string, len(t.Values))
		for j, v := range t.Values {
			signed[j] = "=" + v
		}
		vals[i] = strings.Join(signed, termSeparator)
	}
	return []any{s.Pool, s.Process, s.Key, labels, ops, vals, s.Provider}
}
