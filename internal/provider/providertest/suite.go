// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package providertest is the suite that every driver passes: the promises of
// package provider as tests, and a recorder of what a driver asks for.
package providertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// Harness is a driver and the machines to try it on.
type Harness struct {
	// Driver is what is tested, on machines that are well. The suite closes it.
	Driver provider.Driver
	// Machine returns another machine at each call, without an agent.
	Machine func(t *testing.T) provider.Machine
	// Effects returns what was done to the machine so far, in a form that can
	// be compared. Nil where nothing can be seen from outside.
	Effects func(t *testing.T, m provider.Machine) string
	// Failures are machines on which StartAgent fails with a known reason.
	Failures []Failure
	// Hanging are machines that stay silent, so that only the caller's context
	// ends StartAgent.
	Hanging []Hanging
}

// Failure is a machine on which StartAgent fails for a reason.
type Failure struct {
	Name        string
	Driver      provider.Driver // nil: the harness's
	Machine     provider.Machine
	Reason      string
	NeedsPerson bool
}

// Hanging is a machine that stays silent.
type Hanging struct {
	Name    string
	Driver  provider.Driver // nil: the harness's
	Machine provider.Machine
}

// Prompt is how long a call may take whose context ends soon. Far above what it
// takes on a slow computer, and below every timeout of the drivers' own.
const Prompt = 10 * time.Second

// Run tests the driver of a fresh harness for each promise. Combine it with
// goleak in TestMain.
func Run(t *testing.T, factory func(t *testing.T) Harness) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"StartAgent", testStartAgent},
		{"StartAgentTwice", testStartAgentTwice},
		{"StepErrorStops", testStepErrorStops},
		{"CancelledBefore", testCancelledBefore},
		{"CancelledAtEachStep", testCancelledAtEachStep},
		{"CancelledWhileHanging", testCancelledWhileHanging},
		{"MachinesAtTheSameTime", testMachinesAtTheSameTime},
		{"TypedErrors", testTypedErrors},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := factory(t)
			t.Cleanup(func() {
				for range 2 {
					if err := h.Driver.Close(); err != nil {
						t.Errorf("close driver: %v", err)
					}
				}
			})
			test.run(t, h)
		})
	}
}

func start(t *testing.T, h Harness, m provider.Machine, s provider.Steps) provider.Agent {
	t.Helper()
	a, err := h.Driver.StartAgent(t.Context(), m, s)
	if err != nil {
		t.Fatalf("start agent: %v", err)
	}
	checkAgent(t, a)
	return a
}

func checkAgent(t *testing.T, a provider.Agent) {
	t.Helper()
	if len(a.PublicKey) != 32 || bytes.Equal(a.PublicKey, make([]byte, 32)) {
		t.Errorf("public key %x is no ed25519 key", a.PublicKey)
	}
	var facts map[string]any
	if err := json.Unmarshal(a.Facts, &facts); err != nil || facts == nil {
		t.Errorf("facts %q are no JSON object: %v", a.Facts, err)
	}
}

var camelCase = regexp.MustCompile(`^[A-Z][A-Za-z0-9]*$`)

func testStartAgent(t *testing.T, h Harness) {
	s := &Steps{}
	if a := start(t, h, h.Machine(t), s); a.AlreadyRunning || a.Outdated {
		t.Errorf("first start says already running %v, outdated %v", a.AlreadyRunning, a.Outdated)
	}
	calls, percent := s.Calls(), 0
	if len(calls) == 0 {
		t.Error("agent started without a step")
	}
	for _, c := range calls {
		if !camelCase.MatchString(c.Name) || c.Percent < percent || c.Percent > 100 {
			t.Errorf("steps are %v: want CamelCase and percents from 0 to 100 that do not fall", calls)
			break
		}
		percent = c.Percent
	}
}

func testStartAgentTwice(t *testing.T, h Harness) {
	m := h.Machine(t)
	first := start(t, h, m, &Steps{})
	effects := h.effects(t, m)
	m.Fence, m.Attempt = m.Fence+1, m.Attempt+1
	second := start(t, h, m, &Steps{})
	if !bytes.Equal(first.PublicKey, second.PublicKey) {
		t.Errorf("the second start has key %x, the first had %x", second.PublicKey, first.PublicKey)
	}
	if got := h.effects(t, m); got != effects {
		t.Errorf("the second start changed the machine:\n%s\nbefore:\n%s", got, effects)
	}
}

// testStepErrorStops lets each step fail in turn. A driver stops there, and the
// machine stays as it was when that step was asked for.
func testStepErrorStops(t *testing.T, h Harness) {
	lost := errors.New("work lost")
	for at := 0; ; at++ {
		m, before := h.Machine(t), ""
		s := &Steps{OnStep: func(n int, _ StepCall) error {
			if n != at {
				return nil
			}
			before = h.effects(t, m)
			return lost
		}}
		_, err := h.Driver.StartAgent(t.Context(), m, s)
		if len(s.Calls()) <= at {
			if err != nil {
				t.Fatalf("no step failed, error %v", err)
			}
			return
		}
		if !errors.Is(err, lost) || provider.ReasonOf(err) != "" {
			t.Errorf("step %d failed: error %v does not wrap the step's, or is typed", at, err)
		}
		if calls := s.Calls(); len(calls) != at+1 {
			t.Errorf("step %d failed, and further were asked for: %v", at, calls)
		}
		if got := h.effects(t, m); got != before {
			t.Errorf("step %d (%v) failed, and the machine was changed after it:\n%s\nbefore:\n%s", at, s.Calls()[at], got, before)
		}
	}
}

func testCancelledBefore(t *testing.T, h Harness) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m, s := h.Machine(t), &Steps{}
	before := h.effects(t, m)
	_, err := h.Driver.StartAgent(ctx, m, s)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v does not wrap the context's", err)
	}
	if got := h.effects(t, m); got != before {
		t.Errorf("cancelled before it began, and the machine was changed:\n%s", got)
	}
}

// testCancelledAtEachStep cancels within each step in turn, which then allows
// the driver to go on. It must not.
func testCancelledAtEachStep(t *testing.T, h Harness) {
	cause := errors.New("session lost")
	for at := 0; ; at++ {
		ctx, cancel := context.WithCancelCause(t.Context())
		m, before := h.Machine(t), ""
		s := &Steps{OnStep: func(n int, _ StepCall) error {
			if n == at {
				before = h.effects(t, m)
				cancel(cause)
			}
			return nil
		}}
		err := ended(t, func() error {
			_, err := h.Driver.StartAgent(ctx, m, s)
			return err
		})
		cancel(nil)
		if len(s.Calls()) <= at {
			if err != nil {
				t.Fatalf("no step was cancelled, error %v", err)
			}
			return
		}
		if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
			t.Errorf("cancelled in step %d: error %v does not wrap the context's and its cause", at, err)
		}
		if got := h.effects(t, m); got != before {
			t.Errorf("cancelled in step %d, and the machine was changed after it:\n%s\nbefore:\n%s", at, got, before)
		}
	}
}

func testCancelledWhileHanging(t *testing.T, h Harness) {
	if len(h.Hanging) == 0 {
		t.Error("the harness has no machine that hangs")
	}
	for _, hang := range h.Hanging {
		t.Run(hang.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			err := ended(t, func() error {
				_, err := h.driver(hang.Driver).StartAgent(ctx, hang.Machine, &Steps{})
				return err
			})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v does not wrap the context's", err)
			}
		})
	}
}

func testMachinesAtTheSameTime(t *testing.T, h Harness) {
	const n = 8
	var (
		wg     sync.WaitGroup
		agents [n]provider.Agent
		errs   [n]error
	)
	for i := range n {
		m := h.Machine(t)
		wg.Go(func() { agents[i], errs[i] = h.Driver.StartAgent(t.Context(), m, &Steps{}) })
	}
	wg.Wait()
	keys := map[string]int{}
	for i := range n {
		if errs[i] != nil {
			t.Errorf("machine %d: %v", i, errs[i])
			continue
		}
		checkAgent(t, agents[i])
		if other, ok := keys[string(agents[i].PublicKey)]; ok {
			t.Errorf("machines %d and %d have the same key", other, i)
		}
		keys[string(agents[i].PublicKey)] = i
	}
}

func testTypedErrors(t *testing.T, h Harness) {
	if len(h.Failures) == 0 {
		t.Error("the harness has no machine that fails")
	}
	for _, f := range h.Failures {
		t.Run(f.Name, func(t *testing.T) {
			_, err := h.driver(f.Driver).StartAgent(t.Context(), f.Machine, &Steps{})
			typed, ok := errors.AsType[*provider.Error](err)
			if !ok {
				t.Fatalf("error %v is not typed", err)
			}
			if typed.Reason != f.Reason || typed.NeedsPerson != f.NeedsPerson {
				t.Errorf("reason %s, needs person %v (%v); want %s, %v", typed.Reason, typed.NeedsPerson, err, f.Reason, f.NeedsPerson)
			}
			if typed.Message == "" || bytes.ContainsAny([]byte(err.Error()), "\n\r\x1b") {
				t.Errorf("message %q is not one line", err)
			}
		})
	}
}

func (h Harness) driver(other provider.Driver) provider.Driver {
	if other != nil {
		return other
	}
	return h.Driver
}

func (h Harness) effects(t *testing.T, m provider.Machine) string {
	t.Helper()
	if h.Effects == nil {
		return ""
	}
	return h.Effects(t, m)
}

// ended runs f and gives up on it, with an error, when it takes longer than
// Prompt.
func ended(t *testing.T, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	patience := time.NewTimer(Prompt)
	defer patience.Stop()
	select {
	case err := <-done:
		return err
	case <-patience.C:
		return fmt.Errorf("StartAgent has not ended after %s", Prompt)
	}
}
