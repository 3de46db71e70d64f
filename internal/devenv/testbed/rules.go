// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Rule is something that never happens: a query that finds where it did. It sees one moment.
type Rule struct{ What, Query string }

// Rules hold at any moment, whatever happens to operators.
func Rules() []Rule {
	return []Rule{
		{"two works hold one slot of a machine (I1)", `
			SELECT machine_id, slot, count(*) FROM work WHERE work_id IS NOT NULL GROUP BY 1, 2 HAVING count(*) > 1`},
		{"a work began before the one before it on the machine had ended (I1)", `
			SELECT a.machine_id, a.fence, a.event, b.fence, b.event FROM work_history a
			JOIN work_history b ON b.machine_id = a.machine_id AND b.fence > a.fence AND b.phase = 0
			LEFT JOIN work_history e ON e.machine_id = a.machine_id AND e.work_id = a.work_id AND e.phase = 1
			WHERE a.phase = 0 AND (e.work_id IS NULL OR e.timestamp > b.timestamp)`},
		{"two works of a machine have the same fence (I2)", `
			SELECT machine_id, fence, count(*) FROM work_history WHERE phase = 0 GROUP BY 1, 2 HAVING count(*) > 1`},
		{"a work holds a machine with another fence than its start says (I2)", `
			SELECT w.machine_id, w.fence, h.fence FROM work w LEFT JOIN work_history h ON h.machine_id = w.machine_id AND h.work_id = w.work_id AND h.phase = 0
			WHERE w.work_id IS NOT NULL AND w.fence IS DISTINCT FROM h.fence`},
		{"a work that holds a machine has ended (I3)", `
			SELECT w.machine_id, h.event FROM work w JOIN work_history h ON h.machine_id = w.machine_id AND h.work_id = w.work_id AND h.phase = 1`},
		{"a work that holds no machine has no end (I3)", `
			SELECT s.machine_id, s.work_id FROM work_history s WHERE s.phase = 0
			AND NOT EXISTS (SELECT 1 FROM work_history e WHERE e.machine_id = s.machine_id AND e.work_id = s.work_id AND e.phase = 1)
			AND NOT EXISTS (SELECT 1 FROM work w WHERE w.work_id = s.work_id)`},
		{"an end has no start (I3)", `
			SELECT e.machine_id, e.event FROM work_history e WHERE e.phase = 1
			AND NOT EXISTS (SELECT 1 FROM work_history s WHERE s.machine_id = e.machine_id AND s.work_id = e.work_id AND s.phase = 0)`},
		{"a claim's count of what goes on is not what goes on (I4)", `
			SELECT c.pool, c.claim_key, c.active, count(w.work_id) FROM claims c
			LEFT JOIN work w ON w.pool = c.pool AND w.claim_key = c.claim_key AND w.work_id IS NOT NULL
			GROUP BY 1, 2, 3 HAVING c.active <> count(w.work_id)`},
		{"a claim's counts are not what was done (I4)", `
			SELECT c.pool, c.claim_key, c.succeeded, c.failed, c.skipped, count(m.finished_work_id), count(m.quarantined_at), sum(CASE WHEN m.skipped THEN 1 ELSE 0 END)
			FROM claims c LEFT JOIN claim_machines m ON m.pool = c.pool AND m.claim_key = c.claim_key WHERE c.mode <> 'Continuous'
			GROUP BY c.pool, c.claim_key
			HAVING c.succeeded <> count(m.finished_work_id) OR c.failed <> count(m.quarantined_at) OR c.skipped <> COALESCE(sum(CASE WHEN m.skipped THEN 1 ELSE 0 END), 0)`},
		{"a machine was finished but does not have what that brings (I4)", `
			SELECT h.machine_id FROM work_history h WHERE h.event = 'Finished' AND h.process = 'AgentStart'
			AND NOT EXISTS (SELECT 1 FROM machine_agent_started a WHERE a.machine_id = h.machine_id)`},
		{"a machine was finished twice for a key (I6)", `
			SELECT h.machine_id, h.claim_key, count(*) FROM work_history h JOIN claims c ON c.pool = h.pool AND c.claim_key = h.claim_key
			WHERE h.event = 'Finished' AND c.mode <> 'Continuous' GROUP BY 1, 2 HAVING count(*) > 1`},
		{"the agent was started twice, though what forbids that was never taken back", `
			SELECT machine_id, count(*) FROM work_history WHERE event = 'Finished' AND process = 'AgentStart' GROUP BY 1 HAVING count(*) > 1`},
		{"more works than a claim's parallelism (I7)", `
			SELECT c.pool, c.claim_key, c.parallelism, count(*) FROM claims c
			JOIN work w ON w.pool = c.pool AND w.claim_key = c.claim_key AND w.work_id IS NOT NULL GROUP BY 1, 2, 3 HAVING count(*) > c.parallelism`},
		{"more works than a provider's limit (I7)", `
			SELECT l.limit_id, l.maximum, count(*) FROM limits l JOIN work w ON l.limit_id = 'provider/' || w.pool || '/' || w.provider AND w.work_id IS NOT NULL
			GROUP BY 1, 2 HAVING count(*) > l.maximum`},
	}
}

// RulesOfOneDatabase hold at any moment in a database whose rows are those that operators wrote: a copy that was written from a dump forgets
// which transaction wrote what.
func RulesOfOneDatabase() []Rule {
	return []Rule{
		{"a machine has what only the end of a finished work brings, and it was written by another transaction: by an end that was refused (I2, I4)", `
			SELECT a.machine_id, a.agent_started_at, h.timestamp FROM machine_agent_started a
			LEFT JOIN work_history h ON h.machine_id = a.machine_id AND h.event = 'Finished' AND h.process = 'AgentStart'
			WHERE h.xmin::text IS DISTINCT FROM a.xmin::text`},
	}
}

// RulesOfLimits hold at any moment while no limit is made or changed: a limit that is new counts what goes on, and that may end meanwhile.
func RulesOfLimits() []Rule {
	return []Rule{
		{"a slot of a limit is taken by a work that is over (I4)", `
			SELECT s.limit_id, s.n, h.machine_id, h.event FROM limit_slots s LEFT JOIN work_history h ON h.work_id = s.work_id AND h.phase = 1
			WHERE s.work_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM work w WHERE w.work_id = s.work_id)`},
		{"a work has no slot of the limit that it counts for (I7)", `
			SELECT w.machine_id, w.provider, w.claim_key FROM work w JOIN limits l ON l.limit_id = 'provider/' || w.pool || '/' || w.provider
			WHERE w.work_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM limit_slots s WHERE s.work_id = w.work_id)`},
	}
}

// RulesAtRest hold when all claims are over.
func RulesAtRest() []Rule {
	return []Rule{
		{"a work is still open", "SELECT machine_id, process, claim_key FROM work WHERE work_id IS NOT NULL"},
		{"a slot of a limit is not free", "SELECT limit_id, n, work_id FROM limit_slots WHERE work_id IS NOT NULL"},
		{"a claim is complete without what it was to do, or not complete with it", `
			SELECT claim_key, state, succeeded, skipped, completions FROM claims
			WHERE mode = 'Once' AND (state = 'Complete') <> (succeeded + skipped >= completions)`},
		{"a claim failed without a machine that used up its attempts, or was lost too often", `
			SELECT c.claim_key, c.reason FROM claims c WHERE c.state = 'Failed' AND NOT EXISTS (
				SELECT 1 FROM claim_machines m WHERE m.pool = c.pool AND m.claim_key = c.claim_key AND m.quarantined_at IS NOT NULL
				AND (m.attempts >= c.max_attempts OR m.losses >= 10))`},
		{"a machine was tried more often than it may be", `
			SELECT h.claim_key, h.machine_id, count(*) FROM work_history h JOIN claims c ON c.pool = h.pool AND c.claim_key = h.claim_key
			WHERE h.event = 'Failed' GROUP BY 1, 2, c.max_attempts HAVING count(*) > c.max_attempts`},
	}
}

// BrokenError says that a rule is broken.
type BrokenError struct {
	// What must never happen, and where it did.
	What, Found string
	// Times is how often it did.
	Times int
}

func (e *BrokenError) Error() string {
	return fmt.Sprintf("%s: %d times, as in %s", e.What, e.Times, e.Found)
}

// Broken returns an error that shows where rules are broken, a *BrokenError for each; any other error is one of the database. It is safe for concurrent use.
func (l *Lab) Broken(ctx context.Context, rules []Rule) error {
	var errs []error
	for _, r := range rules {
		rows, err := l.DB.Query(ctx, r.Query)
		if err != nil {
			return fmt.Errorf("ask whether %s: %w", r.What, err)
		}
		var found []string
		for rows.Next() {
			values, err := rows.Values()
			if err != nil {
				rows.Close()
				return fmt.Errorf("ask whether %s: %w", r.What, err)
			}
			for i, v := range values {
				if id, ok := v.([16]byte); ok {
					values[i] = uuid.UUID(id)
				}
			}
			found = append(found, fmt.Sprint(values))
		}
		if err := rows.Err(); err != nil {
			return fmt.Errorf("ask whether %s: %w", r.What, err)
		}
		if len(found) > 0 {
			errs = append(errs, &BrokenError{What: r.What, Found: strings.Join(found[:min(len(found), 3)], " "), Times: len(found)})
		}
	}
	return errors.Join(errs...)
}

// watchInterval is between two looks at the rules. Most of them look at the whole history, so that a moment that was missed is seen later.
const watchInterval = time.Second / 2

// Watch asks for broken rules again and again until the returned function is called, which fails the test for all that was found.
func (l *Lab) Watch(rules []Rule) (stop func()) {
	ctx, cancel := context.WithCancel(l.T.Context())
	done := make(chan struct{})
	var looks int
	var errs []error
	go func() {
		defer close(done)
		ticker := time.NewTicker(watchInterval)
		defer ticker.Stop()
		for ctx.Err() == nil {
			if err := l.Broken(ctx, rules); err != nil && ctx.Err() == nil {
				errs = append(errs, fmt.Errorf("at %s: %w", time.Now().UTC().Format("15:04:05.000"), err))
			}
			looks++
			select {
			case <-ctx.Done():
			case <-ticker.C:
			}
		}
	}()
	return func() {
		l.T.Helper()
		cancel()
		<-done
		for _, err := range errs[:min(len(errs), 10)] {
			l.T.Error(err)
		}
		l.T.Logf("looked at the rules %d times while operators ran", looks)
	}
}
