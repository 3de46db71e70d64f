// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

const (
	// shortestWait and longestWait bound the time until a claim that waits is looked at again without a reason.
	shortestWait = 200 * time.Millisecond
	longestWait  = time.Minute
	// errorWait is the wait after an error.
	errorWait = 2 * time.Second
	// idleFrom is how long nothing must be expected for a claim to be idle.
	idleFrom = 10 * time.Second
	// settleWait is between two looks whether other pods still hold machines for a claim that this one has left.
	settleWait = 5 * time.Second
	// lineWait is for how long a claim stands in line at a limit before it looks by itself.
	lineWait = 15 * time.Second
	// gatherTime is how long a claim whose works go on waits for the next of them to end: a start of many costs hardly more than one of one.
	gatherTime = time.Millisecond
	// longGather is for how long it waits for all of them.
	longGather = 10 * time.Millisecond
	// ownTurn is how long after the first in line the claim looks whose work has ended.
	ownTurn = 100 * time.Millisecond
)

// claimLoop is the life of one claim in one term of its owner.
type claimLoop struct {
	engine   *Engine
	owner    Owner
	claim    *bmdb.OwnedClaim
	id       claimID
	log      logr.Logger
	serving  context.Context // works outlive the loop, but not this
	works    *sync.WaitGroup
	wake     chan struct{}
	running  atomic.Int64
	places   *share
	waiting  atomic.Bool // for a place in the pool
	soon     atomic.Bool // a nudge is on its way
	hindered hindrance
	lines    []string // the providers in whose lines the claim stands; the lines guard it and called
	called   call

	// Only the loop itself uses these.
	admitted bool // the claim's object was admitted in this term, and not freed since
	freed    bool // the claim's object was freed
	stood    bool // it stood in line before this turn
	place    bool // it was woken for a place that it has not taken yet
}

var (
	errOver     = errors.New("the claim is over")
	errNotReady = errors.New("no provider of the claim is ready")
)

// nudge makes the loop take another turn.
func (l *claimLoop) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// nudgeSoon is nudge within d, once however often it is called, unless the claim stands in line then.
func (l *claimLoop) nudgeSoon(d time.Duration) {
	if !l.soon.Swap(true) {
		time.AfterFunc(rand.N(d), func() {
			l.soon.Store(false)
			if !l.engine.lines.stands(l) {
				l.nudge()
			}
		})
	}
}

// run takes turns until the claim is over, or is not ours any more.
func (l *claimLoop) run(ctx context.Context) {
	l.log.Info("own claim", "epoch", l.claim.Epoch)
	for {
		wait, err := l.turn(ctx)
		if l.place {
			l.pass() // it had no use for it
		}
		switch {
		case ctx.Err() != nil || errors.Is(err, bmdb.ErrSessionExpired):
			l.log.Info("own claim no more")
			return
		case errors.Is(err, bmdb.ErrClaimLost):
			l.log.Info("own claim no more")
			l.settle(ctx)
			return
		case errors.Is(err, errOver):
			// Its object is freed with the last status, by whoever writes that.
			l.log.Info("claim is over")
			l.engine.objects.ClaimOver(l.id.pool, l.id.key)
			return
		case errors.Is(err, ErrGone), errors.Is(err, errNotReady):
			l.log.Info("claim is left to others", "reason", err.Error())
			if err := l.owner.ReleaseClaim(ctx, l.claim); err != nil {
				l.log.Info("claim could not be released; its owner's end does it", "error", err.Error())
			}
			l.settle(ctx)
			return
		case err != nil:
			l.log.Info("turn of claim failed; it is tried again", "error", err.Error())
			wait = errorWait/2 + rand.N(errorWait)
		}
		l.await(ctx, wait)
	}
}

// settle says that no machine is held for a claim whose term is over, once that is so.
func (l *claimLoop) settle(ctx context.Context) {
	l.engine.unregister(l)
	for ctx.Err() == nil {
		wait := longestWait // an end wakes us
		if l.running.Load() == 0 {
			if l.idle(ctx) {
				return
			}
			wait = settleWait + rand.N(settleWait)
		}
		l.await(ctx, wait)
	}
}

// idle frees the claim's object and tells whether that was done.
func (l *claimLoop) idle(ctx context.Context) bool {
	term := l.term()
	l.admitted = false // whatever becomes of it
	done, err := l.engine.objects.Idle(ctx, term)
	if err != nil {
		l.log.Info("object of claim could not be freed; it is tried again", "error", err.Error())
	}
	return done && err == nil
}

func (l *claimLoop) term() Term {
	return Term{Pool: l.id.pool, Key: l.id.key, Epoch: l.claim.Epoch, Admitted: l.admitted}
}

// admit sees to it that the claim's object stays.
func (l *claimLoop) admit(ctx context.Context) error {
	err := l.engine.objects.Admit(ctx, l.term(), func(ctx context.Context) error {
		if _, err := l.owner.ClaimRound(ctx, l.claim, 0); !errors.Is(err, bmdb.ErrNothingToDo) {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("admit claim: %w", err)
	}
	l.admitted = true
	return nil
}

func (l *claimLoop) await(ctx context.Context, wait time.Duration) {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-l.wake:
	}
}

// turn starts what can be started, and returns for how long it is not worth to look again.
func (l *claimLoop) turn(ctx context.Context) (time.Duration, error) {
	l.stood, l.place = l.engine.lines.leave(l)
	l.gather(ctx)
	wait, err := l.begin(ctx)
	if errors.Is(err, bmdb.ErrNothingToDo) || errors.Is(err, bmdb.ErrClaimLost) {
		return l.review(ctx) // which tells a claim that is over from one that is lost
	}
	return wait, err
}

// begin is turn until nothing can be started, which review explains.
func (l *claimLoop) begin(ctx context.Context) (time.Duration, error) {
	room, pause := max(l.claim.Spec.Parallelism, 1)-l.running.Load(), l.hindered.left(time.Now())
	if room <= 0 || pause > 0 {
		// Parallelism may have been raised since, or the claim lost.
		if err := l.read(ctx); err != nil || pause > 0 {
			return pause, err
		}
		if room = max(l.claim.Spec.Parallelism, 1) - l.running.Load(); room <= 0 {
			return longestWait, nil // an end wakes us
		}
	}
	drivers, err := l.openDrivers(ctx)
	if err != nil {
		return 0, err
	}
	defer drivers.release()
	l.claim.Providers = slices.Collect(maps.Keys(drivers.drivers)) // nothing is locked that cannot be reached
	open, pause := l.engine.lines.open(l.id.pool, l.claim.Providers, time.Now())
	if len(open) == 0 {
		return l.standBack(ctx, pause)
	}
	if l.freed {
		if wait, err := l.rouse(ctx); l.freed || err != nil {
			return wait, err
		}
	}
	if err := l.admit(ctx); err != nil {
		return 0, err
	}
	slots, err := l.takeSlots(ctx, room)
	if err != nil {
		return 0, err
	}
	works, err := l.round(ctx, open, slots)
	l.places.back(slots-len(works), len(works))
	targets := l.targets(works)
	for _, w := range works {
		l.start(w, drivers, targets)
	}
	if len(works) > 0 {
		if !l.place {
			l.pass() // there may be more
		}
		l.place = false
	}
	switch {
	case pause > 0 && errors.Is(err, bmdb.ErrNothingToDo):
		return l.standBack(ctx, pause)
	case err != nil:
		return 0, fmt.Errorf("start work for claim: %w", err)
	case l.saturated(len(works)):
		return longestWait, nil
	}
	return 0, nil // there may be more
}

// round starts up to slots works on machines of some of the providers that can be reached.
func (l *claimLoop) round(ctx context.Context, providers []string, slots int) ([]*bmdb.Work, error) {
	reached := l.claim.Providers
	defer func() { l.claim.Providers = reached }()
	l.claim.Providers = providers
	return l.owner.ClaimRound(ctx, l.claim, slots)
}

// read reads the claim, as a round without places does. bmdb.ErrClaimLost: it is over, or another's.
func (l *claimLoop) read(ctx context.Context) error {
	if _, err := l.owner.ClaimRound(ctx, l.claim, 0); err != nil && !errors.Is(err, bmdb.ErrNothingToDo) {
		return fmt.Errorf("read claim: %w", err)
	}
	return nil
}

// standBack is what is left of a turn while places are left to other pods: why nothing is started is not looked for, as that may be why.
func (l *claimLoop) standBack(ctx context.Context, pause time.Duration) (time.Duration, error) {
	if err := l.read(ctx); err != nil {
		return 0, err
	}
	if l.stood {
		return l.standInLine(), nil // somebody is called after it
	}
	return pause + ownTurn + rand.N(ownTurn), nil
}

// rouse tells by l.freed whether there is nothing to start for a claim yet whose object was freed, and for how long it is not worth to look again. The
// object is left alone until then.
func (l *claimLoop) rouse(ctx context.Context) (time.Duration, error) {
	outlook, err := l.outlook(ctx)
	if err != nil {
		return 0, err
	}
	if outlook.Reason != bmdb.OutlookWorking {
		return l.rest(outlook), nil
	}
	l.freed = false
	return 0, nil
}

// outlook is what keeps the claim from its end. errOver: it has come to it.
func (l *claimLoop) outlook(ctx context.Context) (bmdb.Outlook, error) {
	outlook, err := l.owner.ReviewClaim(ctx, l.claim)
	switch {
	case err != nil:
		return outlook, fmt.Errorf("review claim: %w", err)
	case outlook.State == bmdb.ClaimComplete || outlook.State == bmdb.ClaimFailed:
		return outlook, errOver
	}
	return outlook, nil
}

// gather gives works that end at about the same time a moment to do so. A turn follows, so nobody else misses what wakes it.
func (l *claimLoop) gather(ctx context.Context) {
	t, enough := time.NewTimer(gatherTime), time.NewTimer(longGather)
	defer t.Stop()
	defer enough.Stop()
	for l.running.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			return
		case <-enough.C:
			return
		case <-l.wake: // one has ended
			t.Reset(gatherTime)
		}
	}
}

// saturated tells whether a claim has as many works as it has machines left to do, with those that the last round started.
func (l *claimLoop) saturated(started int) bool {
	c := l.claim
	return c.Spec.Completions != nil && c.Succeeded+c.Skipped+c.Active+int64(started) >= *c.Spec.Completions
}

// review finds out why nothing could be started.
func (l *claimLoop) review(ctx context.Context) (time.Duration, error) {
	outlook, err := l.outlook(ctx)
	if err != nil {
		return 0, err
	}
	if l.running.Load() == 0 && l.claim.Active == 0 && outlook.RetryAfter >= idleFrom {
		l.freed = l.idle(ctx)
	}
	return l.rest(outlook), nil
}

// rest is for how long it is not worth to look again. A claim that waits for a limit stands in line meanwhile.
func (l *claimLoop) rest(outlook bmdb.Outlook) time.Duration {
	l.place = false // it looked
	// Who came from a line, and now finds machines ready, was there a moment too late or too early: it stands in line again.
	faster := l.stood && outlook.Reason == bmdb.OutlookWorking && l.claim.Active == 0
	if outlook.Reason != bmdb.OutlookAtLimit && !faster {
		return waitFor(outlook)
	}
	return l.standInLine()
}

// standInLine waits until the claim is called, or for a long time.
func (l *claimLoop) standInLine() time.Duration {
	l.engine.lines.join(l, l.claim.Providers)
	return lineWait + rand.N(lineWait/2)
}

// pass lets the next look that wait for one of the claim's providers.
func (l *claimLoop) pass() {
	for _, p := range l.claim.Providers {
		l.engine.lines.next(lineID{l.id.pool, p})
	}
}

// waitFor is for how long it is not worth to look again.
func waitFor(outlook bmdb.Outlook) time.Duration {
	wait := min(max(outlook.RetryAfter, shortestWait), longestWait)
	return wait + rand.N(wait/4)
}

// takeSlots takes up to room places in the pool. It waits until there is one.
func (l *claimLoop) takeSlots(ctx context.Context, room int64) (int, error) {
	want := int(min(room, int64(l.engine.config.Concurrency)))
	if n := l.places.tryTake(want); n > 0 {
		return n, nil
	}
	l.waiting.Store(true)
	l.engine.objects.ClaimChanged(l.id.pool, l.id.key)
	n, err := l.places.take(ctx, want)
	l.waiting.Store(false)
	l.engine.objects.ClaimChanged(l.id.pool, l.id.key)
	return n, err
}

// start runs a work in a goroutine of its own, which gives back its place in the pool.
func (l *claimLoop) start(w *bmdb.Work, drivers *driverSet, targets targets) {
	drivers.users.Add(1)
	l.running.Add(1)
	l.works.Add(1)
	spec := l.claim.Spec // the loop reads the spec anew while the work goes on
	go func() {
		defer l.works.Done()
		defer drivers.release()
		ctx, cancel := context.WithCancelCause(w.Context())
		defer cancel(nil)
		stop := context.AfterFunc(l.serving, func() { cancel(context.Cause(l.serving)) })
		defer stop()
		l.engine.addWork(l.id, w, cancel)
		l.do(ctx, w, &spec, drivers, targets)
		l.engine.removeWork(l.id, w)
		l.running.Add(-1)
		l.engine.pool.give(1)
		l.ended(w)
	}()
}

// ended makes those look for whom the place of a work is free now: who stands in line before the claim itself, and other pods before either, now
// and then.
func (l *claimLoop) ended(w *bmdb.Work) {
	line := lineID{l.id.pool, w.Provider()}
	if w.LastPlace() {
		l.engine.lines.yield(line, time.Now())
	}
	if l.engine.lines.call(line) {
		time.AfterFunc(ownTurn, l.nudge)
	} else {
		l.nudge()
	}
}

// do works on one machine.
func (l *claimLoop) do(ctx context.Context, w *bmdb.Work, spec *bmdb.ClaimSpec, drivers *driverSet, targets targets) {
	log := l.log.WithValues("process", w.Process(), "machine", w.Machine, "work", w.ID(), "attempt", w.Attempt())
	log.Info("started work")
	backoff := *spec.Backoff()
	target, err := l.target(ctx, w, targets)
	if err != nil {
		log.Info("work is cancelled before it began", "cause", err.Error())
		l.hindered.meet(err.Error(), time.Now())
		w.Cancel(ctx)
		w.Abandon() // if that failed
		l.engine.objects.ClaimChanged(l.id.pool, l.id.key)
		return
	}
	if l.hindered.pass() {
		l.engine.objects.ClaimChanged(l.id.pool, l.id.key)
	}
	p := &performance{
		work: w, process: l.engine.processes[w.Process()], driver: drivers.drivers[target.Provider], backoff: backoff, log: log,
		show: func(step string, percent int) { l.engine.progress.note(w, shown{l.id, step, percent}) },
		machine: provider.Machine{
			ID: target.MachineID, DatabaseID: l.engine.config.Database, Pool: target.Pool, Name: target.Name, Provider: target.Provider,
			ProviderID: target.ProviderID, Address: target.Address, Fence: w.Fence(), Attempt: int(w.Attempt()), Process: w.Process(),
			Parameters: spec.Parameters, HostKey: target.HostKey,
		},
	}
	switch {
	case p.process == nil:
		p.fail(ctx, &backoff, fmt.Sprintf("ProcessNotAvailable: this version of the operator does not carry out %s", w.Process()))
	case p.driver == nil:
		// Only among machines of several providers, of which this one is not ready. The backoff keeps it from being tried over and over.
		p.fail(ctx, &backoff, fmt.Sprintf("ProviderNotReady: %v", otherwise(drivers.failed[target.Provider], "there is no ProviderConfig "+target.Provider)))
	default:
		p.run(ctx, l.engine.config.Grace, l.engine.config.Lease, l.engine.observer)
	}
}

// targets returns how machines are reached, by ID.
type targets func() (map[uuid.UUID]bmdb.Target, error)

// targets reads how the machines of works that were started together are reached, once the first of them asks.
func (l *claimLoop) targets(works []*bmdb.Work) targets {
	ids := make([]uuid.UUID, len(works))
	for i, w := range works {
		ids[i] = w.Machine
	}
	return sync.OnceValues(func() (map[uuid.UUID]bmdb.Target, error) { return l.engine.targets.MachineTargets(l.serving, ids) })
}

// target is how the machine of a work is reached. A machine without an object is not touched.
func (l *claimLoop) target(ctx context.Context, w *bmdb.Work, targets targets) (bmdb.Target, error) {
	all, err := targets()
	if err != nil {
		return bmdb.Target{}, err
	}
	target, ok := all[w.Machine]
	if !ok {
		return target, fmt.Errorf("machine %s: %w", w.Machine, bmdb.ErrNoSuchMachine)
	}
	missing, err := l.engine.objects.Missing(ctx, target)
	if missing {
		err = fmt.Errorf("machine %s has no object any more", target.Name)
	}
	return target, err
}

func otherwise(err error, text string) string {
	if err != nil {
		return err.Error()
	}
	return text
}
