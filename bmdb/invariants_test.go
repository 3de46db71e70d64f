// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// This file says what is true in a database whenever nothing is half done, by one consistent look. It holds the predicate in Go, against
// which the rows that the recompute wrote are compared.

// violations are queries that find nothing in a database that is as it should be. $1 are the machines to look at.
var violations = map[string]string{
	"I1: two works hold one slot": `
		SELECT machine_id::text || ' ' || slot FROM work WHERE work_id IS NOT NULL AND machine_id = ANY($1) GROUP BY machine_id, slot HAVING count(*) > 1`,
	"I3: an end without a start": `
		SELECT work_id::text FROM work_history e WHERE phase = 1 AND machine_id = ANY($1)
		AND NOT EXISTS (SELECT 1 FROM work_history s WHERE s.machine_id = e.machine_id AND s.work_id = e.work_id AND s.phase = 0)`,
	"I3, I8: a start that neither ended nor goes on": `
		SELECT work_id::text FROM work_history s WHERE phase = 0 AND machine_id = ANY($1)
		AND (EXISTS (SELECT 1 FROM work w WHERE w.work_id = s.work_id AND w.machine_id = s.machine_id)
			= EXISTS (SELECT 1 FROM work_history e WHERE e.machine_id = s.machine_id AND e.work_id = s.work_id AND e.phase = 1))`,
	"I3: a work that goes on and never started": `
		SELECT work_id::text FROM work w WHERE work_id IS NOT NULL AND machine_id = ANY($1)
		AND NOT EXISTS (SELECT 1 FROM work_history s WHERE s.machine_id = w.machine_id AND s.work_id = w.work_id AND s.phase = 0 AND s.session_id = w.session_id AND s.fence = w.fence)`,
	"fence: does not grow with each start on a machine": `
		SELECT machine_id::text FROM work_history WHERE phase = 0 AND machine_id = ANY($1) GROUP BY machine_id, fence HAVING count(*) > 1`,
	"fence: is above the revision": `
		SELECT m.machine_id::text FROM machine_state m JOIN work w ON w.machine_id = m.machine_id WHERE w.fence > m.rev AND m.machine_id = ANY($1)`,
	"I1: works on one slot overlap in history": `
		SELECT a.work_id::text || ' ' || b.work_id::text FROM work_history a
		JOIN processes pa ON pa.process = a.process
		JOIN work_history b ON b.machine_id = a.machine_id AND b.phase = 0 AND b.fence > a.fence
		JOIN processes pb ON pb.process = b.process AND pb.slot = pa.slot
		LEFT JOIN work_history e ON e.machine_id = a.machine_id AND e.work_id = a.work_id AND e.phase = 1
		WHERE a.phase = 0 AND a.machine_id = ANY($1) AND (e.timestamp IS NULL OR e.timestamp > b.timestamp)`,
	"I4: a tag of AgentStart that no finished work brought": `
		SELECT a.machine_id::text FROM machine_agent_started a WHERE a.machine_id = ANY($1) AND encode(a.agent_public_key, 'escape') LIKE 'work %'
		AND NOT EXISTS (SELECT 1 FROM work_history e WHERE e.machine_id = a.machine_id AND e.phase = 1 AND e.event = 'Finished'
			AND 'work ' || e.work_id::text = encode(a.agent_public_key, 'escape'))`,
	"I7: a slot of a limit names no work": `
		SELECT limit_id || ' ' || n::text FROM limit_slots s WHERE work_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM work w WHERE w.work_id = s.work_id AND w.work_id IS NOT NULL) AND cardinality($1::uuid[]) >= 0`,
	"I7: a work at a limited provider without a slot": `
		SELECT w.work_id::text FROM work w JOIN limits l ON l.limit_id = 'provider/' || w.pool || '/' || w.provider
		WHERE w.work_id IS NOT NULL AND w.machine_id = ANY($1)
		AND (SELECT count(*) FROM limit_slots s WHERE s.work_id = w.work_id AND s.limit_id = l.limit_id) <> 1`,
	"counts: active is not the number of works": `
		SELECT c.claim_key FROM claims c WHERE cardinality($1::uuid[]) >= 0
		AND c.active <> (SELECT count(*) FROM work w WHERE w.pool = c.pool AND w.claim_key = c.claim_key AND w.work_id IS NOT NULL)`,
	"I6: succeeded is not the number of machines that finished": `
		SELECT c.claim_key FROM claims c WHERE c.mode <> 'Continuous' AND cardinality($1::uuid[]) >= 0
		AND c.succeeded <> (SELECT count(*) FROM claim_machines d WHERE d.pool = c.pool AND d.claim_key = c.claim_key AND d.finished_work_id IS NOT NULL)`,
	"I6: a claim finished a machine twice": `
		SELECT h.claim_key || ' ' || h.machine_id::text FROM work_history h JOIN claims c ON c.pool = h.pool AND c.claim_key = h.claim_key
		WHERE c.mode <> 'Continuous' AND h.event = 'Finished' AND h.machine_id = ANY($1) GROUP BY h.pool, h.claim_key, h.machine_id HAVING count(*) > 1`,
}

// checkInvariants looks at machines, or at all of them.
func checkInvariants(t *testing.T, db *pgxpool.Pool, machines ...uuid.UUID) {
	t.Helper()
	for _, v := range findViolations(t, db, machines...) {
		t.Error(v)
	}
}

func findViolations(t testing.TB, db *pgxpool.Pool, machines ...uuid.UUID) (found []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if len(machines) == 0 {
			rows, err := tx.Query(ctx, "SELECT machine_id FROM machines")
			if err != nil {
				return err
			}
			if machines, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID]); err != nil {
				return err
			}
		}
		looks := &pgx.Batch{}
		for what, sql := range violations {
			looks.Queue(sql, machines).Query(func(rows pgx.Rows) error {
				bad, err := pgx.CollectRows(rows, pgx.RowTo[string])
				if err != nil {
					return fmt.Errorf("%s: %w", what, err)
				}
				if len(bad) > 0 {
					found = append(found, fmt.Sprintf("%s: %v", what, bad))
				}
				return nil
			})
		}
		if err := tx.SendBatch(ctx, looks).Close(); err != nil {
			return err
		}
		parked, err := compareEligibility(ctx, tx, machines)
		found = append(found, parked...)
		return err
	})
	if err != nil {
		t.Fatalf("look at the invariants: %v", err)
	}
	return found
}

type processRow struct {
	Pool, Process, Slot string
	Requires, Forbids   []string
	Indexed             bool
}

// machineFacts is what is recorded of a machine, and what the recompute made of it.
type machineFacts struct {
	ID                                  uuid.UUID
	Pool                                string
	Provider                            *string
	Agent, Heartbeat                    *time.Time
	Hardware                            bool
	Requested, Mark                     *int64
	Views, Attached                     int64
	Tags                                []string
	Held                                bool
	HeldUntil                           *time.Time
	StateProvider                       string
	StateFacts                          []string
	StateHeldUntil, StateUnresponsiveAt *time.Time
	Now                                 time.Time
}

const sqlFactsOfMachines = `
SELECT s.machine_id, s.pool, p.provider, a.agent_started_at, h.agent_heartbeat_at, r.machine_id IS NOT NULL, q.generation, k.generation,
	(SELECT count(*) FROM machine_views v WHERE v.machine_id = s.machine_id),
	(SELECT count(*) FROM machine_views v WHERE v.machine_id = s.machine_id AND v.attached),
	ARRAY(SELECT tag FROM machine_tags t WHERE t.machine_id = s.machine_id),
	EXISTS (SELECT 1 FROM machine_holds d WHERE d.machine_id = s.machine_id AND d.held_until IS NULL),
	(SELECT max(d.held_until) FROM machine_holds d WHERE d.machine_id = s.machine_id),
	s.provider, s.facts, s.held_until, s.unresponsive_at, clock_timestamp()
FROM machine_state s LEFT JOIN machine_provided p USING (machine_id) LEFT JOIN machine_agent_started a USING (machine_id)
LEFT JOIN machine_agent_heartbeat h USING (machine_id) LEFT JOIN machine_hardware_report r USING (machine_id)
LEFT JOIN machine_os_installation_request q USING (machine_id) LEFT JOIN machine_os_marks k USING (machine_id)
WHERE s.machine_id = ANY($1)`

type workRow struct {
	Machine       uuid.UUID
	Process, Slot string
	Provider      string
	State         int64
	NotBefore     *time.Time
	BackoffUntil  *time.Time
}

// compareEligibility says where the facts are not those of the tags, and where a work row that nobody holds is not what the predicate says.
func compareEligibility(ctx context.Context, tx pgx.Tx, machines []uuid.UUID) (found []string, err error) {
	rows, err := tx.Query(ctx, "SELECT pool, process, slot, requires, forbids, indexed FROM processes")
	if err != nil {
		return nil, err
	}
	processes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[processRow])
	if err != nil {
		return nil, err
	}
	if rows, err = tx.Query(ctx, sqlFactsOfMachines, machines); err != nil {
		return nil, err
	}
	facts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[machineFacts])
	if err != nil {
		return nil, err
	}
	if rows, err = tx.Query(ctx, "SELECT machine_id, process, slot, provider, state, not_before, backoff_until FROM work WHERE machine_id = ANY($1)", machines); err != nil {
		return nil, err
	}
	works, err := pgx.CollectRows(rows, pgx.RowToStructByPos[workRow])
	if err != nil {
		return nil, err
	}
	byKey := map[string]workRow{}
	for _, w := range works {
		byKey[w.Machine.String()+w.Process] = w
	}
	for _, m := range facts {
		found = append(found, m.compareFacts()...)
		for _, p := range processes {
			if p.Pool != "" && p.Pool != m.Pool {
				continue
			}
			row, exists := byKey[m.ID.String()+p.Process]
			if why := m.compareRow(p, row, exists); why != "" {
				found = append(found, fmt.Sprintf("I8: machine %s, process %s: %s", m.ID, p.Process, why))
			}
		}
	}
	return found, nil
}

// facts is what the tags say.
func (m machineFacts) facts() (facts []string, unresponsive *time.Time) {
	add := func(is bool, fact string) {
		if is {
			facts = append(facts, fact)
		}
	}
	add(m.Provider != nil, "Provided")
	add(m.Agent != nil, "AgentStarted")
	add(m.Heartbeat != nil, "AgentHeartbeat")
	add(m.Hardware, "HardwareReport")
	if m.Requested != nil {
		due := m.Mark == nil || *m.Requested > *m.Mark
		add(due, "InstallDue")
		add(!due, "InstallFulfilled")
	}
	add(m.Views > 0 && m.Attached == 0, "ViewLost")
	switch {
	case m.Heartbeat != nil:
		at := m.Heartbeat.Add(10 * time.Minute)
		unresponsive = &at
	case m.Agent != nil:
		at := m.Agent.Add(30 * time.Minute)
		unresponsive = &at
	}
	return append(facts, m.Tags...), unresponsive
}

func (m machineFacts) compareFacts() (found []string) {
	facts, unresponsive := m.facts()
	have := slices.Clone(m.StateFacts)
	slices.Sort(facts)
	slices.Sort(have)
	if !slices.Equal(facts, have) {
		found = append(found, fmt.Sprintf("I8: machine %s has the facts %v, its tags say %v", m.ID, have, facts))
	}
	if (unresponsive == nil) != (m.StateUnresponsiveAt == nil) || unresponsive != nil && !unresponsive.Equal(*m.StateUnresponsiveAt) {
		found = append(found, fmt.Sprintf("I8: machine %s is unresponsive at %v, its tags say %v", m.ID, m.StateUnresponsiveAt, unresponsive))
	}
	held := m.StateHeldUntil != nil
	if held != (m.Held || m.HeldUntil != nil) || held && !m.Held && !m.StateHeldUntil.Equal(*m.HeldUntil) || held && m.Held && m.StateHeldUntil.Year() != 9999 {
		found = append(found, fmt.Sprintf("I8: machine %s is held until %v, its holds say %v, %v", m.ID, m.StateHeldUntil, m.Held, m.HeldUntil))
	}
	return found
}

// compareRow says what is wrong with a row that nobody holds.
func (m machineFacts) compareRow(p processRow, row workRow, exists bool) string {
	if row.State == claimed {
		return ""
	}
	facts, unresponsive := m.facts()
	if unresponsive != nil {
		facts = append(facts, "AgentUnresponsive") // it will be, or is
	}
	eligible := p.Indexed && !m.Held && !slices.Contains(facts, "ViewLost")
	for _, f := range p.Requires {
		eligible = eligible && slices.Contains(facts, f)
	}
	for _, f := range p.Forbids {
		eligible = eligible && !slices.Contains(facts, f)
	}
	if !eligible {
		if exists && row.State != idle {
			return fmt.Sprintf("state is %d, and it is not eligible with %v, held %v", row.State, facts, m.Held)
		}
		return ""
	}
	var from time.Time
	for _, at := range []*time.Time{row.BackoffUntil, m.HeldUntil} {
		if at != nil && at.After(from) {
			from = *at
		}
	}
	if slices.Contains(p.Requires, "AgentUnresponsive") && unresponsive.After(from) {
		from = *unresponsive
	}
	switch {
	case !exists || row.State == idle:
		return fmt.Sprintf("parked: it is eligible from %v with %v", from, facts)
	case row.Slot != p.Slot || row.Provider != m.StateProvider:
		return fmt.Sprintf("slot %q and provider %q, want %q and %q", row.Slot, row.Provider, p.Slot, m.StateProvider)
	case row.State == waiting && !row.NotBefore.Equal(from):
		return fmt.Sprintf("waits until %v, want %v", row.NotBefore, from)
	case row.State == ready && from.After(m.Now):
		return fmt.Sprintf("ready, and should wait until %v (now %v)", from, m.Now)
	}
	return ""
}
