// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

const (
	// idleStatements is what a pod with nothing to do may send to the database in a second, all in all.
	idleStatements = 2
	idleFor        = time.Minute
)

// TestIdlePod counts what a pod that has nothing to do sends to the database: what it looks for there once a second is one statement, and what must go
// on beside it, its lease above all, adds less than another. It reacts as fast as before for all that.
func TestIdlePod(t *testing.T) {
	t.Parallel()
	l := newLab(t, testbed.Options{})
	w := newWire(t, l.Database)
	o := l.Operator("operator-a")
	o.Env = environWith(o.Env, w.url)
	o.Start()
	l.Create(l.Simulated("sim", v1alpha1.SimulatedProvider{}))
	l.CreateFleet("sim", testbed.Names("sim", 20)...)
	l.Create(l.Claim("before", testbed.Names("sim", 10)...))
	l.AwaitClaim("before", v1alpha1.ReasonComplete)
	const pause = 5 * time.Second
	l.Eventually(testbed.Patience, "the pod has done all that there was to do", func(ctx context.Context) error {
		return l.none(ctx, `SELECT (SELECT count(*) FROM projection WHERE rev <> done_rev AND done_rev < rev) + (SELECT count(*) FROM processes WHERE fill_pass > 0)
			+ (SELECT count(*) FROM machine_state WHERE rev <> spread_rev) + (SELECT count(*) FROM claims WHERE rev <> spread_rev)`)
	})
	within(t, pause)

	w.take()
	within(t, idleFor)
	n, list := sum(w.take())
	rate := float64(n) / idleFor.Seconds()
	t.Logf("%.2f statements/s:%s", rate, list)
	if rate > idleStatements {
		t.Errorf("an idle pod sends %.2f statements/s, want at most %d", rate, idleStatements)
	}
}

// within waits.
func within(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-t.Context().Done():
	case <-time.After(d):
	}
}

// none returns an error when a query that counts finds something.
func (l *lab) none(ctx context.Context, query string, args ...any) error {
	n, err := l.Number(ctx, query, args...)
	if err == nil && n != 0 {
		err = fmt.Errorf("there are %d", n)
	}
	return err
}
