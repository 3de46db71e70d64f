-- name: WorkBackoffOf :many
SELECT machine_id, process, until, cause, last_interval_seconds FROM work_backoff WHERE machine_id = $1 AND process = $2;

-- name: ListHistoryOf :many
SELECT machine_id, work_id, phase, process, event, timestamp, failed_cause, session_id, pool, claim_key, fence, attempt, duration_ms, actor
FROM work_history WHERE machine_id = $1 ORDER BY timestamp, phase;

-- name: GetSession :many
SELECT session_id, session_component_name, session_runtime_info, session_cluster, session_claims_only, session_created_at, session_lease_ms, session_ended_at, session_end_reason, session_origin
FROM sessions WHERE session_id = $1;

-- name: CountActiveWork :many
SELECT count(*), process FROM work WHERE work_id IS NOT NULL GROUP BY process;

-- name: CountActiveBackoffs :many
SELECT count(*), process FROM work WHERE backoff_until > clock_timestamp() GROUP BY process;
