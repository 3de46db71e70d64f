-- name: GetProvidedMachines :many
SELECT machine_provided.machine_id, machine_provided.provider, machine_provided.provider_id, machine_provided.pool, machine_provided.provider_reservation_id, machine_provided.provider_ip_address, machine_provided.provider_location, machine_provided.provider_status
FROM machine_provided WHERE provider = $1 ORDER BY machine_id;

-- name: GetMachinesForAgentStart :many
-- Machines whose agent has to be started for the first time, nobody works on, and that are not backed off. The predicate is that of
-- process AgentStart, which the recompute keeps in the work rows; it is not written here a second time. They begin at a random
-- machine and go round, so that workers who look at the same moment do not all find the same one; the way round is not gone where it is not needed.
WITH start AS (SELECT gen_random_uuid() AS id),
part AS (
    SELECT start.id AS low, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid AS high FROM start
    UNION ALL SELECT '00000000-0000-0000-0000-000000000000'::uuid AS low, start.id AS high FROM start)
SELECT machine_provided.machine_id, machine_provided.provider, machine_provided.provider_id, machine_provided.pool, machine_provided.provider_reservation_id, machine_provided.provider_ip_address, machine_provided.provider_location, machine_provided.provider_status
FROM part
CROSS JOIN LATERAL (
    SELECT work.machine_id FROM work
    WHERE work.process = 'AgentStart' AND work.machine_id >= part.low AND work.machine_id < part.high
      AND (work.state = 2 OR (work.state = 1 AND work.not_before <= clock_timestamp()))
      AND NOT EXISTS (SELECT 1 FROM work o WHERE o.machine_id = work.machine_id
          AND (o.work_id IS NOT NULL AND o.slot = work.slot OR o.process = 'ShepherdAgentStart' AND o.backoff_until > clock_timestamp()))
    ORDER BY work.machine_id
    LIMIT $1) found
JOIN machine_provided ON machine_provided.machine_id = found.machine_id
LIMIT $1;

-- name: GetMachinesForAgentStartByProvider :many
-- GetMachinesForAgentStart for the machines of one provider.
WITH start AS (SELECT gen_random_uuid() AS id),
part AS (
    SELECT start.id AS low, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid AS high FROM start
    UNION ALL SELECT '00000000-0000-0000-0000-000000000000'::uuid AS low, start.id AS high FROM start)
SELECT machine_provided.machine_id, machine_provided.provider, machine_provided.provider_id, machine_provided.pool, machine_provided.provider_reservation_id, machine_provided.provider_ip_address, machine_provided.provider_location, machine_provided.provider_status
FROM part
CROSS JOIN LATERAL (
    SELECT work.machine_id FROM work
    WHERE work.process = 'AgentStart' AND work.machine_id >= part.low AND work.machine_id < part.high
      AND (work.state = 2 OR (work.state = 1 AND work.not_before <= clock_timestamp()))
      AND NOT EXISTS (SELECT 1 FROM work o WHERE o.machine_id = work.machine_id
          AND (o.work_id IS NOT NULL AND o.slot = work.slot OR o.process = 'ShepherdAgentStart' AND o.backoff_until > clock_timestamp())) AND work.provider = $2
    ORDER BY work.machine_id
    LIMIT $1) found
JOIN machine_provided ON machine_provided.machine_id = found.machine_id
LIMIT $1;

-- name: GetMachineForAgentRecovery :many
-- Machines whose agent was started and is not heard of: the predicate of process AgentRecovery.
WITH start AS (SELECT gen_random_uuid() AS id),
part AS (
    SELECT start.id AS low, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid AS high FROM start
    UNION ALL SELECT '00000000-0000-0000-0000-000000000000'::uuid AS low, start.id AS high FROM start)
SELECT machine_provided.machine_id, machine_provided.provider, machine_provided.provider_id, machine_provided.pool, machine_provided.provider_reservation_id, machine_provided.provider_ip_address, machine_provided.provider_location, machine_provided.provider_status
FROM part
CROSS JOIN LATERAL (
    SELECT work.machine_id FROM work
    WHERE work.process = 'AgentRecovery' AND work.machine_id >= part.low AND work.machine_id < part.high
      AND (work.state = 2 OR (work.state = 1 AND work.not_before <= clock_timestamp()))
      AND EXISTS (SELECT 1 FROM machine_provided p WHERE p.machine_id = work.machine_id)
      AND NOT EXISTS (SELECT 1 FROM work o WHERE o.machine_id = work.machine_id
          AND (o.work_id IS NOT NULL AND o.slot = work.slot OR o.process = 'ShepherdRecovery' AND o.backoff_until > clock_timestamp()))
    ORDER BY work.machine_id
    LIMIT $1) found
JOIN machine_provided ON machine_provided.machine_id = found.machine_id
LIMIT $1;

-- name: GetMachineForAgentRecoveryByProvider :many
-- GetMachineForAgentRecovery for the machines of one provider.
WITH start AS (SELECT gen_random_uuid() AS id),
part AS (
    SELECT start.id AS low, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid AS high FROM start
    UNION ALL SELECT '00000000-0000-0000-0000-000000000000'::uuid AS low, start.id AS high FROM start)
SELECT machine_provided.machine_id, machine_provided.provider, machine_provided.provider_id, machine_provided.pool, machine_provided.provider_reservation_id, machine_provided.provider_ip_address, machine_provided.provider_location, machine_provided.provider_status
FROM part
CROSS JOIN LATERAL (
    SELECT work.machine_id FROM work
    WHERE work.process = 'AgentRecovery' AND work.machine_id >= part.low AND work.machine_id < part.high
      AND (work.state = 2 OR (work.state = 1 AND work.not_before <= clock_timestamp()))
      AND EXISTS (SELECT 1 FROM machine_provided p WHERE p.machine_id = work.machine_id)
      AND NOT EXISTS (SELECT 1 FROM work o WHERE o.machine_id = work.machine_id
          AND (o.work_id IS NOT NULL AND o.slot = work.slot OR o.process = 'ShepherdRecovery' AND o.backoff_until > clock_timestamp())) AND work.provider = $2
    ORDER BY work.machine_id
    LIMIT $1) found
JOIN machine_provided ON machine_provided.machine_id = found.machine_id
LIMIT $1;

-- name: AuthenticateAgentConnection :many
-- The machine whose agent has this key, if it is this machine.
SELECT machine_id, agent_started_at, agent_public_key FROM machine_agent_started
WHERE machine_id = $1 AND agent_public_key = $2;

-- name: GetExactMachineForOSInstallation :many
-- The machine's installation request, while it is due: its generation is above the highest ever reported.
SELECT machine_os_installation_request.machine_id, machine_os_installation_request.generation, machine_os_installation_request.os_installation_request_raw
FROM machine_os_installation_request
JOIN machine_state ON machine_state.machine_id = machine_os_installation_request.machine_id
WHERE machine_os_installation_request.machine_id = $1 AND 'InstallDue' = ANY (machine_state.facts)
LIMIT $2;
