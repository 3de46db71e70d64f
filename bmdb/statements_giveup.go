// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

// Views that are given up by hand.
const (
	// aliveAt is a session s of cluster $1 that nobody has ended, and that may be at the API server $2; '' for any.
	aliveAt = "s.session_cluster = $1 AND s.session_ended_at IS NULL AND ($2::text = '' OR s.session_origin IN ('', $2))"

	// sqlSessionsAt are these sessions, until when they have to be believed to live, and whether that is over: a lease that is over cannot be
	// prolonged, but others may still have to end what was begun under it. $3 is the least time for that, in milliseconds.
	sqlSessionsAt = `
SELECT s.session_id, s.session_runtime_info, s.session_origin, l.deadline, l.deadline + greatest(s.session_lease_ms, $3::bigint) * interval '1 millisecond',
    l.deadline + greatest(s.session_lease_ms, $3::bigint) * interval '1 millisecond' < clock_timestamp()
FROM sessions s JOIN session_leases l ON l.session_id = s.session_id WHERE ` + aliveAt + ` ORDER BY s.session_runtime_info, s.session_id`

	// sqlHindrances tells whether such a session lives, and whether something speaks against the database in pools $3, NULL for all.
	sqlHindrances = `
SELECT EXISTS (SELECT 1 FROM sessions s WHERE ` + aliveAt + `),
    EXISTS (SELECT 1 FROM database_alarms a WHERE $3::text[] IS NULL OR a.pool = ANY($3))`

	counted = `count(*), count(CASE WHEN x.manages THEN 1 END), count(CASE WHEN x.last THEN 1 END), count(CASE WHEN x.suspended AND NOT x.last THEN 1 END)`
	wanted  = " AND ($2::text[] IS NULL OR v.pool = ANY($2))"

	sqlCountMachineViews = `
SELECT x.origin, x.pool, ` + counted + `
FROM (SELECT v.origin, v.pool, v.manages, false AS suspended,
          NOT EXISTS (SELECT 1 FROM machine_views o WHERE o.machine_id = v.machine_id AND o.attached AND o.cluster <> v.cluster) AS last
      FROM machine_views v WHERE v.cluster = $1 AND v.attached` + wanted + `) x GROUP BY x.origin, x.pool ORDER BY x.origin, x.pool`
	sqlCountClaimViews = `
SELECT x.origin, x.pool, ` + counted + `
FROM (SELECT v.origin, v.pool, v.manages, v.suspended,
          NOT EXISTS (SELECT 1 FROM claim_views o WHERE o.pool = v.pool AND o.claim_key = v.claim_key AND o.cluster <> v.cluster) AS last
      FROM claim_views v WHERE v.cluster = $1` + wanted + `) x GROUP BY x.origin, x.pool ORDER BY x.origin, x.pool`
	sqlCountProviderViews = `
SELECT x.origin, x.pool, ` + counted + `
FROM (SELECT v.origin, v.pool, v.manages, false AS suspended,
          NOT EXISTS (SELECT 1 FROM provider_views o WHERE o.pool = v.pool AND o.provider = v.provider AND o.cluster <> v.cluster) AS last
      FROM provider_views v WHERE v.cluster = $1` + wanted + `) x GROUP BY x.origin, x.pool ORDER BY x.origin, x.pool`

	// sqlEndMachineViews ends views as they were listed: of the objects whose UIDs these are, and not of others that were attached since.
	sqlEndMachineViews = `
UPDATE machine_views v SET attached = false, manages = false, changed_at = clock_timestamp()
FROM (SELECT unnest($2::uuid[]) AS machine_id, unnest($3::text[]) AS uid) x
WHERE v.machine_id = x.machine_id AND v.uid = x.uid AND v.cluster = $1 AND v.attached AND ($4::text = '' OR v.origin = $4)
RETURNING v.machine_id, v.pool, v.name`

	sqlForgetMachines = `
DELETE FROM projection WHERE cluster = $1 AND kind = 'machine' AND pool = ANY($2) AND id = ANY($3)`

	sqlClaimViewOf = "SELECT 1 FROM claim_views WHERE pool = $1 AND claim_key = $2 AND cluster = $3 AND uid = $4 AND ($5::text = '' OR origin = $5)"

	// The role of a manager passes in the transaction that ends its view, so that no third one, which comes back with an old spec, can take it before
	// those that were there. The first by name of the clusters with a live session inherits it, or else the first by name.
	livingFirst = `
    ORDER BY (SELECT count(*) FROM sessions s WHERE s.session_cluster = o.cluster AND s.session_ended_at IS NULL) = 0, o.cluster LIMIT 1)`

	sqlInheritMachines = `
UPDATE machine_views v SET manages = true, changed_at = clock_timestamp()
WHERE v.machine_id = ANY($1) AND v.attached
  AND NOT EXISTS (SELECT 1 FROM machine_views m WHERE m.machine_id = v.machine_id AND m.attached AND m.manages)
  AND v.cluster = (SELECT o.cluster FROM machine_views o WHERE o.machine_id = v.machine_id AND o.attached` + livingFirst + `
RETURNING v.cluster, v.pool, v.name, v.machine_id`
	sqlInheritClaim = `
UPDATE claim_views v SET manages = true
WHERE v.pool = $1 AND v.claim_key = $2
  AND NOT EXISTS (SELECT 1 FROM claim_views m WHERE m.pool = $1 AND m.claim_key = $2 AND m.manages)
  AND v.cluster = (SELECT o.cluster FROM claim_views o WHERE o.pool = $1 AND o.claim_key = $2` + livingFirst + `
RETURNING v.cluster, v.pool, v.claim_key, NULL::uuid`
	sqlInheritProvider = `
UPDATE provider_views v SET manages = true
WHERE v.pool = $1 AND v.provider = $2
  AND NOT EXISTS (SELECT 1 FROM provider_views m WHERE m.pool = $1 AND m.provider = $2 AND m.manages)
  AND v.cluster = (SELECT o.cluster FROM provider_views o WHERE o.pool = $1 AND o.provider = $2` + livingFirst + `
RETURNING v.cluster, v.pool, v.provider, NULL::uuid`
)
