// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/go-logr/logr"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/process"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

const (
	reasonTimedOut    = provider.ReasonTimedOut
	reasonWorkerStuck = "WorkerStuck"
	reasonPanicked    = "WorkerPanicked"

	// endRetry is the first wait before an end that could not be committed is tried again.
	endRetry = 200 * time.Millisecond
)

// performance is one work and what it needs.
type performance struct {
	work    Work
	process process.Process
	driver  provider.Driver
	backoff bmdb.Backoff
	machine provider.Machine
	show    func(step string, percent int)
	log     logr.Logger
	stopped bool // the worker touches the machine no more
}

// Work is what the engine needs of a work; a *bmdb.Work is one.
type Work interface {
	process.Work
	// FinishData commits the result.
	FinishData(ctx context.Context, o bmdb.Outcome) error
	// Fail ends the work, and leaves the machine alone for a while.
	Fail(ctx context.Context, b *bmdb.Backoff, cause string) error
}

// canceler ends a work without a backoff; it is apart from Work because it cannot fail.
type canceler interface{ Cancel(ctx context.Context) }

// abandoner leaves a work to its session.
type abandoner interface{ Abandon() }

type result struct {
	outcome bmdb.Outcome
	err     error
}

// errPanicked is the error of a worker that panicked.
var errPanicked = errors.New("panic")

// run does the work under ctx and returns when it has ended one way or the other: an end that could not be committed is left to the
// session, whose end ends it.
func (p *performance) run(ctx context.Context, grace, lease time.Duration, observer Observer) {
	results := make(chan result, 1)
	go func() { results <- p.perform(ctx) }()
	var r result
	select {
	case r = <-results:
	case <-ctx.Done():
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case r = <-results:
		case <-timer.C:
			observer.WorkerStuck(p.machine.Process)
			p.log.Error(context.Cause(ctx), "worker goes on after its context was cancelled; its work is ended as failed", "grace", grace)
			// Whatever it still does must be over before anybody else starts.
			stuck := bmdb.Backoff{Initial: max(p.backoff.Initial, lease), Maximum: max(p.backoff.Maximum, lease), Exponent: p.backoff.Exponent}
			p.fail(ctx, &stuck, fmt.Sprintf("%s: the worker did not stop within %s after its context was cancelled: %v", reasonWorkerStuck, grace, context.Cause(ctx)))
			return
		}
	}
	p.stopped = true
	p.end(ctx, r)
}

func (p *performance) perform(ctx context.Context) (r result) {
	defer func() {
		if v := recover(); v != nil {
			p.log.Error(errPanicked, "worker panicked", "panic", v, "stack", string(debug.Stack()))
			r = result{err: fmt.Errorf("%w: %v", errPanicked, v)}
		}
	}()
	outcome, err := p.process.Perform(ctx, process.Task{Machine: p.machine, Driver: p.driver, Steps: process.NewSteps(p.work, p.show)})
	return result{outcome, err}
}

// end decides how a work ends. What was done is committed even if the time was over by a moment: that is the truth.
func (p *performance) end(ctx context.Context, r result) {
	switch {
	case r.err == nil:
		p.commit(ctx, "finished", func(ctx context.Context) error { return p.work.FinishData(ctx, r.outcome) })
	case errors.Is(r.err, bmdb.ErrWorkLost):
		p.log.Info("work was lost", "cause", r.err.Error())
	case timedOut(ctx):
		p.fail(ctx, &p.backoff, fmt.Sprintf("%s: %v", reasonTimedOut, context.Cause(ctx)))
	case ctx.Err() != nil:
		// Not the machine's fault: it is due again at once.
		p.log.Info("work is cancelled", "cause", context.Cause(ctx).Error())
		if c, ok := p.work.(canceler); ok {
			c.Cancel(ctx)
			p.abandon()
		}
	case errors.Is(r.err, errPanicked):
		p.fail(ctx, &p.backoff, fmt.Sprintf("%s: %v", reasonPanicked, r.err))
	default:
		p.fail(ctx, &p.backoff, causeOf(r.err))
	}
}

// timedOut tells whether a work's own time was over, and not anything else.
func timedOut(ctx context.Context) bool {
	return ctx.Err() != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded)
}

// causeOf puts the reason of a driver's error in front, where projection finds it.
func causeOf(err error) string {
	if reason := provider.ReasonOf(err); reason != "" {
		return fmt.Sprintf("%s: %v", reason, err)
	}
	return err.Error()
}

func (p *performance) fail(ctx context.Context, b *bmdb.Backoff, cause string) {
	p.log = p.log.WithValues("cause", cause)
	p.commit(ctx, "failed", func(ctx context.Context) error { return p.work.Fail(ctx, b, cause) })
}

// commit ends the work. The database decides whether it still is ours; while it does not answer, the end is tried again for a lease,
// after which the session is over and with it the work.
func (p *performance) commit(ctx context.Context, what string, end func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	for wait := endRetry; ; wait = min(2*wait, 5*time.Second) {
		err := end(ctx)
		switch {
		case err == nil:
			p.log.Info("ended work", "end", what)
			return
		case errors.Is(err, bmdb.ErrWorkLost):
			p.log.Info("work was lost before its end", "end", what)
			return
		}
		p.log.Info("work's end could not be committed; it is tried again", "end", what, "error", err.Error())
		if !sleep(ctx, wait) {
			p.log.Error(err, "work's end could not be committed; it is left to its session", "end", what)
			if p.stopped {
				p.abandon()
			}
			return
		}
	}
}

// abandon leaves a work that has not ended to its session.
func (p *performance) abandon() {
	if a, ok := p.work.(abandoner); ok {
		a.Abandon()
	}
}

// endTimeout bounds how long an end is tried.
const endTimeout = 2 * time.Minute

// sleep waits, and returns false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
