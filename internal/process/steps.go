// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"context"
	"sync"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// Work is what a driver's steps need of a work; a *bmdb.Work is one.
type Work interface {
	// Check fails when the work is not ours any more, or must stop.
	Check(ctx context.Context) error
	// PinHostKey makes the key the machine's, durably, and fails like Check.
	PinHostKey(ctx context.Context, key []byte) error
	// UseOwnerAcceptance uses up that a person accepted the host as this machine, in exchange for intent as the checkpoint, and fails
	// like Check.
	UseOwnerAcceptance(ctx context.Context, intent []byte) (bool, error)
	// PreviousCheckpoint is what an earlier work that did not finish was about to do.
	PreviousCheckpoint() []byte
}

// NewSteps returns the steps of a driver that works under w. show is called for each step that shows something new, right before the driver takes it:
// it must not block.
func NewSteps(w Work, show func(step string, percent int)) provider.Steps {
	return &steps{work: w, show: show}
}

type steps struct {
	work Work
	show func(step string, percent int)

	mu      sync.Mutex
	name    string
	percent int
}

// Step implements provider.Steps. Progress is shown in tens of a percent, so that a driver may count as finely as it likes.
func (s *steps) Step(ctx context.Context, name string, percent int) error {
	// Between the last look at whether the work is still ours and the step there is nothing that takes time: who is stopped in it would begin the step
	// when it wakes.
	if err := s.work.Check(ctx); err != nil {
		return err
	}
	if tens := min(max(percent, 0), 100) / 10 * 10; s.advance(name, tens) {
		s.show(name, tens)
	}
	return nil
}

// advance tells whether this is something new to show.
func (s *steps) advance(name string, percent int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.name == name && s.percent == percent {
		return false
	}
	s.name, s.percent = name, percent
	return true
}

// PinHostKey implements provider.Steps.
func (s *steps) PinHostKey(ctx context.Context, key []byte) error { return s.work.PinHostKey(ctx, key) }

// UseOwnerAcceptance implements provider.Steps. What an earlier work began to replace is replaced to the end without asking a person again. An
// acceptance that stands is used up even so: it was given for this, and left standing it would let another host be taken over some day.
func (s *steps) UseOwnerAcceptance(ctx context.Context, file []byte) (bool, error) {
	intent := append([]byte("replace owner file "), file...)
	accepted, err := s.work.UseOwnerAcceptance(ctx, intent)
	if err != nil {
		return false, err
	}
	return accepted || bytes.Equal(s.work.PreviousCheckpoint(), intent), nil
}
