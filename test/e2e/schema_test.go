// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb/migrations"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestSchemaOutgrowsAPod: a newer version says, while a pod works, that it migrates to what the pod cannot stand. The work goes on to its end; a pod
// that needs another session gets none, says so and is not ready, until that is taken back.
func TestSchemaOutgrowsAPod(t *testing.T) {
	t.Parallel()
	l := newLab(t, testbed.Options{})
	o := l.Start("operator-a")
	l.Create(l.Simulated("sim", testbed.Latency(workTakes)))
	l.CreateFleet("sim", testbed.Names("sim", 2)...)
	l.Create(l.Claim("before", "sim-000"))
	l.AwaitCount("work has begun", 1, testbed.CountOpen, "before")
	says := func(oldest int) {
		t.Helper()
		if _, err := l.DB.Exec(t.Context(), "UPDATE schema_compatibility SET oldest = $1", oldest); err != nil {
			t.Fatal(err)
		}
	}
	says(migrations.Latest + 1)
	if out, err := l.Run(l.Database, "migrate"); err == nil || !strings.Contains(out, "too new") {
		t.Errorf("the migration of the old version: %v\n%s", err, out)
	}
	l.AwaitClaim("before", v1alpha1.ReasonComplete)
	if err := o.Ready(t.Context()); err != nil {
		t.Errorf("the living session is not ready any more: %v", err)
	}

	if _, err := l.DB.Exec(t.Context(), "UPDATE session_leases SET deadline = clock_timestamp() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	l.Create(l.Claim("after", "sim-001"))
	l.Eventually(testbed.Patience, "the pod is not ready, and says why", func(ctx context.Context) error {
		if o.Ready(ctx) == nil {
			return errors.New("it is ready")
		}
		said, _ := o.Logged(0, func(e testbed.LogEntry) bool {
			return strings.Contains(e.Text("msg"), "newer version") && strings.Contains(e.Text("err"), "schema is too new")
		})
		if len(said) < 2 { // it is tried again
			return errors.New("it does not say so")
		}
		return nil
	})
	l.Always(2*time.Second, "the pod starts nothing, and does not end", func(ctx context.Context) error {
		if !o.Running() {
			return o.Process.Err()
		}
		if n, err := l.Number(ctx, "SELECT count(*) FROM work_history WHERE claim_key = 'after'"); err != nil || n > 0 {
			return errors.Join(err, errors.New("it works"))
		}
		return nil
	})
	says(migrations.Latest)
	l.AwaitClaim("after", v1alpha1.ReasonComplete)
	l.Eventually(testbed.Patience, "the pod is ready again", o.Ready)
	if n := l.Count("SELECT count(*) FROM work_history WHERE phase = 1 AND event <> 'Finished'"); n > 0 {
		t.Errorf("%d works were disturbed", n)
	}
}
