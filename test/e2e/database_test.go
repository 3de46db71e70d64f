// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// rule is something that never happens: a query that finds where it did. It sees one moment.
type rule struct{ what, query string }

// rules hold at any moment, whatever happens to operators.
func rules() []rule {
	return []rule{
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

// rulesAtRest hold when all claims are over.
func rulesAtRest() []rule {
	return []rule{
		{"a work is still open", "SELECT machine_id, process, claim_key FROM work WHERE work_id IS NOT NULL"},
		{"a slot of a limit is not free", "SELECT limit_id, n, work_id FROM limit_slots WHERE work_id IS NOT NULL"},
		{"a claim is complete without what it was to do, or not complete with it", `
			SELECT claim_key, state, succeeded, skipped, completions FROM claims
			WHERE mode = 'Once' AND (state = 'Complete') <> (succeeded + skipped >= completions)`},
		{"a claim failed without a machine that used up its attempts", `
			SELECT c.claim_key, c.reason FROM claims c WHERE c.state = 'Failed' AND NOT EXISTS (
				SELECT 1 FROM claim_machines m WHERE m.pool = c.pool AND m.claim_key = c.claim_key AND m.quarantined_at IS NOT NULL AND m.attempts >= c.max_attempts)`},
		{"a machine was tried more often than it may be", `
			SELECT h.claim_key, h.machine_id, count(*) FROM work_history h JOIN claims c ON c.pool = h.pool AND c.claim_key = h.claim_key
			WHERE h.event = 'Failed' GROUP BY 1, 2, c.max_attempts HAVING count(*) > c.max_attempts`},
	}
}

// broken returns an error that shows where rules are broken. It is safe for concurrent use.
func (l *lab) broken(ctx context.Context, rules []rule) error {
	var errs []error
	for _, r := range rules {
		rows, err := l.db.Query(ctx, r.query)
		if err != nil {
			return fmt.Errorf("ask whether %s: %w", r.what, err)
		}
		var found []string
		for rows.Next() {
			values, err := rows.Values()
			if err != nil {
				rows.Close()
				return fmt.Errorf("ask whether %s: %w", r.what, err)
			}
			found = append(found, fmt.Sprint(values))
		}
		if err := rows.Err(); err != nil {
			return fmt.Errorf("ask whether %s: %w", r.what, err)
		}
		if len(found) > 0 {
			errs = append(errs, fmt.Errorf("%s: %d times, as in %s", r.what, len(found), strings.Join(found[:min(len(found), 3)], " ")))
		}
	}
	return errors.Join(errs...)
}

// watchInterval is between two looks at the rules. Most of them look at the whole history, so that a moment that was missed is seen later.
const watchInterval = time.Second / 2

// watch asks for broken rules again and again until the returned function is called, which fails the test for all that was found.
func (l *lab) watch(rules []rule) (stop func()) {
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan struct{})
	var looks int
	var errs []error
	go func() {
		defer close(done)
		ticker := time.NewTicker(watchInterval)
		defer ticker.Stop()
		for ctx.Err() == nil {
			if err := l.broken(ctx, rules); err != nil && ctx.Err() == nil {
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
		l.t.Helper()
		cancel()
		<-done
		for _, err := range errs[:min(len(errs), 10)] {
			l.t.Error(err)
		}
		l.t.Logf("looked at the rules %d times while operators ran", looks)
	}
}

// number returns the answer of a query that counts. It is safe for concurrent use.
func (l *lab) number(ctx context.Context, query string, args ...any) (int, error) {
	var n int
	if err := l.db.QueryRow(ctx, query, args...).Scan(&n); err != nil {
		return 0, fmt.Errorf("ask %q: %w", query, err)
	}
	return n, nil
}

// count is number for the test's goroutine.
func (l *lab) count(query string, args ...any) int {
	l.t.Helper()
	n, err := l.number(l.t.Context(), query, args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

// awaitCount waits until a query that counts has an answer.
func (l *lab) awaitCount(what string, want int, query string, args ...any) {
	l.t.Helper()
	l.eventually(patience, what, func(ctx context.Context) error {
		n, err := l.number(ctx, query, args...)
		if err == nil && n != want {
			err = fmt.Errorf("there are %d, want %d", n, want)
		}
		return err
	})
}

// awaitSome waits until a query that counts finds something.
func (l *lab) awaitSome(what, query string, args ...any) {
	l.t.Helper()
	l.eventually(patience, what, func(ctx context.Context) error { return l.some(ctx, query, args...) })
}

const (
	countOpen = "SELECT count(*) FROM work WHERE claim_key = $1 AND work_id IS NOT NULL"
	countOf   = "SELECT count(*) FROM work_history WHERE claim_key = $1 AND event = $2"
)

// event is a row of the history.
type event struct {
	Machine string // its name
	Event   string
	Fence   int64
	Pod     string // that the session is of
	At      time.Time
	Cause   string
}

// history returns what was done for a claim: by machine, in order.
func (l *lab) history(claim string) map[string][]event {
	l.t.Helper()
	rows, err := l.db.Query(l.t.Context(), `
		SELECT i.name, h.event, h.fence, s.session_runtime_info, h.timestamp, COALESCE(h.failed_cause, '')
		FROM work_history h JOIN machine_identities i ON i.machine_id = h.machine_id JOIN sessions s ON s.session_id = h.session_id
		WHERE h.claim_key = $1 ORDER BY i.name, h.fence, h.phase`, claim)
	if err != nil {
		l.t.Fatal(err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[event])
	if err != nil {
		l.t.Fatal(err)
	}
	history := map[string][]event{}
	for _, e := range events {
		history[e.Machine] = append(history[e.Machine], e)
	}
	return history
}

// eventNames are what happened, without the rest.
func eventNames(events []event) string {
	var list []string
	for _, e := range events {
		list = append(list, e.Event)
	}
	return strings.Join(list, " ")
}

// ownerOf returns the operator that owns a claim, of those given.
func (l *lab) ownerOf(claim string, operators ...*operator) (owner, other *operator) {
	l.t.Helper()
	l.eventually(patience, "claim "+claim+" is owned", func(ctx context.Context) error {
		var info string
		if err := l.db.QueryRow(ctx, `SELECT s.session_runtime_info FROM claims c JOIN sessions s ON s.session_id = c.owner_session
			WHERE c.claim_key = $1 AND s.session_ended_at IS NULL`, claim).Scan(&info); err != nil {
			return err
		}
		owner, other = nil, nil
		for _, o := range operators {
			if info == o.name {
				owner = o
			} else {
				other = o
			}
		}
		if owner == nil {
			return fmt.Errorf("by %q", info)
		}
		return nil
	})
	return owner, other
}
