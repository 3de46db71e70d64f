// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// until returns a behaviour that goes on until release is closed.
func until(release <-chan struct{}) behaviour {
	return func(ctx context.Context, m provider.Machine, _ provider.Steps) (provider.Agent, error) {
		select {
		case <-release:
			return agentOf(m), nil
		case <-ctx.Done():
			return provider.Agent{}, provider.ContextError(ctx, "wait")
		}
	}
}

// TestLostClaimIsFreed: a pod that loses a claim in mid-work, which nobody takes up, frees its object when its work has ended, and not before.
// It does so in the name of the term that is over.
func TestLostClaimIsFreed(t *testing.T) {
	l := newLab(t, 4, "m")
	release := make(chan struct{})
	l.on("m", until(release))
	l.serve()
	l.claim("start", func(c *bmdb.ClaimSpec) { c.Mode, c.Completions = bmdb.ModeContinuous, nil }, "m")
	l.eventually("the machine is held", func() error {
		if !l.engine.Holds(pool, "start") {
			return errors.New("it is not")
		}
		return nil
	})
	// No pod of this cluster can carry it out any more.
	l.attach("start", false, func(c *bmdb.ClaimSpec) { c.Mode, c.Completions = bmdb.ModeContinuous, nil }, "m")
	l.eventually("the claim is left", func() error {
		l.engine.Wake(pool, "start")
		if owns, _ := l.engine.Owns(pool, "start"); owns {
			return errors.New("it is not")
		}
		return nil
	})
	if n := l.count(l.idled, "start"); n != 0 {
		t.Errorf("freed %d times while a machine is held", n)
	}
	close(release)
	l.eventually("the claim's object is freed", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.terms) != 1 || l.terms[0].Epoch != 1 || !l.terms[0].Admitted {
			return fmt.Errorf("freed for %+v", l.terms)
		}
		return nil
	})
	l.settled()
}

// TestRaisedParallelism of a claim that works on as many machines as it might counts at once.
func TestRaisedParallelism(t *testing.T) {
	machines := ids(3, "m")
	l := newLab(t, 8, machines...)
	release := make(chan struct{})
	for _, m := range machines {
		l.on(m, until(release))
	}
	l.serve()
	parallelism := func(n int64) func(c *bmdb.ClaimSpec) { return func(c *bmdb.ClaimSpec) { c.Parallelism = n } }
	active := func(want int64) func() error {
		return func() error {
			if n := l.snapshot("start").Active; n != want {
				return fmt.Errorf("%d active", n)
			}
			return nil
		}
	}
	l.claim("start", parallelism(1), machines...)
	l.eventually("one machine is worked on", active(1))
	l.attach("start", true, parallelism(3), machines...)
	l.engine.Wake(pool, "start") // as the controller does that told the database
	l.eventually("all machines are worked on", active(3))
	close(release)
	l.await("start", bmdb.ClaimComplete, bmdb.OutlookComplete)
}

// TestFreedClaimIsLeftAlone: the object of a claim that waits for long is freed once, and not admitted again before there is something to start.
func TestFreedClaimIsLeftAlone(t *testing.T) {
	l := newLab(t, 4, "m")
	l.serve()
	l.claim("start", func(c *bmdb.ClaimSpec) { c.Mode, c.Completions = bmdb.ModeContinuous, nil }, "m")
	l.eventually("the claim is idle", func() error {
		if l.count(l.idled, "start") == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	admitted, opened := l.count(l.admitted, "start"), l.opens()
	l.eventually("it has looked again, several times", func() error {
		l.engine.Wake(pool, "start")
		if n := l.opens() - opened; n < 5 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	if a, i := l.count(l.admitted, "start"), l.count(l.idled, "start"); a != admitted || i != 1 {
		t.Errorf("admitted %d times instead of %d, and freed %d times", a, admitted, i)
	}
}

// opens is how often a turn has opened a driver.
func (l *lab) opens() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.opened
}
