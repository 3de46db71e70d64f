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
