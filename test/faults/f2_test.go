// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/witnessed"
	"github.com/bmdb-dev/bmdb-operator/test/faults/bmc"
	"github.com/bmdb-dev/bmdb-operator/test/faults/wire"
)

// TestF2 stops operators for longer than their lease, in the middle of what they do: right after a start was committed, between the check
// and the step, in the middle of a step, with the commit on its way, and at random. Others take over. What was on its way arrives while
// they sleep, and is refused; when they wake they begin no further step.
func TestF2(t *testing.T) {
	t.Parallel()
	r := newRig(t, "F2", rigOptions{lease: pick(1500*time.Millisecond, 3*time.Second)})
	s := &sleeper{rig: r, hits: make(chan *nap)}
	for _, p := range r.pods {
		p.setHook(s.onWire(p))
	}
	r.witness.SetHook(s.atMachine)
	r.start()
	r.fleet(100*time.Millisecond, 10)
	r.watchRules()
	work := r.feed(24)
	places := []string{
		"retrieval: after", "check before a step: after", "step Connect: asked", "step Start: done", "commit: before", "commit: after",
		"counts of an end: before", "beat: before",
	}
	for range pick(1, 6) {
		r.random.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
		for _, place := range places {
			s.stopAt(place)
		}
	}
	for range pick(0, 20) {
		s.stopAt("")
	}
	work.stop()
	s.disarm()
	r.awaitReady()
	r.verify()
	s.verifyAwake()
	r.require("stopped at a point", "works taken over from a pod that slept")
}

// nap is one stop of a pod.
type nap struct {
	pod     *pod
	process *proc.Process
	place   string
	resume  chan struct{} // what was held goes on
	// asleep is before it was told to stop, and awake before it was woken, in nanoseconds since 1970. What it did between them, it did until the last of its
	// threads had stopped.
	asleep, awake int64
}

// sleeper stops pods. Its hooks are called from everywhere; the rest is for the test's goroutine.
type sleeper struct {
	rig  *rig
	hits chan *nap
	naps []*nap

	mu    sync.Mutex
	armed string
	over  bool
}

// take disarms, and tells whether a place is the one that was armed.
func (s *sleeper) take(place string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.armed == "" || s.armed != place || s.over {
		return false
	}
	s.armed = ""
	return true
}

func (s *sleeper) arm(place string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = place
}

// disarm lets everything pass from now on.
func (s *sleeper) disarm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

// stop stops a process, and returns when it may be left to go on.
func (s *sleeper) stop(p *pod, process *proc.Process, place string) *nap {
	n := &nap{pod: p, process: process, place: place, resume: make(chan struct{}), asleep: time.Now().UnixNano()}
	if process == nil || process.Signal(syscall.SIGSTOP) != nil {
		s.arm(place)
		return nil
	}
	return n
}

func (s *sleeper) onWire(p *pod) wire.Hook {
	return func(t *wire.Trip, side wire.Side) wire.Verdict {
		stage := stageOf(t)
		if stage == "" || !s.take(stage+": "+side.String()) {
			return wire.Verdict{}
		}
		process, _ := t.Owner.(*proc.Process)
		if n := s.stop(p, process, stage+": "+side.String()); n != nil {
			s.hits <- n
			<-n.resume
		}
		return wire.Verdict{}
	}
}

func (s *sleeper) atMachine(t bmc.Touch, at bmc.Point) bmc.Verdict {
	if !s.take(witnessPoint(at)) {
		return bmc.Verdict{}
	}
	p, process := s.rig.byPID(t.PID)
	if p == nil {
		s.arm(witnessPoint(at))
		return bmc.Verdict{}
	}
	n := s.stop(p, process, witnessPoint(at))
	if n == nil {
		return bmc.Verdict{}
	}
	s.hits <- n
	return bmc.Verdict{Wait: n.resume}
}

// stopAt stops a pod at a place, or one that works at any moment, waits until others have what it had, and wakes it.
func (s *sleeper) stopAt(place string) {
	r := s.rig
	r.T.Helper()
	n := s.next(place)
	// Whatever comes of it, it must not sleep on.
	defer func() {
		close(n.resume)
		if err := n.process.Signal(syscall.SIGCONT); err != nil {
			r.T.Error(err)
		}
	}()
	r.struck("stopped at a point")
	r.Eventually(testbed.Patience, n.pod.Name+", which sleeps at "+n.place+", is given up", func(ctx context.Context) error {
		left, err := r.Number(ctx, "SELECT count(*) FROM sessions WHERE session_runtime_info = $1 AND session_ended_at IS NULL", n.pod.Name)
		if err == nil && left > 0 {
			err = errors.New("its session lives")
		}
		return err
	})
	lost := `FROM work_history h JOIN sessions s ON s.session_id = h.session_id WHERE s.session_runtime_info = $1 AND h.event = 'Lost' AND h.timestamp > $2`
	since := time.Unix(0, n.asleep)
	r.Eventually(testbed.Patience, "others work on the machines of "+n.pod.Name, func(ctx context.Context) error {
		left, err := r.Number(ctx, `SELECT count(*) FROM work w JOIN sessions s ON s.session_id = w.session_id WHERE w.work_id IS NOT NULL AND s.session_runtime_info = $1`, n.pod.Name)
		if err != nil || left > 0 {
			return errors.Join(err, fmt.Errorf("%d of its works are open", left))
		}
		waiting, err := r.Number(ctx, "SELECT count(DISTINCT h.machine_id) "+lost+` AND NOT EXISTS
			(SELECT 1 FROM work_history n WHERE n.machine_id = h.machine_id AND n.fence > h.fence)`, n.pod.Name, since)
		if err == nil && waiting > 0 {
			err = fmt.Errorf("%d machines wait", waiting)
		}
		return err
	})
	run.tally.add(r.fault, "works taken over from a pod that slept", int64(r.Count("SELECT count(*) "+lost, n.pod.Name, since)))
	n.awake = time.Now().UnixNano()
	s.naps = append(s.naps, n)
}

// next is the next pod that was stopped at a place; at any moment where there is none.
func (s *sleeper) next(place string) *nap {
	r := s.rig
	r.T.Helper()
	if place == "" {
		const most = time.Second
		wait := time.NewTimer(time.Duration(r.random.Int64N(int64(most))))
		<-wait.C
		p := r.pods[r.random.IntN(len(r.pods))]
		if n := s.stop(p, p.process.Load(), "a moment of its own"); n != nil {
			return n
		}
		r.T.Fatalf("%s cannot be stopped", p.Name)
	}
	s.arm(place)
	select {
	case n := <-s.hits:
		return n
	case <-time.After(testbed.Patience):
		r.T.Fatalf("no pod came to %s", place)
		return nil
	}
}

// verifyAwake checks what pods did after they woke, with the works that they had lost: no step that was not under way when they fell asleep.
func (s *sleeper) verifyAwake() {
	r := s.rig
	r.T.Helper()
	rows, err := r.DB.Query(r.T.Context(), "SELECT machine_id::text, fence, timestamp FROM work_history WHERE phase = 1")
	if err != nil {
		r.T.Fatal(err)
	}
	ended := map[fenced]int64{}
	var work fenced
	var at time.Time
	if _, err := pgx.ForEachRow(rows, []any{&work.machine, &work.fence, &at}, func() error {
		ended[work] = at.UnixNano()
		return nil
	}); err != nil {
		r.T.Fatal(err)
	}
	for _, n := range s.naps {
		for _, t := range r.witness.Touches() {
			over, ok := ended[workOf(&t)]
			if t.PID != n.process.Pid() || t.Kind != witnessed.Step || t.At < n.awake || !ok || over > n.awake {
				continue
			}
			if t.Answered > n.awake {
				r.T.Errorf("%s slept at %s, and when it woke it began a step with a work that it had lost: %+v", n.pod.Name, n.place, t)
				continue
			}
			run.tally.add(r.fault, "steps that were under way when the pod fell asleep", 1)
		}
	}
}
