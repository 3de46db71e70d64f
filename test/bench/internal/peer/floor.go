// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Floor is the least that a cycle costs whoever does it: one durable write of one row to start, another to finish, and as many round
// trips as the library makes. It is safe for concurrent use. The caller closes it.
type Floor struct {
	pool  *pgxpool.Pool
	trips int
}

// FillFloor makes a row for each worker.
func FillFloor(ctx context.Context, databaseURL string, workers int) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return fmt.Errorf("fill database of floor: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "CREATE TABLE cycles (worker BIGINT PRIMARY KEY, writes BIGINT NOT NULL)"); err != nil {
		return fmt.Errorf("fill database of floor: %w", err)
	}
	if _, err := conn.Exec(ctx, "INSERT INTO cycles (worker, writes) SELECT n, 0 FROM generate_series(0, $1::bigint - 1) AS s (n)", workers); err != nil {
		return fmt.Errorf("fill database of floor: %w", err)
	}
	return nil
}

// OpenFloor connects, with as many connections as there are workers but at most most. trips is how many round trips a cycle makes, at
// least two.
func OpenFloor(ctx context.Context, databaseURL string, workers, most, trips int) (*Floor, error) {
	if trips < 2 {
		return nil, fmt.Errorf("open floor: %d round trips are not enough for two writes", trips)
	}
	pool, err := openPool(ctx, databaseURL, min(workers, most))
	if err != nil {
		return nil, err
	}
	return &Floor{pool: pool, trips: trips}, nil
}

// Close ends all connections.
func (f *Floor) Close() { f.pool.Close() }

// Run lets workers do cycles for a time.
func (f *Floor) Run(ctx context.Context, workers int, t Timing) (Result, error) {
	r, err := Drive(ctx, workers, t, f.cycle)
	if err != nil {
		return r, fmt.Errorf("run floor: %w", err)
	}
	var writes int64
	if err := f.pool.QueryRow(ctx, "SELECT COALESCE(sum(writes), 0)::bigint FROM cycles").Scan(&writes); err != nil {
		return r, fmt.Errorf("count what floor did: %w", err)
	}
	if writes != 2*r.Total {
		return r, fmt.Errorf("count what floor did: %d writes in %d cycles", writes, r.Total)
	}
	return r, nil
}

func (f *Floor) cycle(ctx context.Context, worker int) error {
	for i := range f.trips {
		// The writes come where a cycle's commits do: at the end of its start, and at its end.
		sql, args := "SELECT 1", []any(nil)
		if i >= f.trips-2 {
			sql, args = "UPDATE cycles SET writes = writes + 1 WHERE worker = $1", []any{worker}
		}
		if _, err := f.pool.Exec(ctx, sql, args...); err != nil {
			return err
		}
	}
	return nil
}
