// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"fmt"
	"math/rand/v2"
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

// TestF4 lets the database answer a tenth of all round trips with an error, at any of their statements, of the kinds after which a program must
// try again, or look what became of it. Operators are slower, and nothing else.
func TestF4(t *testing.T) {
	t.Parallel()
	r := newRig(t, "F4", rigOptions{})
	i := newInjector(func(what string) { r.struck(what) })
	r.start()
	r.fleet(20*time.Millisecond, 10)
	for _, p := range r.pods {
		p.setHook(i.onWire)
	}
	r.watchRules()
	work := r.feed(24)
	enough := pick(40, 1000)
	r.Eventually(10*time.Minute, "each error was answered often enough", func(context.Context) error { return i.done(enough) })
	work.stop()
	r.Eventually(peace, "what there is comes to its end while errors go on", func(ctx context.Context) error {
		n, err := r.Number(ctx, "SELECT count(*) FROM claims WHERE state NOT IN ('Complete', 'Failed')")
		if err == nil && n > 0 {
			err = fmt.Errorf("%d claims have not", n)
		}
		return err
	})
	for _, p := range r.pods {
		p.setHook(nil)
		if err := p.process.Load().Err(); err != nil {
			t.Errorf("%s has ended: %v", p.Name, err)
		}
	}
	r.verify()
	r.verifyAcknowledged()
	r.require(i.kinds()...)
}

// injector lets round trips fail. It is safe for concurrent use.
type injector struct {
	struck func(what string)

	mu     sync.Mutex
	random *rand.Rand
	counts map[string]int
}

func newInjector(struck func(what string)) *injector {
	return &injector{struck: struck, random: rand.New(rand.NewPCG(run.seed, 4)), counts: map[string]int{}}
}

// kinds are what it does, by name.
func (*injector) kinds() []string {
	return []string{"40001", "40P01", "57P01", unknownCommitted, unknownNot}
}

// share is the part of all round trips that fail.
const share = 10

func (i *injector) onWire(t *wire.Trip, side wire.Side) wire.Verdict {
	v := i.choose(t, side)
	i.tell(v)
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
	kind := i.kinds()[i.random.IntN(len(i.kinds()))]
	switch {
	case kind == unknownCommitted || kind == unknownNot && !commits:
		kind = "40001"
	case kind == unknownNot:
		return wire.Verdict{Fail: "40003", FailAt: last}
	}
	return wire.Verdict{Fail: kind, FailAt: i.random.IntN(last + 1)}
}

// tell counts what was decided.
func (i *injector) tell(v wire.Verdict) {
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
}

// done returns an error unless there were as many of each kind.
func (i *injector) done(n int) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, kind := range i.kinds() {
		if i.counts[kind] < n {
			return fmt.Errorf("%v", i.counts)
		}
	}
	return nil
}
