// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
	"github.com/bmdb-dev/bmdb-operator/test/faults/bmc"
	"github.com/bmdb-dev/bmdb-operator/test/faults/wire"
)

// TestF1 kills operators at every point of what they send and do: before a round trip is sent, in the middle of it, after it was carried
// out, and at every step of a side effect, one at a time; then also around what belongs to no stage of work; and then at random, however many are left. Each
// is started again at once, while the others go on.
func TestF1(t *testing.T) {
	t.Parallel()
	r := newRig(t, "F1", rigOptions{lease: pick(1500*time.Millisecond, 2*time.Second)})
	k := &killer{rig: r, points: newPoints(!run.quick), ended: make(chan *pod, 2*len(r.pods))}
	r.fleet(20*time.Millisecond, 20)
	r.strict = true
	r.watchRules()
	work := r.feed(40)
	for _, p := range r.pods {
		p.setHook(k.onWire(p))
		k.launch(p)
	}
	r.witness.SetHook(k.atMachine)
	k.everyPoint(pick(3*time.Minute, 15*time.Minute))
	k.everywhere(pick(0, 4*time.Minute))
	k.atRandom(pick(5, 40))
	work.stop()
	k.heal()
	for _, stage := range slices.Sorted(maps.Keys(k.points.count())) {
		n := k.points.count()[stage]
		if stage == "" {
			stage = "everything else"
		}
		run.tally.add("F1", "points struck: "+stage, int64(n))
	}
	r.verify()
	r.require("killed at a point", "killed at random", "told to end")
	for _, what := range k.points.missing() {
		t.Errorf("no pod was killed at %s", what)
	}
}

// killer kills pods. Its hooks are called from everywhere; the rest is for the test's goroutine.
type killer struct {
	rig    *rig
	points *points
	ended  chan *pod // one for each process that ended
	told   map[*proc.Process]bool
	down   atomic.Pointer[pod] // killed at a point, and not at work again
}

// launch starts a pod, and says on the channel when it has ended.
func (k *killer) launch(p *pod) {
	k.rig.T.Helper()
	p.launch()
	process := p.process.Load()
	go func() {
		<-process.Done()
		k.ended <- p
	}()
}

// spares tells whether a pod must not be killed at a point, because another is not at work again since it was: on a slow machine nothing would ever be
// done, and what is to be struck is the end of what was done.
func (k *killer) spares(p *pod) bool {
	down := k.down.Load()
	return down != nil && down != p
}

// strike kills the process that a point belongs to.
func (k *killer) strike(p *pod, owner any, point string) bool {
	process, _ := owner.(*proc.Process)
	if !p.kill(process) {
		k.points.giveBack(point)
		return false
	}
	k.down.Store(p)
	k.rig.struck("killed at a point")
	return true
}

func (k *killer) onWire(p *pod) wire.Hook {
	return func(t *wire.Trip, side wire.Side) wire.Verdict {
		if side == wire.After && t.Has("StartSession") {
			k.down.CompareAndSwap(p, nil)
		}
		stage := stageOf(t)
		if stage != reaper && k.spares(p) { // who reaps does it while another is down; where pods take long to start, only then
			return wire.Verdict{}
		}
		if side == wire.After {
			at := wire.Point{Trip: t.Name(), Side: side}
			if !k.points.pass(stage, at.String()) {
				return wire.Verdict{}
			}
			k.strike(p, t.Owner, at.String())
			return wire.Verdict{Cut: true}
		}
		at, ok := k.points.next(t)
		if !ok {
			return wire.Verdict{}
		}
		if at.Side == wire.Torn {
			return wire.Verdict{Cut: true, Tear: at.Index, Torn: func() { k.strike(p, t.Owner, at.String()) }}
		}
		k.strike(p, t.Owner, at.String())
		return wire.Verdict{Cut: true}
	}
}

func (k *killer) atMachine(t bmc.Touch, at bmc.Point) bmc.Verdict {
	if p, _ := k.rig.byPID(t.PID); k.spares(p) || !k.points.pass(witnessStage, witnessPoint(at)) {
		return bmc.Verdict{}
	}
	p, process := k.rig.byPID(t.PID)
	if p == nil {
		k.points.giveBack(witnessPoint(at))
		return bmc.Verdict{}
	}
	k.strike(p, process, witnessPoint(at))
	return bmc.Verdict{Hang: true}
}

// everyPoint lets pods live and die until each stage was struck on both sides. Now and then one is told to end, as points of the hand-over are passed
// only then.
func (k *killer) everyPoint(atMost time.Duration) {
	k.rig.T.Helper()
	const tellEvery = 1500 * time.Millisecond
	began := time.Now()
	k.told = map[*proc.Process]bool{}
	over := time.NewTimer(atMost)
	defer over.Stop()
	tell := time.NewTicker(tellEvery)
	defer tell.Stop()
	for {
		select {
		case p := <-k.ended:
			k.again(p)
		case <-tell.C:
			missing := k.points.missing()
			if len(missing) == 0 {
				k.rig.T.Logf("every stage was struck on all sides after %s", time.Since(began).Round(time.Second))
				return
			}
			if slices.ContainsFunc(missing, func(s string) bool { return strings.HasPrefix(s, "hand-over") }) {
				k.tell(k.rig.pods[k.rig.random.IntN(len(k.rig.pods))])
			}
		case <-over.C:
			k.rig.T.Logf("after %s nobody was killed yet at %s", atMost, strings.Join(k.points.missing(), ", "))
			return
		}
	}
}

// everywhere lets pods die at every point for a while, whether it belongs to a stage or not. It comes after the stages: most of what belongs to none is
// passed while a pod starts, and pods that die of that never come to a work.
func (k *killer) everywhere(d time.Duration) {
	k.rig.T.Helper()
	k.points.widen(d > 0)
	k.live(d)
}

// live starts whoever ends again, for a while.
func (k *killer) live(d time.Duration) {
	k.rig.T.Helper()
	over := time.NewTimer(d)
	defer over.Stop()
	for {
		select {
		case p := <-k.ended:
			k.again(p)
		case <-over.C:
			return
		}
	}
}

// tell asks a pod to end, as a rolling update does.
func (k *killer) tell(p *pod) {
	k.rig.T.Helper()
	process := p.process.Load()
	if k.told[process] || process.Err() != nil || p.Ready(k.rig.T.Context()) != nil {
		return // one that has not begun has nothing to hand over
	}
	k.told[process] = true
	if err := process.Signal(syscall.SIGTERM); err != nil {
		k.rig.T.Error(err)
	}
	k.rig.struck("told to end")
}

// again starts a pod that has ended. It ends only if it is killed, or told to.
func (k *killer) again(p *pod) {
	k.rig.T.Helper()
	process := p.process.Load()
	_, killed := p.deaths.Load(process)
	if !killed && (!k.told[process] || process.Exit().ExitCode() != 0) {
		k.rig.T.Errorf("%s ended by itself: %v", p.Name, process.Err())
	}
	k.launch(p)
}

// atRandom kills pods at random times.
func (k *killer) atRandom(times int) {
	k.rig.T.Helper()
	const most = 2 * time.Second
	for killed := 0; killed < times; {
		p := k.rig.pods[k.rig.random.IntN(len(k.rig.pods))]
		k.live(time.Duration(k.rig.random.Int64N(int64(most))))
		if p.kill(p.process.Load()) {
			k.rig.struck("killed at random")
			killed++
		}
	}
}

// heal stops the killing and waits until all pods are there again.
func (k *killer) heal() {
	k.rig.T.Helper()
	k.rig.witness.SetHook(nil)
	for _, p := range k.rig.pods {
		p.setHook(nil)
	}
	for _, p := range k.rig.pods {
		for process := p.process.Load(); process.Err() != nil || k.told[process]; process = p.process.Load() {
			k.again(<-k.ended)
		}
	}
	k.rig.awaitReady()
}
