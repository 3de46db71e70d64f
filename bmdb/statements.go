// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

// This file holds the statements of the protocol, which sqlc cannot type: sets of works as arrays, several tables in one statement.
// They are one text for both databases. Rules: one mutation of a table in a statement; rows of machine_state are locked or written
// before everything that depends on them, by ascending machine; nothing but sqlRecompute and sqlRecomputeProcess write the states ready and waiting.
// A work of which the machine is known is found by the key of its row: there `state = 3` says what `work_id IS NOT NULL` would, and IS NOT DISTINCT FROM
// what = would. These offer the planner the partial indexes of all works that go on, and because there are none when a statement is planned, it reads one
// of them from end to end for each machine when there are thousands.

// forever is the end of a hold that has none. (infinity is not the same on both databases.)
const forever = "'9999-12-31 00:00:00+00'::timestamptz"

// eligible is the predicate, for a row m of machine_state and a row p of processes: the one place that says whether a machine needs a
// process. Retrieval, starts, explanation, gauges and the repair sweep are made of it. Facts that depend on time are evaluated with
// the clock: eligibleNow at this moment, eligibleLater when their time has come.
const (
	eligibleNow   = "(p.requires <@ " + factsNow + notForbidden
	eligibleLater = "(p.requires <@ (m.facts || CASE WHEN m.unresponsive_at IS NOT NULL THEN ARRAY['AgentUnresponsive'] ELSE ARRAY[]::text[] END)" + notForbidden
	factsNow      = "(m.facts || CASE WHEN m.unresponsive_at <= clock_timestamp() THEN ARRAY['AgentUnresponsive'] ELSE ARRAY[]::text[] END)"
	notForbidden  = " AND NOT (p.forbids && m.facts) AND NOT (m.facts && ARRAY['ViewLost']))"

	notHeld = "(m.held_until IS NULL OR m.held_until <= clock_timestamp())"

	// due is a work row that may be started: a reader does not wait for the promoter.
	due = "(w.state = 2 OR (w.state = 1 AND w.not_before <= clock_timestamp()))"

	// closedForClaim is a row d of claim_machines on whose machine its claim starts nothing more.
	closedForClaim = "(d.finished_work_id IS NOT NULL OR d.quarantined_at IS NOT NULL OR d.skipped)"
)

// Database and processes.
const (
	sqlReadIdentity = "SELECT database_id, incarnation FROM database_identity WHERE singleton = 1"

	// sqlLockProcesses is the mutex of the names of processes: each is defined for one pool or for every pool.
	sqlLockProcesses = "UPDATE database_identity SET incarnation = incarnation WHERE singleton = 1"

	sqlSeedIdentity = `
INSERT INTO database_identity (singleton, database_id, incarnation, created_at) VALUES (1, $1, 1, clock_timestamp())
ON CONFLICT (singleton) DO NOTHING`

	// A built-in process that is new, or that a new version defines otherwise, is filled in over the fleet like any other.
	sqlSeedProcess = `
INSERT INTO processes (pool, process, slot, requires, forbids, sets, clears, destructive, convergent, indexed, generation, fill_pass)
VALUES ('', $1, $2, $3, $4, $5, $6, $7, $8, $9, 1, CASE WHEN $9 THEN 1 ELSE 0 END)
ON CONFLICT (pool, process) DO UPDATE SET slot = excluded.slot, requires = excluded.requires, forbids = excluded.forbids, sets = excluded.sets,
    clears = excluded.clears, destructive = excluded.destructive, convergent = excluded.convergent, indexed = excluded.indexed,
    generation = processes.generation + 1, fill_pass = 1, fill_cursor = NULL, fill_not_before = NULL
WHERE (processes.slot, processes.requires, processes.forbids, processes.sets, processes.clears, processes.destructive, processes.convergent, processes.indexed)
   IS DISTINCT FROM (excluded.slot, excluded.requires, excluded.forbids, excluded.sets, excluded.clears, excluded.destructive, excluded.convergent, excluded.indexed)`
)

// Machines: the mutex and the recompute.
const (
	// sqlLockMachines is the first write of every transaction that starts or ends work, holds, or changes a fact. It locks in
	// ascending order, so that two groups that share machines do not deadlock.
	sqlLockMachines = `
WITH locked AS (SELECT machine_id FROM machine_state WHERE machine_id = ANY($1) ORDER BY machine_id FOR UPDATE)
UPDATE machine_state m SET rev = m.rev + 1 FROM locked WHERE m.machine_id = locked.machine_id`

	// sqlLockMachine is sqlLockMachines for one, which has no order.
	sqlLockMachine = "UPDATE machine_state SET rev = rev + 1 WHERE machine_id = $1"

	// sqlLockForEnds takes the mutexes of machines whose works end, which the recompute of the same transaction writes. It is for transactions at
	// READ COMMITTED, where a lock is as good as a write.
	sqlLockForEnds = "SELECT machine_id FROM machine_state WHERE machine_id = ANY($1) ORDER BY machine_id FOR UPDATE"

	// sqlRecompute derives the facts of machines from their tags, and evaluates the predicate of every process over them that has ready rows. It
	// writes what says otherwise, and adds $2 to the revisions. It runs under the machines' mutexes, in a statement after those that wrote what
	// it reads.
	sqlRecompute = `
WITH facts AS (
    SELECT s.machine_id, s.pool, COALESCE(pr.provider, '') AS provider,
        array_remove(ARRAY[
            CASE WHEN pr.machine_id IS NOT NULL THEN 'Provided' END,
            CASE WHEN st.machine_id IS NOT NULL THEN 'AgentStarted' END,
            CASE WHEN hb.machine_id IS NOT NULL THEN 'AgentHeartbeat' END,
            CASE WHEN hw.machine_id IS NOT NULL THEN 'HardwareReport' END,
            CASE WHEN rq.generation > COALESCE(mk.generation, 0) THEN 'InstallDue' END,
            CASE WHEN rq.generation <= COALESCE(mk.generation, 0) THEN 'InstallFulfilled' END,
            CASE WHEN NOT (SELECT bool_or(v.attached) FROM machine_views v WHERE v.machine_id = s.machine_id) THEN 'ViewLost' END], NULL)
          || COALESCE((SELECT array_agg(t.tag ORDER BY t.tag) FROM machine_tags t WHERE t.machine_id = s.machine_id), ARRAY[]::text[]) AS facts,
        (SELECT max(COALESCE(h.held_until, ` + forever + `)) FROM machine_holds h WHERE h.machine_id = s.machine_id) AS held_until,
        CASE WHEN hb.machine_id IS NOT NULL THEN hb.agent_heartbeat_at + interval '10 minutes'
             WHEN st.machine_id IS NOT NULL THEN st.agent_started_at + interval '30 minutes' END AS unresponsive_at
    FROM machine_state s
    LEFT JOIN machine_provided pr ON pr.machine_id = s.machine_id
    LEFT JOIN machine_agent_started st ON st.machine_id = s.machine_id
    LEFT JOIN machine_agent_heartbeat hb ON hb.machine_id = s.machine_id
    LEFT JOIN machine_hardware_report hw ON hw.machine_id = s.machine_id
    LEFT JOIN machine_os_installation_request rq ON rq.machine_id = s.machine_id
    LEFT JOIN machine_os_marks mk ON mk.machine_id = s.machine_id
    WHERE s.machine_id = ANY($1)),
derived AS (
    UPDATE machine_state m SET rev = m.rev + $2::bigint,
        provider = facts.provider, facts = facts.facts, held_until = facts.held_until, unresponsive_at = facts.unresponsive_at
    FROM facts WHERE m.machine_id = facts.machine_id AND ($2::bigint > 0
      OR (m.provider, m.facts, m.held_until, m.unresponsive_at) IS DISTINCT FROM (facts.provider, facts.facts, facts.held_until, facts.unresponsive_at))),
evaluated AS (` + evaluated + `
    FROM facts m
    JOIN processes p ON p.pool IN ('', m.pool) AND p.indexed
    LEFT JOIN work w ON w.machine_id = m.machine_id AND w.process = p.process
    WHERE w.work_id IS NULL)` + writeEvaluated

	// sqlRecomputeProcess evaluates the predicate of one process $2 for machines whose facts are as they were. It runs under their mutexes.
	sqlRecomputeProcess = `
WITH evaluated AS (` + evaluated + `
    FROM machine_state m
    JOIN processes p ON p.pool IN ('', m.pool) AND p.process = $2
    LEFT JOIN work w ON w.machine_id = m.machine_id AND w.process = p.process
    WHERE m.machine_id = ANY($1) AND w.work_id IS NULL)` + writeEvaluated

	// evaluated says from when on machines m need processes p, beside what their work rows w say; writeEvaluated writes the rows that say
	// otherwise. Rows that are claimed are left alone: their end evaluates them.
	evaluated = `
    SELECT m.machine_id, m.pool, m.provider, p.process, p.slot,
        w.machine_id AS row_of, w.state AS row_state, w.slot AS row_slot, w.provider AS row_provider, w.not_before AS row_not_before,
        CASE WHEN p.indexed AND ` + eligibleLater + ` AND COALESCE(m.held_until < ` + forever + `, true)
             THEN greatest(COALESCE(w.backoff_until, '1970-01-01 00:00:00+00'::timestamptz), COALESCE(m.held_until, '1970-01-01 00:00:00+00'::timestamptz),
                  CASE WHEN p.requires && ARRAY['AgentUnresponsive'] THEN m.unresponsive_at ELSE '1970-01-01 00:00:00+00'::timestamptz END) END AS due_at`
	writeEvaluated = `,
wanted AS (
    SELECT machine_id, pool, provider, process, slot, row_of, row_state, row_slot, row_provider, row_not_before, due_at,
        CASE WHEN due_at IS NULL THEN 0 WHEN due_at <= clock_timestamp() THEN 2 ELSE 1 END AS state
    FROM evaluated)
INSERT INTO work (machine_id, process, slot, pool, provider, state, not_before)
SELECT machine_id, process, slot, pool, provider, state, CASE WHEN state = 1 THEN due_at END
FROM wanted
WHERE CASE WHEN row_of IS NULL THEN state <> 0
           ELSE (row_state, row_slot, row_provider, row_not_before) IS DISTINCT FROM (state, slot, provider, CASE WHEN state = 1 THEN due_at END) END
ORDER BY machine_id, process
ON CONFLICT (machine_id, process) DO UPDATE SET slot = excluded.slot, pool = excluded.pool, provider = excluded.provider,
    state = excluded.state, not_before = excluded.not_before
WHERE work.work_id IS NULL`
)

// sqlLockForReview takes the mutexes of machines that nobody else has, without changing their revisions: a review that finds nothing new
// is nothing to show. It is for transactions at READ COMMITTED, where a lock is as good as a write.
const sqlLockForReview = "SELECT machine_id FROM machine_state WHERE machine_id = ANY($1) ORDER BY machine_id FOR UPDATE SKIP LOCKED"
