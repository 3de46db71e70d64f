// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ours drives the library the way its users do.
package ours

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/semaphore"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/peer"
)

// Connections is how many connections a pod has: the operator's default.
const Connections = 16

// publicKey is what a cycle records as its result.
var publicKey = []byte("an ed25519 key of 32 bytes......")

// Program is a program that uses the library, with a session. It is safe for concurrent use. The caller closes it.
type Program struct {
	// Counter is told what happens.
	Counter *Counter

	conn    *bmdb.Connection
	session *bmdb.Session
}

// Options of a program.
type Options struct {
	// Name is shown in sessions and history.
	Name string
	// Lease is the session's; 0 is the library's default.
	Lease time.Duration
	// Connections is the size of the pool; 0 is Connections.
	Connections int32
	// WithoutChores leaves out the chores that every program shares, for counting what a cycle alone says.
	WithoutChores bool
}

// Open connects to a migrated database and starts a session, with the chores that every program shares unless they are left out.
func Open(ctx context.Context, databaseURL string, o Options) (*Program, error) {
	if o.Connections == 0 {
		o.Connections = Connections
	}
	p := &Program{Counter: &Counter{}}
	conn, err := (&bmdb.BMDB{Config: bmdb.Config{
		DatabaseURL: databaseURL, ComponentName: "bench", RuntimeInfo: o.Name, Lease: o.Lease, MaxConnections: o.Connections, Observer: p.Counter,
	}}).Open(false)
	if err != nil {
		return nil, err
	}
	var options []bmdb.SessionOption
	if o.WithoutChores {
		options = append(options, bmdb.WithoutMaintenance())
	}
	session, err := conn.StartSession(context.WithoutCancel(ctx), options...)
	if err != nil {
		conn.Close()
		return nil, err
	}
	p.conn, p.session = conn, session
	return p, nil
}

// Close ends the session and all connections.
func (p *Program) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := p.session.Close(ctx)
	p.conn.Close()
	return err
}

// OneByOne lets workers take one machine after the other for a time, in the library's general form, as code that was written for the original does.
func (p *Program) OneByOne(ctx context.Context, workers int, t peer.Timing) (peer.Result, error) {
	r, err := peer.Drive(ctx, workers, t, func(ctx context.Context, _ int) error { return p.Cycle(ctx) })
	r.Retries, r.Conflicts = p.Counter.Retries.Load(), p.Counter.Conflicts.Load()
	if err != nil {
		return r, fmt.Errorf("work one by one: %w", err)
	}
	return r, nil
}

// candidatesAtOnce is how many machines a worker asks for. The first can be had unless another worker was at the same place at that moment.
const candidatesAtOnce = 3

// Cycle retrieves one machine, does nothing to it, and finishes. peer.ErrDry: there is none.
func (p *Program) Cycle(ctx context.Context) error {
	for {
		work, err := p.session.Work(ctx, model.ProcessAgentStart, func(q *model.Queries) ([]uuid.UUID, error) {
			machines, err := q.GetMachinesForAgentStart(ctx, candidatesAtOnce)
			ids := make([]uuid.UUID, len(machines))
			for i, m := range machines {
				ids[i] = m.MachineID
			}
			return ids, err
		})
		switch {
		case errors.Is(err, bmdb.ErrWorkConflict):
			p.Counter.Conflicts.Add(1)
			continue
		case errors.Is(err, bmdb.ErrNothingToDo):
			return peer.ErrDry
		case err != nil:
			return err
		}
		return work.FinishData(ctx, bmdb.Outcome{AgentPublicKey: publicKey})
	}
}

// Drain is a claim on every machine of a pool, worked off by at most so many workers at once over all programs.
func Drain(pool, key string, workers int) bmdb.ClaimSpec {
	return bmdb.ClaimSpec{
		Pool: pool, Key: key, Process: string(model.ProcessAgentStart), Mode: bmdb.ModeDrain, Selector: &bmdb.Selector{}, Parallelism: int64(workers),
	}
}

// Attach records a claim.
func (p *Program) Attach(ctx context.Context, spec bmdb.ClaimSpec) error {
	_, err := p.conn.AttachClaim(ctx, bmdb.View{Name: spec.Key}, spec, true)
	return err
}

// Own takes up claims until it has so many.
func (p *Program) Own(ctx context.Context, claims int) ([]*bmdb.OwnedClaim, error) {
	var owned []*bmdb.OwnedClaim
	for {
		some, err := p.session.OwnClaims(ctx, claims-len(owned))
		if err != nil {
			return nil, err
		}
		owned = append(owned, some...)
		if len(owned) >= claims {
			return owned, nil
		}
		if err := wait(ctx, 20*time.Millisecond); err != nil {
			return nil, fmt.Errorf("take up claims, %d of %d so far: %w", len(owned), claims, err)
		}
	}
}

// Session is the program's session.
func (p *Program) Session() *bmdb.Session { return p.session }

// Connection is the program's connection.
func (p *Program) Connection() *bmdb.Connection { return p.conn }

// Batched lets workers work off claims for a time, or until these are over: as the operator does, each claim's owner starts as many works in
// one statement as there are workers free, and ends share transactions. It returns when all works have ended.
func (p *Program) Batched(ctx context.Context, owned []*bmdb.OwnedClaim, workers int, t peer.Timing) (peer.Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b := &batch{program: p, slots: semaphore.NewWeighted(int64(workers)), workers: int64(workers), record: peer.NewRecord(t), fail: cancel}
	var loops sync.WaitGroup
	for _, o := range owned {
		loops.Go(func() {
			if err := b.loop(ctx, o); err != nil {
				cancel(err)
			}
		})
	}
	loops.Wait()
	b.works.Wait()
	r := b.record.Result()
	r.Retries, r.Conflicts = p.Counter.Retries.Load(), p.Counter.Conflicts.Load()
	if ctx.Err() != nil {
		return r, fmt.Errorf("work off claims: %w", context.Cause(ctx))
	}
	return r, nil
}

// batch is one call of Batched.
type batch struct {
	program *Program
	slots   *semaphore.Weighted
	workers int64
	record  *peer.Record
	fail    context.CancelCauseFunc
	works   sync.WaitGroup
}

// gatherTime is the operator's: for how long a claim's owner waits for more of its works to end before it starts others.
const gatherTime = time.Millisecond

// running is the works of one claim that go on.
type running struct {
	count atomic.Int64
	ended chan struct{} // holds a value if one has ended since it was looked at
}

// gather waits a moment for works that end at about the same time.
func (r *running) gather(ctx context.Context) error {
	t := time.NewTimer(gatherTime)
	defer t.Stop()
	for r.count.Load() > 0 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
			return nil
		case <-r.ended:
		}
	}
	return nil
}

func (r *running) end() {
	r.count.Add(-1)
	select {
	case r.ended <- struct{}{}:
	default:
	}
}

// loop starts works for one claim while there is time.
func (b *batch) loop(ctx context.Context, o *bmdb.OwnedClaim) error {
	r := &running{ended: make(chan struct{}, 1)}
	for !b.record.Over() && ctx.Err() == nil {
		if err := b.slots.Acquire(ctx, 1); err != nil {
			return err
		}
		free := int64(1)
		if err := r.gather(ctx); err != nil {
			return err
		}
		for free < b.workers && b.slots.TryAcquire(1) {
			free++
		}
		start := time.Now()
		works, err := b.program.session.ClaimRound(ctx, o, int(free))
		b.slots.Release(free - int64(len(works)))
		for _, w := range works {
			r.count.Add(1)
			b.works.Go(func() { b.end(ctx, w, r, start) })
		}
		switch {
		case errors.Is(err, bmdb.ErrNothingToDo):
			outlook, err := b.program.session.ReviewClaim(ctx, o)
			if err != nil {
				return err
			}
			if outlook.State != bmdb.ClaimRunning {
				return nil
			}
			// All that is left is being worked on.
			if err := wait(ctx, min(outlook.RetryAfter, 20*time.Millisecond)); err != nil {
				return err
			}
		case errors.Is(err, bmdb.ErrClaimLost):
			return nil // it is over: its last end saw to that
		case err != nil:
			return err
		}
	}
	return nil
}

func (b *batch) end(ctx context.Context, w *bmdb.Work, r *running, start time.Time) {
	err := w.FinishData(ctx, bmdb.Outcome{AgentPublicKey: publicKey})
	b.slots.Release(1)
	r.end()
	if err != nil {
		b.program.Counter.Conflicts.Add(1)
		b.fail(err)
		return
	}
	b.record.Ended(start)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// Counter counts what the library tells. It is safe for concurrent use.
type Counter struct {
	// Transactions are those that ended, Retries attempts of them that were tried again, Conflicts what came back to a caller.
	Transactions, Retries, Conflicts atomic.Int64
	// Lost are sessions that were.
	Lost atomic.Int64
}

// The methods of bmdb.TransactionObserver.

// SessionStarted does nothing.
func (c *Counter) SessionStarted() {}

// SessionEnded counts sessions that were lost.
func (c *Counter) SessionEnded(reason string) {
	if reason != "closed" {
		c.Lost.Add(1)
	}
}

// Beat does nothing.
func (c *Counter) Beat(bool, time.Duration) {}

// WorkStarted does nothing.
func (c *Counter) WorkStarted(string) {}

// WorkEnded does nothing.
func (c *Counter) WorkEnded(string, string, time.Duration) {}

// WorkTakenOver does nothing.
func (c *Counter) WorkTakenOver(string) {}

// TransactionRetried counts.
func (c *Counter) TransactionRetried(string, string) { c.Retries.Add(1) }

// TransactionEnded counts.
func (c *Counter) TransactionEnded(string, bool, time.Duration) { c.Transactions.Add(1) }

// Done is what a database says was done in a pool.
type Done struct {
	// Started and Finished are rows of history, Other ends that are not Finished, Tags machines whose agent is started since, Open works that go on.
	Started, Finished, Other, Tags, Open int64
}

// Count asks a database what was done in a pool.
func Count(ctx context.Context, databaseURL, pool string) (d Done, err error) {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return d, fmt.Errorf("count what was done: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = conn.QueryRow(ctx, `
SELECT count(*) FILTER (WHERE phase = 0), count(*) FILTER (WHERE event = 'Finished'), count(*) FILTER (WHERE phase = 1 AND event <> 'Finished'),
    (SELECT count(*) FROM machine_agent_started a JOIN machine_state m ON m.machine_id = a.machine_id WHERE m.pool = $1 AND 'AgentStarted' = ANY (m.facts)),
    (SELECT count(*) FROM work WHERE work_id IS NOT NULL AND pool = $1)
FROM work_history WHERE pool = $1`, pool).Scan(&d.Started, &d.Finished, &d.Other, &d.Tags, &d.Open)
	if err != nil {
		return d, fmt.Errorf("count what was done: %w", err)
	}
	return d, nil
}

// Whole says what is wrong with what was done, if every start must have been finished and left its tag.
func (d Done) Whole() error {
	if d.Started != d.Finished || d.Finished != d.Tags || d.Other != 0 || d.Open != 0 {
		return fmt.Errorf("the database says %d started, %d finished, %d ended otherwise, %d tags, %d open", d.Started, d.Finished, d.Other, d.Tags, d.Open)
	}
	return nil
}
