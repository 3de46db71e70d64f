// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

// Providers and their limits.
const (
	sqlProviderViews = "SELECT cluster, uid, manages, max_machines, parallelism, origin FROM provider_views WHERE pool = $1 AND provider = $2 ORDER BY cluster"

	sqlSetProviderView = `
INSERT INTO provider_views (pool, provider, cluster, uid, manages, max_machines, parallelism, origin) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (pool, provider, cluster) DO UPDATE SET uid = excluded.uid, manages = excluded.manages, max_machines = excluded.max_machines,
    parallelism = excluded.parallelism, origin = excluded.origin`

	sqlDeleteProviderView = "DELETE FROM provider_views WHERE pool = $1 AND provider = $2 AND cluster = $3 AND uid = $4"

	sqlSetMaxMachines = "UPDATE providers SET max_machines = $3 WHERE pool = $1 AND provider = $2"

	sqlProviderState = `
SELECT p.machines, p.max_machines, l.maximum, l.settles_at IS NOT NULL, p.rev,
    (SELECT count(*) FROM work w WHERE w.pool = p.pool AND w.provider = p.provider AND w.work_id IS NOT NULL)
FROM providers p LEFT JOIN limits l ON l.limit_id = $3 WHERE p.pool = $1 AND p.provider = $2`

	// sqlProviderSnapshot is all that is shown of a provider, at one moment. The row is there for one that the database does not know, too.
	sqlProviderSnapshot = `
SELECT i.database_id, i.incarnation, COALESCE(p.machines, 0), p.max_machines, p.maximum, COALESCE(p.settling, false), COALESCE(p.rev, 0), COALESCE(p.working, 0),
    COALESCE((SELECT v.cluster FROM provider_views v WHERE v.pool = $1 AND v.provider = $2 AND v.manages ORDER BY v.cluster LIMIT 1), '')
FROM database_identity i LEFT JOIN (` + sqlProviderState + `) p (machines, max_machines, maximum, settling, rev, working) ON true
WHERE i.singleton = 1`

	// sqlLockLimit takes a limit's mutex. Starts do not: they are judged by the slot that they lock.
	sqlLockLimit = "SELECT maximum, settles_at IS NOT NULL FROM limits WHERE limit_id = $1 FOR UPDATE"

	// sqlIntroduceLimit introduces a limit where there was none. It settles when every start that may not have seen it is over: after the
	// longest statement and the longest pause in a transaction of any session.
	sqlIntroduceLimit = `
INSERT INTO limits (limit_id, maximum, settles_at) VALUES ($1, $2, clock_timestamp() + $3::bigint * interval '1 millisecond'
    + (SELECT COALESCE(max(s.session_lease_ms), 0) FROM sessions s WHERE s.session_ended_at IS NULL) * interval '334 microseconds')
ON CONFLICT (limit_id) DO NOTHING`

	sqlSetLimit     = "UPDATE limits SET maximum = $2 WHERE limit_id = $1"
	sqlLimitSettled = "UPDATE limits SET settles_at = NULL WHERE limit_id = $1"
	sqlDeleteLimit  = "DELETE FROM limits WHERE limit_id = $1"

	// sqlNobodyStarts tells that no start on a machine of the provider can be under way that has not seen the limit: it has no machine; or
	// nobody owns a claim of the pool, no session lives that starts work without a claim, and no work goes on.
	sqlNobodyStarts = `
SELECT NOT EXISTS (SELECT 1 FROM machine_state m WHERE m.pool = $1 AND m.provider = $2)
    OR NOT EXISTS (SELECT 1 FROM claims c WHERE c.pool = $1 AND c.state = 'Running' AND c.owner_session IS NOT NULL)
   AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_ended_at IS NULL AND NOT s.session_claims_only)
   AND NOT EXISTS (SELECT 1 FROM work w WHERE w.pool = $1 AND w.work_id IS NOT NULL)`

	sqlSettleDue = "SELECT limit_id FROM limits WHERE limit_id = $1 AND settles_at <= clock_timestamp()"

	// sqlWorksWithoutSlot are the works that a limit does not count yet.
	sqlWorksWithoutSlot = `
SELECT w.work_id FROM work w
WHERE w.pool = $1 AND w.provider = $2 AND w.work_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM limit_slots s WHERE s.limit_id = $3 AND s.work_id = w.work_id)
ORDER BY w.work_id`

	sqlAdoptWorks = `
INSERT INTO limit_slots (limit_id, n, open, work_id) SELECT $1::text, x.n, false, x.work_id
FROM (SELECT unnest($2::bigint[]) AS n, unnest($3::uuid[]) AS work_id) x ORDER BY x.n`

	sqlMakeSlots = `
INSERT INTO limit_slots (limit_id, n, open) SELECT $1::text, g.n, false FROM generate_series(0, $2::bigint - 1) AS g (n) ORDER BY g.n
ON CONFLICT (limit_id, n) DO NOTHING`

	sqlLockSlots = "SELECT n, work_id IS NOT NULL FROM limit_slots WHERE limit_id = $1 ORDER BY n FOR UPDATE"
	sqlOpenSlots = "UPDATE limit_slots SET open = (n = ANY($2)) WHERE limit_id = $1 AND open <> (n = ANY($2))"

	limitDue = `(l.settles_at <= clock_timestamp()
    OR l.settles_at IS NULL AND l.maximum <> (SELECT count(*) FROM limit_slots s WHERE s.limit_id = l.limit_id AND s.open)
   AND l.maximum > (SELECT count(*) FROM limit_slots s WHERE s.limit_id = l.limit_id AND s.work_id IS NOT NULL))`

	// sqlLimitsToArrange are limits that may settle, and those of which not as many slots are open as there should be: they were
	// lowered, and works have ended since.
	sqlLimitsToArrange = `
SELECT l.limit_id FROM limits l WHERE ` + limitDue + `
ORDER BY l.limit_id LIMIT 100`
)

// Processes.
const (
	sqlOtherDefinition = "SELECT pool FROM processes WHERE process = $2 AND pool <> $1 AND ($1 = '' OR pool = '') LIMIT 1"

	// A definition that says something else of machines is filled in over the fleet.
	sqlRegisterProcess = `
INSERT INTO processes (pool, process, slot, requires, forbids, sets, clears, destructive, convergent, indexed, generation, fill_pass)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, true, 1, 1)
ON CONFLICT (pool, process) DO UPDATE SET slot = excluded.slot, requires = excluded.requires, forbids = excluded.forbids, sets = excluded.sets,
    clears = excluded.clears, destructive = excluded.destructive, convergent = excluded.convergent,
    generation = processes.generation + 1,
    fill_pass = CASE WHEN (processes.slot, processes.requires, processes.forbids) IS DISTINCT FROM (excluded.slot, excluded.requires, excluded.forbids)
                THEN 1 ELSE processes.fill_pass END,
    fill_cursor = CASE WHEN (processes.slot, processes.requires, processes.forbids) IS DISTINCT FROM (excluded.slot, excluded.requires, excluded.forbids)
                  THEN NULL ELSE processes.fill_cursor END,
    fill_not_before = CASE WHEN (processes.slot, processes.requires, processes.forbids) IS DISTINCT FROM (excluded.slot, excluded.requires, excluded.forbids)
                      THEN NULL ELSE processes.fill_not_before END
WHERE (processes.slot, processes.requires, processes.forbids, processes.sets, processes.clears, processes.destructive, processes.convergent)
   IS DISTINCT FROM (excluded.slot, excluded.requires, excluded.forbids, excluded.sets, excluded.clears, excluded.destructive, excluded.convergent)`

	sqlProcesses = `
SELECT pool, process, slot, requires, forbids, sets, clears, destructive, convergent, indexed, fill_pass > 0
FROM processes WHERE pool IN ('', $1) ORDER BY pool, process`

	// sqlFillNext takes a process that is to be filled in, which nobody else fills in at the moment.
	sqlFillNext = `
SELECT pool, process, fill_pass, COALESCE(fill_cursor, '00000000-0000-0000-0000-000000000000'::uuid) FROM processes
WHERE fill_pass > 0 AND (fill_not_before IS NULL OR fill_not_before <= clock_timestamp())
ORDER BY pool, process LIMIT 1 FOR UPDATE SKIP LOCKED`

	// sqlLockFillPage waits for machines that somebody else has: who only starts work there does not evaluate them.
	sqlLockFillPage = `
SELECT machine_id FROM machine_state WHERE ($1 = '' OR pool = $1) AND machine_id > $2 ORDER BY machine_id LIMIT $3 FOR UPDATE`

	sqlFillReached = "UPDATE processes SET fill_cursor = $3 WHERE pool = $1 AND process = $2"

	// sqlFillPassed begins the second pass, when every transaction that may have seen the old definition is over, or ends it.
	sqlFillPassed = `
UPDATE processes SET fill_pass = CASE WHEN fill_pass = 1 THEN 2 ELSE 0 END, fill_cursor = NULL,
    fill_not_before = CASE WHEN fill_pass = 1 THEN clock_timestamp() + $3::bigint * interval '1 millisecond'
        + (SELECT COALESCE(max(s.session_lease_ms), 0) FROM sessions s WHERE s.session_ended_at IS NULL) * interval '334 microseconds' END
WHERE pool = $1 AND process = $2`
)

// What speaks against the database.
const (
	// sqlHear is all that testimonies are held against, at one moment: who the database is, what was acknowledged, how far the rows of machines $1,
	// claims $2, $3 and providers $4, $5 have come, and what has been recorded already of pools and IDs $6, $7.
	sqlHear = `
SELECT 'identity', '', i.database_id::text, '', i.incarnation, false FROM database_identity i WHERE i.singleton = 1
UNION ALL SELECT 'acknowledged', '', a.database_id::text, '', a.incarnation, false FROM database_acknowledgements a
UNION ALL SELECT 'machine', '', m.machine_id::text, '', m.rev, false FROM machine_state m WHERE m.machine_id = ANY($1::uuid[])
UNION ALL SELECT 'claim', c.pool, c.claim_key, '', c.rev, c.state IN ('Complete', 'Failed')
    FROM claims c JOIN (SELECT unnest($2::text[]) AS pool, unnest($3::text[]) AS id) x ON c.pool = x.pool AND c.claim_key = x.id
UNION ALL SELECT 'provider', p.pool, p.provider, '', p.rev, false
    FROM providers p JOIN (SELECT unnest($4::text[]) AS pool, unnest($5::text[]) AS id) x ON p.pool = x.pool AND p.provider = x.id
UNION ALL SELECT 'known ' || a.kind, a.pool, a.id, a.cluster, 0, false
    FROM database_alarms a JOIN (SELECT DISTINCT unnest($6::text[]) AS pool, unnest($7::text[]) AS id) x ON a.pool = x.pool AND a.id = x.id`

	// sqlRaiseAlarms records alarms of the incarnation $8, which it locks: one that was acknowledged meanwhile has none.
	sqlRaiseAlarms = `
WITH i AS (SELECT incarnation FROM database_identity WHERE singleton = 1 AND incarnation = $8 FOR SHARE)
INSERT INTO database_alarms (pool, kind, id, cluster, reason, database_id, revision, noticed_at)
SELECT x.pool, x.kind, x.id, x.cluster, x.reason, x.database_id, x.revision, clock_timestamp()
FROM (SELECT unnest($1::text[]) AS pool, unnest($2::text[]) AS kind, unnest($3::text[]) AS id, unnest($4::text[]) AS cluster, unnest($5::text[]) AS reason,
             unnest($6::uuid[]) AS database_id, unnest($7::bigint[]) AS revision) x CROSS JOIN i
ORDER BY 1, 2, 3, 4
ON CONFLICT (pool, kind, id, cluster) DO NOTHING`

	sqlAlarms = `
SELECT pool, kind, id, cluster, reason, database_id, revision, noticed_at FROM database_alarms ORDER BY pool, kind, id, cluster LIMIT $1`

	// sqlDoubts is the worse of the reasons that speak against the database for a cluster or a pool.
	sqlDoubts = `
SELECT COALESCE((SELECT min(a.reason) FROM database_alarms a WHERE a.cluster = $1 OR a.pool = $2), ''),
    EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = $3 AND s.session_ended_at IS NULL)`

	sqlNextIncarnation      = "UPDATE database_identity SET incarnation = incarnation + 1 WHERE singleton = 1"
	sqlAcknowledgeDatabases = `
INSERT INTO database_acknowledgements (database_id, incarnation, acknowledged_at, actor)
SELECT a.database_id, max(a.revision >> 40) + 1, clock_timestamp(), $1::text FROM database_alarms a WHERE a.reason = 'DatabaseChanged'
GROUP BY a.database_id ORDER BY 1
ON CONFLICT (database_id) DO UPDATE SET incarnation = excluded.incarnation, acknowledged_at = excluded.acknowledged_at, actor = excluded.actor
WHERE database_acknowledgements.incarnation < excluded.incarnation`
	sqlEndAlarms = "DELETE FROM database_alarms WHERE true RETURNING kind"

	// sqlWithdrawAlarms ends the alarms of one cluster, whose objects were held against the wrong database.
	sqlWithdrawAlarms = "DELETE FROM database_alarms WHERE cluster = $1 RETURNING kind"
)

// Managing roles.
const (
	// sqlSilent tells that programs of cluster $1 have had no live session for $2 milliseconds, and that the cluster was not registered since. A
	// session whose lease is over counts until somebody has ended it.
	sqlSilent = `
SELECT NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_cluster = $1 AND s.session_ended_at IS NULL)
   AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_cluster = $1 AND s.session_ended_at > clock_timestamp() - $2::bigint * interval '1 millisecond')
   AND NOT EXISTS (SELECT 1 FROM clusters g WHERE g.cluster = $1 AND g.registered_at > clock_timestamp() - $2::bigint * interval '1 millisecond')`

	// sqlSilentManagers steps through the clusters that have views, without reading these, and says which of them are silent.
	sqlSilentManagers = `
WITH RECURSIVE m AS (
    (SELECT v.cluster FROM machine_views v WHERE v.attached ORDER BY v.cluster LIMIT 1)
    UNION ALL
    SELECT (SELECT v.cluster FROM machine_views v WHERE v.attached AND v.cluster > m.cluster ORDER BY v.cluster LIMIT 1) FROM m WHERE m.cluster IS NOT NULL),
c AS (
    (SELECT v.cluster FROM claim_views v ORDER BY v.cluster LIMIT 1)
    UNION ALL
    SELECT (SELECT v.cluster FROM claim_views v WHERE v.cluster > c.cluster ORDER BY v.cluster LIMIT 1) FROM c WHERE c.cluster IS NOT NULL)
SELECT x.cluster FROM (SELECT cluster FROM m UNION SELECT cluster FROM c UNION SELECT cluster FROM provider_views) x
WHERE x.cluster IS NOT NULL AND x.cluster <> $1
  AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_cluster = x.cluster AND s.session_ended_at IS NULL)
  AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_cluster = x.cluster AND s.session_ended_at > clock_timestamp() - $2::bigint * interval '1 millisecond')
  AND NOT EXISTS (SELECT 1 FROM clusters g WHERE g.cluster = x.cluster AND g.registered_at > clock_timestamp() - $2::bigint * interval '1 millisecond')
ORDER BY x.cluster`

	sqlMachineRoles = `
SELECT n.pool, n.name, n.machine_id FROM machine_views n JOIN machine_views o ON o.machine_id = n.machine_id AND o.cluster = $1 AND o.manages AND o.attached
WHERE n.cluster = $2 AND n.attached AND ($3::text[] IS NULL OR n.pool = ANY($3)) ORDER BY n.pool, n.name LIMIT $4`
	sqlClaimRoles = `
SELECT n.pool, n.claim_key, NULL::uuid FROM claim_views n JOIN claim_views o ON o.pool = n.pool AND o.claim_key = n.claim_key AND o.cluster = $1 AND o.manages
WHERE n.cluster = $2 AND ($3::text[] IS NULL OR n.pool = ANY($3)) ORDER BY n.pool, n.claim_key LIMIT $4`
	sqlProviderRoles = `
SELECT n.pool, n.provider, NULL::uuid FROM provider_views n JOIN provider_views o ON o.pool = n.pool AND o.provider = n.provider AND o.cluster = $1 AND o.manages
WHERE n.cluster = $2 AND ($3::text[] IS NULL OR n.pool = ANY($3)) ORDER BY n.pool, n.provider LIMIT $4`

	// A role passes from view to view in one statement: there is never a moment without a manager, nor one with two.
	sqlPassMachine = `
UPDATE machine_views v SET manages = (v.cluster = $2), changed_at = clock_timestamp()
WHERE v.machine_id = $3 AND v.cluster IN ($1, $2) AND v.attached
  AND EXISTS (SELECT 1 FROM machine_views o WHERE o.machine_id = $3 AND o.cluster = $1 AND o.manages AND o.attached)
  AND EXISTS (SELECT 1 FROM machine_views n WHERE n.machine_id = $3 AND n.cluster = $2 AND n.attached)
RETURNING v.cluster`
	sqlPassClaim = `
UPDATE claim_views v SET manages = (v.cluster = $2)
WHERE v.pool = $3 AND v.claim_key = $4 AND v.cluster IN ($1, $2)
  AND EXISTS (SELECT 1 FROM claim_views o WHERE o.pool = $3 AND o.claim_key = $4 AND o.cluster = $1 AND o.manages)
  AND EXISTS (SELECT 1 FROM claim_views n WHERE n.pool = $3 AND n.claim_key = $4 AND n.cluster = $2)
RETURNING v.cluster`
	sqlPassProvider = `
UPDATE provider_views v SET manages = (v.cluster = $2)
WHERE v.pool = $3 AND v.provider = $4 AND v.cluster IN ($1, $2)
  AND EXISTS (SELECT 1 FROM provider_views o WHERE o.pool = $3 AND o.provider = $4 AND o.cluster = $1 AND o.manages)
  AND EXISTS (SELECT 1 FROM provider_views n WHERE n.pool = $3 AND n.provider = $4 AND n.cluster = $2)
RETURNING v.cluster`

	// sqlTouchClaim is the mutex of a claim's views, and shows it again.
	sqlTouchClaim = "UPDATE claims SET rev = rev + 1 WHERE pool = $1 AND claim_key = $2"

	sqlMachineViewsOf = `
SELECT pool, machine_id::text, name, uid FROM machine_views WHERE cluster = $1 AND attached AND (pool, name) > ($2, $3)` + viewsWanted + ` ORDER BY pool, name LIMIT $4`
	sqlClaimViewsOf = `
SELECT pool, claim_key, name, uid FROM claim_views WHERE cluster = $1 AND (pool, claim_key) > ($2, $3)` + viewsWanted + ` ORDER BY pool, claim_key LIMIT $4`
	sqlProviderViewsOf = `
SELECT pool, provider, provider, uid FROM provider_views WHERE cluster = $1 AND (pool, provider) > ($2, $3)` + viewsWanted + ` ORDER BY pool, provider LIMIT $4`

	// viewsWanted are those in pools $5, NULL for all, of objects that were in the API server $6, '' for any.
	viewsWanted = " AND ($5::text[] IS NULL OR pool = ANY($5)) AND ($6::text = '' OR origin = $6)"
)

// Projection: the clusters, and what each of them has still to show.
const (
	sqlRegisterCluster = `
INSERT INTO clusters (cluster, registered_at, seen_at) VALUES ($1, clock_timestamp(), clock_timestamp())
ON CONFLICT (cluster) DO UPDATE SET seen_at = excluded.seen_at`
	// sqlSeenCluster notes that a cluster is there, about once a minute however many of its programs ask. No row: it is not known.
	sqlSeenCluster = `
WITH u AS (UPDATE clusters SET seen_at = clock_timestamp() WHERE cluster = $1 AND seen_at < clock_timestamp() - interval '1 minute' RETURNING cluster)
SELECT c.cluster FROM clusters c WHERE c.cluster = $1`
	sqlUnregisterCluster = "DELETE FROM clusters WHERE cluster = $1"
	sqlSilentClusters    = "SELECT cluster FROM clusters WHERE seen_at < clock_timestamp() - interval '1 hour' ORDER BY cluster"
	sqlDeleteProjections = `
DELETE FROM projection WHERE cluster = $1 AND (kind, pool, id) IN (SELECT p.kind, p.pool, p.id FROM projection p WHERE p.cluster = $1 LIMIT $2)
RETURNING cluster`

	// sqlForgetProjection is for a cluster whose view of something has ended: there is nothing more to show.
	sqlForgetProjection = "DELETE FROM projection WHERE cluster = $1 AND kind = $2 AND pool = $3 AND id = $4"
	sqlForgetMachine    = `
DELETE FROM projection WHERE cluster = $1 AND kind = 'machine' AND id = $2::uuid::text AND pool = (SELECT m.pool FROM machine_state m WHERE m.machine_id = $2)`

	sqlPending = `
SELECT kind, pool, id, rev FROM projection
WHERE cluster = $1 AND rev <> done_rev AND done_rev < rev AND (kind, pool, id) > ($2, $3, $4) ORDER BY kind, pool, id LIMIT $5`
	sqlPendingUpTo = `
SELECT kind, pool, id, rev FROM projection
WHERE cluster = $1 AND rev <> done_rev AND done_rev < rev AND (kind, pool, id) <= ($2, $3, $4) ORDER BY kind, pool, id LIMIT $5`

	// sqlAck acknowledges what was shown, and nothing newer.
	sqlAck = `
WITH x AS (SELECT unnest($2::text[]) AS kind, unnest($3::text[]) AS pool, unnest($4::text[]) AS id, unnest($5::bigint[]) AS rev),
l AS (
    SELECT p.kind, p.pool, p.id, x.rev FROM projection p JOIN x ON x.kind = p.kind AND x.pool = p.pool AND x.id = p.id
    WHERE p.cluster = $1 AND p.done_rev < x.rev ORDER BY p.kind, p.pool, p.id FOR UPDATE OF p)
UPDATE projection p SET done_rev = l.rev FROM l WHERE p.cluster = $1 AND p.kind = l.kind AND p.pool = l.pool AND p.id = l.id AND p.done_rev < l.rev`

	sqlDirtyMachines  = "SELECT '', m.machine_id::text, m.rev FROM machine_state m WHERE m.rev <> m.spread_rev AND m.machine_id > $1::text::uuid ORDER BY m.machine_id LIMIT $2"
	sqlDirtyClaims    = "SELECT pool, claim_key, rev FROM claims WHERE rev <> spread_rev AND ($1 OR state IN ('Complete', 'Failed')) ORDER BY pool, claim_key LIMIT $2"
	sqlDirtyProviders = "SELECT pool, provider, rev FROM providers WHERE rev <> spread_rev AND pool <> '' ORDER BY pool, provider LIMIT $1"

	dirty = `
WITH x AS (SELECT unnest($1::text[]) AS pool, unnest($2::text[]) AS id, unnest($3::bigint[]) AS rev)`
	intoProjection = `
INSERT INTO projection (cluster, kind, pool, id, rev)`
	ofEachCluster = `
ORDER BY 1, 3, 4
ON CONFLICT (cluster, kind, pool, id) DO UPDATE SET rev = excluded.rev WHERE projection.rev < excluded.rev`

	sqlSpreadMachines = dirty + intoProjection + `
SELECT v.cluster, 'machine', v.pool, x.id, x.rev FROM x JOIN machine_views v ON v.machine_id = x.id::uuid AND v.attached JOIN clusters c ON c.cluster = v.cluster
WHERE x.pool = ''` + ofEachCluster
	sqlSpreadClaims = dirty + intoProjection + `
SELECT v.cluster, 'claim', v.pool, x.id, x.rev FROM x JOIN claim_views v ON v.pool = x.pool AND v.claim_key = x.id JOIN clusters c ON c.cluster = v.cluster` + ofEachCluster
	sqlSpreadProviders = dirty + intoProjection + `
SELECT v.cluster, 'provider', v.pool, x.id, x.rev FROM x JOIN provider_views v ON v.pool = x.pool AND v.provider = x.id JOIN clusters c ON c.cluster = v.cluster` + ofEachCluster

	// What is locked at the moment stays dirty, and is spread again.
	sqlMachinesSpread = dirty + `,
l AS (SELECT m.machine_id, x.rev FROM machine_state m JOIN x ON x.id::uuid = m.machine_id AND x.pool = '' WHERE m.spread_rev < x.rev ORDER BY m.machine_id FOR UPDATE OF m SKIP LOCKED)
UPDATE machine_state m SET spread_rev = l.rev FROM l WHERE m.machine_id = l.machine_id`
	sqlClaimsSpread = dirty + `,
l AS (SELECT c.pool, c.claim_key, x.rev FROM claims c JOIN x ON x.pool = c.pool AND x.id = c.claim_key WHERE c.spread_rev < x.rev ORDER BY c.pool, c.claim_key FOR UPDATE OF c SKIP LOCKED)
UPDATE claims c SET spread_rev = l.rev FROM l WHERE c.pool = l.pool AND c.claim_key = l.claim_key`
	sqlProvidersSpread = dirty + `,
l AS (SELECT p.pool, p.provider, x.rev FROM providers p JOIN x ON x.pool = p.pool AND x.id = p.provider WHERE p.spread_rev < x.rev ORDER BY p.pool, p.provider FOR UPDATE OF p SKIP LOCKED)
UPDATE providers p SET spread_rev = l.rev FROM l WHERE p.pool = l.pool AND p.provider = l.provider`
)

// sqlAnythingDue asks whether there is something to do, for all that wait for something in the database: timers, processes to fill in, limits to
// arrange, revisions to spread, claims without an owner that session $1 may take up, changes that cluster $2 has still to show. Each look is in the
// order of a partial index and ends at its first row: asked whether a row exists where nearly all seem to match, the planner would look for it in
// the table. A process or limit that is not due yet is few rows, and so are claims that run. The last column is how many look, up to as many as matter.
const sqlAnythingDue = `
SELECT (SELECT w.not_before FROM work w WHERE w.state = 1 AND w.not_before <= clock_timestamp() ORDER BY w.not_before LIMIT 1) IS NOT NULL,
    (SELECT count(*) FROM processes p WHERE p.fill_pass > 0 AND (p.fill_not_before IS NULL OR p.fill_not_before <= clock_timestamp())) > 0,
    (SELECT count(*) FROM limits l WHERE ` + limitDue + `) > 0,
    (SELECT m.machine_id FROM machine_state m WHERE m.rev <> m.spread_rev ORDER BY m.machine_id LIMIT 1) IS NOT NULL
 OR (SELECT c.pool FROM claims c WHERE c.rev <> c.spread_rev ORDER BY c.pool, c.claim_key LIMIT 1) IS NOT NULL
 OR (SELECT count(*) FROM providers p WHERE p.rev <> p.spread_rev AND p.pool <> '') > 0,
    (SELECT c.pool` + unowned + `ORDER BY c.pool, c.claim_key LIMIT 1) IS NOT NULL,
    (SELECT j.kind FROM projection j WHERE j.cluster = $2 AND j.rev <> j.done_rev AND j.done_rev < j.rev ORDER BY j.cluster, j.kind, j.pool, j.id LIMIT 1) IS NOT NULL,
    (SELECT count(*) FROM (SELECT 1 FROM session_leases LIMIT 16) s)`

// Retention, in pages. $1 is the age in milliseconds.
const (
	sqlForgetHistory = `
DELETE FROM work_history WHERE (machine_id, work_id, phase) IN (
    SELECT h.machine_id, h.work_id, h.phase FROM work_history h WHERE h.timestamp < clock_timestamp() - $1::bigint * interval '1 millisecond'
    ORDER BY h.timestamp LIMIT $2)
RETURNING phase`

	sqlForgetAudit = `
DELETE FROM audit_log WHERE event_id IN (
    SELECT a.event_id FROM audit_log a WHERE a.at < clock_timestamp() - $1::bigint * interval '1 millisecond' LIMIT $2)
RETURNING 1`

	// A session whose works nobody has ended yet stays, so that they are found.
	sqlForgetSessions = `
DELETE FROM sessions WHERE session_id IN (
    SELECT s.session_id FROM sessions s WHERE s.session_ended_at < clock_timestamp() - $1::bigint * interval '1 millisecond'
      AND NOT EXISTS (SELECT 1 FROM work w WHERE w.session_id = s.session_id AND w.work_id IS NOT NULL)
    ORDER BY s.session_ended_at LIMIT $2)
RETURNING 1`
)
