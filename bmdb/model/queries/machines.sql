-- name: insertMachine :exec
INSERT INTO machines (machine_id, machine_created_at) VALUES ($1, clock_timestamp())
ON CONFLICT (machine_id) DO NOTHING;

-- name: insertMachineState :exec
INSERT INTO machine_state (machine_id, pool) VALUES ($1, $2)
ON CONFLICT (machine_id) DO NOTHING;

-- name: getMachine :one
SELECT machine_id, machine_created_at FROM machines WHERE machine_id = $1;

-- name: CountMachines :one
SELECT count(*) FROM machines;

-- name: CountMachinesProvided :one
SELECT count(*) FROM machine_provided;
