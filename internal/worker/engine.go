// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package worker carries out claims: it takes up claims that nobody owns, starts work for those that this pod owns, in a bounded pool,
// and sees each work to its end.
//
// There is one loop for each owned claim, and one goroutine for each work. What may be started is decided by the database alone; the
// engine decides only how much of it this pod can carry. Everything here lives under a session: when it is lost, all contexts are
// cancelled, and the next session begins with nothing.
package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/process"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// Config is how an engine works. All fields are required.
type Config struct {
	// Concurrency is on how many machines this pod works at once.
	Concurrency int
	// Grace is how long a worker may go on when its context is cancelled, before its work is ended without it.
	Grace time.Duration
	// Lease is how long sessions live without a beat: the shortest backoff of a machine whose worker is stuck.
	Lease time.Duration
	// Database is the identity that is written to machines, as their owner.
	Database uuid.UUID
}

// Owner is the part of a session that owns claims; a *bmdb.Session is one.
type Owner interface {
	// ClaimsSeen gets a value when there may be claims for OwnClaims to take up. nil: OwnClaims must be called to know.
	ClaimsSeen() <-chan struct{}
	OwnClaims(ctx context.Context, limit int) ([]*bmdb.OwnedClaim, error)
	ClaimRound(ctx context.Context, claim *bmdb.OwnedClaim, free int) ([]*bmdb.Work, error)
	ReviewClaim(ctx context.Context, claim *bmdb.OwnedClaim) (bmdb.Outlook, error)
	ReleaseClaim(ctx context.Context, claim *bmdb.OwnedClaim) error
	ShowProgress(ctx context.Context, list []bmdb.Progress) ([]*bmdb.Work, error)
}

// Targets says how machines are reached; a *bmdb.Connection does.
type Targets interface {
	// MachineTargets leaves out machines that the database does not have.
	MachineTargets(ctx context.Context, ids []uuid.UUID) (map[uuid.UUID]bmdb.Target, error)
}

// Drivers opens the drivers of providers.
type Drivers interface {
	// Candidates returns the providers that the machines of a claim may have.
	Candidates(ctx context.Context, spec *bmdb.ClaimSpec) ([]string, error)
	// Open opens the driver of a provider. The caller closes it. An error that has a method NeedsPerson which returns true does not pass
	// by itself.
	Open(ctx context.Context, pool, provider string) (provider.Driver, error)
}

// Objects is what the engine needs of the cluster's objects. Its methods are safe for concurrent use.
type Objects interface {
	// Admit is called before each round of a claim. It sees to it that the claim's object cannot go away unnoticed while machines are
	// held for it, and that no Idle of an earlier term undoes that. If the object says that a later term has admitted it, current is asked,
	// which fails unless this term goes on. ErrGone: there is no such object, or it is going.
	Admit(ctx context.Context, term Term, current func(ctx context.Context) error) error
	// Idle is called when this pod holds no machine for the claim, and will not for a while. It lets the object go, unless a later term has
	// admitted it. It is not called for a claim that is over. false: other pods hold machines for it still; call again.
	Idle(ctx context.Context, term Term) (bool, error)
	// Missing tells whether the machine had an object in this cluster and has none any more.
	Missing(ctx context.Context, target bmdb.Target) (bool, error)
	// ClaimChanged is called when there is something new to show of a claim that no revision tells of. It does not block.
	ClaimChanged(pool, key string)
	// ClaimOver is called when this pod has seen, as its owner, that a claim has come to its end. It does not block.
	ClaimOver(pool, key string)
	// ProviderFailed is called when a provider's driver could not be opened. It does not block.
	ProviderFailed(pool, provider string)
}

// Term is the time of one owner of a claim.
type Term struct {
	Pool, Key string
	// Epoch tells the terms of a claim apart: a later one has a higher one.
	Epoch int64
	// Admitted tells that Admit has succeeded in this term, and Idle was not called since.
	Admitted bool
}

// Observer is told about the engine, for metrics. Its methods must not block.
type Observer interface {
	Pool(inUse, size int)
	Claims(owned int)
	WorkerStuck(process string)
}

// ErrGone is returned by Objects.Admit for a claim without an object, or whose object is being deleted.
var ErrGone = errors.New("the claim has no object in this cluster")

const (
	// pollEvery is between two looks for claims without an owner, where nobody tells of them, and between two looks at the lines; half of it
	// is jitter.
	pollEvery = time.Second
	// ownAtOnce bounds how many claims are taken up in one statement, so that other pods get their share.
	ownAtOnce = 100
	// busyPolls is how many looks a pod without a free worker leaves out, so that others take what it could not work on.
	busyPolls = 4
)

// Engine carries out claims under one session after the other. It is safe for concurrent use.
type Engine struct {
	config    Config
	processes process.Set
	targets   Targets
	drivers   Drivers
	objects   Objects
	observer  Observer
	log       logr.Logger
	pool      *pool
	poll      chan struct{}
	lines     lines
	progress  *progress

	mu    sync.Mutex
	loops map[claimID]*claimLoop
	works map[claimID]map[*bmdb.Work]context.CancelCauseFunc
}

type claimID struct{ pool, key string }

// New returns an engine that carries out processes.
func New(config Config, processes process.Set, targets Targets, drivers Drivers, objects Objects, observer Observer, log logr.Logger) *Engine {
	return &Engine{
		config: config, processes: processes, targets: targets, drivers: drivers, objects: objects, observer: observer, log: log,
		pool: newPool(config.Concurrency, observer.Pool), poll: make(chan struct{}, 1), progress: newProgress(),
		lines: lines{yieldEvery: yieldEvery},
		loops: map[claimID]*claimLoop{}, works: map[claimID]map[*bmdb.Work]context.CancelCauseFunc{},
	}
}

// Serve implements session.Server: it carries out claims under s until ctx is done, and returns when all works have ended, or the
// grace is over.
func (e *Engine) Serve(ctx context.Context, s *bmdb.Session) { e.serve(ctx, s) }

func (e *Engine) serve(ctx context.Context, owner Owner) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { e.showProgress(ctx, owner) })
	busy, probed := 0, time.Now()
	for {
		wait, seen := pollEvery/2+rand.N(pollEvery), owner.ClaimsSeen()
		if e.pool.full() && busy < busyPolls {
			busy++
			seen = nil // they are for others
		} else {
			busy = 0
			claims, err := owner.OwnClaims(ctx, ownAtOnce)
			switch {
			case errors.Is(err, bmdb.ErrSessionExpired) || ctx.Err() != nil:
			case err != nil:
				e.log.Info("cannot look for claims; it is tried again", "error", err.Error())
				seen = nil
			case len(claims) == ownAtOnce:
				wait, seen = rand.N(pollEvery/4), nil
			}
			for _, c := range claims {
				e.begin(ctx, owner, c, &running)
			}
		}
		for again := true; again; {
			var over bool
			if over, again = e.awaitPoll(ctx, wait, seen); over {
				return
			}
			if time.Since(probed) >= pollEvery/2 {
				e.lines.probe() // other pods may have given back places
				probed = time.Now()
			}
		}
	}
}

// awaitPoll waits for the next look for claims: over when ctx is done, again when there is no reason for one, because somebody tells of claims by
// seen and has not.
func (e *Engine) awaitPoll(ctx context.Context, wait time.Duration, seen <-chan struct{}) (over, again bool) {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return true, false
	case <-t.C:
		return false, seen != nil
	case <-e.poll:
	case <-seen:
	}
	return false, false
}

// begin runs the loop of a claim.
func (e *Engine) begin(ctx context.Context, owner Owner, c *bmdb.OwnedClaim, running *sync.WaitGroup) {
	id := claimID{c.Spec.Pool, c.Spec.Key}
	l := &claimLoop{
		engine: e, owner: owner, claim: c, id: id, works: running, serving: ctx, wake: make(chan struct{}, 1),
		log: e.log.WithValues("pool", id.pool, "claim", id.key),
	}
	l.places = e.pool.share(l.running.Load)
	before := e.register(l)
	running.Add(1)
	go func() {
		defer running.Done()
		defer e.lines.leave(l)
		defer e.unregister(l)
		defer l.places.forget()
		if before != nil {
			// An earlier term of the same claim that has not noticed yet that it is over.
			before.nudge()
		}
		l.run(ctx)
	}()
}

func (e *Engine) register(l *claimLoop) (before *claimLoop) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before = e.loops[l.id]
	e.loops[l.id] = l
	e.observer.Claims(len(e.loops))
	return before
}

func (e *Engine) unregister(l *claimLoop) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.loops[l.id] == l {
		delete(e.loops, l.id)
	}
	e.observer.Claims(len(e.loops))
}

// Poll looks for claims without an owner at once: a claim may just have become one.
func (e *Engine) Poll() {
	select {
	case e.poll <- struct{}{}:
	default:
	}
}

// Wait is what keeps this pod from starting work for a claim that it owns, as far as the database does not know it.
type Wait struct {
	// Limit is the size of the pod's pool of workers while the claim waits for a place in it, else 0.
	Limit int
	// Cause is what could not be read the last time that work was to begin; empty: nothing.
	Cause string
}

// Owns tells whether this pod owns a claim, and what keeps it from starting work for it.
func (e *Engine) Owns(pool, key string) (owns bool, wait Wait) {
	l := e.loop(claimID{pool, key})
	if l == nil {
		return false, Wait{}
	}
	wait.Cause = l.hindered.why()
	if l.waiting.Load() {
		wait.Limit = e.config.Concurrency
	}
	return true, wait
}

// Wake makes the owner of a claim look again at what can be started, if this pod is it.
func (e *Engine) Wake(pool, key string) {
	if l := e.loop(claimID{pool, key}); l != nil {
		l.nudge()
	}
}

// WakePool is Wake for all claims of a pool, after something about its machines has changed. Claims that looked a moment ago look again
// a moment later. Those that stand in line at a limit are left there: they may be very many, and few changes are of use to them.
func (e *Engine) WakePool(pool string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, l := range e.loops {
		if id.pool == pool && !e.lines.stands(l) {
			l.nudgeSoon(time.Second + time.Duration(len(e.loops))*5*time.Millisecond)
		}
	}
}

func (e *Engine) loop(id claimID) *claimLoop {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.loops[id]
}

// errDeleted is the cause with which the contexts of works end whose claim was deleted.
var errDeleted = errors.New("the claim was deleted")

// CancelClaim cancels the contexts of all works that this pod does for a claim, whose last object is gone. It does not wait for them.
func (e *Engine) CancelClaim(pool, key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, cancel := range e.works[claimID{pool, key}] {
		cancel(errDeleted)
	}
}

func (e *Engine) addWork(id claimID, w *bmdb.Work, cancel context.CancelCauseFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.works[id] == nil {
		e.works[id] = map[*bmdb.Work]context.CancelCauseFunc{}
	}
	e.works[id][w] = cancel
}

func (e *Engine) removeWork(id claimID, w *bmdb.Work) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.works[id], w)
	if len(e.works[id]) == 0 {
		delete(e.works, id)
	}
}

// Holds tells whether this pod works on a machine for a claim.
func (e *Engine) Holds(pool, key string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.works[claimID{pool, key}]) > 0
}
