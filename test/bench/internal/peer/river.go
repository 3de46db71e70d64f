// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// nothing is a job without an effect.
type nothing struct {
	Machine int `json:"machine"`
}

// Kind implements river.JobArgs.
func (nothing) Kind() string { return "nothing" }

type idler struct {
	river.WorkerDefaults[nothing]
}

// Work implements river.Worker.
func (idler) Work(context.Context, *river.Job[nothing]) error { return nil }

// FillRiver makes the queue's schema, and jobs that wait.
func FillRiver(ctx context.Context, databaseURL string, jobs int) error {
	pool, err := openPool(ctx, databaseURL, 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return fmt.Errorf("fill database of river: %w", err)
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("fill database of river: %w", err)
	}
	client, err := river.NewClient(driver, &river.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return fmt.Errorf("fill database of river: %w", err)
	}
	const page = 5000
	for low := 0; low < jobs; low += page {
		batch := make([]river.InsertManyParams, 0, page)
		for i := low; i < min(low+page, jobs); i++ {
			batch = append(batch, river.InsertManyParams{Args: nothing{i}})
		}
		if _, err := client.InsertManyFast(ctx, batch); err != nil {
			return fmt.Errorf("fill database of river: %w", err)
		}
	}
	if _, err := pool.Exec(ctx, "ANALYZE river_job"); err != nil {
		return fmt.Errorf("fill database of river: %w", err)
	}
	return nil
}

// River is a client of the job queue. The caller closes it; it runs once.
type River struct {
	pool   *pgxpool.Pool
	client *river.Client[pgx.Tx]
}

// OpenRiver connects a client that works on so many jobs at once. fetchCooldown is the least time between two of its fetches; 0 is the queue's
// default.
func OpenRiver(ctx context.Context, databaseURL string, workers, connections int, fetchCooldown time.Duration) (*River, error) {
	pool, err := openPool(ctx, databaseURL, connections)
	if err != nil {
		return nil, err
	}
	kinds := river.NewWorkers()
	river.AddWorker(kinds, idler{})
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Logger: slog.New(slog.DiscardHandler), Workers: kinds, FetchCooldown: fetchCooldown,
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}},
	})
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("open river: %w", err)
	}
	return &River{pool: pool, client: client}, nil
}

// Close ends all connections.
func (r *River) Close() { r.pool.Close() }

// Run lets the client work for a time, or until all jobs are done.
func (r *River) Run(ctx context.Context, t Timing) (result Result, err error) {
	if err := r.client.Start(ctx); err != nil {
		return result, fmt.Errorf("start river: %w", err)
	}
	defer func() {
		// Stop waits until what was fetched is done and recorded.
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if stopErr := r.client.Stop(stopping); stopErr != nil {
			err = errors.Join(err, fmt.Errorf("stop river: %w", stopErr))
		}
	}()
	if err := wait(ctx, t.Warm); err != nil {
		return result, err
	}
	began := time.Now()
	before, err := r.done(ctx)
	if err != nil {
		return result, err
	}
	if err := r.untilDry(ctx, t.During); err != nil {
		return result, err
	}
	result.Took = time.Since(began)
	result.Total, err = r.done(ctx)
	result.Cycles = result.Total - before
	return result, err
}

// done asks the database how many jobs are done, each at its first attempt.
func (r *River) done(ctx context.Context) (n int64, err error) {
	if err = r.pool.QueryRow(ctx, "SELECT count(*) FROM river_job WHERE state = 'completed' AND attempt = 1").Scan(&n); err != nil {
		return n, fmt.Errorf("count what river did: %w", err)
	}
	return n, nil
}

// untilDry waits for a time, but not for longer than a job waits.
func (r *River) untilDry(ctx context.Context, during time.Duration) error {
	const look = 100 * time.Millisecond
	for over := time.Now().Add(during); time.Now().Before(over); {
		if err := wait(ctx, min(look, time.Until(over))); err != nil {
			return err
		}
		var more bool
		if err := r.pool.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM river_job WHERE state IN ('available', 'running'))").Scan(&more); err != nil {
			return fmt.Errorf("look at river: %w", err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
