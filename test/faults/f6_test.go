// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestF6 takes the API server away, and answers with conflicts, timeouts and what is out of date when it is there. What runs goes on without
// it, its results are committed, and the statuses follow when it is back.
func TestF6(t *testing.T) {
	t.Parallel()
	run.spare.Lock() // its own API server, which nobody else needs
	defer run.spare.Unlock()
	r := newRig(t, "F6", rigOptions{Options: testbed.Options{Plane: sparePlane(t)}, pods: 2})
	api := r.newAPIProxy()
	r.start()
	r.fleet(pick(500*time.Millisecond, 2*time.Second), 0)
	r.watchRules()
	api.turn(true)
	work := r.feed(24)
	for _, what := range []string{"writes answered with a conflict", "writes answered with a timeout", "writes whose answer was lost", "watches held up"} {
		r.Eventually(testbed.Patience, what, func(context.Context) error {
			if n := run.tally.of(r.fault, what); n < pick[int64](3, 50) {
				return fmt.Errorf("%d times", n)
			}
			return nil
		})
	}
	for range pick(1, 3) {
		r.withoutAPI(pick(8*time.Second, time.Minute))
	}
	work.stop()
	api.turn(false)
	for _, p := range r.pods {
		if err := p.process.Load().Err(); err != nil {
			t.Errorf("%s has ended: %v", p.Name, err)
		}
	}
	r.awaitReady()
	r.verify()
	r.verifyAcknowledged()
	r.require("API server gone", "works that ended without it", "works whose end was acknowledged")
}

// begun are the works whose machines have been touched. One that was only started needs to know how its machine is reached, from a cache that may be
// behind, or from the API server; it is cancelled where it cannot.
func (r *rig) begun(ctx context.Context) (works []string, err error) {
	touched := map[fenced]bool{}
	for _, t := range r.witness.Touches() {
		touched[workOf(&t)] = true
	}
	rows, err := r.DB.Query(ctx, "SELECT machine_id::text, fence, work_id::text FROM work WHERE work_id IS NOT NULL")
	if err != nil {
		return nil, fmt.Errorf("read works: %w", err)
	}
	var work fenced
	var id string
	_, err = pgx.ForEachRow(rows, []any{&work.machine, &work.fence, &id}, func() error {
		if touched[work] {
			works = append(works, id)
		}
		return nil
	})
	return works, err
}

// withoutAPI takes the API server away for a time. What was under way then ends as it should meanwhile.
func (r *rig) withoutAPI(during time.Duration) {
	r.T.Helper()
	r.Eventually(testbed.Patience, "machines are worked on", func(ctx context.Context) error {
		works, err := r.begun(ctx)
		if err == nil && len(works) == 0 {
			err = errors.New("none is")
		}
		return err
	})
	if err := r.Plane.KillAPIServer(); err != nil {
		r.T.Fatal(err)
	}
	over := time.Now().Add(during)
	r.struck("API server gone")
	works, err := r.begun(r.T.Context())
	if err != nil {
		r.T.Fatal(err)
	}
	r.Eventually(testbed.Patience, "what was under way ends without an API server", func(ctx context.Context) error {
		n, err := r.Number(ctx, "SELECT count(*) FROM work_history WHERE phase = 1 AND work_id::text = ANY($1)", works)
		if err == nil && n != len(works) {
			err = fmt.Errorf("%d of %d have", n, len(works))
		}
		return err
	})
	if n := r.Count("SELECT count(*) FROM work_history WHERE phase = 1 AND event <> 'Finished' AND work_id::text = ANY($1)", works); n > 0 {
		r.T.Errorf("%d of %d works that were under way were not finished: %s", n, len(works),
			r.Table(r.T.Context(), "SELECT machine_id, event, failed_cause FROM work_history WHERE phase = 1 AND event <> 'Finished' AND work_id::text = ANY($1)", works))
	}
	run.tally.add(r.fault, "works that ended without it", int64(len(works)))
	r.during(time.Until(over))
	ctx, cancel := context.WithTimeout(r.T.Context(), testbed.Patience)
	defer cancel()
	if err := r.Plane.StartAPIServer(ctx); err != nil {
		r.T.Fatal(err)
	}
}
