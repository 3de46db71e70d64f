// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// hang goes on until its context is done, as a good driver does.
func hang(ctx context.Context, _ provider.Machine, _ provider.Steps) (provider.Agent, error) {
	<-ctx.Done()
	return provider.Agent{}, provider.ContextError(ctx, "wait")
}

func TestClaimIsCarriedOut(t *testing.T) {
	machines := ids(12, "m")
	l := newLab(t, 4, machines...)
	l.serve()
	l.claim("start", nil, machines...)
	s := l.await("start", bmdb.ClaimComplete, bmdb.OutlookComplete)
	if s.Succeeded != 12 || s.Active != 0 {
		t.Errorf("%d succeeded, %d active", s.Succeeded, s.Active)
	}
	for _, m := range machines {
		if h := l.history(m); h != "Started Finished" {
			t.Errorf("history of %s is %s", m, h)
		}
	}
	l.settled()
	if l.mostUsed > 4 {
		t.Errorf("%d workers at once, in a pool of 4", l.mostUsed)
	}
	if l.count(l.admitted, "start") == 0 {
		t.Error("the claim's object was not asked for")
	}
	if l.count(l.changed, "start") == 0 {
		t.Error("no step was shown")
	}
}

func TestFailureIsRecordedAndTriedAgain(t *testing.T) {
	l := newLab(t, 4, "m")
	l.on("m", func(_ context.Context, m provider.Machine, _ provider.Steps) (provider.Agent, error) {
		if m.Attempt == 1 {
			return provider.Agent{}, &provider.Error{Reason: provider.ReasonUnreachable, Message: "no answer"}
		}
		return agentOf(m), nil
	})
	l.serve()
	l.claim("start", nil, "m")
	l.eventually("the cause is shown", func() error {
		if f := l.snapshot("start").Failures; len(f) != 1 || f[0].Cause != "Unreachable: no answer" {
			return fmt.Errorf("failures are %+v", f)
		}
		return nil
	})
	l.await("start", bmdb.ClaimComplete, bmdb.OutlookComplete)
	if h := l.history("m"); h != "Started Failed Started Finished" {
		t.Errorf("history is %s", h)
	}
}

func TestPanicFailsTheWorkAlone(t *testing.T) {
	l := newLab(t, 4, "bad", "good")
	l.on("bad", func(context.Context, provider.Machine, provider.Steps) (provider.Agent, error) { panic("out of range") })
	l.serve()
	l.claim("start", func(c *bmdb.ClaimSpec) { c.MaxAttempts = 1 }, "bad", "good")
	s := l.await("start", bmdb.ClaimFailed, bmdb.OutlookCompletionsUnreachable)
	if s.Succeeded != 1 || !strings.HasPrefix(s.Failures[0].Cause, "WorkerPanicked: ") {
		t.Errorf("%d succeeded, failures %+v", s.Succeeded, s.Failures)
	}
	l.settled()
}

func TestTimeoutFailsWithItsCause(t *testing.T) {
	l := newLab(t, 4, "m")
	l.on("m", hang)
	l.serve()
	l.claim("start", func(c *bmdb.ClaimSpec) { c.MaxAttempts, c.TimeoutSeconds = 1, 1 }, "m")
	s := l.await("start", bmdb.ClaimFailed, bmdb.OutlookCompletionsUnreachable)
	if want := "TimedOut: work took longer than 1s"; !strings.HasPrefix(s.Failures[0].Cause, want) {
		t.Errorf("cause is %q, want %q", s.Failures[0].Cause, want)
	}
}

// TestStuckWorker: a worker that ignores its context loses its work only after the grace, and the machine is then left alone for a lease.
func TestStuckWorker(t *testing.T) {
	l := newLab(t, 4, "m")
	release, began := make(chan struct{}), make(chan time.Time, 1)
	l.on("m", func(ctx context.Context, _ provider.Machine, _ provider.Steps) (provider.Agent, error) {
		<-ctx.Done()
		began <- time.Now()
		<-release
		return provider.Agent{}, errors.New("too late")
	})
	l.serve()
	l.claim("start", func(c *bmdb.ClaimSpec) { c.TimeoutSeconds = 1 }, "m")
	cancelled := <-began
	if h := l.history("m"); h != "Started" {
		t.Errorf("history within the grace is %q", h)
	}
	l.eventually("the work has failed", func() error {
		if f := l.snapshot("start").Failures; len(f) == 0 || !strings.HasPrefix(f[0].Cause, "WorkerStuck: ") {
			return fmt.Errorf("failures are %+v", f)
		}
		return nil
	})
	if took := time.Since(cancelled); took < 300*time.Millisecond {
		t.Errorf("work ended %s after its context, before the grace", took)
	}
	id, err := l.conn.MachineByName(t.Context(), pool, "m")
	if err != nil {
		t.Fatal(err)
	}
	target, err := l.conn.Explain(t.Context(), id, "AgentStart")
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(target.Until); target.Reason != "BackedOff" || left < lease-2*time.Second {
		t.Errorf("the machine is left alone for %s (%s), want about a lease", left, target.Reason)
	}
	if l.stuck != 1 {
		t.Errorf("%d workers were counted as stuck", l.stuck)
	}
	close(release)
}

// A claim whose machines hang keeps the places that it has, and gets no further one before those that have fewer.
func TestPlaceGoesToWhoHasFewest(t *testing.T) {
	slow, quick := ids(8, "s"), ids(12, "q")
	l := newLab(t, 4, append(slow, quick...)...)
	release := make(chan struct{})
	for _, m := range slow {
		l.on(m, until(release))
	}
	l.serve()
	waits := func(key string) {
		t.Helper()
		l.eventually(key+" waits for a place", func() error {
			if owns, wait := l.engine.Owns(pool, key); !owns || wait.Limit != 4 {
				return fmt.Errorf("owns %v, waits %+v", owns, wait)
			}
			return nil
		})
	}
	l.claim("slow", nil, slow...)
	waits("slow")
	l.claim("quick", nil, quick...)
	waits("quick")
	release <- struct{}{}
	l.await("quick", bmdb.ClaimComplete, bmdb.OutlookComplete)
	if n := l.snapshot("slow").Succeeded; n != 1 {
		t.Errorf("%d of the slow machines are done", n)
	}
	close(release)
	l.await("slow", bmdb.ClaimComplete, bmdb.OutlookComplete)
	l.settled()
}

// TestPoolIsShared: a claim that finds the pool full says so, and has its turn as soon as there is a place.
func TestPoolIsShared(t *testing.T) {
	l := newLab(t, 2, "a1", "a2", "b1")
	release := make(chan struct{})
	wait := func(ctx context.Context, m provider.Machine, _ provider.Steps) (provider.Agent, error) {
		select {
		case <-release:
			return agentOf(m), nil
		case <-ctx.Done():
			return provider.Agent{}, provider.ContextError(ctx, "wait")
		}
	}
	l.on("a1", wait)
	l.on("a2", wait)
	l.serve()
	l.claim("a", nil, "a1", "a2")
	l.eventually("the pool is full", func() error {
		if n := l.snapshot("a").Active; n != 2 {
			return fmt.Errorf("%d active", n)
		}
		return nil
	})
	l.claim("b", nil, "b1")
	l.eventually("the second claim waits for a place", func() error {
		if owns, wait := l.engine.Owns(pool, "b"); !owns || wait.Limit != 2 {
			return fmt.Errorf("owns %v, waits %+v", owns, wait)
		}
		return nil
	})
	close(release)
	l.await("b", bmdb.ClaimComplete, bmdb.OutlookComplete)
	l.await("a", bmdb.ClaimComplete, bmdb.OutlookComplete)
	l.settled()
}

func TestDeletedClaimCancelsItsWork(t *testing.T) {
	l := newLab(t, 4, "m")
	l.on("m", hang)
	l.serve()
	l.claim("start", nil, "m")
	l.eventually("the machine is held", func() error {
		if !l.engine.Holds(pool, "start") {
			return errors.New("it is not")
		}
		return nil
	})
	remaining, err := l.conn.DetachClaim(t.Context(), bmdb.View{UID: "start", Name: "start"}, pool, "start")
	if err != nil || remaining != 1 {
		t.Fatalf("%d remain: %v", remaining, err)
	}
	l.engine.CancelClaim(pool, "start")
	l.eventually("the work is cancelled", func() error {
		if h := l.history("m"); h != "Started Canceled" {
			return fmt.Errorf("history is %s", h)
		}
		return nil
	})
	l.settled()
}

// TestCancelClaim: the work for a claim is cancelled by the call itself. Of a claim that is deleted the next beat of the session would find
// out too; this one is not, so it is due again.
func TestCancelClaim(t *testing.T) {
	l := newLab(t, 4, "m")
	var starts atomic.Int64
	l.on("m", func(ctx context.Context, m provider.Machine, s provider.Steps) (provider.Agent, error) {
		if starts.Add(1) == 1 {
			return hang(ctx, m, s)
		}
		return agentOf(m), nil
	})
	l.serve()
	l.claim("start", nil, "m")
	l.eventually("the machine is worked on", func() error {
		if starts.Load() == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	l.engine.CancelClaim(pool, "another")
	if h := l.history("m"); h != "Started" {
		t.Errorf("history is %s", h)
	}
	l.engine.CancelClaim(pool, "start")
	l.await("start", bmdb.ClaimComplete, bmdb.OutlookComplete)
	if h := l.history("m"); h != "Started Canceled Started Finished" {
		t.Errorf("history is %s", h)
	}
	l.eventually("the end is told", func() error {
		if n := l.count(l.over, "start"); n != 1 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	l.settled()
}

// TestEndOfThePod: works are cancelled and not failed, and another pod goes on at once.
func TestEndOfThePod(t *testing.T) {
	l := newLab(t, 4, "m")
	l.on("m", hang)
	stop := l.serve()
	l.claim("start", nil, "m")
	l.eventually("the machine is held", func() error {
		if !l.engine.Holds(pool, "start") {
			return errors.New("it is not")
		}
		return nil
	})
	stop()
	if h := l.history("m"); h != "Started Canceled" {
		t.Errorf("history is %s", h)
	}
	l.on("m", nil)
	l.serve()
	l.await("start", bmdb.ClaimComplete, bmdb.OutlookComplete)
	if h := l.history("m"); h != "Started Canceled Started Finished" {
		t.Errorf("history is %s", h)
	}
}

// TestProviderThatIsNotReady: nothing is locked, and the provider is looked at.
func TestProviderThatIsNotReady(t *testing.T) {
	l := newLab(t, 4, "m")
	l.notReady["lab"] = true
	l.serve()
	l.claim("start", func(c *bmdb.ClaimSpec) { c.Provider = "lab" }, "m")
	l.eventually("the provider's failure is told", func() error {
		if l.count(l.failed, "lab") < 2 {
			return errors.New("it is not")
		}
		return nil
	})
	if h := l.history("m"); h != "" {
		t.Errorf("history is %s", h)
	}
	l.mu.Lock()
	l.notReady["lab"] = false
	l.mu.Unlock()
	l.await("start", bmdb.ClaimComplete, bmdb.OutlookComplete)
}

// TestOneOfTwoProviders: a claim over machines of several providers goes on with those that are ready, locks nothing of the others, and
// says what it waits for.
func TestOneOfTwoProviders(t *testing.T) {
	l := newLab(t, 4, "m", "other")
	l.notReady["other"] = true
	l.serve()
	l.claim("start", func(c *bmdb.ClaimSpec) { c.MaxAttempts = 1 }, "m", "other")
	s := l.await("start", bmdb.ClaimRunning, bmdb.OutlookProviderNotReady)
	if s.Succeeded != 1 || len(s.Failures) != 0 || s.Message != "1 machine ready, but provider other is not" {
		t.Errorf("%d succeeded, failures %+v, message %q", s.Succeeded, s.Failures, s.Message)
	}
	if h := l.history("other"); h != "" {
		t.Errorf("history of a machine that cannot be reached is %s", h)
	}
	l.mu.Lock()
	l.notReady["other"] = false
	l.mu.Unlock()
	l.await("start", bmdb.ClaimComplete, bmdb.OutlookComplete)
}

// TestIdleClaim: a claim for which nothing can be started for a while does not hold its object.
func TestIdleClaim(t *testing.T) {
	l := newLab(t, 4, "m")
	l.serve()
	l.claim("start", func(c *bmdb.ClaimSpec) { c.Mode, c.Completions = bmdb.ModeContinuous, nil }, "m")
	l.eventually("the claim is idle", func() error {
		if s := l.snapshot("start"); s.Succeeded != 1 || l.count(l.idled, "start") == 0 {
			return fmt.Errorf("%d succeeded, idle %d times", s.Succeeded, l.count(l.idled, "start"))
		}
		return nil
	})
}

func TestObjectsThatAreGone(t *testing.T) {
	l := newLab(t, 4, "m", "lost")
	l.gone["start"], l.gone["lost"] = true, true
	l.serve()
	l.claim("start", nil, "m")
	l.claim("other", nil, "lost")
	l.eventually("the other machine was tried", func() error {
		if h := l.history("lost"); !strings.HasPrefix(h, "Started Canceled") {
			return fmt.Errorf("history is %s", h)
		}
		return nil
	})
	if h := l.history("m"); h != "" {
		t.Errorf("a claim without an object was carried out: %s", h)
	}
}

// TestUnreadable: while the operator cannot read what work needs, it does not start and cancel over and over. No attempt is used up, and it
// goes on when it can.
func TestUnreadable(t *testing.T) {
	machines := ids(3, "m")
	l := newLab(t, 4, machines...)
	l.mu.Lock()
	l.unreadable = errors.New("the API server does not answer")
	l.mu.Unlock()
	l.serve()
	l.claim("start", func(c *bmdb.ClaimSpec) { c.MaxAttempts = 1 }, machines...)
	l.eventually("the cause is told", func() error {
		if _, wait := l.engine.Owns(pool, "start"); wait.Cause != "the API server does not answer" || l.count(l.changed, "start") == 0 {
			return fmt.Errorf("waits %+v", wait)
		}
		return nil
	})
	l.eventually("it was tried again, several times", func() error {
		if n := l.reads(); n < 3*len(machines) {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	for _, m := range machines {
		at := l.attempts(m)
		for i := 1; i < len(at); i++ {
			if wait := at[i].Sub(at[i-1]); wait < 400*time.Millisecond {
				t.Errorf("%s was tried again after %s", m, wait)
			}
		}
	}
	l.mu.Lock()
	l.unreadable = nil
	l.mu.Unlock()
	if s := l.await("start", bmdb.ClaimComplete, bmdb.OutlookComplete); s.Succeeded != 3 {
		t.Errorf("%d succeeded", s.Succeeded)
	}
	if _, wait := l.engine.Owns(pool, "start"); wait.Cause != "" {
		t.Errorf("waits %+v at the end", wait)
	}
}
