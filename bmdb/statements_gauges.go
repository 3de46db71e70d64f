// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

// What is counted for metrics. None of it locks, and nothing is decided from it.
const (
	// sqlOldestSession is the one of a cluster's sessions that has lived the longest.
	sqlOldestSession = `
SELECT s.session_id FROM sessions s JOIN session_leases l ON l.session_id = s.session_id
WHERE s.session_cluster = $1 AND s.session_ended_at IS NULL AND l.deadline > clock_timestamp()
ORDER BY s.session_created_at, s.session_id LIMIT 1`

	// sqlWorkGauges reads no more rows than there are works under way.
	sqlWorkGauges = `
SELECT w.process, count(*), sum(CASE WHEN w.deadline < clock_timestamp() THEN 1 ELSE 0 END)::bigint,
    COALESCE(extract(epoch FROM clock_timestamp() - min(w.started_at)), 0)::float8
FROM work w WHERE w.work_id IS NOT NULL GROUP BY w.process`

	// readySince is the latest of all that is known to have kept a machine from a start of the process: it cannot have been ready before.
	// What facts were like in the past is not kept.
	readySince = `greatest(x.machine_created_at, w.started_at, w.backoff_until, m.held_until,
            CASE WHEN p.requires && ARRAY['AgentUnresponsive'] THEN m.unresponsive_at END)`

	// sqlFleetGauges counts the machines of a page that need a process, by the first gate of a start that they do not pass. The predicate is asked
	// without what forbids every process: those that nothing else keeps are unmanaged. Besides come a row for every process, and one, of
	// no process, for the machines of the page and the last of them.
	sqlFleetGauges = `
WITH page AS (
    SELECT m.machine_id, m.pool, m.held_until, m.unresponsive_at, array_remove(m.facts, 'ViewLost') AS facts, m.facts && ARRAY['ViewLost'] AS lost
    FROM machine_state m WHERE m.machine_id > $1 ORDER BY m.machine_id LIMIT $2),
counted AS (
    SELECT p.process, CASE
            WHEN m.lost THEN 'Unmanaged'
            WHEN NOT ` + notHeld + ` THEN 'Held'
            WHEN ` + worksInSlot + ` > 0 THEN 'Locked'
            WHEN w.backoff_until > clock_timestamp() THEN 'BackedOff'
            ELSE 'Eligible' END AS gate,
        extract(epoch FROM clock_timestamp() - ` + readySince + `)::float8 AS age
    FROM page m JOIN processes p ON p.pool IN ('', m.pool) AND p.indexed JOIN machines x ON x.machine_id = m.machine_id
    LEFT JOIN work w ON w.machine_id = m.machine_id AND w.process = p.process
    WHERE ` + eligibleNow + `)
SELECT c.process, c.gate, count(*), greatest(max(c.age), 0::float8), '' FROM counted c GROUP BY c.process, c.gate
UNION ALL SELECT DISTINCT p.process, '', 0, 0::float8, '' FROM processes p WHERE p.indexed
UNION ALL SELECT '', '', count(*), 0::float8, COALESCE(max(page.machine_id::text), '') FROM page`
)
