// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/test/faults/wire"
)

// The outcomes of a COMMIT that the database calls unknown.
const (
	unknownCommitted = "40003, and it was committed"
	unknownNot       = "40003, and it was not"
)

// readOnly is what a server says that was demoted under its clients. The library tries nothing again that fails with it: whoever called it has to.
const readOnly = "25006"

// TestF4 lets the database answer a tenth of all round trips with an error, at any of their statements, of the kinds after which a program must
// try again, or look what became of it, or ask those to try again who called it. Operators are slower, and nothing else.
func TestF4(t *testing.T) {
	t.Parallel()
	r := newRig(t, "F4", rigOptions{})
	i := newInjector(func(t *wire.Trip) bool { return t.Has("CountEnds") }, func(what string) { r.struck(what) }, readOnly)
	r.start()
	r.fleet(20*time.Millisecond, 10)
	for _, p := range r.pods {
		p.setHook(i.onWire)
	}
	r.watchRules()
	work := r.feed(24)
	r.Eventually(pick(3*time.Minute, 25*time.Minute), "each error was answered often enough", func(context.Context) error { return i.done(pick(40, 1000), pick(2, 20)) })
	work.stop()
	r.awaitEnds("all claims have ended while errors go on")
	for _, p := range r.pods {
		p.setHook(nil)
		if err := p.process.Load().Err(); err != nil {
			t.Errorf("%s has ended: %v", p.Name, err)
		}
	}
	r.verify()
	r.verifyAcknowledged()
	r.require(i.kinds...)
}

// injector lets round trips fail. It is safe for concurrent use.
type injector struct {
	struck func(what string)
	kinds  []string // what it does, by name

	// Where it decides who has a machine, and what became of it: each kind must have struck there, too.
	decisive map[string]func(t *wire.Trip) bool

	mu     sync.Mutex
	random *rand.Rand
	counts map[string]int
	turns  map[string]int // at which kind those are that take turns
}

// newInjector returns an injector of what the library answers itself, and of more errors. Of those that take turns, the first is possible
// hardly anywhere else.
func newInjector(ends func(t *wire.Trip) bool, struck func(what string), more ...string) *injector {
	kinds := append([]string{unknownNot, "40001", "40P01", "57P01", unknownCommitted}, more...)
	random := rand.New(rand.NewPCG(run.seed, 4))
	decisive := map[string]func(t *wire.Trip) bool{", at starts of works": starts, ", at ends of works": ends}
	return &injector{struck: struck, kinds: kinds, decisive: decisive, random: random, counts: map[string]int{}, turns: map[string]int{}}
}

// share is the part of all round trips that fail.
const share = 10

func (i *injector) onWire(t *wire.Trip, side wire.Side) wire.Verdict {
	v := i.choose(t, side)
	i.tell(t, v)
	return v
}

// choose decides what becomes of a round trip.
func (i *injector) choose(t *wire.Trip, side wire.Side) wire.Verdict {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.random.IntN(share) > 0 {
		return wire.Verdict{}
	}
	last := len(t.Statements) - 1
	commits := t.Statements[last] == "COMMIT"
	if side == wire.After {
		// Whether it will fail was decided before, but for this one.
		if !commits || t.Failed != "" || i.random.IntN(3) > 0 {
			return wire.Verdict{}
		}
		return wire.Verdict{Unknown: "40003"}
	}
	kind := i.kind(t, commits)
	if kind == unknownNot {
		return wire.Verdict{Fail: "40003", FailAt: last}
	}
	return wire.Verdict{Fail: kind, FailAt: i.random.IntN(last + 1)}
}

// kind chooses among the errors that are possible before a round trip is carried out. At what decides they take turns: it is seldom passed, and each must strike.
func (i *injector) kind(t *wire.Trip, commits bool) string {
	possible := slices.DeleteFunc(slices.Clone(i.kinds), func(kind string) bool { return kind == unknownCommitted || kind == unknownNot && !commits })
	n := i.random.IntN(len(possible))
	for at, here := range i.decisive {
		if here(t) {
			n = i.turns[at]
			i.turns[at]++
		}
	}
	return possible[n%len(possible)]
}

// tell counts what was decided.
func (i *injector) tell(t *wire.Trip, v wire.Verdict) {
	i.mu.Lock()
	defer i.mu.Unlock()
	kind := v.Fail
	switch {
	case v.Unknown != "":
		kind = unknownCommitted
	case v.Fail == "40003":
		kind = unknownNot
	case v.Fail == "":
		return
	}
	i.counts[kind]++
	i.struck(kind)
	for at, here := range i.decisive {
		if here(t) {
			i.counts[kind+at]++
			i.struck("any of these" + at)
		}
	}
}

func starts(t *wire.Trip) bool { return t.Has("StartBatch") }

// done returns an error unless there were as many of each kind, and some at what decides.
func (i *injector) done(n, some int) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, kind := range i.kinds {
		if i.counts[kind] < n {
			return fmt.Errorf("%v", i.counts)
		}
		for at := range i.decisive {
			if i.counts[kind+at] < some {
				return fmt.Errorf("%v", i.counts)
			}
		}
	}
	return nil
}
