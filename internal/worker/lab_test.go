// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"go.uber.org/goleak"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
	"github.com/bmdb-dev/bmdb-operator/internal/process"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	"github.com/bmdb-dev/bmdb-operator/internal/worker"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(runner{devtest.Main(m)})
}

// runner lets goleak look after what the tests share has been ended.
type runner struct{ tests devtest.Runner }

func (r runner) Run() int { return r.tests.Run() }

const (
	pool     = "metal"
	lease    = 5 * time.Second
	patience = 30 * time.Second
)

// behaviour is what a driver does on a machine, by the machine's name; nil: it finds an agent at once.
type behaviour func(ctx context.Context, m provider.Machine, s provider.Steps) (provider.Agent, error)

// lab is an engine, with a real database and with objects and drivers that tests control.
type lab struct {
	t      *testing.T
	conn   *bmdb.Connection
	engine *worker.Engine

	mu         sync.Mutex
	behave     map[string]behaviour
	notReady   map[string]bool
	gone       map[string]bool // keys of claims and names of machines whose objects are gone
	admitted   map[string]int
	idled      map[string]int
	terms      []worker.Term // for which it was idle
	changed    map[string]int
	over       map[string]int
	failed     map[string]int
	missing    []missingRead
	unreadable error // of whether a machine has an object
	opened     int
	closed     int
	stuck      int
	inUse      int
	mostUsed   int
	owned      int
}

// newLab starts an engine, with a session of its own, that ends with the test.
func newLab(t *testing.T, concurrency int, machines ...string) *lab {
	t.Helper()
	l := &lab{
		t: t, conn: bmdbtest.New(t, func(c *bmdb.Config) { c.Lease = lease }), behave: map[string]behaviour{}, notReady: map[string]bool{},
		gone: map[string]bool{}, admitted: map[string]int{}, idled: map[string]int{}, changed: map[string]int{}, over: map[string]int{}, failed: map[string]int{},
	}
	for _, name := range machines {
		provider := "lab"
		if strings.HasPrefix(name, "other") {
			provider = "other"
		}
		if _, err := l.conn.RegisterMachine(t.Context(), bmdb.View{UID: name, Name: name}, bmdb.MachineSpec{Pool: pool, Name: name, Provider: provider, ProviderID: name}); err != nil {
			t.Fatal(err)
		}
	}
	l.engine = l.newEngine(concurrency)
	return l
}

func (l *lab) newEngine(concurrency int) *worker.Engine {
	return worker.New(worker.Config{Concurrency: concurrency, Grace: 300 * time.Millisecond, Lease: lease, Database: l.conn.Identity().ID},
		process.Builtin(), l.conn, (*labDrivers)(l), (*labObjects)(l), (*labObserver)(l), testr.NewWithOptions(l.t, testr.Options{}))
}

// serve runs the engine under a session and returns what ends it, as a pod's end does.
func (l *lab) serve() (stop func()) {
	l.t.Helper()
	return l.serveWith(l.engine, nil)
}

// owner is what an engine owns claims with.
type owner = worker.Owner

// pods runs further engines, each under a session of its own, and returns them.
func (l *lab) pods(n int, with func(s *bmdb.Session) owner) (engines []*worker.Engine) {
	l.t.Helper()
	for range n {
		e := l.newEngine(64)
		l.serveWith(e, with)
		engines = append(engines, e)
	}
	return engines
}

func (l *lab) serveWith(e *worker.Engine, with func(s *bmdb.Session) owner) (stop func()) {
	l.t.Helper()
	s, err := l.conn.StartSession(context.Background())
	if err != nil {
		l.t.Fatal(err)
	}
	var o owner = s
	if with != nil {
		o = with(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		e.ServeOwner(ctx, o)
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			<-ended
			if err := s.Close(context.Background()); err != nil {
				l.t.Errorf("close session: %v", err)
			}
		})
	}
	l.t.Cleanup(stop)
	return stop
}

// claim attaches a claim for named machines.
func (l *lab) claim(key string, change func(c *bmdb.ClaimSpec), names ...string) {
	l.t.Helper()
	l.attach(key, true, change, names...)
	l.engine.Poll()
}

func (l *lab) attach(key string, runnable bool, change func(c *bmdb.ClaimSpec), names ...string) {
	l.t.Helper()
	spec := bmdb.ClaimSpec{Pool: pool, Key: key, Process: "AgentStart", Mode: bmdb.ModeOnce, Names: names, Parallelism: 10, BackoffInitialSeconds: 1, BackoffMaximumSeconds: 1}
	if change != nil {
		change(&spec)
	}
	if _, err := l.conn.AttachClaim(l.t.Context(), bmdb.View{UID: key, Name: key}, spec, runnable); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) on(machine string, b behaviour) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.behave[machine] = b
}

// eventually waits until check succeeds.
func (l *lab) eventually(what string, check func() error) {
	l.t.Helper()
	deadline, tick := time.NewTimer(patience), time.NewTicker(20*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			l.t.Fatalf("%s: %v", what, err)
		}
	}
}

func (l *lab) snapshot(key string) *bmdb.ClaimSnapshot {
	l.t.Helper()
	s, err := l.conn.ClaimSnapshot(context.Background(), pool, key, bmdb.ClaimLimits{})
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// await waits until a claim has a state and a reason.
func (l *lab) await(key, state, reason string) *bmdb.ClaimSnapshot {
	l.t.Helper()
	var s *bmdb.ClaimSnapshot
	l.eventually("claim "+key+" is "+state+" "+reason, func() error {
		if s = l.snapshot(key); s.State != state || s.Reason != reason {
			return fmt.Errorf("it is %s %s (%s), %d active, failures %+v", s.State, s.Reason, s.Message, s.Active, s.Failures)
		}
		return nil
	})
	return s
}

// history returns the events of a machine.
func (l *lab) history(machine string) string {
	l.t.Helper()
	id, err := l.conn.MachineByName(context.Background(), pool, machine)
	if err != nil {
		l.t.Fatal(err)
	}
	rows, err := l.conn.ListHistoryOf(context.Background(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	var events []string
	for _, r := range rows {
		events = append(events, string(r.Event))
	}
	return strings.Join(events, " ")
}

func (l *lab) count(of map[string]int, key string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return of[key]
}

type labDrivers lab

func (d *labDrivers) Candidates(_ context.Context, spec *bmdb.ClaimSpec) ([]string, error) {
	if spec.Provider != "" {
		return []string{spec.Provider}, nil
	}
	return []string{"lab", "other"}, nil
}

func (d *labDrivers) Open(_ context.Context, _, name string) (provider.Driver, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.notReady[name] {
		return nil, notReadyError{}
	}
	d.opened++
	return (*labDriver)(d), nil
}

type notReadyError struct{}

func (notReadyError) Error() string     { return "the secret is missing" }
func (notReadyError) NeedsPerson() bool { return true }

type labDriver lab

func (d *labDriver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed++
	return nil
}

func (d *labDriver) StartAgent(ctx context.Context, m provider.Machine, s provider.Steps) (provider.Agent, error) {
	if err := s.Step(ctx, "Connect", 0); err != nil {
		return provider.Agent{}, err
	}
	d.mu.Lock()
	b := d.behave[m.Name]
	d.mu.Unlock()
	if b != nil {
		return b(ctx, m, s)
	}
	return agentOf(m), nil
}

func agentOf(m provider.Machine) provider.Agent {
	return provider.Agent{PublicKey: slices.Concat(m.ID[:], m.ID[:]), Facts: []byte("{}")}
}

type labObjects lab

func (o *labObjects) Admit(ctx context.Context, term worker.Term, current func(ctx context.Context) error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.admitted[term.Key] == 0 { // as if a later term had admitted it
		if err := current(ctx); err != nil {
			return err
		}
	}
	if o.gone[term.Key] {
		return worker.ErrGone
	}
	o.admitted[term.Key]++
	return nil
}

func (o *labObjects) Idle(_ context.Context, term worker.Term) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.idled[term.Key]++
	o.terms = append(o.terms, term)
	return true, nil
}

func (o *labObjects) Missing(_ context.Context, target bmdb.Target) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.missing = append(o.missing, missingRead{target.Name, time.Now()})
	return o.gone[target.Name], o.unreadable
}

// missingRead is one look whether a machine has an object.
type missingRead struct {
	machine string
	at      time.Time
}

func (l *lab) reads() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.missing)
}

// attempts returns when it was looked whether a machine has an object.
func (l *lab) attempts(machine string) (at []time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.missing {
		if r.machine == machine {
			at = append(at, r.at)
		}
	}
	return at
}

func (o *labObjects) ClaimChanged(_, key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.changed[key]++
}

func (o *labObjects) ClaimOver(_, key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over[key]++
}

func (o *labObjects) ProviderFailed(_, name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failed[name]++
}

type labObserver lab

func (o *labObserver) Pool(inUse, _ int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inUse, o.mostUsed = inUse, max(o.mostUsed, inUse)
}

func (o *labObserver) Claims(owned int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.owned = owned
}

func (o *labObserver) WorkerStuck(string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stuck++
}

// settled fails the test unless the engine gave back all that it took.
func (l *lab) settled() {
	l.t.Helper()
	l.eventually("the engine gave back all that it took", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.opened != l.closed || l.inUse != 0 || l.owned != 0 {
			return fmt.Errorf("%d drivers opened and %d closed, %d workers in use, %d claims owned", l.opened, l.closed, l.inUse, l.owned)
		}
		return nil
	})
}

func ids(n int, prefix string) []string {
	names := map[string]bool{}
	for i := range n {
		names[fmt.Sprintf("%s%03d", prefix, i)] = true
	}
	return slices.Sorted(maps.Keys(names))
}
