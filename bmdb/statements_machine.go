// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

// Registration of machines.
const (
	// sqlFindMachine finds a machine by its identity.
	sqlFindMachine = `
SELECT p.machine_id, i.machine_id IS NOT NULL, COALESCE(i.name, ''), COALESCE(i.address, ''), m.rev
FROM machine_provided p JOIN machine_state m ON m.machine_id = p.machine_id LEFT JOIN machine_identities i ON i.machine_id = p.machine_id
WHERE p.pool = $1 AND p.provider = $2 AND p.provider_id = $3`

	sqlViewsOfIdentity = `
SELECT v.cluster, v.name, v.uid, v.manages, v.attached, v.origin
FROM machine_provided p JOIN machine_views v ON v.machine_id = p.machine_id
WHERE p.pool = $1 AND p.provider = $2 AND p.provider_id = $3 ORDER BY v.cluster`

	sqlLabelsOfIdentity = `
SELECT l.key, l.value FROM machine_provided p JOIN machine_labels l ON l.machine_id = p.machine_id
WHERE p.pool = $1 AND p.provider = $2 AND p.provider_id = $3`

	// sqlElsewhere finds the same box in another pool.
	sqlElsewhere = `
SELECT p.pool, i.name FROM machine_provided p JOIN machine_identities i ON i.machine_id = p.machine_id
WHERE p.provider_id = $3 AND p.provider = $2 AND p.pool <> $1 AND i.address = $4 AND i.address <> '' ORDER BY p.pool LIMIT 1`

	// sqlOccupants finds the machines that have the name $4, or at the provider the address $5, or whose view in cluster $6 has the name, other than
	// the machine itself. gone: the view of that name is of an object that is not there any more, because another has its name. lost: it has
	// lost all other views. busy: work goes on on it. same: the view of that name is of the very object.
	sqlOccupants = `
WITH o AS (
    SELECT i.machine_id FROM machine_identities i WHERE i.pool = $1 AND i.name = $4
    UNION SELECT i.machine_id FROM machine_identities i WHERE i.pool = $1 AND i.provider = $2 AND i.address = $5 AND i.address <> ''
    UNION SELECT v.machine_id FROM machine_views v WHERE v.cluster = $6 AND v.pool = $1 AND v.name = $4 AND v.attached)
SELECT o.machine_id, COALESCE(i.name, ''), COALESCE(i.provider, ''), COALESCE(i.address, ''), COALESCE(p.provider_id, ''),
    EXISTS (SELECT 1 FROM machine_views v WHERE v.machine_id = o.machine_id AND v.cluster = $6 AND v.name = $4 AND v.uid <> $7 AND v.attached),
    EXISTS (SELECT 1 FROM machine_views v WHERE v.machine_id = o.machine_id) AND NOT EXISTS (
        SELECT 1 FROM machine_views v WHERE v.machine_id = o.machine_id AND v.attached AND NOT (v.cluster = $6 AND v.name = $4 AND v.uid <> $7)),
    EXISTS (SELECT 1 FROM work w WHERE w.machine_id = o.machine_id AND w.state = 3),
    EXISTS (SELECT 1 FROM machine_views v WHERE v.machine_id = o.machine_id AND v.cluster = $6 AND v.name = $4 AND v.uid = $7 AND v.attached)
FROM o LEFT JOIN machine_identities i ON i.machine_id = o.machine_id LEFT JOIN machine_provided p ON p.machine_id = o.machine_id
WHERE NOT COALESCE(p.pool = $1 AND p.provider = $2 AND p.provider_id = $3, false) ORDER BY o.machine_id`

	sqlInsertMachine      = "INSERT INTO machines (machine_id, machine_created_at) VALUES ($1, clock_timestamp())"
	sqlInsertMachineState = "INSERT INTO machine_state (machine_id, pool, provider) VALUES ($1, $2, $3)"
	sqlInsertProvided     = "INSERT INTO machine_provided (machine_id, provider, provider_id, pool) VALUES ($1, $2, $3, $4)"

	sqlSetIdentity = `
INSERT INTO machine_identities (machine_id, pool, name, provider, address) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (machine_id) DO UPDATE SET name = excluded.name, address = excluded.address`

	// A machine that has lost its last view gives up its name or address to one that is there. The sign is in no name of Kubernetes.
	sqlGiveUpName    = "UPDATE machine_identities SET name = name || '~' || machine_id::text WHERE machine_id = ANY($1)"
	sqlGiveUpAddress = "UPDATE machine_identities SET address = '' WHERE machine_id = ANY($1)"

	sqlDeleteLabels = "DELETE FROM machine_labels WHERE machine_id = $1 AND NOT (key = ANY($2))"
	sqlSetLabels    = `
INSERT INTO machine_labels (machine_id, key, value, pool) SELECT $1::uuid, x.key, x.value, $4::text
FROM (SELECT unnest($2::text[]) AS key, unnest($3::text[]) AS value) x ORDER BY x.key
ON CONFLICT (machine_id, key) DO UPDATE SET value = excluded.value WHERE machine_labels.value <> excluded.value`

	sqlSetMachineView = `
INSERT INTO machine_views (machine_id, cluster, pool, name, uid, manages, attached, changed_at, origin)
VALUES ($1, $2, $3, $4, $5, $6, true, clock_timestamp(), $7)
ON CONFLICT (machine_id, cluster) DO UPDATE SET pool = excluded.pool, name = excluded.name, uid = excluded.uid, manages = excluded.manages,
    attached = true, changed_at = excluded.changed_at, origin = excluded.origin`

	sqlDetachGoneViews = `
UPDATE machine_views SET attached = false, manages = false, changed_at = clock_timestamp()
WHERE machine_id = ANY($1) AND cluster = $2 AND name = $3 AND uid <> $4 AND attached`

	sqlFindView   = "SELECT machine_id FROM machine_views WHERE machine_id = $1 AND cluster = $2 AND uid = $3 AND attached AND ($4 = '' OR origin IN ('', $4))"
	sqlDetachView = `
UPDATE machine_views SET attached = false, manages = false, changed_at = clock_timestamp()
WHERE machine_id = $1 AND cluster = $2 AND uid = $3 AND attached`

	// sqlLockRegistration is the mutex of new machines of a provider's name in all pools, and then of the provider.
	sqlLockRegistration = `
INSERT INTO providers (pool, provider) VALUES ($1, $2) ON CONFLICT (pool, provider) DO UPDATE SET rev = providers.rev + 1`

	// sqlCountMachine counts one more machine of a provider, if it may have one.
	sqlCountMachine = `
UPDATE providers SET machines = machines + 1 WHERE pool = $1 AND provider = $2 AND (max_machines IS NULL OR machines < max_machines) RETURNING machines`
	sqlMaxMachines = "SELECT max_machines FROM providers WHERE pool = $1 AND provider = $2"

	sqlRevOf = "SELECT rev FROM machine_state WHERE machine_id = $1"
)

// What is read of machines.
const (
	sqlMachineByName = "SELECT machine_id FROM machine_identities WHERE pool = $1 AND name = $2"

	sqlTargets = `
SELECT m.machine_id, m.pool, COALESCE(i.name, ''), COALESCE(p.provider, ''), COALESCE(p.provider_id, ''), COALESCE(i.address, ''), i.host_key,
    i.owner_accepted_at IS NOT NULL
FROM machine_state m LEFT JOIN machine_identities i ON i.machine_id = m.machine_id LEFT JOIN machine_provided p ON p.machine_id = m.machine_id
WHERE m.machine_id = ANY($1)`

	sqlSnapshotMachines = `
SELECT m.machine_id, m.rev, m.pool, COALESCE(i.name, ''), COALESCE(p.provider, ''), COALESCE(p.provider_id, ''), COALESCE(i.address, ''),
    m.facts || CASE WHEN m.unresponsive_at <= clock_timestamp() THEN ARRAY['AgentUnresponsive'] ELSE ARRAY[]::text[] END,
    i.host_key, st.agent_started_at, st.agent_public_key, hb.agent_heartbeat_at, hw.hardware_report_raw, clock_timestamp()
FROM machine_state m
LEFT JOIN machine_identities i ON i.machine_id = m.machine_id
LEFT JOIN machine_provided p ON p.machine_id = m.machine_id
LEFT JOIN machine_agent_started st ON st.machine_id = m.machine_id
LEFT JOIN machine_agent_heartbeat hb ON hb.machine_id = m.machine_id
LEFT JOIN machine_hardware_report hw ON hw.machine_id = m.machine_id
WHERE m.machine_id = ANY($1) ORDER BY m.machine_id`

	sqlSnapshotWorks = `
SELECT w.machine_id, w.process, w.slot, w.work_id, w.claim_key, w.session_id, COALESCE(s.session_runtime_info, ''), COALESCE(s.session_cluster, ''),
    w.started_at, w.attempt, w.step, w.percent
FROM work w LEFT JOIN sessions s ON s.session_id = w.session_id
WHERE w.machine_id = ANY($1) AND w.state = 3 ORDER BY w.machine_id, w.started_at, w.process`

	// sqlSnapshotFailures are the processes that failed since they last succeeded; those whose backoff runs leave the machine alone.
	sqlSnapshotFailures = `
SELECT w.machine_id, w.process, w.backoff_until, w.backoff_attempts, w.backoff_cause, COALESCE(w.backoff_until > clock_timestamp(), false),
    COALESCE(w.backoff_until, w.started_at)
FROM work w WHERE w.machine_id = ANY($1) AND w.backoff_cause <> '' ORDER BY w.machine_id, w.backoff_until DESC, w.process`

	sqlSnapshotHolds = `
SELECT h.machine_id, h.hold_name, h.reason, h.owner, h.held_until, h.held_at, h.held_until IS NULL OR h.held_until > clock_timestamp()
FROM machine_holds h WHERE h.machine_id = ANY($1) ORDER BY h.machine_id, h.hold_name`

	sqlSnapshotViews = `
SELECT v.machine_id, v.cluster, v.uid, v.name, v.manages FROM machine_views v WHERE v.machine_id = ANY($1) AND v.attached ORDER BY v.machine_id, v.cluster`

	sqlSnapshotTags   = "SELECT t.machine_id, t.tag, t.tag_set_at FROM machine_tags t WHERE t.machine_id = ANY($1) ORDER BY t.machine_id, t.tag"
	sqlSnapshotLabels = "SELECT l.machine_id, l.key, l.value FROM machine_labels l WHERE l.machine_id = ANY($1)"
)

// Pins and acceptances.
const (
	sqlOwnWork = "SELECT machine_id FROM work WHERE machine_id = $1 AND process = $2 AND work_id IS NOT DISTINCT FROM $3"

	sqlPinHostKey = `
UPDATE machine_identities SET host_key = $2, host_key_set_at = clock_timestamp() WHERE machine_id = $1 AND host_key IS DISTINCT FROM $2 RETURNING pool, name`
	sqlClearHostKey = `
UPDATE machine_identities SET host_key = NULL, host_key_set_at = clock_timestamp() WHERE machine_id = $1 AND host_key IS NOT NULL RETURNING pool, name`
	// sqlForgetFailures ends the backoffs of a machine. A work that goes on keeps its lock and its fence: what is forgotten is what failed before.
	sqlForgetFailures = `
UPDATE work SET backoff_seconds = 0, backoff_until = NULL, backoff_cause = '', backoff_attempts = 0
WHERE machine_id = $1 AND (backoff_until IS NOT NULL OR backoff_attempts > 0)`

	sqlAcceptOwner = `
UPDATE machine_identities SET owner_accepted_at = clock_timestamp() WHERE machine_id = $1 RETURNING pool, name`
	sqlUseOwnerAcceptance = `
UPDATE machine_identities SET owner_accepted_at = NULL WHERE machine_id = $1 AND owner_accepted_at IS NOT NULL RETURNING pool, name`
)

// Holds.
const (
	sqlNotInPool = `
SELECT x.machine_id FROM (SELECT unnest($1::uuid[]) AS machine_id) x
WHERE NOT EXISTS (SELECT 1 FROM machine_state m WHERE m.machine_id = x.machine_id AND m.pool = $2) ORDER BY x.machine_id LIMIT 1`

	sqlPlaceHold = `
INSERT INTO machine_holds (machine_id, hold_name, pool, reason, owner, held_until, held_at)
SELECT x.machine_id, $2::text, $3::text, $4::text, $5::text, $6::timestamptz, clock_timestamp() FROM (SELECT unnest($1::uuid[]) AS machine_id) x ORDER BY x.machine_id
ON CONFLICT (machine_id, hold_name) DO UPDATE SET reason = excluded.reason, owner = excluded.owner, held_until = excluded.held_until`

	// sqlHoldDiffers are those of the machines that the hold is not on, or not so.
	sqlHoldDiffers = `
SELECT x.machine_id FROM (SELECT unnest($1::uuid[]) AS machine_id) x
WHERE NOT EXISTS (SELECT 1 FROM machine_holds h WHERE h.machine_id = x.machine_id AND h.hold_name = $2 AND h.reason = $3 AND h.owner = $4
    AND h.held_until IS NOT DISTINCT FROM $5::timestamptz)`

	sqlHoldMachines = "SELECT machine_id FROM machine_holds WHERE pool = $1 AND hold_name = $2 ORDER BY machine_id LIMIT $3"
	sqlReleaseHold  = "DELETE FROM machine_holds WHERE machine_id = ANY($1) AND hold_name = $2"

	sqlHoldState = `
SELECT h.machine_id, EXISTS (SELECT 1 FROM work w WHERE w.machine_id = h.machine_id AND w.state = 3)
FROM machine_holds h WHERE h.pool = $1 AND h.hold_name = $2 AND (h.held_until IS NULL OR h.held_until > clock_timestamp()) ORDER BY h.machine_id`
)

// Audit.
const (
	sqlAudit = `
INSERT INTO audit_log (event_id, at, pool, kind, name, machine_id, event, actor, session_id, cluster, cause)
VALUES ($1, clock_timestamp(), $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (event_id) DO NOTHING`

	sqlAuditOf = `
SELECT event_id, at, pool, kind, name, machine_id, event, actor, session_id, cluster, cause
FROM audit_log WHERE pool = $1 AND kind = $2 AND name = $3 ORDER BY at DESC, event_id LIMIT $4`
)
