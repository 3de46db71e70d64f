// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
	"github.com/bmdb-dev/bmdb-operator/test/faults/wire"
)

// TestF3 makes the connections to the database slow, cuts them, and swallows what is said in one direction or the other, for less and for more than
// the lease, and cuts them exactly when a COMMIT was sent. No commit is lost, none is done twice, and sessions survive what is shorter
// than the lease.
func TestF3(t *testing.T) {
	t.Parallel()
	const lease = 5 * time.Second // what is shorter is to be survived on a machine that is busy, too
	r := newRig(t, "F3", rigOptions{lease: lease})
	var lines []*line
	for _, p := range r.pods {
		lines = append(lines, newLine(t, p, r.Database))
	}
	r.start()
	r.fleet(50*time.Millisecond, 10)
	r.watchRules()
	work := r.feed(24)
	c := newCutter(r)
	for _, p := range r.pods {
		p.setHook(c.onWire)
	}
	directions := []string{"upstream", "downstream"}
	for range pick(1, 8) {
		for _, stream := range directions {
			i := r.busiest()
			l, p := lines[i], r.pods[i]
			trips := p.proxy.Trips()
			l.poison("latency", stream, map[string]int{"latency": 40, "jitter": 30})
			r.during(lease)
			l.cure()
			if n := p.proxy.Trips() - trips; n > 0 {
				run.tally.add(r.fault, "round trips that were slow: "+stream, n)
			}
			r.survives(p, lease/4, "swallowed for less than the lease: "+stream, func() { l.poison("timeout", stream, map[string]int{"timeout": 0}) }, l.cure)
			r.survives(p, lease/6, "cut for less than the lease", l.cut, l.mend)
			i = r.busiest()
			l, p = lines[i], r.pods[i]
			c.swallowEnd(p, l, stream)
			r.awaitGivenUp(p)
			l.cure()
			r.struck("swallowed for more than the lease: " + stream)
			r.awaitLiving(p)
		}
	}
	c.aim(pick(2, 10))
	r.Eventually(testbed.Patience, "commits are cut on both sides", func(context.Context) error { return c.done(pick(5, 50)) })
	work.stop()
	for _, p := range r.pods {
		p.setHook(nil)
	}
	r.awaitReady()
	r.verify()
	r.verifyAcknowledged()
	for _, stream := range directions {
		r.require("round trips that were slow: "+stream, "swallowed for less than the lease: "+stream, "swallowed for more than the lease: "+stream,
			"ends that a pod heard nothing of before it was given up: "+stream)
	}
	r.require("cut for less than the lease", "COMMIT never arrived", "answer to COMMIT was lost", "works whose end was acknowledged")
}

// cutter cuts connections at their commits, one of some.
type cutter struct {
	rig *rig

	mu     sync.Mutex
	random *rand.Rand
	counts map[string]int
	aims   map[aim]int // what is cut whenever it comes, and how often still
}

// aim is a commit of something that decides who may do what, and the side of it.
type aim struct {
	stage string
	side  wire.Side
}

func newCutter(r *rig) *cutter {
	return &cutter{rig: r, random: rand.New(rand.NewPCG(run.seed, 3)), counts: map[string]int{}}
}

func (c *cutter) onWire(t *wire.Trip, side wire.Side) wire.Verdict {
	const one = 25 // of as many
	if !t.Has("COMMIT") {
		return wire.Verdict{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	aimed := aim{stageOf(t), side}
	if c.aims[aimed] > 0 {
		c.aims[aimed]--
		c.rig.struck("connection cut at COMMIT of: " + aimed.stage)
	} else if c.random.IntN(one) > 0 {
		return wire.Verdict{}
	}
	what, v := "answer to COMMIT was lost", wire.Verdict{Cut: true}
	if side == wire.Before {
		what = "COMMIT never arrived"
		v.Tear = len(t.Statements) - 1 // all but the COMMIT
	}
	c.counts[what]++
	c.rig.struck(what)
	return v
}

// swallowEnd swallows what is said on a pod's line from the next end of a work on, so that the pod does not know what became of it when others take
// its works over.
func (c *cutter) swallowEnd(p *pod, l *line, stream string) {
	c.rig.T.Helper()
	begun := make(chan error, 1)
	var once sync.Once
	p.setHook(func(t *wire.Trip, side wire.Side) wire.Verdict {
		if side == wire.Before && t.Has("CountEnds") && t.Has("COMMIT") {
			once.Do(func() { begun <- l.add("timeout", stream, map[string]int{"timeout": 0}) })
			return wire.Verdict{}
		}
		return c.onWire(t, side)
	})
	select {
	case err := <-begun:
		if err != nil {
			c.rig.T.Fatal(err)
		}
	case <-time.After(testbed.Patience):
		c.rig.T.Fatalf("%s ended no work", p.Name)
	}
	p.setHook(c.onWire)
	c.rig.struck("ends that a pod heard nothing of before it was given up: " + stream)
}

// aim cuts each commit that decides who may do what, on each side, so often: what is lost by chance is seldom one of these, and the end of a
// session would put it right.
func (c *cutter) aim(times int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.aims = map[aim]int{}
	for _, stage := range []string{"own a claim", "retrieval", "counts of an end"} {
		c.aims[aim{stage, wire.Before}], c.aims[aim{stage, wire.After}] = times, times
	}
}

// done returns an error unless there were as many cuts on each side, and all that was aimed at was hit.
func (c *cutter) done(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at, left := range c.aims {
		if left > 0 {
			return fmt.Errorf("%d cuts are missing at %s: %s", left, at.stage, at.side)
		}
	}
	if c.counts["COMMIT never arrived"] < n || c.counts["answer to COMMIT was lost"] < n {
		return fmt.Errorf("%v", c.counts)
	}
	return nil
}

// busiest is the index of the pod that works on most machines.
func (r *rig) busiest() (index int) {
	r.T.Helper()
	r.Eventually(testbed.Patience, "a pod works", func(ctx context.Context) error {
		most := 0
		for i, p := range r.pods {
			n, err := r.Number(ctx, "SELECT count(*) FROM work w JOIN sessions s ON s.session_id = w.session_id WHERE w.work_id IS NOT NULL AND s.session_runtime_info = $1", p.Name)
			if err != nil {
				return err
			}
			if n > most {
				most, index = n, i
			}
		}
		if most == 0 {
			return errors.New("none does")
		}
		return nil
	})
	return index
}

// during lets time pass.
func (r *rig) during(d time.Duration) {
	r.T.Helper()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.T.Context().Done():
	}
}

// sessionOf is the session of a pod that lives.
func (r *rig) sessionOf(ctx context.Context, p *pod) (id string, err error) {
	err = r.DB.QueryRow(ctx, "SELECT session_id::text FROM sessions WHERE session_runtime_info = $1 AND session_ended_at IS NULL", p.Name).Scan(&id)
	return id, err
}

// survives lets a pod suffer something that is shorter than its lease: its session is the same afterwards.
func (r *rig) survives(p *pod, d time.Duration, what string, begin, end func()) {
	r.T.Helper()
	r.awaitLiving(p)
	before, err := r.sessionOf(r.T.Context(), p)
	if err != nil {
		r.T.Fatal(err)
	}
	r.awaitBeat(p, before, "before it is "+what) // what a busy machine took of its lease already says nothing
	begin()
	r.during(d)
	end()
	r.struck(what)
	r.awaitBeat(p, before, what)
}

// awaitBeat waits until a session beats again.
func (r *rig) awaitBeat(p *pod, session, what string) {
	r.T.Helper()
	var deadline time.Time
	if err := r.DB.QueryRow(r.T.Context(), "SELECT deadline FROM session_leases WHERE session_id = $1", session).Scan(&deadline); err != nil {
		r.T.Errorf("%s: %s lost its session: %v", what, p.Name, err)
		return
	}
	r.Eventually(testbed.Patience, what+": "+p.Name+" beats again", func(ctx context.Context) error {
		var now time.Time
		err := r.DB.QueryRow(ctx, "SELECT deadline FROM session_leases WHERE session_id = $1", session).Scan(&now)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			r.T.Fatalf("%s: %s lost its session", what, p.Name)
		case err == nil && !now.After(deadline):
			err = errors.New("its lease is that of before")
		}
		return err
	})
}

// awaitGivenUp waits until others have ended the session of a pod.
func (r *rig) awaitGivenUp(p *pod) {
	r.T.Helper()
	r.Eventually(testbed.Patience, p.Name+" is given up", func(ctx context.Context) error {
		_, err := r.sessionOf(ctx, p)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return nil
		case err == nil:
			return errors.New("its session lives")
		}
		return err
	})
}

// awaitLiving waits until a pod has a session, without having been started again.
func (r *rig) awaitLiving(p *pod) {
	r.T.Helper()
	r.Eventually(testbed.Patience, p.Name+" has a session", func(ctx context.Context) error {
		if err := p.process.Load().Err(); err != nil {
			r.T.Fatalf("%s has ended: %v", p.Name, err)
		}
		if _, err := r.sessionOf(ctx, p); err != nil {
			return err
		}
		return p.Ready(ctx)
	})
}

// verifyAcknowledged checks that every end that a pod was told of is in the database as it was told.
func (r *rig) verifyAcknowledged() {
	r.T.Helper()
	rows, err := r.DB.Query(r.T.Context(), "SELECT work_id::text, event FROM work_history WHERE phase = 1")
	if err != nil {
		r.T.Fatal(err)
	}
	ends := map[string]string{}
	var work, event string
	if _, err := pgx.ForEachRow(rows, []any{&work, &event}, func() error { ends[work] = event; return nil }); err != nil {
		r.T.Fatal(err)
	}
	for _, p := range r.pods {
		told, _ := p.Logged(0, func(e testbed.LogEntry) bool { return e.Text("msg") == "ended work" })
		for _, e := range told {
			want := map[string]string{"finished": "Finished", "failed": "Failed"}[e.Text("end")]
			if got := ends[e.Text("work")]; got != want && (want != "Finished" || got != "Canceled") {
				r.T.Errorf("%s was told that work %s is %s, the database has %q", p.Name, e.Text("work"), want, got)
			}
		}
		run.tally.add(r.fault, "works whose end was acknowledged", int64(len(told)))
	}
}
