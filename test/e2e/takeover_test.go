// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestHandOver ends the operator that works, in the orderly way: its machines are not waited for until a lease is over, the other
// operator goes on with them at once, and nothing counts as lost.
func TestHandOver(t *testing.T) {
	t.Parallel()
	const lease = 30 * time.Second
	l := newLab(t, testbed.Options{})
	a, b := l.Start("operator-a", "--lease", lease.String()), l.Start("operator-b", "--lease", lease.String())
	l.Create(l.Simulated("sim", testbed.Latency(6*time.Second)))
	machines := testbed.Names("sim", 5)
	l.CreateFleet("sim", machines...)
	l.Create(l.Claim("work", machines...))
	l.AwaitCount("all machines are worked on", len(machines), testbed.CountOpen, "work")

	owner, other := l.OwnerOf("work", a, b)
	owner.Terminate()
	l.AwaitClaim("work", v1alpha1.ReasonComplete)

	handed := 0
	for name, events := range l.History("work") {
		if last := events[len(events)-1]; last.Event != "Finished" {
			t.Errorf("machine %s ended with %s", name, last.Event)
		}
		for i, e := range events {
			switch {
			case e.Event == "Lost" || e.Event == "Failed":
				t.Errorf("work on machine %s is %s: %s", name, e.Event, e.Cause)
			case e.Event == "Started" && e.Pod == other.Name && i > 0:
				handed++
				// It takes about a second. This is far below what waiting for the lease would be, and far above what busy cores make of it.
				if gap := e.At.Sub(events[i-1].At); gap > lease/3 {
					t.Errorf("machine %s was started %s after its release", name, gap)
				} else {
					t.Logf("machine %s was %s, and started again %s later", name, events[i-1].Event, gap)
				}
			}
		}
	}
	if handed == 0 {
		t.Error("no machine was handed over")
	}
	if n := l.Count("SELECT count(*) FROM sessions WHERE session_end_reason = 'closed'"); n != 1 {
		t.Errorf("%d sessions were closed, want that of %s", n, owner.Name)
	}
	if err := l.Broken(t.Context(), append(testbed.Rules(), testbed.RulesAtRest()...)); err != nil {
		t.Error(err)
	}
}

// TestStoppedPod stops an operator for longer than its lease while it works. When it wakes, its machines are another's: it begins no
// further step, and what it did is refused.
func TestStoppedPod(t *testing.T) {
	t.Parallel()
	const takes = 5 * time.Second
	l := newLab(t, testbed.Options{})
	a, b := l.Start("operator-a", "--lease", "3s"), l.Start("operator-b", "--lease", "3s")
	l.Create(l.Simulated("sim", testbed.Latency(takes)))
	machines := testbed.Names("sim", 5)
	l.CreateFleet("sim", machines...)
	l.Create(l.Claim("work", machines...))
	l.AwaitCount("all machines are worked on", len(machines), testbed.CountOpen, "work")

	sleeper, other := l.OwnerOf("work", a, b)
	sleeper.Signal(syscall.SIGSTOP)
	l.AwaitCount("the works of the one that sleeps are lost", len(machines), testbed.CountOf, "work", "Lost")
	l.AwaitCount("the other one works on the machines", 0,
		`SELECT count(*) FROM machine_identities i WHERE NOT EXISTS (SELECT 1 FROM work_history h JOIN sessions s ON s.session_id = h.session_id
			WHERE h.machine_id = i.machine_id AND h.event = 'Started' AND s.session_runtime_info = $1)`, other.Name)
	l.AwaitCount("the works of the one that sleeps would have come to their next step", 0,
		`SELECT count(*) FROM work_history h JOIN sessions s ON s.session_id = h.session_id
			WHERE h.event = 'Started' AND s.session_runtime_info = $1 AND h.timestamp > clock_timestamp() - $2 * interval '1 second'`, sleeper.Name, takes.Seconds()+1)
	asleep := sleeper.LogEnd()
	sleeper.Signal(syscall.SIGCONT)

	l.Eventually(testbed.Patience, "works of the one that slept end", func(context.Context) error {
		if n := len(sleeper.EndsOf("work", asleep)); n != len(machines) {
			return fmt.Errorf("%d of %d have", n, len(machines))
		}
		return nil
	})
	for work, entries := range sleeper.EndsOf("work", asleep) {
		for _, e := range entries {
			if e.Text("end") != "" {
				t.Errorf("the one that slept took another step with work %s, and tried to end it: %v", work, e)
			}
		}
	}
	l.AwaitClaim("work", v1alpha1.ReasonComplete)
	for name, events := range l.History("work") {
		if got := testbed.EventNames(events); got != "Started Lost Started Finished" {
			t.Errorf("machine %s: %s", name, got)
		}
		if last := events[len(events)-1]; last.Pod != other.Name {
			t.Errorf("machine %s was finished by %s", name, last.Pod)
		}
	}
	l.Eventually(testbed.Patience, "the one that slept is ready again", sleeper.Ready)
	if err := l.Broken(t.Context(), append(testbed.Rules(), testbed.RulesAtRest()...)); err != nil {
		t.Error(err)
	}
}
