// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/witnessed"
	"github.com/bmdb-dev/bmdb-operator/test/faults/bmc"
)

// peace is how long everything may take to come to its end after the last fault.
const peace = 2 * time.Minute

// verify waits, after the last fault, until everything has come to its own end, and checks all that was promised: the invariants,
// meanwhile and now, the statuses, what the witness has seen, and that what happened to each lock is what happens to a lock.
func (r *rig) verify() {
	r.T.Helper()
	quiet := time.Now()
	r.awaitEnds("all claims have ended")
	r.T.Logf("all claims had ended %s after the last fault", time.Since(quiet).Round(time.Millisecond))
	r.stopWatching()
	r.Eventually(testbed.Patience, "nothing is held any more", func(ctx context.Context) error {
		return r.Broken(ctx, slices.Concat(r.rules, testbed.RulesAtRest()))
	})
	r.VerifyStatuses()
	r.verifyWitness()
	r.verifyHistory()
	run.tally.add(r.fault, "claims that came to their end", int64(r.Count("SELECT count(*) FROM claims")))
	// The rules at rest say whether it was so.
	run.tally.add(r.fault, "of these, failed as a machine did, or was lost ten times", int64(r.Count("SELECT count(*) FROM claims WHERE state = 'Failed'")))
	if n := r.Count("SELECT count(*) FROM claims WHERE state = 'Complete'"); n == 0 {
		r.T.Error("no claim is complete")
	}
	for _, event := range []string{"Finished", "Failed", "Lost", "Released", "Canceled"} {
		run.tally.add(r.fault, "works that ended "+event, int64(r.Count("SELECT count(*) FROM work_history WHERE event = $1", event)))
	}
}

// notOver is what is known of claims that are not over, and of the works that hold machines for them.
const notOver = `
SELECT c.claim_key, c.state, c.reason, c.message, COALESCE(o.session_runtime_info, 'nobody') AS owner, o.session_ended_at AS owner_ended, c.owner_epoch AS epoch,
	c.active, c.succeeded, c.skipped, c.failed, c.completions, i.name AS machine, w.fence, w.step, s.session_runtime_info AS worker, w.started_at, s.session_ended_at AS worker_ended
FROM claims c LEFT JOIN sessions o ON o.session_id = c.owner_session
LEFT JOIN work w ON w.pool = c.pool AND w.claim_key = c.claim_key AND w.work_id IS NOT NULL
LEFT JOIN machine_identities i ON i.machine_id = w.machine_id LEFT JOIN sessions s ON s.session_id = w.session_id
WHERE c.state NOT IN ('Complete', 'Failed') ORDER BY c.claim_key, i.name LIMIT 30`

// awaitEnds waits until all claims have come to their own end, and says where those are that do not (I8).
func (r *rig) awaitEnds(what string) {
	r.T.Helper()
	r.Eventually(peace, what, func(ctx context.Context) error {
		n, err := r.Number(ctx, "SELECT count(*) FROM claims WHERE state NOT IN ('Complete', 'Failed')")
		if err == nil && n > 0 {
			err = fmt.Errorf("%d have not (I8)", n)
		}
		return err
	})
}

// fenced names a work by what both the history and the machine know of it.
type fenced struct {
	machine string
	fence   int64
}

func workOf(t *bmc.Touch) fenced { return fenced{t.Machine.String(), t.Fence} }

// verifyWitness holds what the machines have seen against the history: nothing is done to a machine after it was finished, and nothing that no
// work was for.
func (r *rig) verifyWitness() {
	r.T.Helper()
	rows, err := r.DB.Query(r.T.Context(), `SELECT s.machine_id::text, s.fence, COALESCE(e.event, '') FROM work_history s
		LEFT JOIN work_history e ON e.machine_id = s.machine_id AND e.work_id = s.work_id AND e.phase = 1 WHERE s.phase = 0`)
	if err != nil {
		r.T.Fatal(err)
	}
	ends, finished := map[fenced]string{}, map[string]int64{}
	var work fenced
	var event string
	if _, err := pgx.ForEachRow(rows, []any{&work.machine, &work.fence, &event}, func() error {
		ends[work] = event
		if event == "Finished" {
			finished[work.machine] = work.fence
		}
		return nil
	}); err != nil {
		r.T.Fatal(err)
	}
	refused, good := 0, map[fenced]bool{}
	for _, t := range r.witness.Touches() {
		w := workOf(&t)
		end, known := ends[w]
		switch last := finished[w.machine]; {
		case !known:
			r.T.Errorf("machine %s was touched by a work that never started: %+v", t.Name, t)
		case last > 0 && t.Fence > last:
			r.T.Errorf("machine %s was touched after it was finished by the work with fence %d: %+v", t.Name, last, t)
		case t.Kind == witnessed.End && t.Error == "":
			good[w] = true
		case t.Kind == witnessed.End && end == "Finished":
			r.T.Errorf("machine %s: a work that did not succeed was committed as finished: %+v", t.Name, t)
		}
		if t.Refused {
			refused++
		}
	}
	for w, end := range ends {
		if end == "Finished" && !good[w] {
			r.T.Errorf("machine %s was finished by the work with fence %d, of which the witness knows no good end", w.machine, w.fence)
		}
	}
	run.tally.add(r.fault, "touches that the witness saw", int64(len(r.witness.Touches())))
	run.tally.add(r.fault, "stale touches that it refused", int64(refused))
}

// writeJSON leaves something in the directory of a failing test.
func (r *rig) writeJSON(name string, v any) {
	r.T.Helper()
	path, err := r.dirOf(name)
	if err != nil {
		r.T.Log(err)
		return
	}
	text, err := json.MarshalIndent(v, "", " ")
	if err == nil {
		err = os.WriteFile(path, text, 0o644)
	}
	if err != nil {
		r.T.Logf("write %s: %v", path, err)
	}
}
