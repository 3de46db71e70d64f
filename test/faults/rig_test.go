// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
	"github.com/bmdb-dev/bmdb-operator/test/faults/bmc"
	"github.com/bmdb-dev/bmdb-operator/test/faults/wire"
)

// rig is what a fault strikes: operators that serve a namespace from a database, each with a proxy of its own before it, and a witness at the
// machines.
type rig struct {
	*testbed.Lab
	fault   string
	random  *rand.Rand // for the test's goroutine
	witness *bmc.Witness
	pods    []*pod
	began   time.Time
	longest atomic.Int64 // the longest that the server took for a round trip, in nanoseconds
	watcher *watcher
	rules   []testbed.Rule // that hold at any moment
	strict  bool           // some claims fail with the first failure of a machine
}

// rigOptions are what a fault needs otherwise. The zero value has three pods with a lease of three seconds.
type rigOptions struct {
	testbed.Options
	pods  int
	lease time.Duration
	flags []string
	other *rig // whose witness is this one's, too
}

const defaultLease = 3 * time.Second

// newRig makes a rig without starting its pods. It is torn down, and what happened is kept if the test fails, at the test's end.
func newRig(t *testing.T, fault string, o rigOptions) *rig {
	t.Helper()
	if o.pods == 0 {
		o.pods = 3
	}
	if o.lease == 0 {
		o.lease = defaultLease
	}
	if o.Programs == nil {
		o.Programs = &run.programs
	}
	r := &rig{Lab: testbed.New(t, o.Options), fault: fault, random: choices(fault), began: time.Now(), rules: testbed.Rules()}
	t.Cleanup(r.keep)
	t.Cleanup(r.explain)
	r.witness = r.newWitness(o.other)
	catalog, err := wire.ReadCatalog("../../bmdb")
	if err != nil {
		t.Fatal(err)
	}
	for i := range o.pods {
		p := &pod{rig: r}
		if p.proxy, err = wire.Listen(t.Context(), wire.Options{Database: r.Database, Catalog: catalog, Owner: func() any { return p.process.Load() }}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.proxy.Close)
		p.setHook(nil)
		p.Operator = r.Operator(fmt.Sprintf("operator-%c", 'a'+i), append([]string{"--lease", o.lease.String(), "--cluster-id", "here"}, o.flags...)...)
		p.Env = append(p.Env, "BMDB_WITNESS_URL="+r.witness.URL(), "BMDB_DATABASE_URL="+p.proxy.URL())
		r.pods = append(r.pods, p)
	}
	return r
}

func (r *rig) newWitness(other *rig) *bmc.Witness {
	r.T.Helper()
	if other != nil {
		return other.witness
	}
	w, err := bmc.Listen(r.T.Context())
	if err != nil {
		r.T.Fatal(err)
	}
	r.T.Cleanup(func() {
		if err := w.Close(); err != nil {
			r.T.Error(err)
		}
	})
	return w
}

// start starts all pods and waits until they are ready.
func (r *rig) start() {
	r.T.Helper()
	for _, p := range r.pods {
		p.launch()
	}
	r.awaitReady()
}

// awaitReady waits until all pods are ready.
func (r *rig) awaitReady() {
	r.T.Helper()
	for _, p := range r.pods {
		ctx, cancel := context.WithTimeout(r.T.Context(), testbed.Patience)
		err := p.Process.WaitReady(ctx, p.Ready)
		cancel()
		if err != nil {
			r.T.Fatalf("%s is not ready: %v", p.Name, err)
		}
	}
}

// struck counts a fault that took effect.
func (r *rig) struck(what string) { run.tally.add(r.fault, what, 1) }

// require fails the test unless each of these has struck.
func (r *rig) require(what ...string) {
	r.T.Helper()
	for _, w := range what {
		run.tally.add(r.fault, w, 0)
		if run.tally.of(r.fault, w) == 0 {
			r.T.Errorf("nothing was put to the test: %q never struck", w)
		}
	}
}

// explain says which rules are broken, if the test failed: it may have ended before it came to look, and what it met is what comes of that.
func (r *rig) explain() {
	if !r.T.Failed() {
		return
	}
	r.stopWatching()
	const patience = 10 * time.Second // the database may be what is away
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var broken *testbed.BrokenError
	if err := r.Broken(ctx, r.rules); errors.As(err, &broken) {
		r.T.Errorf("when the test failed: %v", err)
	}
	r.T.Logf("claims that are not over:\n%s", r.Table(ctx, notOver))
}

// keep leaves what happened in a directory, if the test failed.
func (r *rig) keep() {
	if !r.T.Failed() {
		return
	}
	dir := filepath.Join(run.keep, fmt.Sprintf("%s-%d", r.fault, run.seed))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.T.Log(err)
		return
	}
	err := os.CopyFS(filepath.Join(dir, time.Now().UTC().Format("150405.000000")), os.DirFS(r.Dir))
	r.T.Logf("%s failed; what happened is in %s; SEED=%d FAULT=%s makes the same choices again (%v)", r.fault, dir, run.seed, r.fault, err)
}

// dirOf is where a failing test puts something.
func (r *rig) dirOf(name string) (string, error) {
	dir := filepath.Join(run.keep, fmt.Sprintf("%s-%d", r.fault, run.seed))
	return filepath.Join(dir, name), os.MkdirAll(dir, 0o755)
}

// pod is one operator, whose process may change. Its own methods may be called from hooks as well, unless they say otherwise.
type pod struct {
	*testbed.Operator
	rig     *rig
	proxy   *wire.Proxy
	process atomic.Pointer[proc.Process]
	deaths  sync.Map // processes that were killed by the suite
}

// launch starts the process without waiting for it. For the test's goroutine.
func (p *pod) launch() {
	p.rig.T.Helper()
	p.Launch()
	p.process.Store(p.Process)
}

// setHook puts a hook before the pod's database; nil lets everything pass. Whatever it is, the time that the server takes is measured.
func (p *pod) setHook(h wire.Hook) {
	p.proxy.SetHook(func(t *wire.Trip, side wire.Side) wire.Verdict {
		if side == wire.After {
			took := int64(t.Done.Sub(t.Sent))
			for old := p.rig.longest.Load(); took > old && !p.rig.longest.CompareAndSwap(old, took); {
				old = p.rig.longest.Load()
			}
		}
		if h == nil {
			return wire.Verdict{}
		}
		return h(t, side)
	})
}

// kill kills a process of the pod and tells whether it lived until then. It returns when it is dead.
func (p *pod) kill(process *proc.Process) bool {
	if _, killed := p.deaths.LoadOrStore(process, true); killed || process == nil {
		return false
	}
	if err := process.Stop(context.Background(), syscall.SIGKILL); err != nil {
		return false
	}
	status, ok := process.Exit().Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// byPID returns the pod whose process has an ID.
func (r *rig) byPID(pid int) (*pod, *proc.Process) {
	for _, p := range r.pods {
		if process := p.process.Load(); process != nil && process.Pid() == pid && process.Err() == nil {
			return p, process
		}
	}
	return nil, nil
}

// watcher asks for broken rules while faults strike.
type watcher struct {
	cancel context.CancelFunc
	done   chan struct{}
	looks  int
	broken map[string]error // by rule: when it was first
}

// watchRules begins to ask for broken rules. A database that does not answer says nothing. verify ends it. The questions go through the whole history,
// and may take but a small part of the database's time.
func (r *rig) watchRules() {
	const interval, part = time.Second / 2, 20
	ctx, cancel := context.WithCancel(r.T.Context())
	w := &watcher{cancel: cancel, done: make(chan struct{}), broken: map[string]error{}}
	r.watcher = w
	go func() {
		defer close(w.done)
		for {
			began, looks := time.Now(), 0
			for _, rule := range r.rules {
				var broken *testbed.BrokenError
				err := r.Broken(ctx, []testbed.Rule{rule})
				if err != nil && !errors.As(err, &broken) {
					break
				}
				if err != nil && w.broken[rule.What] == nil {
					w.broken[rule.What] = fmt.Errorf("%s after the beginning: %w", time.Since(r.began).Round(time.Millisecond), err)
				}
				looks++
			}
			if looks == len(r.rules) {
				w.looks++
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(max(interval, part*time.Since(began))):
			}
		}
	}()
}

// stopWatching reports what the watcher found.
func (r *rig) stopWatching() {
	r.T.Helper()
	if r.watcher == nil {
		return
	}
	r.watcher.cancel()
	<-r.watcher.done
	for _, err := range r.watcher.broken {
		r.T.Error(err)
	}
	run.tally.add(r.fault, "looks at the invariants meanwhile", int64(r.watcher.looks))
	r.watcher = nil
}
