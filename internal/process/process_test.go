// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package process_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bmdb-dev/bmdb-operator/internal/process"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// work records what it is asked, and fails once lost.
type work struct {
	calls []string
	lost  error

	accepted             bool
	checkpoint, previous []byte
}

func (w *work) Check(context.Context) error {
	w.calls = append(w.calls, "check")
	return w.lost
}

func (w *work) PinHostKey(_ context.Context, key []byte) error {
	w.calls = append(w.calls, "pin "+string(key))
	return w.lost
}

func (w *work) UseOwnerAcceptance(_ context.Context, intent []byte) (bool, error) {
	accepted := w.accepted
	if accepted && w.lost == nil {
		w.accepted, w.checkpoint = false, intent
	}
	return accepted, w.lost
}

func (w *work) PreviousCheckpoint() []byte { return w.previous }

func TestStepsAskBeforeEachStep(t *testing.T) {
	w := &work{}
	s := process.NewSteps(w, func(step string, percent int) { w.calls = append(w.calls, fmt.Sprint(step, " ", percent)) })
	for _, step := range []struct {
		name    string
		percent int
	}{{"Connect", 0}, {"Connect", 9}, {"Connect", 10}, {"Upload", 19}, {"Upload", 19}, {"Upload", 250}} {
		if err := s.Step(t.Context(), step.name, step.percent); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"check", "Connect 0", "check", "check", "Connect 10", "check", "Upload 10", "check", "check", "Upload 100"}
	if diff := cmp.Diff(want, w.calls); diff != "" {
		t.Errorf("asked of the work, and shown (-want +got):\n%s", diff)
	}
}

func TestStepsPassOnThatWorkIsLost(t *testing.T) {
	lost := errors.New("lost")
	s := process.NewSteps(&work{lost: lost}, func(string, int) { t.Error("a step that was refused is shown") })
	if err := s.Step(t.Context(), "Connect", 0); !errors.Is(err, lost) {
		t.Errorf("new step: %v", err)
	}
	if err := s.Step(t.Context(), "Connect", 0); !errors.Is(err, lost) {
		t.Errorf("same step: %v", err)
	}
	if err := s.PinHostKey(t.Context(), []byte("key")); !errors.Is(err, lost) {
		t.Errorf("pin: %v", err)
	}
}

// TestAcceptanceIsForOneFile: what a person accepted once lets one owner file be replaced, by as many works as that takes.
func TestAcceptanceIsForOneFile(t *testing.T) {
	w := &work{accepted: true}
	use := func(file string) bool {
		t.Helper()
		ok, err := process.NewSteps(w, nil).UseOwnerAcceptance(t.Context(), []byte(file))
		if err != nil {
			t.Fatal(err)
		}
		w.previous = w.checkpoint // of the next work
		return ok
	}
	for i, step := range []struct {
		file   string
		accept bool
		want   bool
	}{
		{"one", false, true}, {"one", false, true}, {"two", false, false}, {"", false, false}, {"one", false, true},
		{"one", true, true}, {"two", false, false}, {"two", true, true}, {"one", false, false},
	} {
		w.accepted = w.accepted || step.accept
		if got := use(step.file); got != step.want {
			t.Errorf("step %d, %+v: %v", i, step, got)
		}
	}
	w = &work{lost: errors.New("lost"), accepted: true, previous: []byte("replace owner file one")}
	if ok, err := process.NewSteps(w, nil).UseOwnerAcceptance(t.Context(), []byte("one")); ok || !errors.Is(err, w.lost) {
		t.Errorf("of a work that is lost: %v, %v", ok, err)
	}
}

// agent is a driver that finds an agent.
type agent struct {
	found provider.Agent
	err   error
}

func (a agent) StartAgent(context.Context, provider.Machine, provider.Steps) (provider.Agent, error) {
	return a.found, a.err
}

func (agent) Close() error { return nil }

func TestAgentStart(t *testing.T) {
	key, facts := bytes.Repeat([]byte{7}, 32), []byte("{}")
	broken := &provider.Error{Reason: provider.ReasonUnreachable, Message: "no answer"}
	for _, test := range []struct {
		name   string
		driver agent
		reason string
	}{
		{name: "found", driver: agent{found: provider.Agent{PublicKey: key, Facts: facts}}},
		{name: "short key", driver: agent{found: provider.Agent{PublicKey: key[1:], Facts: facts}}, reason: provider.ReasonAgentFailed},
		{name: "failed", driver: agent{err: broken}, reason: provider.ReasonUnreachable},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, err := process.AgentStart{}.Perform(t.Context(), process.Task{Driver: test.driver})
			if got := provider.ReasonOf(err); got != test.reason {
				t.Fatalf("reason %q, want %q (%v)", got, test.reason, err)
			}
			if test.reason == "" && (!bytes.Equal(out.AgentPublicKey, key) || !bytes.Equal(out.HardwareReport, facts)) {
				t.Errorf("outcome is %+v", out)
			}
		})
	}
}

func TestBuiltinHasOnlyWhatIsCarriedOut(t *testing.T) {
	set := process.Builtin()
	if diff := cmp.Diff([]string{"AgentStart"}, set.Names()); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if !set.Has("AgentStart") || set.Has("OSInstall") {
		t.Error("wrong answer of Has")
	}
}
