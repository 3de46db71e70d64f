// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The algorithm of the original Bare Metal Database: a work row is inserted and deleted, the retrieval is an anti-join that takes the first
// machine, every transaction reads the session row that heartbeats write, all of it SERIALIZABLE with retries.
var naiveSchema = []string{
	`CREATE TABLE machines (machine_id UUID PRIMARY KEY, machine_created_at TIMESTAMPTZ NOT NULL)`,
	`CREATE TABLE sessions (session_id UUID PRIMARY KEY, session_component_name TEXT NOT NULL, session_runtime_info TEXT NOT NULL,
		session_created_at TIMESTAMPTZ NOT NULL, session_interval_seconds BIGINT NOT NULL, session_deadline TIMESTAMPTZ NOT NULL)`,
	`CREATE TABLE work (machine_id UUID NOT NULL REFERENCES machines (machine_id), session_id UUID NOT NULL REFERENCES sessions (session_id),
		process TEXT NOT NULL, PRIMARY KEY (machine_id, session_id, process), UNIQUE (machine_id, process))`,
	`CREATE TABLE work_backoff (machine_id UUID NOT NULL REFERENCES machines (machine_id), process TEXT NOT NULL, until TIMESTAMPTZ NOT NULL,
		cause TEXT NOT NULL, last_interval_seconds BIGINT, UNIQUE (machine_id, process))`,
	`CREATE TABLE work_history (machine_id UUID NOT NULL REFERENCES machines (machine_id), "timestamp" TIMESTAMPTZ NOT NULL, process TEXT NOT NULL,
		event TEXT NOT NULL, failed_cause TEXT)`,
	`CREATE INDEX work_history_machine ON work_history (machine_id)`,
	`CREATE TABLE machine_provided (machine_id UUID PRIMARY KEY REFERENCES machines (machine_id), provider TEXT NOT NULL, provider_id TEXT NOT NULL,
		UNIQUE (provider, provider_id))`,
	`CREATE TABLE machine_agent_started (machine_id UUID PRIMARY KEY REFERENCES machines (machine_id), agent_started_at TIMESTAMPTZ NOT NULL,
		agent_public_key BYTEA NOT NULL)`,
}

const (
	naiveRetrieve = `
SELECT machine_provided.machine_id FROM machines
INNER JOIN machine_provided ON machines.machine_id = machine_provided.machine_id
LEFT JOIN work_backoff ON machines.machine_id = work_backoff.machine_id AND work_backoff.until > now() AND work_backoff.process = 'ShepherdAgentStart'
LEFT JOIN machine_agent_started ON machines.machine_id = machine_agent_started.machine_id
LEFT JOIN work ON machines.machine_id = work.machine_id AND work.process IN ('ShepherdAccess', 'ShepherdAgentStart', 'ShepherdRecovery')
WHERE machine_agent_started.machine_id IS NULL AND work.machine_id IS NULL AND work_backoff.machine_id IS NULL
LIMIT 1`
	naiveCheck   = `SELECT session_id FROM sessions WHERE session_id = $1 AND session_deadline > now()`
	naivePoke    = `UPDATE sessions SET session_deadline = now() + session_interval_seconds * interval '1 second' WHERE session_id = $1`
	naiveHistory = `INSERT INTO work_history (machine_id, process, event, "timestamp") VALUES ($1, 'ShepherdAgentStart', $2, now())`
)

// Naive is a database that the algorithm of the original works on. It is safe for concurrent use. The caller closes it.
type Naive struct {
	pool               *pgxpool.Pool
	session            uuid.UUID
	retries, conflicts atomic.Int64
}

// FillNaive makes the schema of the original, and machines that all need their agent started.
func FillNaive(ctx context.Context, databaseURL string, machines int) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return fmt.Errorf("fill database of naive: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, sql := range naiveSchema {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("fill database of naive: %s: %w", sql, err)
		}
	}
	const insert = "INSERT INTO machines (machine_id, machine_created_at) SELECT gen_random_uuid(), now() FROM generate_series(1, $1::bigint)"
	if _, err := conn.Exec(ctx, insert, machines); err != nil {
		return fmt.Errorf("fill database of naive: %w", err)
	}
	for _, sql := range []string{
		"INSERT INTO machine_provided (machine_id, provider, provider_id) SELECT machine_id, 'lab', machine_id::text FROM machines",
		// Tables that are empty yet are left alone: one that was looked at is believed to stay empty.
		"ANALYZE machines", "ANALYZE machine_provided",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("fill database of naive: %s: %w", sql, err)
		}
	}
	return nil
}

// OpenNaive starts a session, with a connection for each worker, as the original had.
func OpenNaive(ctx context.Context, databaseURL string, workers int) (*Naive, error) {
	pool, err := openPool(ctx, databaseURL, workers+1)
	if err != nil {
		return nil, err
	}
	n := &Naive{pool: pool, session: uuid.New()}
	const insert = `INSERT INTO sessions (session_id, session_component_name, session_runtime_info, session_created_at, session_interval_seconds, session_deadline)
		VALUES ($1, 'bench', '', now(), 5, now() + interval '5 seconds')`
	if _, err := pool.Exec(ctx, insert, n.session); err != nil {
		pool.Close()
		return nil, fmt.Errorf("start session of naive: %w", err)
	}
	return n, nil
}

// Close ends all connections.
func (n *Naive) Close() { n.pool.Close() }

// Run lets workers do cycles for a time.
func (n *Naive) Run(ctx context.Context, workers int, t Timing) (Result, error) {
	beating, stop := context.WithCancel(ctx)
	beaten := make(chan error, 1)
	go func() { beaten <- n.beat(beating) }()
	r, err := Drive(ctx, workers, t, func(ctx context.Context, _ int) error { return n.cycle(ctx) })
	stop()
	err = errors.Join(err, <-beaten)
	if err != nil {
		return r, fmt.Errorf("run naive: %w", err)
	}
	r.Retries, r.Conflicts = n.retries.Load(), n.conflicts.Load()
	var started, finished, tags int64
	err = n.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM work_history WHERE event = 'Started'), (SELECT count(*) FROM work_history WHERE event = 'Finished'),
		(SELECT count(*) FROM machine_agent_started)`).Scan(&started, &finished, &tags)
	if err != nil {
		return r, fmt.Errorf("count what naive did: %w", err)
	}
	if started != finished || finished != tags || finished != r.Total {
		return r, fmt.Errorf("count what naive did: %d started, %d finished, %d tags in %d cycles", started, finished, tags, r.Total)
	}
	return r, nil
}

// beat keeps the session alive, twice in its interval.
func (n *Naive) beat(ctx context.Context) error {
	ticker := time.NewTicker(2500 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		err := n.transact(ctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, naivePoke, n.session)
			return err
		})
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("beat: %w", err)
		}
	}
}

// cycle does one machine. A conflict is tried again at once, as a caller would.
func (n *Naive) cycle(ctx context.Context) error {
	for {
		machine, err := n.start(ctx)
		if code(err) == "23505" {
			n.conflicts.Add(1)
			continue
		}
		if err != nil {
			return err
		}
		return n.finish(ctx, machine)
	}
}

func (n *Naive) start(ctx context.Context) (machine uuid.UUID, err error) {
	err = n.transact(ctx, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, naiveRetrieve).Scan(&machine)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrDry
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO work (machine_id, session_id, process) VALUES ($1, $2, 'ShepherdAgentStart')", machine, n.session); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, naiveHistory, machine, "Started"); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "SELECT last_interval_seconds FROM work_backoff WHERE machine_id = $1 AND process = 'ShepherdAgentStart'", machine)
		return err
	})
	return machine, err
}

func (n *Naive) finish(ctx context.Context, machine uuid.UUID) error {
	return n.transact(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM work WHERE machine_id = $1 AND session_id = $2 AND process = 'ShepherdAgentStart'", machine, n.session); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, naiveHistory, machine, "Finished"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO machine_agent_started (machine_id, agent_started_at, agent_public_key) VALUES ($1, now(), $2)", machine, publicKey)
		return err
	})
}

// publicKey is what all peers record as the result of a cycle.
var publicKey = []byte("an ed25519 key of 32 bytes......")

// transact runs fn SERIALIZABLE, in a session that lives, until it commits or fails for another reason than a conflict of transactions.
func (n *Naive) transact(ctx context.Context, fn func(tx pgx.Tx) error) error {
	for {
		err := pgx.BeginTxFunc(ctx, n.pool, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(tx pgx.Tx) error {
			var id uuid.UUID
			if err := tx.QueryRow(ctx, naiveCheck, n.session).Scan(&id); err != nil {
				return fmt.Errorf("check session: %w", err)
			}
			return fn(tx)
		})
		if c := code(err); c == "40001" || c == "40P01" {
			n.retries.Add(1)
			continue
		}
		return err
	}
}

func code(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code
	}
	return ""
}

// openPool opens a pool with all of its connections made, and commits that are durable.
func openPool(ctx context.Context, databaseURL string, size int) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(databaseURL)
	if err != nil {
		return nil, errors.New("open database of a peer: its URL cannot be parsed")
	}
	config.MaxConns = int32(size)
	config.MinConns = int32(size)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open database of a peer: %w", err)
	}
	held := make([]*pgxpool.Conn, 0, size)
	defer func() {
		for _, c := range held {
			c.Release()
		}
	}()
	for range size {
		c, err := pool.Acquire(ctx)
		if err != nil {
			for _, c := range held {
				c.Release()
			}
			held = nil
			pool.Close()
			return nil, fmt.Errorf("open database of a peer: %w", err)
		}
		held = append(held, c)
	}
	return pool, nil
}
