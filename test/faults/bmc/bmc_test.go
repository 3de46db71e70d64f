// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmc_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/simulated"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/witnessed"
	"github.com/bmdb-dev/bmdb-operator/test/faults/bmc"
)

type steps struct{ refused error }

func (s steps) Step(context.Context, string, int) error                  { return s.refused }
func (s steps) PinHostKey(context.Context, []byte) error                 { return nil }
func (s steps) UseOwnerAcceptance(context.Context, []byte) (bool, error) { return false, nil }

// A driver goes on as long as nobody with a higher fence was there, and the witness knows of all that it did.
func TestWitness(t *testing.T) {
	t.Parallel()
	w, err := bmc.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	machines, err := simulated.New(simulated.Config{})
	if err != nil {
		t.Fatal(err)
	}
	d := witnessed.New(machines, w.URL())
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	m := provider.Machine{ID: uuid.New(), Name: "m", Provider: "p", ProviderID: "m", Process: "AgentStart", Fence: 7}
	if _, err := d.StartAgent(t.Context(), m, steps{}); err != nil {
		t.Fatal(err)
	}
	if n := len(w.Touches()); n != 4 { // begin, two steps, end
		t.Errorf("%d touches: %+v", n, w.Touches())
	}
	m.Fence = 6
	if _, err := d.StartAgent(t.Context(), m, steps{}); provider.ReasonOf(err) != provider.ReasonCommandFailed {
		t.Errorf("a lower fence: %v", err)
	}
	m.Fence = 8
	lost := errors.New("lost")
	if _, err := d.StartAgent(t.Context(), m, steps{refused: lost}); !errors.Is(err, lost) {
		t.Errorf("a work that is lost: %v", err)
	}
	touches := w.Touches()
	if last := touches[len(touches)-1]; last.Kind != witnessed.End || last.Error == "" {
		t.Errorf("the last touch: %+v", last)
	}
	held, cancel := context.WithCancel(t.Context())
	w.SetHook(func(_ bmc.Touch, at bmc.Point) bmc.Verdict {
		if at.Kind == witnessed.Step && !at.Done {
			cancel()
			return bmc.Verdict{Hang: true}
		}
		return bmc.Verdict{}
	})
	m.Fence = 9
	if _, err := d.StartAgent(held, m, steps{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a step that hangs: %v", err)
	}
}
