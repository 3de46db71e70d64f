// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package peer has what the library is measured beside: the algorithm of the original, a general job queue, and the least that any
// implementation must do. Each does real work in a database of its own, and counts what it has done there, not in memory.
package peer

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Timing says for how long something is measured.
type Timing struct {
	// Warm is how long workers work before anything counts: connections are made and statements planned meanwhile.
	Warm time.Duration
	// During is how long it counts.
	During time.Duration
}

// whole is how long workers work.
func (t Timing) whole() time.Duration { return t.Warm + t.During }

// Result is what workers did in the time that counts.
type Result struct {
	// Cycles is how many cycles ended in that time, which took Took: less than Timing.During if there was nothing to do any more.
	Cycles int64
	Took   time.Duration
	// Total is how many cycles ended at all, for comparison with what the database says.
	Total int64
	// Latencies are those of the cycles that count; nil where a peer does not tell.
	Latencies []time.Duration
	// Retries are transactions that were tried again, Conflicts those that came back to the worker, in all of the time.
	Retries, Conflicts int64
}

// Rate is how many cycles were done in a second.
func (r Result) Rate() float64 {
	if r.Took <= 0 {
		return 0
	}
	return float64(r.Cycles) / r.Took.Seconds()
}

// ErrDry is returned by a cycle that finds nothing to do any more.
var ErrDry = errors.New("nothing to do any more")

// Record keeps the cycles of workers. It is safe for concurrent use.
type Record struct {
	timing Timing
	began  time.Time

	mu     sync.Mutex
	result Result
	last   time.Time // when the last cycle ended
}

// NewRecord begins to record now.
func NewRecord(t Timing) *Record { return &Record{timing: t, began: time.Now()} }

// Over tells whether no cycle needs to begin any more.
func (r *Record) Over() bool { return time.Since(r.began) >= r.timing.whole() }

// Ended records a cycle that ended now.
func (r *Record) Ended(start time.Time) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Total++
	r.last = now
	if at := now.Sub(r.began); at >= r.timing.Warm && at < r.timing.whole() {
		r.result.Latencies = append(r.result.Latencies, now.Sub(start))
	}
}

// Result is what was recorded, once all workers have stopped.
func (r *Record) Result() Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	result := r.result
	result.Cycles, result.Took = int64(len(result.Latencies)), r.timing.During
	if end := r.last.Sub(r.began); end < r.timing.whole() {
		result.Took = end - r.timing.Warm
	}
	return result
}

// Drive lets workers do cycles for a time, and returns when all of them have stopped. A cycle that has begun is finished. The first
// error other than ErrDry ends all workers.
func Drive(ctx context.Context, workers int, t Timing, cycle func(ctx context.Context, worker int) error) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	r := NewRecord(t)
	for worker := range workers {
		wg.Go(func() {
			for !r.Over() && ctx.Err() == nil {
				start := time.Now()
				err := cycle(ctx, worker)
				if errors.Is(err, ErrDry) {
					return
				}
				if err != nil {
					cancel(err)
					return
				}
				r.Ended(start)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return r.Result(), context.Cause(ctx)
	}
	return r.Result(), nil
}
