// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package providertest

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// StepCall is one call of Steps.Step.
type StepCall struct {
	Name    string
	Percent int
}

// Steps records what a driver asks for and answers as it is told. The zero
// value allows everything. Safe for concurrent use; its fields are set before.
type Steps struct {
	// OnStep is called by each Step with its number, from 0, and decides. Nil
	// allows it.
	OnStep func(n int, call StepCall) error
	// OnPin is called by each PinHostKey and decides. Nil allows it.
	OnPin func(key []byte) error
	// OwnerAccepted makes UseOwnerAcceptance true for the next file that it is
	// asked for, and from then on for that file.
	OwnerAccepted bool

	mu    sync.Mutex
	owner []byte // what OwnerAccepted was used for
	calls []StepCall
	pins  [][]byte
}

var _ provider.Steps = (*Steps)(nil)

// Step records the call and returns what OnStep says.
func (s *Steps) Step(_ context.Context, name string, percent int) error {
	call := StepCall{Name: name, Percent: percent}
	s.mu.Lock()
	n := len(s.calls)
	s.calls = append(s.calls, call)
	s.mu.Unlock()
	if s.OnStep == nil {
		return nil
	}
	return s.OnStep(n, call)
}

// PinHostKey records the key and returns what OnPin says.
func (s *Steps) PinHostKey(_ context.Context, key []byte) error {
	s.mu.Lock()
	s.pins = append(s.pins, slices.Clone(key))
	s.mu.Unlock()
	if s.OnPin == nil {
		return nil
	}
	return s.OnPin(key)
}

// UseOwnerAcceptance returns what OwnerAccepted says, for one file.
func (s *Steps) UseOwnerAcceptance(_ context.Context, file []byte) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.OwnerAccepted {
		s.OwnerAccepted, s.owner = false, slices.Clone(file)
	}
	return s.owner != nil && bytes.Equal(s.owner, file), nil
}

// Calls returns the calls of Step so far, in order.
func (s *Steps) Calls() []StepCall {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Pins returns the keys of the calls of PinHostKey so far, in order.
func (s *Steps) Pins() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.pins)
}
