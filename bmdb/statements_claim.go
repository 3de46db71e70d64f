// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import "fmt"

// This file holds the statements of claims. Rules beside those of statements.go: a claim's row is locked before the rows of its machines
// where a statement of its owner needs both; whoever ends work does it the other way round and is tried again if that meets.

// Attaching and detaching views.
const (
	sqlInsertClaim = `
INSERT INTO claims (pool, claim_key, spec_hash, process, mode, selection, parameters, completions, parallelism, timeout_seconds,
    active_deadline_seconds, max_attempts, max_failed_machines, backoff_initial_seconds, backoff_maximum_seconds, suspended, state, reason, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 'Running', 'Pending', clock_timestamp())
ON CONFLICT (pool, claim_key) DO NOTHING`

	sqlReadClaim = `
SELECT spec_hash, parallelism, timeout_seconds, active_deadline_seconds, max_attempts, max_failed_machines, backoff_initial_seconds,
    backoff_maximum_seconds, suspended, state, rev, active
FROM claims WHERE pool = $1 AND claim_key = $2`
	sqlLockClaim = sqlReadClaim + " FOR UPDATE"

	sqlClaimViews = "SELECT cluster, name, uid, manages, suspended, runnable FROM claim_views WHERE pool = $1 AND claim_key = $2 ORDER BY cluster"

	sqlSetClaimView = `
INSERT INTO claim_views (pool, claim_key, cluster, name, uid, manages, suspended, runnable, origin) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (pool, claim_key, cluster) DO UPDATE SET name = excluded.name, uid = excluded.uid, manages = excluded.manages,
    suspended = excluded.suspended, runnable = excluded.runnable, origin = excluded.origin`

	// sqlClaimViewElsewhere finds a view whose object was in another API server than $4.
	sqlClaimViewElsewhere = `
SELECT 1 FROM claim_views WHERE pool = $1 AND claim_key = $2 AND cluster = $3 AND $4 <> '' AND origin NOT IN ('', $4)`

	sqlDeleteClaimView = "DELETE FROM claim_views WHERE pool = $1 AND claim_key = $2 AND cluster = $3 AND uid = $4"

	// sqlUpdateClaim writes what may change of a claim. A deadline runs from when the claim was first taken up.
	sqlUpdateClaim = `
UPDATE claims SET parallelism = $3, timeout_seconds = $4, active_deadline_seconds = $5::bigint,
    deadline_at = started_at + $5::bigint * interval '1 second', max_attempts = $6,
    max_failed_machines = $7, backoff_initial_seconds = $8, backoff_maximum_seconds = $9, suspended = $10,
    state = CASE WHEN state = 'Detached' THEN 'Running' ELSE state END, rev = rev + 1
WHERE pool = $1 AND claim_key = $2`

	// sqlReleaseQuarantined lets machines be tried again that have attempts left; with $3 also those that were lost too often.
	sqlReleaseQuarantined = `
WITH c AS (SELECT c.max_attempts FROM claims c WHERE c.pool = $1 AND c.claim_key = $2 AND c.state IN ('Running', 'Detached')),
u AS (
    UPDATE claim_machines d SET quarantined_work_id = NULL, quarantined_at = NULL, losses = 0 FROM c
    WHERE d.pool = $1 AND d.claim_key = $2 AND d.quarantined_at IS NOT NULL AND d.attempts < c.max_attempts AND ($3::boolean OR d.losses < 10)
    RETURNING d.machine_id)
UPDATE claims SET failed = claims.failed - (SELECT count(*) FROM u), rev = claims.rev + 1
WHERE pool = $1 AND claim_key = $2 AND EXISTS (SELECT 1 FROM u)
RETURNING rev`

	// sqlDetachClaim is for a claim that has lost its last view. The new epoch ends its owner's term.
	sqlDetachClaim = `
UPDATE claims SET state = CASE WHEN state = 'Running' THEN 'Detached' ELSE state END, owner_session = NULL, owner_epoch = owner_epoch + 1, rev = rev + 1
WHERE pool = $1 AND claim_key = $2`

	// sqlSuspendView suspends by one view, and never the other way.
	sqlSuspendView  = "UPDATE claim_views SET suspended = true WHERE pool = $1 AND claim_key = $2 AND cluster = $3 AND uid = $4 AND NOT suspended RETURNING cluster"
	sqlSuspendClaim = "UPDATE claims SET suspended = true, rev = rev + 1 WHERE pool = $1 AND claim_key = $2"

	sqlClaimViewsChanged = "UPDATE claims SET suspended = $3, rev = rev + 1 WHERE pool = $1 AND claim_key = $2"
)

// Owning.
const (
	// unowned are claims that pods of cluster $2 may carry out and nobody who lives owns, and claims that the database says are session $1's and
	// are not among those that it knows, $3. Whose session is over is a write; the clock of a lease takes no part.
	unowned = `
FROM claims c
JOIN claim_views v ON v.pool = c.pool AND v.claim_key = c.claim_key AND v.cluster = $2 AND v.runnable
LEFT JOIN sessions s ON s.session_id = c.owner_session
WHERE c.state = 'Running' AND NOT ((c.pool || '/' || c.claim_key) = ANY($3))
  AND ($4::text[] IS NULL OR c.pool = ANY($4))
  AND (c.owner_session IS NULL OR c.owner_session = $1 OR s.session_id IS NULL OR s.session_ended_at IS NOT NULL)
`

	// sqlUnowned lists them in an order that differs between sessions.
	sqlUnowned = `
SELECT c.pool, c.claim_key, c.owner_epoch, c.owner_session IS NOT NULL AND c.owner_session <> $1` + unowned + `ORDER BY md5($6 || c.claim_key), c.pool, c.claim_key LIMIT $5`

	claimColumns = `
c.pool, c.claim_key, c.owner_epoch, c.process, c.mode, c.selection, c.parameters, c.completions, c.parallelism, c.timeout_seconds,
c.active_deadline_seconds, c.max_attempts, c.max_failed_machines, c.backoff_initial_seconds, c.backoff_maximum_seconds, c.suspended,
c.state, c.reason, c.message, c.active, c.succeeded, c.failed, c.skipped, c.selected, c.unneeded, c.rev, COALESCE(c.deadline_at <= clock_timestamp(), false)`

	// sqlTakeClaims takes claims up, each by compare-and-set on the epoch that was read before: a look at the owner's session in here
	// would be a look at an old snapshot, and steal from the living.
	sqlTakeClaims = `
WITH g AS (` + gate + `),
x AS (SELECT unnest($2::text[]) AS pool, unnest($3::text[]) AS claim_key, unnest($4::bigint[]) AS epoch, unnest($5::boolean[]) AS taken,
             unnest($6::uuid[]) AS event_id),
c AS (
    UPDATE claims c SET owner_session = $1, owner_epoch = c.owner_epoch + 1, rev = CASE WHEN c.started_at IS NULL THEN c.rev + 1 ELSE c.rev END,
        started_at = COALESCE(c.started_at, clock_timestamp()),
        deadline_at = COALESCE(c.started_at, clock_timestamp()) + c.active_deadline_seconds * interval '1 second'
    FROM x CROSS JOIN g
    WHERE c.pool = x.pool AND c.claim_key = x.claim_key AND c.owner_epoch = x.epoch AND c.state = 'Running'
    RETURNING ` + claimColumns + ` AS overdue, x.taken, x.event_id),
a AS (
    INSERT INTO audit_log (event_id, at, pool, kind, name, event, actor, session_id, cluster, cause)
    SELECT event_id, clock_timestamp(), pool, 'claim', claim_key, 'TakenOver', $7, $1, $8, 'the session of its owner is over' FROM c WHERE taken)
SELECT pool, claim_key, owner_epoch, process, mode, selection, parameters, completions, parallelism, timeout_seconds, active_deadline_seconds,
    max_attempts, max_failed_machines, backoff_initial_seconds, backoff_maximum_seconds, suspended, state, reason, message, active, succeeded, failed,
    skipped, selected, unneeded, rev, overdue
FROM c`

	// sqlOwnedClaim reads a claim in the term in which a session owns it, or how it ended in that term, and whether pods of cluster $5 may
	// still carry it out.
	sqlOwnedClaim = `
SELECT ` + claimColumns + `,
    EXISTS (SELECT 1 FROM claim_views v WHERE v.pool = c.pool AND v.claim_key = c.claim_key AND v.cluster = $5 AND v.runnable),
    COALESCE((SELECT min(a.reason) FROM database_alarms a WHERE a.pool = c.pool AND a.kind = 'claim' AND a.id = c.claim_key),
             (SELECT min(a.reason) FROM database_alarms a JOIN processes p ON p.process = c.process AND p.pool IN ('', c.pool) AND p.destructive WHERE a.pool = c.pool),
             (SELECT CASE WHEN NOT p.indexed THEN 'ProcessNotAvailable' WHEN c.mode = 'Continuous' AND NOT p.convergent THEN 'ProcessNotConvergent' ELSE '' END
              FROM processes p WHERE p.process = c.process AND p.pool IN ('', c.pool)), 'ProcessNotAvailable')
FROM claims c WHERE c.pool = $1 AND c.claim_key = $2 AND c.owner_epoch = $4 AND (c.owner_session = $3 OR c.state IN ('Complete', 'Failed'))`

	sqlReleaseClaim = "UPDATE claims SET owner_session = NULL WHERE pool = $1 AND claim_key = $2 AND owner_session = $3 AND owner_epoch = $4"

	sqlWriteOutlook = `
UPDATE claims SET reason = $5, message = $6, selected = $7, unneeded = $8, rev = rev + 1
WHERE pool = $1 AND claim_key = $2 AND owner_session = $3 AND owner_epoch = $4 AND state = 'Running'
  AND (reason <> $5 OR message <> $6 OR selected <> $7 OR unneeded <> $8)`

	// sqlEndClaim ends a claim for ever, if its row still is the one that the verdict was made from: what was raised, added, started or
	// ended meanwhile is judged anew. It waits for works that go on: their ends would change the counts of what is final.
	sqlEndClaim = `
UPDATE claims SET state = $5, reason = $6, message = $7, selected = $8, unneeded = $9, completed_at = clock_timestamp(), owner_session = NULL, rev = rev + 1
WHERE pool = $1 AND claim_key = $2 AND owner_session = $3 AND owner_epoch = $4 AND state = 'Running' AND active = 0 AND rev = $10
RETURNING rev`

	// sqlOverdueUnowned finds claims over their deadline that nobody owns whose session lives: nobody can carry them out, so no owner's
	// review will end them.
	sqlOverdueUnowned = overdueUnowned + `
ORDER BY c.deadline_at LIMIT $1`
	overdueUnowned = `
SELECT c.pool, c.claim_key, c.owner_epoch, c.rev, c.active_deadline_seconds, c.succeeded + c.skipped
FROM claims c LEFT JOIN sessions s ON s.session_id = c.owner_session
WHERE c.state = 'Running' AND c.deadline_at <= clock_timestamp() AND c.active = 0
  AND NOT EXISTS (SELECT 1 FROM database_alarms a WHERE a.pool = c.pool)
  AND (c.owner_session IS NULL OR s.session_id IS NULL OR s.session_ended_at IS NOT NULL)`

	// sqlEndOverdue ends one of them, if its row still is the one that was found.
	sqlEndOverdue = `
UPDATE claims SET state = 'Failed', reason = 'DeadlineExceeded', message = $5, completed_at = clock_timestamp(), owner_session = NULL,
    owner_epoch = owner_epoch + 1, rev = rev + 1
WHERE pool = $1 AND claim_key = $2 AND owner_epoch = $3 AND rev = $4 AND state = 'Running' AND active = 0
RETURNING rev`

	// sqlRoomToSkip locks a claim in its owner's term, so that it starts nothing meanwhile, and says how many machines still count.
	sqlRoomToSkip = `
SELECT c.completions - c.succeeded - c.skipped - c.active FROM claims c
WHERE c.pool = $1 AND c.claim_key = $2 AND c.owner_session = $3 AND c.owner_epoch = $4 AND c.state = 'Running' FOR UPDATE`

	// sqlCountSkipped counts the machines that were marked as skipped, and ends the claim that is complete by that.
	sqlCountSkipped = `
UPDATE claims SET skipped = skipped + $5, failed = failed - $6, rev = rev + 1,
    state = CASE WHEN succeeded + skipped + $5 >= completions AND active = 0 THEN 'Complete' ELSE state END,
    reason = CASE WHEN succeeded + skipped + $5 >= completions AND active = 0 THEN 'Complete' ELSE reason END,
    message = CASE WHEN succeeded + skipped + $5 >= completions AND active = 0 THEN '' ELSE message END,
    completed_at = CASE WHEN succeeded + skipped + $5 >= completions AND active = 0 THEN clock_timestamp() ELSE completed_at END
WHERE pool = $1 AND claim_key = $2 AND owner_session = $3 AND owner_epoch = $4 AND state = 'Running'`
)

// Selections. Their parameters are, in all of these statements: $1 pool, $2 process, $3 claim key, $4 to $6 the terms of the selector,
// $7 the provider.
const (
	terms = `
t AS (SELECT unnest($4::text[]) AS label, unnest($5::text[]) AS op, unnest($6::text[]) AS vals)`

	// selectedByLabels says whether all terms match a machine x. The values of a term are joined; the sign in front of each tells no value
	// from the empty one.
	selectedByLabels = `NOT EXISTS (
    SELECT 1 FROM t WHERE NOT CASE t.op
        WHEN 'In' THEN EXISTS (SELECT 1 FROM machine_labels l WHERE l.machine_id = x.machine_id AND l.key = t.label AND '=' || l.value = ANY(string_to_array(t.vals, chr(31))))
        WHEN 'NotIn' THEN NOT EXISTS (SELECT 1 FROM machine_labels l WHERE l.machine_id = x.machine_id AND l.key = t.label AND '=' || l.value = ANY(string_to_array(t.vals, chr(31))))
        WHEN 'Exists' THEN EXISTS (SELECT 1 FROM machine_labels l WHERE l.machine_id = x.machine_id AND l.key = t.label)
        ELSE NOT EXISTS (SELECT 1 FROM machine_labels l WHERE l.machine_id = x.machine_id AND l.key = t.label) END)`

	// openForClaim is a machine x on which the claim may start something. It is counted for the same reason as in a start.
	openForClaim = `(
    SELECT count(*) FROM claim_machines d WHERE d.pool = $1 AND d.claim_key = $3 AND d.machine_id = x.machine_id AND ` + closedForClaim + `) = 0`

	// atLimit tells of a limit whether it is used up.
	atLimit = `(EXISTS (SELECT 1 FROM limits l WHERE l.limit_id = %[1]s)
    AND NOT EXISTS (SELECT 1 FROM limit_slots s WHERE s.limit_id = %[1]s AND s.open AND s.work_id IS NULL))`
)

// Candidates, in four shapes. Which of them is taken is decided by counts, not by the planner: where one table is large and the other
// narrow, it may choose to read the large one. Each bounded side is read in the order of its index, for the same reason: where the planner
// believes that nearly every row matches, it would look for the first ones in the whole table.
var (
	// sqlCandidatesByName: the selection has names.
	sqlCandidatesByName = `
WITH ` + terms + `
SELECT x.machine_id, x.provider FROM (
    SELECT w.machine_id, w.provider FROM machine_identities i
    CROSS JOIN LATERAL (
        SELECT w.machine_id, w.provider FROM work w
        WHERE w.machine_id = i.machine_id AND w.process = $2 AND w.pool = $1 AND ` + due + ` AND ($7 = '' OR w.provider = $7) OFFSET 0) w
    WHERE i.pool = $1 AND i.name = ANY($8)
      AND NOT ` + fmt.Sprintf(atLimit, "('provider/' || $1::text || '/' || w.provider)") + `) x
WHERE ` + selectedByLabels + ` AND ` + openForClaim + ` ORDER BY x.machine_id`

	// sqlReadyProviders steps through the providers that have ready machines, without reading these, and says which are at their limit.
	sqlReadyProviders = `
WITH RECURSIVE r AS (
    (SELECT w.provider FROM work w WHERE w.process = $2 AND w.pool = $1 AND w.state = 2 ORDER BY w.provider LIMIT 1)
    UNION ALL
    SELECT (SELECT w.provider FROM work w WHERE w.process = $2 AND w.pool = $1 AND w.state = 2 AND w.provider > r.provider ORDER BY w.provider LIMIT 1)
    FROM r WHERE r.provider IS NOT NULL)
SELECT r.provider FROM r WHERE r.provider IS NOT NULL AND ($3 = '' OR r.provider = $3) AND NOT ` + fmt.Sprintf(atLimit, "('provider/' || $1::text || '/' || r.provider)")

	// sqlCountReady counts the ready machines of a provider up to a bound.
	sqlCountReady = `
SELECT count(*) FROM (SELECT 1 FROM work w WHERE w.process = $2 AND w.pool = $1 AND w.state = 2 AND w.provider = $3
    ORDER BY w.machine_id LIMIT $4) n`

	// sqlCountLabel counts the machines that have a label with a value, up to a bound.
	sqlCountLabel = `
SELECT count(*) FROM (SELECT 1 FROM machine_labels l WHERE l.pool = $1 AND l.key = $2 AND l.value = $3
    ORDER BY l.machine_id LIMIT $4) n`

	// sqlCandidatesReady: few machines of the provider are ready.
	sqlCandidatesReady = `
WITH ` + terms + `
SELECT x.machine_id, x.provider FROM (
    SELECT w.machine_id, w.provider FROM work w WHERE w.process = $2 AND w.pool = $1 AND w.state = 2 AND w.provider = $7
    ORDER BY w.machine_id LIMIT $8) x
WHERE ` + selectedByLabels + ` AND ` + openForClaim + ` ORDER BY x.machine_id`

	// sqlCandidatesByLabel: many are ready, and few have the value of a label that the selector asks for. OFFSET 0 keeps the planner from
	// turning the look-ups around.
	sqlCandidatesByLabel = `
WITH ` + terms + `
SELECT x.machine_id, x.provider FROM (
    SELECT w.machine_id, w.provider
    FROM (SELECT l.machine_id FROM machine_labels l WHERE l.pool = $1 AND l.key = $8 AND l.value = $9 ORDER BY l.machine_id LIMIT $10) n
    CROSS JOIN LATERAL (
        SELECT w.machine_id, w.provider FROM work w
        WHERE w.machine_id = n.machine_id AND w.process = $2 AND w.pool = $1 AND w.provider = $7 AND ` + due + ` OFFSET 0) w) x
WHERE ` + selectedByLabels + ` AND ` + openForClaim + ` ORDER BY x.machine_id`

	// sqlCandidatesPage: many are ready, and no term is narrow. A page of them by ascending machine, from $8 to $9, and which are hits.
	sqlCandidatesPage = `
WITH ` + terms + `
SELECT x.machine_id, x.provider, ` + selectedByLabels + ` AND ` + openForClaim + `
FROM (
    SELECT w.machine_id, w.provider FROM work w
    WHERE w.process = $2 AND w.pool = $1 AND w.state = 2 AND w.provider = $7 AND w.machine_id >= $8 AND w.machine_id <= $9
    ORDER BY w.machine_id LIMIT $10) x
ORDER BY x.machine_id`
)

// Review: in which of the classes each selected machine is. The classes are the gates of a start, in their order; each is the fragment that the
// start itself is made of.
const (
	// failing is the first fact of the predicate that fails.
	failing = `CASE WHEN ` + eligibleNow + ` THEN '' ELSE COALESCE(
        (SELECT 'requires ' || r.fact FROM unnest(p.requires) AS r (fact) WHERE NOT (r.fact = ANY(` + factsNow + `)) ORDER BY r.fact LIMIT 1),
        (SELECT 'forbids ' || r.fact FROM unnest(p.forbids) AS r (fact) WHERE r.fact = ANY(m.facts) ORDER BY r.fact LIMIT 1),
        'forbids ViewLost') END`

	// fulfilled is a machine whose need was met, as opposed to one that lacks something which may come.
	fulfilled = `(p.forbids && m.facts OR p.requires && ARRAY['InstallDue'] AND m.facts && ARRAY['InstallFulfilled'])`

	class = `CASE
        WHEN d.finished_work_id IS NOT NULL OR d.skipped THEN 'Done'
        WHEN w.work_id IS NOT NULL AND $3 <> '' AND w.claim_key = $3 THEN 'Active'
        WHEN NOT ` + eligibleNow + ` AND ` + fulfilled + ` THEN 'Fulfilled'
        WHEN NOT ` + eligibleNow + ` THEN 'NotNeeded'
        WHEN d.quarantined_at IS NOT NULL THEN 'Quarantined'
        WHEN NOT ` + notHeld + ` THEN 'Held'
        WHEN ` + worksInSlot + ` > 0 THEN 'LockedBy'
        WHEN w.backoff_until > clock_timestamp() THEN 'BackedOff'
        WHEN x.at_limit THEN 'AtLimit'
        ELSE 'Ready' END`

	// passes is when a class passes by itself.
	passes = `CASE WHEN NOT ` + notHeld + ` THEN NULLIF(m.held_until, ` + forever + `) ELSE w.backoff_until END`

	// classify is made of a page of machines. OFFSET 0 keeps the planner from reading all that the claim has done for each of them. NULL instead of a class counts the machines of the page, selected or not, and names the last.
	classify = `
WITH ` + terms + `,
p AS (SELECT p.process, p.slot, p.requires, p.forbids FROM processes p WHERE p.process = $2 AND p.pool IN ('', $1)),
page AS (%s),
x AS (
    SELECT page.machine_id, page.provider, l.at_limit
    FROM page JOIN (SELECT n.provider, %s AS at_limit FROM (SELECT DISTINCT provider FROM page) n) l ON l.provider = page.provider),
classified AS (
    SELECT x.machine_id, ` + class + ` AS class, ` + failing + ` AS failing, ` + passes + ` AS passes
    FROM x JOIN machine_state m ON m.machine_id = x.machine_id CROSS JOIN p
    LEFT JOIN work w ON w.machine_id = x.machine_id AND w.process = $2
    LEFT JOIN LATERAL (
        SELECT d.finished_work_id, d.quarantined_at, d.skipped FROM claim_machines d
        WHERE d.pool = $1 AND d.claim_key = $3 AND d.machine_id = x.machine_id OFFSET 0) d ON true
    WHERE ` + selectedByLabels + ` AND ($3 = '' OR NOT (m.facts && ARRAY['ViewLost'])))`

	pageOfNames = `
    SELECT i.machine_id, m.provider FROM machine_identities i JOIN machine_state m ON m.machine_id = i.machine_id
    WHERE i.pool = $1 AND i.name = ANY($8) AND ($7 = '' OR m.provider = $7)`

	pageOfProvider = `
    SELECT m.machine_id, m.provider FROM machine_state m WHERE m.pool = $1 AND m.provider = $7 AND m.machine_id > $8 ORDER BY m.machine_id LIMIT $9`

	pageOfMachine = "SELECT m.machine_id, m.provider FROM machine_state m WHERE m.machine_id = $8 AND m.pool = $1 AND ($7 = '' OR m.provider = $7)"

	countClasses = `
SELECT class, failing, count(*), min(passes), min(machine_id::text) FROM classified GROUP BY class, failing
UNION ALL SELECT '', '', count(*), NULL, max(machine_id::text) FROM page`
)

var (
	limitOfPage         = fmt.Sprintf(atLimit, "('provider/' || $1::text || '/' || n.provider)")
	sqlReviewNames      = fmt.Sprintf(classify, pageOfNames, limitOfPage) + countClasses
	sqlReviewPage       = fmt.Sprintf(classify, pageOfProvider, limitOfPage) + countClasses
	sqlReviewMachine    = fmt.Sprintf(classify, pageOfMachine, limitOfPage) + countClasses
	sqlFulfilledOfNames = fmt.Sprintf(classify, pageOfNames, limitOfPage) + `
SELECT machine_id FROM classified WHERE class = 'Fulfilled' ORDER BY machine_id`
)

const (
	// sqlProvidersOfPool steps through the providers of a pool's machines.
	sqlProvidersOfPool = `
WITH RECURSIVE r AS (
    (SELECT m.provider FROM machine_state m WHERE m.pool = $1 ORDER BY m.provider LIMIT 1)
    UNION ALL
    SELECT (SELECT m.provider FROM machine_state m WHERE m.pool = $1 AND m.provider > r.provider ORDER BY m.provider LIMIT 1)
    FROM r WHERE r.provider IS NOT NULL)
SELECT r.provider FROM r WHERE r.provider IS NOT NULL`

	// sqlMissingNames are those of the names that no machine of the pool has, or only one that has lost its last view.
	sqlMissingNames = `
SELECT n.name FROM (SELECT unnest($2::text[]) AS name) n
LEFT JOIN machine_identities i ON i.pool = $1 AND i.name = n.name
LEFT JOIN machine_state m ON m.machine_id = i.machine_id
WHERE m.machine_id IS NULL OR m.facts && ARRAY['ViewLost'] ORDER BY n.name`

	// sqlSkip marks machines that do not need the process as done for the claim, unless they are, or are worked on for it. Who is done is not
	// quarantined any more.
	sqlSkip = `
INSERT INTO claim_machines (pool, claim_key, machine_id, skipped, changed_at)
SELECT $1::text, $2::text, x.machine_id, true, clock_timestamp() FROM (SELECT unnest($3::uuid[]) AS machine_id) x
WHERE (SELECT count(*) FROM work w WHERE w.machine_id = x.machine_id AND w.pool = $1 AND w.claim_key = $2 AND w.state = 3) = 0
ORDER BY x.machine_id
ON CONFLICT (pool, claim_key, machine_id) DO UPDATE SET skipped = true, quarantined_work_id = NULL, quarantined_at = NULL, changed_at = excluded.changed_at
WHERE claim_machines.finished_work_id IS NULL AND NOT claim_machines.skipped
RETURNING machine_id`

	// sqlQuarantinedOf counts those of the machines that are quarantined for a claim.
	sqlQuarantinedOf = `
SELECT count(*) FROM claim_machines WHERE pool = $1 AND claim_key = $2 AND machine_id = ANY($3) AND quarantined_at IS NOT NULL`

	// sqlObstacle says of a machine who holds it, who works on it in the slot of the process, and what it is backed off for.
	sqlObstacle = `
SELECT COALESCE(i.name, m.machine_id::text), m.provider,
    COALESCE(h.hold_name, ''), COALESCE(h.owner, ''), COALESCE(h.reason, ''), h.held_until,
    COALESCE(o.process, ''), COALESCE(o.claim_key, ''), COALESCE(s.session_runtime_info, ''),
    COALESCE(w.backoff_cause, ''), w.backoff_until, COALESCE(d.cause, ''), COALESCE(l.maximum, 0), l.settles_at IS NOT NULL
FROM machine_state m
JOIN processes p ON p.process = $2 AND p.pool IN ('', m.pool)
LEFT JOIN machine_identities i ON i.machine_id = m.machine_id
LEFT JOIN machine_holds h ON h.machine_id = m.machine_id AND (h.held_until IS NULL OR h.held_until > clock_timestamp())
LEFT JOIN LATERAL (SELECT o.process, o.claim_key, o.session_id FROM work o WHERE o.machine_id = m.machine_id AND o.slot = p.slot AND o.state = 3 OFFSET 0) o ON true
LEFT JOIN sessions s ON s.session_id = o.session_id
LEFT JOIN work w ON w.machine_id = m.machine_id AND w.process = $2
LEFT JOIN claim_machines d ON d.pool = m.pool AND d.claim_key = $3 AND d.machine_id = m.machine_id
LEFT JOIN limits l ON l.limit_id = 'provider/' || m.pool || '/' || m.provider
WHERE m.machine_id = $1
ORDER BY COALESCE(h.held_until, ` + forever + `) DESC, h.hold_name LIMIT 1`
)

// What the status of a claim shows.
const (
	sqlClaimSnapshot = `
SELECT c.rev, c.process, c.mode, c.state, c.reason, c.message, c.completions, c.active, c.succeeded, c.failed, c.skipped, c.selected, c.unneeded, c.suspended,
    c.created_at, c.started_at, c.deadline_at, c.completed_at, COALESCE(s.session_runtime_info, ''), COALESCE(s.session_cluster, '')
FROM claims c LEFT JOIN sessions s ON s.session_id = c.owner_session AND s.session_ended_at IS NULL
WHERE c.pool = $1 AND c.claim_key = $2`

	sqlClaimWorks = `
SELECT w.machine_id, COALESCE(i.name, w.machine_id::text), w.work_id, COALESCE(d.attempts, 0) + 1, COALESCE(s.session_runtime_info, ''), COALESCE(s.session_cluster, ''),
    w.started_at, w.step, w.percent
FROM work w
LEFT JOIN machine_identities i ON i.machine_id = w.machine_id
LEFT JOIN sessions s ON s.session_id = w.session_id
LEFT JOIN LATERAL (
    SELECT d.attempts FROM claim_machines d WHERE d.pool = w.pool AND d.claim_key = w.claim_key AND d.machine_id = w.machine_id OFFSET 0) d ON true
WHERE w.pool = $1 AND w.claim_key = $2 AND w.work_id IS NOT NULL ORDER BY w.started_at, w.machine_id LIMIT $3`

	sqlClaimFailures = `
SELECT d.machine_id, COALESCE(i.name, d.machine_id::text), d.attempts, d.losses, d.cause, d.quarantined_at IS NOT NULL, d.changed_at
FROM claim_machines d LEFT JOIN machine_identities i ON i.machine_id = d.machine_id
WHERE d.pool = $1 AND d.claim_key = $2 AND d.cause <> '' AND d.finished_work_id IS NULL AND NOT d.skipped
ORDER BY d.changed_at DESC, d.machine_id LIMIT $3`

	sqlClaimSkipped = `
SELECT COALESCE(i.name, d.machine_id::text) AS name
FROM claim_machines d LEFT JOIN machine_identities i ON i.machine_id = d.machine_id
WHERE d.pool = $1 AND d.claim_key = $2 AND d.skipped ORDER BY name LIMIT $3`
)
