-- name: MachineAddProvided :exec
-- Records that a machine exists at a provider. The machine must not be provided yet, and no other machine of its pool may have
-- the same provider and provider ID.
INSERT INTO machine_provided (machine_id, provider, provider_id, pool)
SELECT @machine_id::uuid, sqlc.arg(provider), sqlc.arg(provider_id), machine_state.pool FROM machine_state WHERE machine_state.machine_id = @machine_id::uuid;

-- name: MachineUpdateProviderStatus :exec
-- Updates what the provider says of a machine; NULL leaves a value as it is.
WITH target AS (SELECT t.machine_id FROM machine_provided t WHERE t.provider_id = sqlc.arg(provider_id) AND t.provider = sqlc.arg(provider))
UPDATE machine_provided
SET provider_reservation_id = COALESCE(sqlc.narg(provider_reservation_id), provider_reservation_id),
    provider_ip_address = COALESCE(sqlc.narg(provider_ip_address), provider_ip_address),
    provider_location = COALESCE(sqlc.narg(provider_location), provider_location),
    provider_status = COALESCE(sqlc.narg(provider_status), provider_status)
WHERE machine_provided.machine_id IN (SELECT target.machine_id FROM target);

-- name: MachineSetAgentStarted :exec
INSERT INTO machine_agent_started (machine_id, agent_started_at, agent_public_key) VALUES ($1, $2, $3)
ON CONFLICT (machine_id) DO UPDATE SET agent_started_at = excluded.agent_started_at, agent_public_key = excluded.agent_public_key;

-- name: MachineDeleteAgentStarted :exec
DELETE FROM machine_agent_started WHERE machine_id = $1;

-- name: MachineSetAgentHeartbeat :exec
INSERT INTO machine_agent_heartbeat (machine_id, agent_heartbeat_at) VALUES ($1, $2)
ON CONFLICT (machine_id) DO UPDATE SET agent_heartbeat_at = excluded.agent_heartbeat_at;

-- name: MachineDeleteAgentHeartbeat :exec
DELETE FROM machine_agent_heartbeat WHERE machine_id = $1;

-- name: MachineSetHardwareReport :exec
INSERT INTO machine_hardware_report (machine_id, hardware_report_raw) VALUES ($1, $2)
ON CONFLICT (machine_id) DO UPDATE SET hardware_report_raw = excluded.hardware_report_raw;

-- name: MachineSetOSInstallationRequest :exec
INSERT INTO machine_os_installation_request (machine_id, generation, os_installation_request_raw) VALUES ($1, $2, $3)
ON CONFLICT (machine_id) DO UPDATE SET generation = excluded.generation, os_installation_request_raw = excluded.os_installation_request_raw;

-- name: MachineDeleteOSInstallationRequest :exec
DELETE FROM machine_os_installation_request WHERE machine_id = $1;

-- name: MachineSetOSInstallationReport :exec
-- Records an installation. One that succeeded raises the machine's mark, which never falls; one that failed does not, so that the machine stays due.
WITH report AS (
    INSERT INTO machine_os_installation_report (machine_id, generation, os_installation_result, os_installation_report_raw)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (machine_id) DO UPDATE SET generation = excluded.generation,
        os_installation_result = excluded.os_installation_result, os_installation_report_raw = excluded.os_installation_report_raw
    RETURNING machine_id, generation, os_installation_result)
INSERT INTO machine_os_marks (machine_id, generation) SELECT machine_id, generation FROM report WHERE os_installation_result = 'Success'
ON CONFLICT (machine_id) DO UPDATE SET generation = greatest(machine_os_marks.generation, excluded.generation);

-- name: MachineSetTag :exec
-- Sets a tag that a user defined.
INSERT INTO machine_tags (machine_id, tag, tag_set_at) VALUES ($1, $2, clock_timestamp())
ON CONFLICT (machine_id, tag) DO UPDATE SET tag_set_at = excluded.tag_set_at;

-- name: MachineDeleteTag :exec
DELETE FROM machine_tags WHERE machine_id = $1 AND tag = $2;

-- name: GetMachineTags :many
SELECT machine_id, tag, tag_set_at FROM machine_tags WHERE machine_id = $1 ORDER BY tag;
