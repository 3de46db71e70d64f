// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package watch_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
	"github.com/bmdb-dev/bmdb-operator/internal/watch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(runner{devtest.Main(m)}) }

type runner struct{ tests devtest.Runner }

func (r runner) Run() int { return r.tests.Run() }

const (
	cluster  = "cluster-a"
	patience = 30 * time.Second
)

// sink shows nothing by itself.
type sink struct {
	changes chan bmdb.Pending
	known   chan bmdb.Pending // what was shown by others
	nobody  bool
	err     error

	everything atomic.Int32
}

func (s *sink) Changed(_ context.Context, p bmdb.Pending) (bool, error) {
	s.changes <- p
	return !s.nobody, s.err
}

func (s *sink) Known(p bmdb.Pending) { s.known <- p }

func (s *sink) Everything(context.Context) error {
	s.everything.Add(1)
	return s.err
}

// lab is a database with a session that spreads changes, and a watcher.
type lab struct {
	t       *testing.T
	conn    *bmdb.Connection
	sink    *sink
	watcher *watch.Watcher
	told    map[string]int64 // revisions that a wait has seen, by ID
}

func newLab(t *testing.T, s *sink, source func(*bmdb.Connection) watch.Source) *lab {
	t.Helper()
	conn := bmdbtest.New(t, func(c *bmdb.Config) { c.Cluster = cluster })
	if err := conn.RegisterCluster(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	session, err := conn.StartSession(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	s.changes, s.known = make(chan bmdb.Pending, 100), make(chan bmdb.Pending, 100)
	l := &lab{t: t, conn: conn, sink: s, watcher: watch.New(source(conn), cluster, s, testr.New(t)), told: map[string]int64{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.watcher.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watcher ended with %v", err)
		}
		if err := session.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}

func plain(c *bmdb.Connection) watch.Source { return c }

func (l *lab) register(name string, labels map[string]string) bmdb.Registration {
	l.t.Helper()
	r, err := l.conn.RegisterMachine(l.t.Context(), bmdb.View{Cluster: cluster, UID: name, Name: name},
		bmdb.MachineSpec{Pool: "metal", Name: name, Provider: "lab", ProviderID: name, Labels: labels})
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// change waits until the sink is told of a machine.
func (l *lab) change(machine uuid.UUID) bmdb.Pending {
	l.t.Helper()
	return l.changeOf(bmdb.KindMachine, machine.String())
}

// changeOf waits until the sink is told of a thing.
func (l *lab) changeOf(kind, id string) bmdb.Pending {
	l.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case p := <-l.sink.changes:
			l.told[p.ID] = max(l.told[p.ID], p.Rev)
			if p.Kind == kind && p.ID == id {
				return p
			}
		case <-deadline:
			l.t.Fatal("no change was told")
		}
	}
}

// acknowledged waits until nothing is pending.
func (l *lab) acknowledged() {
	l.t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		pending, err := l.conn.PendingProjections(l.t.Context(), cluster, 10)
		if err != nil {
			l.t.Fatal(err)
		}
		left := 0
		for _, p := range pending {
			if p.Kind == bmdb.KindMachine {
				left++
			}
		}
		if left == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			l.t.Fatalf("still pending: %+v", pending)
		}
	}
}

// TestChangesAreToldAndAcknowledged: once each, and only what was shown is acknowledged.
func TestChangesAreToldAndAcknowledged(t *testing.T) {
	l := newLab(t, &sink{}, plain)
	r := l.register("m", nil)
	p := l.change(r.MachineID)
	if p.Rev != r.Rev || p.Pool != "metal" {
		t.Errorf("told of %+v, want revision %d", p, r.Rev)
	}
	l.watcher.Shown(p)
	l.acknowledged()
	again := l.register("m", map[string]string{"rack": "r7"})
	if p := l.change(r.MachineID); p.Rev != again.Rev {
		t.Errorf("told of revision %d, want %d", p.Rev, again.Rev)
	} else {
		// An older revision was shown: that does not settle it.
		l.watcher.Shown(bmdb.Pending{Kind: p.Kind, Pool: p.Pool, ID: p.ID, Rev: r.Rev})
	}
	other := l.register("other", nil)
	l.watcher.Shown(l.change(other.MachineID))
	pending, err := l.conn.PendingProjections(t.Context(), cluster, 10)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, p := range pending {
		found = found || p.ID == r.MachineID.String() && p.Rev == again.Rev
	}
	if !found {
		t.Errorf("what was not shown is not pending any more: %+v", pending)
	}
	l.watcher.Shown(bmdb.Pending{Kind: bmdb.KindMachine, Pool: "metal", ID: r.MachineID.String(), Rev: again.Rev})
	l.acknowledged()
}

// TestWhatWasShownIsNotToldOfAgain: mostly somebody shows a change before it is known to be pending. Then it is acknowledged, and nobody looks; but
// at what has changed since. That it has changed is told even so.
func TestWhatWasShownIsNotToldOfAgain(t *testing.T) {
	l := newLab(t, &sink{}, plain)
	first := l.register("m", nil)
	l.watcher.Shown(bmdb.Pending{Kind: bmdb.KindMachine, Pool: "metal", ID: first.MachineID.String(), Rev: first.Rev + 1})
	next := l.register("m", map[string]string{"rack": "r1"})
	if next.Rev != first.Rev+1 {
		t.Fatalf("revision %d follows %d", next.Rev, first.Rev)
	}
	l.acknowledged()
	for told := true; told; {
		select {
		case p := <-l.sink.changes: // it may have been told of the first before that was shown
			if p.Rev == next.Rev {
				t.Errorf("told of %+v, which was shown", p)
			}
		default:
			told = false
		}
	}
	// Others than those who show it may wait for it: claims for a machine that is new.
	select {
	case p := <-l.sink.known:
		if p.Rev != next.Rev {
			t.Errorf("told of %+v as known, want revision %d", p, next.Rev)
		}
	case <-time.After(patience):
		t.Error("nobody was told that it has changed")
	}
	last := l.register("m", map[string]string{"rack": "r2"})
	l.change(l.register("other", nil).MachineID)
	// At the latest with what is told before the third is.
	l.change(l.register("third", nil).MachineID)
	if told := l.told[last.MachineID.String()]; told != last.Rev {
		t.Errorf("told of revision %d, want %d", told, last.Rev)
	}
}

// counting counts what is acknowledged of providers.
type counting struct {
	watch.Source
	providers atomic.Int32
}

func (c *counting) AckProjections(ctx context.Context, cluster string, acks []bmdb.Pending) error {
	for _, p := range acks {
		if p.Kind == bmdb.KindProvider {
			c.providers.Add(1)
		}
	}
	return c.Source.AckProjections(ctx, cluster, acks)
}

// TestProvidersAreAcknowledgedOnce: they are shown again and again, whether they have changed or not.
func TestProvidersAreAcknowledgedOnce(t *testing.T) {
	s, source := &sink{}, &counting{}
	l := newLab(t, s, func(c *bmdb.Connection) watch.Source { source.Source = c; return source })
	limit := func(machines int64) bmdb.Pending {
		t.Helper()
		err := l.conn.AttachProvider(t.Context(), bmdb.View{Cluster: cluster, UID: "lab", Name: "lab"}, bmdb.ProviderLimits{Pool: "metal", Provider: "lab", MaxMachines: &machines})
		if err != nil {
			t.Fatal(err)
		}
		return l.changeOf(bmdb.KindProvider, "lab")
	}
	acknowledged := func(want int32) {
		t.Helper()
		deadline, tick := time.After(patience), time.NewTicker(20*time.Millisecond)
		defer tick.Stop()
		for source.providers.Load() != want {
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("acknowledged %d times, want %d", source.providers.Load(), want)
			}
		}
	}
	l.register("m", nil) // another machine is another revision of its provider
	first := limit(10)
	for _, rack := range []string{"r1", "r2"} {
		l.watcher.Shown(first)
		acknowledged(1)
		l.watcher.Shown(l.change(l.register("m", map[string]string{"rack": rack}).MachineID)) // is acknowledged with it, or later
		l.acknowledged()
	}
	acknowledged(1)
	l.watcher.Shown(limit(20))
	acknowledged(2)
}

func TestWhatNobodyShowsIsAcknowledged(t *testing.T) {
	l := newLab(t, &sink{nobody: true}, plain)
	l.change(l.register("m", nil).MachineID)
	l.acknowledged()
}

// TestForgottenCluster registers again, and has everything looked at.
func TestForgottenCluster(t *testing.T) {
	s := &sink{}
	l := newLab(t, s, func(c *bmdb.Connection) watch.Source { return &forgetful{Source: c} })
	deadline, tick := time.After(patience), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for s.everything.Load() == 0 {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("nothing was looked at again")
		}
	}
	l.watcher.Shown(l.change(l.register("m", nil).MachineID))
	l.acknowledged()
}

// forgetful forgets the cluster once.
type forgetful struct {
	watch.Source
	did atomic.Bool
}

func (f *forgetful) PendingProjections(ctx context.Context, cluster string, limit int) ([]bmdb.Pending, error) {
	if !f.did.Swap(true) {
		return nil, bmdb.ErrNoSuchCluster
	}
	return f.Source.PendingProjections(ctx, cluster, limit)
}

// flaky fails each call once.
type flaky struct {
	watch.Source
	mu            sync.Mutex
	read, settled bool
}

var errDown = errors.New("no connection")

func (f *flaky) once(done *bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if *done {
		return nil
	}
	*done = true
	return errDown
}

func (f *flaky) PendingProjections(ctx context.Context, cluster string, limit int) ([]bmdb.Pending, error) {
	if err := f.once(&f.read); err != nil {
		return nil, err
	}
	return f.Source.PendingProjections(ctx, cluster, limit)
}

func (f *flaky) AckProjections(ctx context.Context, cluster string, shown []bmdb.Pending) error {
	if err := f.once(&f.settled); err != nil {
		return err
	}
	return f.Source.AckProjections(ctx, cluster, shown)
}

// TestOutagesAreSurvived: nothing is lost when the database does not answer.
func TestOutagesAreSurvived(t *testing.T) {
	l := newLab(t, &sink{}, func(c *bmdb.Connection) watch.Source { return &flaky{Source: c} })
	l.watcher.Shown(l.change(l.register("m", nil).MachineID))
	l.acknowledged()
}

// TestBacklog is what was not shown, and for how long.
func TestBacklog(t *testing.T) {
	l := newLab(t, &sink{}, plain)
	if pending, oldest := l.watcher.Backlog(); pending != 0 || oldest != 0 {
		t.Errorf("at first %d changes are pending, for %s", pending, oldest)
	}
	p := l.change(l.register("m", nil).MachineID)
	q := l.change(l.register("other", nil).MachineID)
	_, before := l.watcher.Backlog()
	if pending, oldest := l.watcher.Backlog(); pending != 2 || oldest <= before {
		t.Errorf("%d changes are pending, for %s, and a moment ago for %s", pending, oldest, before)
	}
	l.watcher.Shown(p)
	l.watcher.Shown(q)
	l.acknowledged()
	deadline, tick := time.After(patience), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		pending, oldest := l.watcher.Backlog()
		if pending == 0 && oldest == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d changes are pending still, for %s", pending, oldest)
		}
	}
}
