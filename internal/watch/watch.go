// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package watch turns changes in the database into work for the controllers. The database keeps, for each cluster, what it has still to
// show; the watcher reads that, passes it on, and acknowledges what was shown. Every replica does so: what one of them has shown and
// acknowledged the others find done.
package watch

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// Source is the database; a *bmdb.Connection is one.
type Source interface {
	RegisterCluster(ctx context.Context, cluster string) error
	PendingProjections(ctx context.Context, cluster string, limit int) ([]bmdb.Pending, error)
	// ProjectionsSeen tells by seen that there may be something pending, while looking.
	ProjectionsSeen() (seen <-chan struct{}, looking bool)
	AckProjections(ctx context.Context, cluster string, shown []bmdb.Pending) error
}

// Sink shows changes.
type Sink interface {
	// Changed is told of something to show, and again while it has not been shown for a while. It must not wait. Who has shown it calls
	// Watcher.Shown. It returns false if there is nobody to show it to.
	Changed(ctx context.Context, p bmdb.Pending) (bool, error)
	// Known is told, in the place of Changed, of something that was shown before the watcher heard that it has changed. It must not wait.
	Known(p bmdb.Pending)
	// Everything may have changed. It must not wait.
	Everything(ctx context.Context) error
}

const (
	busyPoll = 250 * time.Millisecond // while there are changes
	idlePoll = time.Second            // while there are some that cannot be shown yet, or nobody tells whether there are
	// lonePoll is between two looks while there is nothing, and somebody tells when there is.
	lonePoll = 30 * time.Second
	page     = 2000
	// again is after what time something that was not shown is passed on again.
	again = 15 * time.Second
)

// Watcher is a manager's Runnable. It is safe for concurrent use.
type Watcher struct {
	source  Source
	cluster string
	sink    Sink
	log     logr.Logger

	mu     sync.Mutex
	shown  map[thing]int64
	told   map[thing]telling
	since  map[thing]time.Time // what is pending, and since when this watcher knows
	acks   chan struct{}       // gets a value, of which it holds one, when something was shown
	acked  map[string]int64    // what was acknowledged last of providers, by pool and name, and is not pending
	lately map[thing]telling   // what was shown a moment ago: it may be read as pending once more
}

type thing struct{ kind, pool, id string }

// telling is what the sink was told of a thing.
type telling struct {
	rev int64
	at  time.Time
}

// New returns a watcher for a cluster that is registered.
func New(source Source, cluster string, sink Sink, log logr.Logger) *Watcher {
	return &Watcher{
		source: source, cluster: cluster, sink: sink, log: log, shown: map[thing]int64{}, told: map[thing]telling{}, since: map[thing]time.Time{},
		acks: make(chan struct{}, 1), acked: map[string]int64{}, lately: map[thing]telling{},
	}
}

// NeedLeaderElection is false: each replica watches.
func (w *Watcher) NeedLeaderElection() bool { return false }

// Shown is called when a revision was shown, or nobody is there to show it to. It is acknowledged a moment later, unless it was already: providers, of
// which there are few, are shown again and again.
func (w *Watcher) Shown(p bmdb.Pending) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if rev, acked := w.acked[providerOf(p)]; acked && p.Kind == bmdb.KindProvider && rev >= p.Rev {
		return
	}
	t := thing{p.Kind, p.Pool, p.ID}
	w.lately[t] = telling{max(w.lately[t].rev, p.Rev), time.Now()}
	w.acknowledge(t, p.Rev)
}

// acknowledge says, at the next look, that a revision was shown. It is called under the mutex.
func (w *Watcher) acknowledge(t thing, rev int64) {
	w.shown[t] = max(w.shown[t], rev)
	select {
	case w.acks <- struct{}{}:
	default:
	}
}

func providerOf(p bmdb.Pending) string { return p.Pool + "/" + p.ID }

// Backlog tells how many changes this cluster has still to show, up to the number that the watcher reads at once, and for how long the oldest
// of them has waited since this watcher has seen it.
func (w *Watcher) Backlog() (pending int, oldest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, since := range w.since {
		oldest = max(oldest, time.Since(since))
	}
	return len(w.since), oldest
}

// note remembers what is pending. A thing that was shown and has changed again begins anew.
func (w *Watcher) note(pending, acked []bmdb.Pending, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range acked {
		delete(w.since, thing{p.Kind, p.Pool, p.ID})
		if p.Kind == bmdb.KindProvider {
			w.acked[providerOf(p)] = p.Rev
		}
	}
	before := w.since
	w.since = make(map[thing]time.Time, len(pending))
	for _, p := range pending {
		t := thing{p.Kind, p.Pool, p.ID}
		if p.Kind == bmdb.KindProvider {
			delete(w.acked, providerOf(p))
		}
		w.since[t] = now
		if since, known := before[t]; known {
			w.since[t] = since
		}
	}
	if len(pending) == page { // there is more than was read, and it is not known what of the rest is still pending
		for t, since := range before {
			if _, read := w.since[t]; !read && len(w.since) < 2*page {
				w.since[t] = since
			}
		}
	}
}

// Start watches until ctx is done.
func (w *Watcher) Start(ctx context.Context) error {
	failing := false
	for ctx.Err() == nil {
		state, err := w.poll(ctx)
		failing = w.report(ctx, err, failing)
		switch {
		case state == busy:
			sleep(ctx, busyPoll/2+rand.N(busyPoll))
		case state == waiting || err != nil:
			sleep(ctx, idlePoll/2+rand.N(idlePoll))
		default:
			w.await(ctx)
		}
	}
	return nil
}

// await waits until there may be something to do: changes, or what was shown, or that it is time to look.
func (w *Watcher) await(ctx context.Context) {
	for began := time.Now(); ctx.Err() == nil; {
		seen, _ := w.source.ProjectionsSeen()
		t := time.NewTimer(idlePoll/2 + rand.N(idlePoll))
		select {
		case <-ctx.Done():
		case <-seen:
			t.Stop()
			return
		case <-w.acks:
			sleep(ctx, busyPoll/2+rand.N(busyPoll)) // there may be more
			t.Stop()
			return
		case <-t.C:
			if _, looking := w.source.ProjectionsSeen(); !looking || time.Since(began) >= lonePoll {
				return
			}
		}
		t.Stop()
	}
}

// report logs when the database stops to answer, and when it answers again.
func (w *Watcher) report(ctx context.Context, err error, failing bool) bool {
	switch {
	case ctx.Err() != nil:
	case err != nil && !failing:
		w.log.Info("cannot read changes; statuses stay as they are until it can", "error", err.Error())
	case err == nil && failing:
		w.log.Info("reads changes again")
	}
	return err != nil
}

// state is what a poll has found.
type state int

const (
	idle    state = iota
	waiting       // something is pending, and passed on already
	busy
)

// poll acknowledges what was shown and passes on what is to be shown.
func (w *Watcher) poll(ctx context.Context) (found state, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	acks := w.takeShown()
	if len(acks) > 0 {
		if err := w.source.AckProjections(ctx, w.cluster, acks); err != nil {
			for _, p := range acks {
				w.Shown(p) // next time
			}
			return idle, err
		}
		found = busy
	}
	pending, err := w.source.PendingProjections(ctx, w.cluster, page)
	if errors.Is(err, bmdb.ErrNoSuchCluster) {
		// Nothing was heard of us for so long that nothing was kept for us.
		w.log.Info("the database has forgotten this cluster; everything is looked at again")
		if err := w.source.RegisterCluster(ctx, w.cluster); err != nil {
			return found, err
		}
		return busy, w.sink.Everything(ctx)
	}
	if err != nil {
		return found, err
	}
	if len(pending) > 0 && found == idle {
		found = waiting
	}
	w.note(pending, acks, time.Now())
	news, known := w.news(pending, time.Now())
	for _, p := range known {
		w.sink.Known(p)
	}
	for _, p := range news {
		found = busy
		switch somebody, err := w.sink.Changed(ctx, p); {
		case err != nil:
			w.log.Info("cannot show a change; it is tried again", "kind", p.Kind, "pool", p.Pool, "id", p.ID, "error", err.Error())
		case !somebody:
			w.Shown(p)
		}
	}
	return found, nil
}

func (w *Watcher) takeShown() []bmdb.Pending {
	w.mu.Lock()
	defer w.mu.Unlock()
	acks := make([]bmdb.Pending, 0, len(w.shown))
	for t, rev := range w.shown {
		acks = append(acks, bmdb.Pending{Kind: t.kind, Pool: t.pool, ID: t.id, Rev: rev})
	}
	clear(w.shown)
	return acks
}

// news returns what the sink was not told of lately, and of that apart what was shown already.
func (w *Watcher) news(pending []bmdb.Pending, now time.Time) (out, shown []bmdb.Pending) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range pending {
		t := thing{p.Kind, p.Pool, p.ID}
		if before, known := w.told[t]; known && before.rev == p.Rev && now.Sub(before.at) < again {
			continue
		}
		w.told[t] = telling{p.Rev, now}
		if last, known := w.lately[t]; known && last.rev >= p.Rev && now.Sub(last.at) < again {
			w.acknowledge(t, last.rev)
			shown = append(shown, p)
			continue
		}
		out = append(out, p)
	}
	for _, known := range []map[thing]telling{w.told, w.lately} {
		maps.DeleteFunc(known, func(_ thing, of telling) bool { return now.Sub(of.at) >= again })
	}
	return out, shown
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
