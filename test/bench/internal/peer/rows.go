// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Rows writes the rows that a cycle of the library writes, into the library's own tables, in as many transactions and round trips, with the least
// statements that do: each writes one row that it is told, nothing is looked at, compared or refused, and nothing keeps two workers from one
// machine. What lies between the floor and this is the price of the rows; between this and the library, that of knowing which may be written.
// It is safe for concurrent use. The caller closes it.
type Rows struct {
	pool     *pgxpool.Pool
	pod      uuid.UUID
	machines []uuid.UUID
	next     atomic.Int64
}

// OpenRows connects to a database of a fleet that is ready, with as many connections as there are workers but at most most.
func OpenRows(ctx context.Context, databaseURL string, workers, most int) (*Rows, error) {
	pool, err := openPool(ctx, databaseURL, min(workers, most))
	if err != nil {
		return nil, err
	}
	r := &Rows{pool: pool, pod: uuid.New()}
	rows, err := pool.Query(ctx, "SELECT machine_id FROM machine_state ORDER BY random()")
	if err == nil {
		r.machines, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	}
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("list machines: %w", err)
	}
	return r, nil
}

// Close ends all connections.
func (r *Rows) Close() { r.pool.Close() }

// Run lets workers do cycles for a time.
func (r *Rows) Run(ctx context.Context, workers int, t Timing) (Result, error) {
	result, err := Drive(ctx, workers, t, r.cycle)
	if err != nil {
		return result, fmt.Errorf("write rows: %w", err)
	}
	var ends int64
	if err := r.pool.QueryRow(ctx, "SELECT count(*) FROM work_history WHERE phase = 1").Scan(&ends); err != nil {
		return result, fmt.Errorf("count written rows: %w", err)
	}
	if ends != result.Total {
		return result, fmt.Errorf("count written rows: %d ends of %d cycles", ends, result.Total)
	}
	return result, nil
}

func (r *Rows) cycle(ctx context.Context, _ int) error {
	i := int(r.next.Add(1)) - 1
	if i >= len(r.machines) {
		return ErrDry
	}
	machine, work := r.machines[i], uuid.New()
	return r.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		if err := send(ctx, conn, begin, query{"SELECT machine_id FROM work WHERE process = 'AgentStart' AND machine_id >= $1 AND state = $2::bigint ORDER BY machine_id LIMIT 1", []any{machine, ready}}); err != nil {
			return err
		}
		if err := send(
			ctx, conn,
			query{"UPDATE machine_state SET rev = rev + 1 WHERE machine_id = $1", []any{machine}},
			query{"UPDATE work SET state = $4::bigint, work_id = $2, session_id = $3, fence = 2, attempt = 1, started_at = clock_timestamp() WHERE machine_id = $1 AND process = 'AgentStart'",
				[]any{machine, work, r.pod, claimed}},
			query{insertEvent + "0, 'AgentStart', 'Started'" + restOfEvent, []any{machine, work, r.pod}},
			commit,
		); err != nil {
			return err
		}
		return send(
			ctx, conn, begin,
			query{"UPDATE machine_state SET rev = rev + 1, facts = ARRAY['Provided', 'AgentStarted'], unresponsive_at = clock_timestamp() + interval '30 minutes' WHERE machine_id = $1",
				[]any{machine}},
			query{"UPDATE work SET state = $2::bigint, work_id = NULL WHERE machine_id = $1 AND process = 'AgentStart'", []any{machine, idle}},
			query{insertEvent + "1, 'AgentStart', 'Finished'" + restOfEvent, []any{machine, work, r.pod}},
			query{"INSERT INTO machine_agent_started (machine_id, agent_started_at, agent_public_key) VALUES ($1, clock_timestamp(), '\\x00'::bytea)", []any{machine}},
			query{"INSERT INTO work (machine_id, process, slot, pool, provider, state, not_before) " +
				"VALUES ($1, 'AgentRecovery', 'access', 'bench', 'lab', $2::bigint, clock_timestamp() + interval '30 minutes')", []any{machine, waiting}},
			commit,
		)
	})
}

const (
	insertEvent = "INSERT INTO work_history (machine_id, work_id, session_id, phase, process, event, timestamp, pool, claim_key, fence, attempt, duration_ms, actor) " +
		"VALUES ($1, $2, $3, "
	restOfEvent = ", clock_timestamp(), 'bench', '', 2, 1, 0, 'pod')"
)

// states of work rows, as the library numbers them.
const (
	idle    = int64(0)
	waiting = int64(1)
	ready   = int64(2)
	claimed = int64(3)
)

// query is a statement and its arguments.
type query struct {
	sql  string
	args []any
}

var begin, commit = query{sql: "BEGIN ISOLATION LEVEL READ COMMITTED"}, query{sql: "COMMIT"}

// send sends statements in one round trip.
func send(ctx context.Context, conn *pgxpool.Conn, queries ...query) error {
	batch := &pgx.Batch{}
	for _, q := range queries {
		batch.Queue(q.sql, q.args...)
	}
	return conn.SendBatch(ctx, batch).Close()
}
