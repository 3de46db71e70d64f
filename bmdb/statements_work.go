// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import "fmt"

// Sessions.
const (
	sqlStartSession = `
WITH s AS (
    INSERT INTO sessions (session_id, session_component_name, session_runtime_info, session_cluster, session_claims_only, session_created_at, session_lease_ms, session_origin)
    VALUES ($1, $2, $3, $4, $6, clock_timestamp(), $5, $7) ON CONFLICT (session_id) DO NOTHING RETURNING session_id)
INSERT INTO session_leases (session_id, deadline) SELECT session_id, clock_timestamp() + $5 * interval '1 millisecond' FROM s`

	// sqlBeat is all that a beat writes. What has expired stays expired: then there is no row. Else there is one for each work of the session,
	// or one that is empty.
	sqlBeat = `
WITH l AS (
    UPDATE session_leases SET deadline = clock_timestamp() + $3 * interval '1 millisecond'
    WHERE session_id = $1 AND deadline > clock_timestamp() RETURNING session_id)
SELECT w.machine_id, w.process, w.work_id, w.old, w.detached FROM l LEFT JOIN (` + sqlSessionWorks + `) w ON true`

	// sqlSessionWorks is what the database believes that a session works on, for comparison with what it does.
	sqlSessionWorks = `
SELECT w.machine_id, w.process, w.work_id, w.started_at < clock_timestamp() - $2 * interval '1 millisecond' AS old,
       w.claim_key <> '' AND COALESCE(c.state, '') = 'Detached' AS detached
FROM work w LEFT JOIN claims c ON c.pool = w.pool AND c.claim_key = w.claim_key
WHERE w.session_id = $1 AND w.work_id IS NOT NULL`

	// gate finds a session that may start something: its lease runs, and its identity row is share-locked, so that its end comes
	// strictly before or after. Ends of work do not ask.
	gate = `
SELECT s.session_id FROM sessions s
WHERE s.session_id = $1 AND s.session_ended_at IS NULL
  AND EXISTS (SELECT 1 FROM session_leases l WHERE l.session_id = s.session_id AND l.deadline > clock_timestamp())
FOR SHARE OF s`

	// sqlExpireLease is the first thing that a closing session does: from then on it starts nothing.
	sqlExpireLease = "UPDATE session_leases SET deadline = clock_timestamp() - interval '1 second' WHERE session_id = $1"

	sqlEndSession = `
WITH l AS (DELETE FROM session_leases WHERE session_id = $1 RETURNING session_id)
UPDATE sessions SET session_ended_at = clock_timestamp(), session_end_reason = $2 WHERE session_id = $1 AND session_ended_at IS NULL`

	// sqlLeases is what a reaper watches.
	sqlLeases = "SELECT session_id, deadline, deadline < clock_timestamp() - $1 * interval '1 millisecond' FROM session_leases ORDER BY deadline LIMIT 1000"

	// sqlKillSession ends a session only if its lease still is what the reaper saw: a beat that races wins or loses as a whole.
	sqlKillSession = `
WITH l AS (
    DELETE FROM session_leases WHERE session_id = $1 AND deadline = $2 AND deadline < clock_timestamp() - $3 * interval '1 millisecond' RETURNING session_id)
UPDATE sessions s SET session_ended_at = clock_timestamp(), session_end_reason = 'expired' FROM l
WHERE s.session_id = l.session_id AND s.session_ended_at IS NULL RETURNING s.session_id`

	sqlWorksOfSession = "SELECT machine_id, process, work_id FROM work WHERE session_id = $1 AND work_id IS NOT NULL ORDER BY machine_id LIMIT $2"

	// sqlOrphans finds works that nobody will end: of sessions that are over, and works over their deadline by a grace.
	sqlOrphans = orphans + `
LIMIT $2`
	orphans = `
SELECT w.machine_id, w.process, w.work_id, 'session ended' FROM work w JOIN sessions s ON s.session_id = w.session_id
WHERE w.work_id IS NOT NULL AND s.session_ended_at IS NOT NULL
UNION ALL
SELECT w.machine_id, w.process, w.work_id, 'deadline passed' FROM work w
WHERE w.work_id IS NOT NULL AND w.deadline < clock_timestamp() - $1 * interval '1 millisecond'`

	// sqlAnythingToSweep asks for all that a sweep does at once whether there is something to do. $1 is as in orphans.
	sqlAnythingToSweep = `
SELECT (SELECT count(*) FROM (` + orphans + ` LIMIT 1) o) > 0, (SELECT count(*) FROM (` + lostSlots + ` LIMIT 1) o) > 0, (SELECT count(*) FROM (` + overdueUnowned + ` LIMIT 1) o) > 0`

	// sqlDueTimers finds rows whose time has come. They are evaluated again; nothing makes them ready blindly.
	sqlDueTimers = "SELECT machine_id FROM work WHERE state = 1 AND not_before <= clock_timestamp() ORDER BY not_before LIMIT $1"

	// sqlFreeLostSlots frees slots of limits whose work is gone, each only if it still names the work that was looked for: while this
	// waited for the row, somebody else may have freed it, and a start have taken it.
	sqlFreeLostSlots = `
WITH lost AS (` + lostSlots + `)
UPDATE limit_slots s SET work_id = NULL FROM lost WHERE s.limit_id = lost.limit_id AND s.n = lost.n AND s.work_id = lost.work_id`
	lostSlots = `
    SELECT s.limit_id, s.n, s.work_id FROM limit_slots s
    WHERE s.work_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM work w WHERE w.work_id = s.work_id AND w.work_id IS NOT NULL)`
)

// Starts. What must not be there is counted machine by machine: a NOT EXISTS is a join to the planner, which may read all that a claim has done to find
// one machine in it.
const (
	// worksInSlot counts the works on a machine m in the slot of a process p.
	worksInSlot = "(SELECT count(*) FROM work o WHERE o.machine_id = m.machine_id AND o.slot = p.slot AND o.state = 3)"

	// alarmedInPoolOfMachine tells that a process p may lose data, and that something speaks against the database in the pool of a machine m.
	alarmedInPoolOfMachine = "(p.destructive AND EXISTS (SELECT 1 FROM database_alarms a WHERE a.pool = m.pool))"

	// sqlStartOne starts work on one machine, for the general form. The machine's mutex comes first, and is written only if nobody
	// holds the machine. It may start what the ready index does not list: the retriever decides.
	sqlStartOne = `
WITH m AS (
    UPDATE machine_state m SET rev = m.rev + 1 WHERE m.machine_id = $1 AND ` + notHeld + `
    RETURNING m.machine_id, m.pool, m.provider, m.rev),
p AS (
    SELECT p.process, p.slot, p.sets, p.clears, 'provider/' || m.pool || '/' || m.provider AS limit_id FROM processes p, m
    WHERE p.process = $2 AND p.pool IN ('', m.pool) AND NOT ` + alarmedInPoolOfMachine + `),
f AS (
    SELECT s.limit_id, s.n FROM limit_slots s WHERE s.limit_id = (SELECT limit_id FROM p) AND s.open AND s.work_id IS NULL
    ORDER BY s.n LIMIT 1 FOR UPDATE SKIP LOCKED),
c AS (
    INSERT INTO work (machine_id, process, slot, pool, provider, state, work_id, session_id, claim_key, fence, attempt, started_at, deadline)
    SELECT m.machine_id, p.process, p.slot, m.pool, m.provider, 3, $3, $4, '', m.rev, 1, clock_timestamp(),
        CASE WHEN $5::bigint > 0 THEN clock_timestamp() + $5::bigint * interval '1 millisecond' END
    FROM m CROSS JOIN p
    WHERE ` + worksInSlot + ` = 0
      AND (NOT EXISTS (SELECT 1 FROM limits l WHERE l.limit_id = p.limit_id) OR EXISTS (SELECT 1 FROM f))
    ON CONFLICT (machine_id, process) DO UPDATE SET slot = excluded.slot, pool = excluded.pool, provider = excluded.provider, state = 3,
        not_before = NULL, work_id = excluded.work_id, session_id = excluded.session_id, claim_key = '', fence = excluded.fence,
        attempt = work.backoff_attempts + 1, started_at = excluded.started_at, deadline = excluded.deadline, step = '', percent = 0
    WHERE work.work_id IS NULL
    RETURNING machine_id, process, pool, provider, fence, attempt, backoff_seconds, checkpoint),
u AS (UPDATE limit_slots s SET work_id = $3 FROM f WHERE s.limit_id = f.limit_id AND s.n = f.n AND EXISTS (SELECT 1 FROM c)),
h AS (
    INSERT INTO work_history (machine_id, work_id, phase, process, event, timestamp, session_id, pool, claim_key, fence, attempt, duration_ms, actor)
    SELECT machine_id, $3, 0, process, 'Started', clock_timestamp(), $4, pool, '', fence, attempt, 0, $6 FROM c)
SELECT c.machine_id, $3::uuid, c.pool, c.provider, c.fence, c.attempt, c.backoff_seconds, c.checkpoint, p.sets, p.clears, false FROM c CROSS JOIN p`

	// sqlWhyNotStarted says why sqlStartOne started nothing, in the order of its gates.
	sqlWhyNotStarted = `
SELECT CASE
    WHEN m.machine_id IS NULL THEN 'NoSuchMachine'
    WHEN NOT ` + notHeld + ` THEN 'Held'
    WHEN p.process IS NULL THEN 'NoSuchProcess'
    WHEN ` + alarmedInPoolOfMachine + ` THEN 'DatabaseNotAcknowledged'
    WHEN ` + worksInSlot + ` > 0 THEN 'Locked'
    ELSE 'AtLimit' END
FROM (SELECT $1::uuid AS id) x
LEFT JOIN machine_state m ON m.machine_id = x.id
LEFT JOIN processes p ON p.process = $2 AND p.pool IN ('', m.pool)`

	// sqlStartBatch starts work on up to $7 of the candidates $3, all of one provider, in one statement. Order: session, claim, machines
	// (SKIP LOCKED by fixed ids), slots, work rows by compare-and-set. The predicate is evaluated again, on the locked rows, so that a
	// ready row that is out of date starts nothing. Nor does one on which somebody else worked since the statement's snapshot, which a
	// wait for the claim makes old: its fence is another, and what the claim did there is not in the snapshot. Machine i of the candidates would get the work ID $4[i].
	// z reads p to its end, with an aggregate: a subquery that stops at the first row would be begun anew where PostgreSQL evaluates the
	// condition again for a row that changed meanwhile, and p would have its row twice.
	// Places that were free when the statement began, and were all taken by it, were the last.
	// %[1]s is the source of the room: a claim, or no claim.
	sqlStartBatch = `
WITH g AS (` + gate + `),
cl AS (%[1]s),
x AS (SELECT unnest($3::uuid[]) AS machine_id, unnest($4::uuid[]) AS work_id),
p AS (SELECT p.process, p.slot, p.requires, p.forbids, p.sets, p.clears, 'provider/' || $5::text || '/' || $6::text AS limit_id
      FROM processes p WHERE p.process = $2 AND p.pool IN ('', $5)
        AND NOT (p.destructive AND EXISTS (SELECT 1 FROM database_alarms a WHERE a.pool = $5))),
z AS (
    SELECT m.machine_id, m.rev FROM machine_state m
    WHERE m.machine_id = ANY($3) AND m.pool = $5 AND m.provider = $6 AND (SELECT max(room) FROM cl) > 0
      AND ` + notHeld + ` AND (SELECT bool_or(` + eligibleNow + `) FROM p)
    ORDER BY m.machine_id FOR UPDATE OF m SKIP LOCKED),
e AS (
    SELECT m.machine_id, m.rev, x.work_id, w.fence AS seen, row_number() OVER (ORDER BY m.machine_id) AS rn
    FROM z m JOIN x ON x.machine_id = m.machine_id JOIN work w ON w.machine_id = m.machine_id AND w.process = $2 CROSS JOIN p
    WHERE ` + due + ` AND ` + worksInSlot + ` = 0
      AND (SELECT count(*) FROM claim_machines d WHERE d.pool = $5 AND d.claim_key = $9 AND d.machine_id = m.machine_id
           AND ` + closedForClaim + `) = 0),
f AS (
    SELECT s.n, row_number() OVER (ORDER BY s.n) AS rn FROM (
        SELECT n FROM limit_slots WHERE limit_id = (SELECT limit_id FROM p) AND open AND work_id IS NULL AND EXISTS (SELECT 1 FROM e)
        ORDER BY n LIMIT $7 FOR UPDATE SKIP LOCKED) s),
k AS (
    SELECT e.machine_id, e.rev, e.work_id, e.seen, f.n FROM e LEFT JOIN f ON f.rn = e.rn
    WHERE e.rn <= $7 AND e.rn <= (SELECT max(room) FROM cl)
      AND (f.n IS NOT NULL OR NOT EXISTS (SELECT 1 FROM limits l WHERE l.limit_id = (SELECT limit_id FROM p)))),
c AS (
    UPDATE work w SET state = 3, not_before = NULL, slot = p.slot, work_id = k.work_id, session_id = $1, claim_key = $9, fence = k.rev + 1,
        attempt = w.backoff_attempts + 1, started_at = clock_timestamp(), step = '', percent = 0,
        deadline = CASE WHEN $8::bigint > 0 THEN clock_timestamp() + $8::bigint * interval '1 millisecond' END
    FROM k CROSS JOIN p
    WHERE w.machine_id = k.machine_id AND w.process = $2 AND w.work_id IS NULL AND w.fence = k.seen AND ` + due + `
    RETURNING w.machine_id, w.process, w.work_id, w.pool, w.provider, w.fence, w.attempt, w.backoff_seconds, w.checkpoint, p.sets, p.clears, k.n),
r AS (UPDATE machine_state m SET rev = m.rev + 1 FROM c WHERE m.machine_id = c.machine_id),
u AS (UPDATE limit_slots s SET work_id = c.work_id FROM c WHERE s.limit_id = (SELECT limit_id FROM p) AND s.n = c.n),
h AS (
    INSERT INTO work_history (machine_id, work_id, phase, process, event, timestamp, session_id, pool, claim_key, fence, attempt, duration_ms, actor)
    SELECT machine_id, work_id, 0, process, 'Started', clock_timestamp(), $1, $5, $9, fence, attempt, 0, $10 FROM c)%[2]s
SELECT machine_id, work_id, pool, provider, fence, attempt, backoff_seconds, checkpoint, sets, clears,
    n IS NOT NULL AND (SELECT count(*) FROM (
        SELECT 1 FROM limit_slots WHERE limit_id = (SELECT limit_id FROM p) AND open AND work_id IS NULL LIMIT $7 + 1) s) <= (SELECT count(*) FROM c)
FROM c`

	// roomOfClaim locks the claim, if this session owns it in this term, and says how much more it may start. The lock makes the
	// starts of a claim a sequence; the row is read at its newest version.
	roomOfClaim = `
    SELECT c.parallelism - c.active AS parallel, c.completions - c.succeeded - c.skipped - c.active AS open,
           least(c.parallelism - c.active, COALESCE(c.completions - c.succeeded - c.skipped - c.active, c.parallelism)) AS room
    FROM claims c
    WHERE c.pool = $5 AND c.claim_key = $9 AND c.owner_session = $1 AND c.owner_epoch = $11 AND EXISTS (SELECT 1 FROM g)
      AND c.state = 'Running' AND NOT c.suspended AND COALESCE(c.deadline_at > clock_timestamp(), true)
      AND COALESCE(c.failed <= c.max_failed_machines, true)
      AND NOT EXISTS (SELECT 1 FROM database_alarms a WHERE a.pool = $5 AND a.kind = 'claim' AND a.id = $9)
    FOR UPDATE`

	// roomOfNobody is for starts without a claim.
	roomOfNobody = "SELECT $7::bigint AS room FROM g"

	// countInClaim adds the winners to the claim.
	countInClaim = `,
n AS (
    UPDATE claims SET active = claims.active + (SELECT count(*) FROM c), rev = claims.rev + 1, reason = 'Working', message = '',
        started_at = COALESCE(claims.started_at, clock_timestamp()),
        deadline_at = COALESCE(claims.deadline_at, clock_timestamp() + claims.active_deadline_seconds * interval '1 second')
    WHERE pool = $5 AND claim_key = $9 AND EXISTS (SELECT 1 FROM c))`

	// sqlWorksStarted reads back which of the works of an ambiguous start exist.
	sqlWorksStarted = `
SELECT w.machine_id, w.work_id, w.pool, w.provider, w.fence, w.attempt, w.backoff_seconds, w.checkpoint, p.sets, p.clears, false
FROM work w JOIN processes p ON p.process = w.process AND p.pool IN ('', w.pool)
WHERE w.session_id = $1 AND w.work_id = ANY($2)`
)

// Ends.
const (
	// sqlEnd ends works, each by its own fence: a member whose work_id is not in its row any more changes nothing and is not
	// returned. No session and no clock take part. A second success on a machine for a claim that allows one is turned into
	// Canceled. Who ends does not matter for the claim's counts: what the work rows return is subtracted.
	// What a claim has done is looked up machine by machine: OFFSET 0 keeps the planner from reading all of it for each group.
	// Facts are written only for those that finish here and now: one that ended before, in an attempt whose outcome was not known, may have
	// had its facts changed by others since.
	// %[1]s is what the works bring, %[2]s and %[3]s which may end and how, %[4]s the facts, %[5]s their columns. Works of no claim, and ends that bring
	// nothing, leave out what they do not need: to set a part of a statement up takes longer than to carry it out.
	sqlEnd = `
WITH x AS (
    SELECT unnest($1::uuid[]) AS machine_id, unnest($2::text[]) AS process, unnest($3::uuid[]) AS work_id, unnest($4::text[]) AS event,
           unnest($5::text[]) AS cause, unnest($6::bigint[]) AS backoff_seconds, unnest($7::bigint[]) AS delay_seconds%[1]s),
f AS (
    UPDATE work w SET state = 0, not_before = NULL, work_id = NULL, deadline = NULL, step = '', percent = 0,
        checkpoint = CASE WHEN x.event = 'Finished' THEN NULL ELSE w.checkpoint END,
        backoff_seconds = CASE WHEN x.event = 'Finished' THEN 0 WHEN x.backoff_seconds > 0 THEN x.backoff_seconds ELSE w.backoff_seconds END,
        backoff_until = CASE WHEN x.event = 'Finished' THEN NULL WHEN x.backoff_seconds > 0 THEN clock_timestamp() + x.delay_seconds * interval '1 second' ELSE w.backoff_until END,
        backoff_cause = CASE WHEN x.event = 'Finished' THEN '' WHEN x.backoff_seconds > 0 THEN x.cause ELSE w.backoff_cause END,
        backoff_attempts = CASE WHEN x.event = 'Finished' THEN 0 WHEN x.event = 'Failed' THEN w.backoff_attempts + 1 ELSE w.backoff_attempts END
    FROM x
    WHERE w.machine_id = x.machine_id AND w.process = x.process AND w.work_id IS NOT DISTINCT FROM x.work_id%[2]s
    RETURNING w.machine_id, w.process, x.work_id, w.session_id, w.pool, w.claim_key, w.started_at, w.fence, w.attempt, x.cause%[5]s, %[3]s AS verdict),
h AS (
    INSERT INTO work_history (machine_id, work_id, phase, process, event, timestamp, failed_cause, session_id, pool, claim_key, fence, attempt, duration_ms, actor)
    SELECT machine_id, work_id, 1, process, verdict, clock_timestamp(), NULLIF(cause, ''), session_id, pool, claim_key, fence, attempt,
        CAST(extract(epoch FROM clock_timestamp() - started_at) * 1000 AS bigint), $8 FROM f),
s AS (UPDATE limit_slots SET work_id = NULL WHERE work_id IN (SELECT work_id FROM f))%[4]s
SELECT machine_id, work_id, verdict, pool, claim_key, cause FROM f`

	// withFacts are the columns of what works bring, and factsOfEnds what becomes of them. What was heard of an agent before another was started
	// anew is forgotten, and what is too old to count: the lapse that brought a recovery is over with it, and the next begins with the start of
	// the agent. What was heard of the new agent already stays.
	withFacts   = ", unnest($9::bytea[]) AS agent_public_key, unnest($10::bytea[]) AS hardware_report"
	ofFacts     = ", x.agent_public_key, x.hardware_report"
	factsOfEnds = `,
ag AS (
    INSERT INTO machine_agent_started (machine_id, agent_started_at, agent_public_key)
    SELECT machine_id, clock_timestamp(), agent_public_key FROM f WHERE verdict = 'Finished' AND agent_public_key IS NOT NULL
    ON CONFLICT (machine_id) DO UPDATE SET agent_started_at = excluded.agent_started_at, agent_public_key = excluded.agent_public_key),
hb AS (
    DELETE FROM machine_agent_heartbeat
    WHERE machine_id IN (
        SELECT b.machine_id FROM f JOIN machine_agent_heartbeat b ON b.machine_id = f.machine_id JOIN machine_state m ON m.machine_id = f.machine_id
        WHERE f.verdict = 'Finished' AND f.agent_public_key IS NOT NULL
          AND (b.agent_heartbeat_at < f.started_at OR m.unresponsive_at <= clock_timestamp()))),
hw AS (
    INSERT INTO machine_hardware_report (machine_id, hardware_report_raw)
    SELECT machine_id, hardware_report FROM f WHERE verdict = 'Finished' AND hardware_report IS NOT NULL
    ON CONFLICT (machine_id) DO UPDATE SET hardware_report_raw = excluded.hardware_report_raw)`

	// ofNoClaim and inClaim are how works end that were done for no claim, or for any: a second success is none where one is enough.
	ofNoClaim = " AND w.claim_key = ''"
	inClaim   = `CASE WHEN x.event = 'Finished' AND EXISTS (
            SELECT 1 FROM claim_machines d JOIN claims c ON c.pool = d.pool AND c.claim_key = d.claim_key
            WHERE d.pool = w.pool AND d.claim_key = w.claim_key AND d.machine_id = w.machine_id AND d.finished_work_id IS NOT NULL AND c.mode <> 'Continuous' OFFSET 0)
        THEN 'Canceled' ELSE x.event END`

	// sqlCountEnds is what the ends of works mean for their claims: what became of the machine, and the counts. It is the last statement of its
	// transaction, because starts of a claim wait for the claim's row.
	sqlCountEnds = `
WITH x AS (
    SELECT unnest($1::uuid[]) AS machine_id, unnest($2::uuid[]) AS work_id, unnest($3::text[]) AS pool, unnest($4::text[]) AS claim_key,
           unnest($5::text[]) AS event, unnest($6::text[]) AS cause),
cm AS (
    INSERT INTO claim_machines (pool, claim_key, machine_id, attempts, losses, finished_work_id, quarantined_work_id, quarantined_at, cause, changed_at)
    SELECT x.pool, x.claim_key, x.machine_id,
        CASE WHEN x.event = 'Failed' THEN 1 ELSE 0 END, CASE WHEN x.event = 'Lost' THEN 1 ELSE 0 END,
        CASE WHEN x.event = 'Finished' AND c.mode <> 'Continuous' THEN x.work_id END,
        CASE WHEN x.event = 'Failed' AND COALESCE(o.attempts, 0) + 1 >= c.max_attempts OR x.event = 'Lost' AND COALESCE(o.losses, 0) + 1 >= 10 THEN x.work_id END,
        CASE WHEN x.event = 'Failed' AND COALESCE(o.attempts, 0) + 1 >= c.max_attempts OR x.event = 'Lost' AND COALESCE(o.losses, 0) + 1 >= 10 THEN clock_timestamp() END,
        CASE WHEN x.event IN ('Failed', 'Lost') THEN CASE WHEN x.cause = '' THEN x.event ELSE x.cause END ELSE '' END, clock_timestamp()
    FROM x JOIN claims c ON c.pool = x.pool AND c.claim_key = x.claim_key
    LEFT JOIN LATERAL (
        SELECT d.attempts, d.losses FROM claim_machines d
        WHERE d.pool = x.pool AND d.claim_key = x.claim_key AND d.machine_id = x.machine_id OFFSET 0) o ON true
    WHERE x.event IN ('Finished', 'Failed', 'Lost')
    ON CONFLICT (pool, claim_key, machine_id) DO UPDATE SET
        attempts = CASE WHEN excluded.attempts = 0 AND excluded.losses = 0 THEN 0 ELSE claim_machines.attempts + excluded.attempts END,
        losses = CASE WHEN excluded.losses = 0 THEN 0 ELSE claim_machines.losses + 1 END,
        finished_work_id = COALESCE(claim_machines.finished_work_id, excluded.finished_work_id),
        quarantined_work_id = COALESCE(excluded.quarantined_work_id, claim_machines.quarantined_work_id),
        quarantined_at = COALESCE(claim_machines.quarantined_at, excluded.quarantined_at),
        cause = excluded.cause, changed_at = excluded.changed_at
    RETURNING machine_id, pool, claim_key, quarantined_work_id),
n AS (
    SELECT x.pool, x.claim_key, count(*) AS ended,
        sum(CASE WHEN x.event = 'Finished' THEN 1 ELSE 0 END) AS finished,
        sum(CASE WHEN cm.quarantined_work_id = x.work_id THEN 1 ELSE 0 END) AS quarantined
    FROM x LEFT JOIN cm ON cm.pool = x.pool AND cm.claim_key = x.claim_key AND cm.machine_id = x.machine_id
    GROUP BY x.pool, x.claim_key)
UPDATE claims c SET active = c.active - n.ended, succeeded = c.succeeded + n.finished, failed = c.failed + n.quarantined, rev = c.rev + 1,
    state = CASE
        WHEN c.state = 'Running' AND c.mode = 'Once' AND c.succeeded + n.finished + c.skipped >= c.completions THEN 'Complete'
        WHEN c.state = 'Running' AND c.failed + n.quarantined > c.max_failed_machines AND c.active = n.ended THEN 'Failed'
        ELSE c.state END,
    reason = CASE
        WHEN c.state = 'Running' AND c.mode = 'Once' AND c.succeeded + n.finished + c.skipped >= c.completions THEN 'Complete'
        WHEN c.state = 'Running' AND c.failed + n.quarantined > c.max_failed_machines AND c.active = n.ended THEN 'TooManyFailedMachines'
        ELSE c.reason END,
    message = CASE
        WHEN c.state = 'Running' AND (c.mode = 'Once' AND c.succeeded + n.finished + c.skipped >= c.completions
             OR c.failed + n.quarantined > c.max_failed_machines AND c.active = n.ended) THEN ''
        ELSE c.message END,
    completed_at = CASE
        WHEN c.state = 'Running' AND (c.mode = 'Once' AND c.succeeded + n.finished + c.skipped >= c.completions
             OR c.failed + n.quarantined > c.max_failed_machines AND c.active = n.ended) THEN clock_timestamp()
        ELSE c.completed_at END
FROM n WHERE c.pool = n.pool AND c.claim_key = n.claim_key`

	// sqlFence aborts the transaction (23502) unless the work still holds its lock. It runs under the machine's mutex and before the
	// end, in the form of an end that sends its COMMIT before any verdict is read. (The history cannot tell: it also has the ends
	// that others made.)
	sqlFence = `
INSERT INTO work_history (machine_id, work_id, phase, process, event, timestamp, session_id, pool, claim_key, fence, attempt, duration_ms, actor)
SELECT $1, NULL, 1, '', 'Lost', clock_timestamp(), $3, '', '', 0, 0, 0, ''
WHERE NOT EXISTS (SELECT 1 FROM work WHERE machine_id = $1 AND process = $2 AND work_id IS NOT DISTINCT FROM $3)`

	// sqlEndsOf reads back how works ended.
	sqlEndsOf = "SELECT work_id, event FROM work_history WHERE machine_id = ANY($1) AND work_id = ANY($2) AND phase = 1"

	// sqlSetTags and sqlClearTags are what the definition of a process says of its success, as it was when the work began. They follow the end in its
	// transaction, one after the other: a statement may write a table only once.
	sqlSetTags = `
INSERT INTO machine_tags (machine_id, tag, tag_set_at)
SELECT x.machine_id, x.tag, clock_timestamp()
FROM (SELECT DISTINCT unnest($1::uuid[]) AS machine_id, unnest($2::text[]) AS tag) x
ON CONFLICT (machine_id, tag) DO UPDATE SET tag_set_at = excluded.tag_set_at`

	sqlClearTags = `
DELETE FROM machine_tags
WHERE (machine_id, tag) IN (SELECT x.machine_id, x.tag FROM (SELECT unnest($1::uuid[]) AS machine_id, unnest($2::text[]) AS tag) x)`

	sqlCheckpoint = "UPDATE work SET checkpoint = $4 WHERE machine_id = $1 AND process = $2 AND work_id IS NOT DISTINCT FROM $3 RETURNING machine_id"

	// sqlProgress shows steps of works; losing them does no harm, so it takes no mutex, and waits for nobody who writes a work at the moment.
	sqlProgress = `
WITH x AS (
    SELECT unnest($1::uuid[]) AS machine_id, unnest($2::text[]) AS process, unnest($3::uuid[]) AS work_id, unnest($4::text[]) AS step, unnest($5::bigint[]) AS percent),
l AS (
    SELECT w.machine_id, w.process, x.work_id, x.step, x.percent
    FROM x JOIN work w ON w.machine_id = x.machine_id AND w.process = x.process AND w.work_id IS NOT DISTINCT FROM x.work_id
    FOR UPDATE OF w SKIP LOCKED)
UPDATE work w SET step = l.step, percent = l.percent
FROM l WHERE w.machine_id = l.machine_id AND w.process = l.process RETURNING w.work_id`

	// sqlCheck finds those of the works that have their locks. OFFSET 0 keeps the planner from reading a small fleet as a whole.
	sqlCheck = `
WITH x AS (SELECT unnest($1::uuid[]) AS machine_id, unnest($2::text[]) AS process, unnest($3::uuid[]) AS work_id)
SELECT x.work_id FROM x CROSS JOIN LATERAL (
    SELECT 1 FROM work w WHERE w.machine_id = x.machine_id AND w.process = x.process AND w.work_id IS NOT DISTINCT FROM x.work_id OFFSET 0) w`
)

var (
	sqlStartBatchFree  = fmt.Sprintf(sqlStartBatch, roomOfNobody, "")
	sqlStartBatchClaim = fmt.Sprintf(sqlStartBatch, roomOfClaim, countInClaim)

	sqlEndsFree              = fmt.Sprintf(sqlEnd, "", ofNoClaim, "x.event", "", "")
	sqlEndsFreeWithFacts     = fmt.Sprintf(sqlEnd, withFacts, ofNoClaim, "x.event", factsOfEnds, ofFacts)
	sqlEndsInClaims          = fmt.Sprintf(sqlEnd, "", "", inClaim, "", "")
	sqlEndsInClaimsWithFacts = fmt.Sprintf(sqlEnd, withFacts, "", inClaim, factsOfEnds, ofFacts)
)
