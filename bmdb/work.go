// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// The events of history, one start and five ends.
const (
	EventStarted  = string(model.WorkHistoryEventStarted)
	EventFinished = string(model.WorkHistoryEventFinished)
	EventFailed   = string(model.WorkHistoryEventFailed)
	EventCanceled = string(model.WorkHistoryEventCanceled)
	EventLost     = string(model.WorkHistoryEventLost)
	EventReleased = string(model.WorkHistoryEventReleased)
)

// Work is one process being performed on one machine under a session: the holder of the lock, and the token that its end is judged by.
// Do the side effects under Context, call Check before each of them, and then call exactly one of Finish, FinishData, Fail and Cancel.
// Its methods are safe for concurrent use; all of them may be called on a nil *Work, where they do nothing.
type Work struct {
	// Machine is what is worked on.
	Machine uuid.UUID

	id          uuid.UUID
	session     *Session
	process     string
	pool        string
	provider    string
	claimKey    string
	fence       int64
	attempt     int64
	backoff     int64 // the recorded period, in seconds
	checkpoint  []byte
	sets        []string // tags that success sets and clears
	clears      []string
	lastPlace   bool // nothing was left of a limit
	begun       boottime
	known       boottime // when this process knew that it is durable
	ctx         context.Context
	cancel      context.CancelCauseFunc
	stopTimeout context.CancelFunc
	ending      atomic.Bool // an end is under way, or was
	tried       atomic.Bool // an end was tried, and may have succeeded
	lost        atomic.Bool
	done        atomic.Bool // set after the end is durable
}

// started is what the database returns of a work that it started.
type started struct {
	Machine        uuid.UUID
	ID             uuid.UUID
	Pool           string
	Provider       string
	Fence          int64
	Attempt        int64
	BackoffSeconds int64
	Checkpoint     []byte
	Sets, Clears   []string
	LastPlace      bool
}

func (s *Session) newWork(r started, process, claimKey string, begun boottime, timeout time.Duration) *Work {
	w := &Work{
		Machine: r.Machine, id: r.ID, session: s, process: process, pool: r.Pool, provider: r.Provider, claimKey: claimKey,
		fence: r.Fence, attempt: r.Attempt, backoff: r.BackoffSeconds, checkpoint: r.Checkpoint, sets: r.Sets, clears: r.Clears, lastPlace: r.LastPlace, begun: begun, known: now(),
	}
	w.ctx, w.cancel = context.WithCancelCause(s.ctx)
	w.stopTimeout = func() {}
	if timeout > 0 {
		w.ctx, w.stopTimeout = context.WithTimeoutCause(w.ctx, timeout, fmt.Errorf("work took longer than %s: %w", timeout, context.DeadlineExceeded))
	}
	s.add(w)
	s.conn.observer.WorkStarted(process)
	return w
}

// ID is the fencing token: an end of this work finds it in the database or changes nothing.
func (w *Work) ID() uuid.UUID { return w.id }

// Fence grows with each start on the machine, whatever the process. Hardware that can, rejects what comes with a lower one.
func (w *Work) Fence() int64 { return w.fence }

// Process is what is performed.
func (w *Work) Process() string { return w.process }

// Pool and Provider are those of the machine.
func (w *Work) Pool() string { return w.pool }

// Provider is the provider of the machine; empty if it has none.
func (w *Work) Provider() string { return w.provider }

// LastPlace tells whether the work was started with the last of the places that a limit of its provider allows: others may be waiting for it. false
// also where that is not known: without a batch, and where the start was ambiguous.
func (w *Work) LastPlace() bool { return w != nil && w.lastPlace }

// ClaimKey is the claim that the work is done for; empty for none.
func (w *Work) ClaimKey() string { return w.claimKey }

// Attempt counts from 1 the tries of the process on the machine since its last success.
func (w *Work) Attempt() int64 { return w.attempt }

// Context is done when the work must stop: its session or lock was lost, its claim was deleted, or its time is over.
// context.Cause says which.
func (w *Work) Context() context.Context {
	if w == nil {
		return context.Background()
	}
	return w.ctx
}

// PreviousCheckpoint is what the last worker on this machine and process was about to do, if it did not finish. nil: nothing that
// must be known. Look at the machine before you do it again.
func (w *Work) PreviousCheckpoint() []byte { return w.checkpoint }

// Check tells whether the work may begin another step: its context goes on, its session is trusted by a clock that counts suspension,
// and the database still has its lock. Call it before each side effect. ErrWorkLost: stop touching the machine.
func (w *Work) Check(ctx context.Context) error {
	if err := w.usable(); err != nil {
		return err
	}
	return w.heed(w.session.checkWork(ctx, w))
}

// Checkpoint records what the worker is about to do, before a side effect that must not be repeated blindly. It is refused like an end.
func (w *Work) Checkpoint(ctx context.Context, intent []byte) error {
	if err := w.usable(); err != nil {
		return err
	}
	return w.own(ctx, "Checkpoint", sqlCheckpoint, w.Machine, w.process, w.id, intent)
}

func (w *Work) usable() error {
	if w == nil || w.lost.Load() || w.done.Load() {
		return ErrWorkLost
	}
	if w.session.Expired() {
		return fmt.Errorf("%w: %w", ErrWorkLost, ErrSessionExpired)
	}
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	return nil
}

// own runs a statement that returns a row only if the work still has its lock.
func (w *Work) own(ctx context.Context, name, sql string, args ...any) error {
	ours := false
	err := w.session.conn.read(ctx, name, sql, args, func() { ours = false }, func(pgx.Rows) error { ours = true; return nil })
	if err == nil && !ours {
		err = ErrWorkLost
	}
	return w.heed(err)
}

// heed is what the database's answer means to the work.
func (w *Work) heed(err error) error {
	switch {
	case errors.Is(err, ErrWorkLost):
		w.lose(ErrWorkLost)
		return ErrWorkLost
	case err != nil:
		return fmt.Errorf("%s of machine %s: %w", w.process, w.Machine, err)
	}
	return w.usable() // who was stopped between the question and the answer has an answer that is out of date
}

// lose ends the work in this process only.
func (w *Work) lose(cause error) {
	if w.lost.Swap(true) {
		return
	}
	w.cancel(cause)
	w.session.remove(w)
}

// Finish commits the result of the work and the release of the machine in one transaction, which fn may add to: usually the tags that
// make the machine no longer eligible. fn may be nil, may run more than once, and must not have effects outside of the database.
// ErrWorkLost: the work is not ours any more, and nothing was written.
func (w *Work) Finish(ctx context.Context, fn func(q *model.Queries) error) error {
	if w == nil {
		return ErrWorkLost
	}
	made := w.session.conn.newMadeMachines()
	return w.end(ctx, EventFinished, func(ctx context.Context) (string, error) {
		r := w.request(EventFinished, "")
		err := w.session.conn.transactAt(ctx, "finish", repeatableRead, func(ctx context.Context, tx *Tx) error {
			tx.lockMachines(w.Machine)
			tx.queue("Fence", sqlFence, w.Machine, w.process, w.id)
			ended, err := endWorks(ctx, tx, w.session.actor(), []*endRequest{r})
			if err != nil {
				return err
			}
			if fn != nil {
				if err := fn(model.New(newRecorder(tx, made))); err != nil {
					return err
				}
			}
			tx.recomputeTouched()
			ended.queueCounts(tx)
			return nil
		})
		return w.verdict(ctx, r, err)
	})
}

// Outcome is what a work found or made, as data: what FinishData records of it. Tags that the process's definition sets and clears,
// as it was when the work began, need no mention.
type Outcome struct {
	// AgentPublicKey records the tag AgentStarted, with this ed25519 key, and ends a lapse: the tag AgentHeartbeat goes unless the agent
	// was heard of since the work began. nil: not recorded.
	AgentPublicKey []byte
	// HardwareReport records the tag HardwareReport. nil: not recorded.
	HardwareReport []byte
}

// FinishData is Finish for results that are data. Ends of many works at once share a transaction, in which a stale one costs the others
// nothing; that is why it is much faster than Finish where many works end.
func (w *Work) FinishData(ctx context.Context, o Outcome) error {
	if w == nil {
		return ErrWorkLost
	}
	r := w.request(EventFinished, "")
	r.outcome = o
	return w.endAsData(ctx, r)
}

// Fail ends the work with a cause, for people, and leaves the machine alone for a while: nil goes on with the period of the last
// failure, or one second. It works when ctx is already cancelled.
func (w *Work) Fail(ctx context.Context, b *Backoff, cause string) error {
	if w == nil {
		return ErrWorkLost
	}
	r := w.request(EventFailed, cause)
	r.backoff = b.next(w.backoff)
	r.delay = b.delay(r.backoff)
	return w.endAsData(ctx, r)
}

// Cancel ends the work without a backoff, unless it has ended already. It works when ctx is already cancelled. An error is logged, and
// the work still is open: Cancel may be called again, and a worker that has stopped and tries no more calls Abandon, without which the
// lock stays until the session is over. It may be called on a nil *Work, and more than once, so it can be deferred.
func (w *Work) Cancel(ctx context.Context) {
	if w == nil || w.done.Load() {
		return
	}
	if err := w.endAsData(ctx, w.request(EventCanceled, "")); err != nil && !errors.Is(err, ErrWorkLost) {
		w.session.conn.log.WarnContext(ctx, "canceling work failed; it is still open", "machine", w.Machine, "process", w.process, "error", err)
	}
}

// Abandon is for a worker that has stopped and could not commit any end, a Cancel that failed among them: nobody works on the machine any
// more. A later beat of the session finds the work that nobody knows, and releases it. It does nothing to a work that has ended. While the
// worker may still touch the machine, neither Cancel nor Abandon is right: then Fail with a backoff, or leave the work to its deadline.
func (w *Work) Abandon() {
	if w != nil && !w.done.Load() {
		w.lose(errAbandoned)
	}
}

// errAbandoned is the cause with which the context of an abandoned work ends.
var errAbandoned = errors.New("the work was abandoned")

func (w *Work) endAsData(ctx context.Context, r *endRequest) error {
	return w.end(ctx, r.event, func(ctx context.Context) (string, error) { return w.session.submit(ctx, r) })
}

// end runs one of the ends. It goes on when the caller's context is cancelled: then the lock has to go all the more. done is set when
// the end is durable, so that an end that failed can be tried again.
func (w *Work) end(ctx context.Context, event string, commit func(ctx context.Context) (string, error)) error {
	if w.done.Load() || w.ending.Swap(true) {
		return ErrWorkLost
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.session.conn.lease.forEnd())
	defer cancel()
	got, err := commit(ctx)
	if err != nil {
		if errors.Is(err, ErrWorkLost) {
			w.lose(ErrWorkLost)
		}
		w.ending.Store(false)
		return fmt.Errorf("end %s on machine %s as %s: %w", w.process, w.Machine, event, err)
	}
	w.done.Store(true)
	w.session.remove(w)
	w.stopTimeout()
	w.cancel(errEnded)
	w.session.conn.observer.WorkEnded(w.process, got, now().sub(w.begun))
	return nil
}

// errEnded is the cause with which a work's context ends when the work has.
var errEnded = errors.New("the work has ended")

func (w *Work) request(event, cause string) *endRequest {
	return &endRequest{
		machine: w.Machine, process: w.process, work: w.id, event: event, cause: cause,
		sets: w.sets, clears: w.clears, free: w.claimKey == "", again: w.tried.Swap(true),
	}
}

// verdict turns the outcome of a single end into one of: ours, lost, another error. An ambiguous one is read back, and so is one that was
// refused and may have succeeded before.
func (w *Work) verdict(ctx context.Context, r *endRequest, err error) (string, error) {
	refused := sqlState(err) == "23502" && constraintTable(err) == "work_history"
	switch {
	case err == nil:
		return r.event, nil
	case refused && !r.again:
		return "", ErrWorkLost
	case !refused && !errors.Is(err, ErrAmbiguous):
		return "", err
	}
	ends, readErr := w.session.conn.endsOf(ctx, []*endRequest{r})
	if readErr != nil {
		return "", errors.Join(err, readErr)
	}
	switch event := ends[w.id]; {
	case event == r.event:
		return event, nil
	case event == "" && !refused:
		return "", err
	default:
		return "", ErrWorkLost
	}
}
