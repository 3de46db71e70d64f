// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// counted is a session that counts how often its owner looks why it cannot start anything.
type counted struct {
	*bmdb.Session
	reviews *atomic.Int64
}

func (c counted) ReviewClaim(ctx context.Context, claim *bmdb.OwnedClaim) (bmdb.Outlook, error) {
	c.reviews.Add(1)
	return c.Session.ReviewClaim(ctx, claim)
}

// TestLineAtALimit: of many claims that wait for a place under a provider's limit only a few look for one at a time, whatever happens to the
// pool's machines meanwhile. When a place is free the next takes it at once, and each has its turn.
func TestLineAtALimit(t *testing.T) {
	machines := ids(60, "m")
	l := newLab(t, 64, append(machines, "first")...)
	limits := bmdb.ProviderLimits{Pool: pool, Provider: "lab", Parallelism: new(int64(1))}
	if err := l.conn.AttachProvider(t.Context(), bmdb.View{UID: "lab", Name: "lab"}, limits); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	l.on("first", until(release))
	var reviews atomic.Int64
	engine := l.pods(1, func(s *bmdb.Session) owner { return counted{s, &reviews} })[0]
	ofLab := func(c *bmdb.ClaimSpec) { c.Provider = "lab" }
	l.attach("first", true, ofLab, "first")
	l.eventually("the place is taken", func() error {
		if !engine.Holds(pool, "first") {
			return fmt.Errorf("it is not")
		}
		return nil
	})
	for _, m := range machines {
		l.attach(m, true, ofLab, m)
	}
	for _, m := range machines {
		l.await(m, bmdb.ClaimRunning, bmdb.OutlookAtLimit)
	}
	before, end, change := reviews.Load(), time.After(4*time.Second), time.NewTicker(250*time.Millisecond)
	defer change.Stop()
	for watching := true; watching; {
		select {
		case <-change.C:
			engine.WakePool(pool)
		case <-end:
			watching = false
		}
	}
	if n := reviews.Load() - before; n > 60 {
		t.Errorf("60 claims looked %d times for a place, while there was none", n)
	}
	close(release)
	began := time.Now()
	for _, m := range machines {
		l.await(m, bmdb.ClaimComplete, bmdb.OutlookComplete)
	}
	// One look in a second would take a minute.
	if took := time.Since(began); took > patience {
		t.Errorf("60 claims had their turn within %s", took)
	}
}

// content is a session that takes up no more claims once it has enough of them.
type content struct {
	*bmdb.Session
	enough *atomic.Bool
}

func (c content) OwnClaims(ctx context.Context, limit int) ([]*bmdb.OwnedClaim, error) {
	if c.enough.Load() {
		return nil, nil
	}
	return c.Session.OwnClaims(ctx, limit)
}

// TestPlacesForOtherPods: a claim whose works use up a provider's limit all the time, and begin again within milliseconds, leaves places to claims of
// other pods now and then.
func TestPlacesForOtherPods(t *testing.T) {
	const (
		limit = 2
		works = 60 * limit
		each  = 500 * time.Millisecond
	)
	long, short := ids(works, "long"), ids(4, "short")
	l := newLab(t, 64, append(short, long...)...)
	limits := bmdb.ProviderLimits{Pool: pool, Provider: "lab", Parallelism: new(int64(limit))}
	if err := l.conn.AttachProvider(t.Context(), bmdb.View{UID: "lab", Name: "lab"}, limits); err != nil {
		t.Fatal(err)
	}
	for _, m := range long {
		l.on(m, func(ctx context.Context, m provider.Machine, _ provider.Steps) (provider.Agent, error) {
			select {
			case <-time.After(each):
			case <-ctx.Done():
			}
			return agentOf(m), context.Cause(ctx)
		})
	}
	ofLab := func(c *bmdb.ClaimSpec) { c.Provider = "lab" }
	var enough atomic.Bool
	l.engine.YieldEvery(5 * time.Second)
	l.serveWith(l.engine, func(s *bmdb.Session) owner { return content{s, &enough} })
	l.attach("long", true, ofLab, long...)
	l.eventually("all places are taken", func() error {
		if n := l.snapshot("long").Active; n != limit {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	enough.Store(true)
	l.pods(1, nil)
	for _, m := range short {
		l.attach(m, true, ofLab, m)
	}
	for _, m := range short {
		l.await(m, bmdb.ClaimComplete, bmdb.OutlookComplete)
	}
	if s := l.snapshot("long"); s.State != bmdb.ClaimRunning {
		t.Errorf("the others had their turn when the first claim was %s", s.State)
	}
}

// TestLimitThatIsNotUsedUp: where there are more places than are used nothing is left to other pods, who can have some at any time.
func TestLimitThatIsNotUsedUp(t *testing.T) {
	machines := ids(200, "m")
	l := newLab(t, 64, machines...)
	limits := bmdb.ProviderLimits{Pool: pool, Provider: "lab", Parallelism: new(int64(3))}
	if err := l.conn.AttachProvider(t.Context(), bmdb.View{UID: "lab", Name: "lab"}, limits); err != nil {
		t.Fatal(err)
	}
	l.engine.YieldEvery(time.Millisecond)
	l.serve()
	l.claim("c", func(c *bmdb.ClaimSpec) { c.Provider, c.Parallelism = "lab", 2 }, machines...)
	// A hundred pauses would take minutes.
	l.await("c", bmdb.ClaimComplete, bmdb.OutlookComplete)
}
