// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

func limited(n int64) bmdb.ProviderLimits {
	return bmdb.ProviderLimits{Pool: pool, Provider: "lab", Parallelism: &n}
}

func attachProvider(t *testing.T, conn *bmdb.Connection, v bmdb.View, l bmdb.ProviderLimits) {
	t.Helper()
	if err := conn.AttachProvider(t.Context(), v, l); err != nil {
		t.Fatal(err)
	}
}

func provider(t *testing.T, conn *bmdb.Connection, cluster string) bmdb.ProviderState {
	t.Helper()
	p, err := conn.ProviderSnapshot(t.Context(), cluster, pool, "lab")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func startLab(ctx context.Context, s *bmdb.Session, limit int, candidates []uuid.UUID) ([]*bmdb.Work, error) {
	return s.StartBatch(ctx, bmdb.StartRequest{Process: "AgentStart", Pool: pool, Provider: "lab", Limit: limit, Candidates: candidates})
}

// Who took the last place of a limit knows that others may be waiting for it.
func TestLastPlace(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	attachProvider(t, l.conn, view("lab"), limited(3))
	register(t, l.conn, 8)
	ids := machinesOf(t, l, pool)
	s := l.session()
	start := func(limit, want int, last bool) (works []*bmdb.Work) {
		t.Helper()
		works, err := startLab(t.Context(), s, limit, ids)
		if err != nil || len(works) != want {
			t.Fatalf("%d works, want %d: %v", len(works), want, err)
		}
		for _, w := range works {
			if w.LastPlace() != last {
				t.Errorf("a start of %d says %t of the last place", limit, !last)
			}
		}
		return works
	}
	first := start(2, 2, false)
	start(1, 1, true)
	start(1, 0, false)
	for _, w := range first {
		w.Cancel(t.Context())
	}
	start(5, 2, true)
	attachProvider(t, l.conn, view("lab"), bmdb.ProviderLimits{Pool: pool, Provider: "lab"})
	start(2, 2, false)
}

// Thirty-two starters, and a limit that moves meanwhile: no start is one too many at the limit that is in force when it commits.
func TestLimitIsExactWhileItMoves(t *testing.T) {
	t.Parallel()
	const starters, fleet = 32, 64
	l := newLab(t, inClusterA, func(c *bmdb.Config) { c.MaxConnections = 16 })
	attachProvider(t, l.conn, view("lab"), limited(20))
	register(t, l.conn, fleet)
	ids := machinesOf(t, l, pool)
	s := l.session()
	limit := int64(20)
	over := make(chan struct{})
	var running sync.WaitGroup
	var started atomic.Int64
	for range starters {
		running.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				from := rand.IntN(fleet - 8)
				works, err := startLab(context.Background(), s, 1+rand.IntN(3), ids[from:from+8])
				if err != nil {
					t.Errorf("start: %v", err)
					return
				}
				started.Add(int64(len(works)))
				for _, w := range works {
					w.Cancel(context.Background())
				}
			}
		})
	}
	running.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
			}
			// Slots that are used or may be taken, as of one moment, are never more than the limit, unless works drain; then none is open.
			n := l.int(`SELECT count(*) FROM limits m WHERE
				(SELECT count(*) FROM limit_slots s WHERE s.limit_id = m.limit_id AND (s.open OR s.work_id IS NOT NULL)) > m.maximum
				AND EXISTS (SELECT 1 FROM limit_slots s WHERE s.limit_id = m.limit_id AND s.open)`)
			if n > 0 {
				t.Error("more slots are open or used than the limit allows")
			}
		}
	})
	for _, next := range []int64{5, 20, 1, 0, 12, 2} {
		lowered := next < limit
		attachProvider(t, l.conn, view("lab"), limited(next))
		limit = next
		if lowered {
			eventually(t, "the lowered limit has drained", func() bool {
				if err := l.conn.ArrangeLimits(t.Context()); err != nil {
					t.Error(err)
				}
				return l.int("SELECT count(*) FROM work WHERE work_id IS NOT NULL") <= next
			})
		}
		for range 10 {
			if err := l.conn.ArrangeLimits(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := l.int("SELECT count(*) FROM work WHERE work_id IS NOT NULL"); lowered && n > next {
				t.Errorf("%d works go on after a drain to %d", n, next)
			}
		}
	}
	close(over)
	running.Wait()
	if started.Load() == 0 {
		t.Error("nothing was started")
	}
	if n := l.int("SELECT count(*) FROM limit_slots WHERE work_id IS NOT NULL"); n != 0 {
		t.Errorf("%d slots are used when nothing goes on", n)
	}
	if err := l.conn.ArrangeLimits(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := l.int("SELECT count(*) FROM limit_slots WHERE open"); n != 2 {
		t.Errorf("%d slots are open, want 2", n)
	}
	checkInvariants(t, l.db, ids...)
}

// A limit that is introduced while works go on counts them.
func TestIntroducedLimitCountsWhatGoesOn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ids := register(t, l.conn, 6)
	s := l.session()
	works, err := startLab(t.Context(), s, 3, ids)
	if err != nil || len(works) != 3 {
		t.Fatalf("started %d works, %v", len(works), err)
	}
	attachProvider(t, l.conn, view("lab"), limited(4))
	if p := provider(t, l.conn, "a"); !p.Settling || p.Working != 3 || p.Machines != 6 || *p.Parallelism != 4 {
		t.Errorf("while it settles: %+v", p)
	}
	if more, err := startLab(t.Context(), s, 6, ids); err != nil || len(more) != 0 {
		t.Errorf("started %d works while the limit settles, %v", len(more), err)
	}
	l.exec("UPDATE limits SET settles_at = clock_timestamp()")
	if err := l.conn.ArrangeLimits(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p := provider(t, l.conn, "a"); p.Settling {
		t.Errorf("settled: %+v", p)
	}
	more, err := startLab(t.Context(), s, 6, ids)
	if err != nil || len(more) != 1 {
		t.Fatalf("started %d works beside the three, want 1, %v", len(more), err)
	}
	for _, w := range append(works, more...) {
		w.Cancel(t.Context())
	}
	more, err = startLab(t.Context(), s, 6, ids)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.conn.ArrangeLimits(t.Context()); err != nil {
		t.Fatal(err)
	}
	rest, err := startLab(t.Context(), s, 6, ids)
	if err != nil || len(more)+len(rest) != 4 {
		t.Errorf("started %d and %d works, want 4 in all, %v", len(more), len(rest), err)
	}
	for _, w := range append(more, rest...) {
		w.Cancel(t.Context())
	}
}

func TestSmallerLimitOfTwoViewsCounts(t *testing.T) {
	t.Parallel()
	conn := newLab(t).conn
	b := bmdb.View{Cluster: "b", UID: "b", Name: "lab"}
	ten, two := int64(10), int64(2)
	attachProvider(t, conn, view("lab"), bmdb.ProviderLimits{Pool: pool, Provider: "lab", Parallelism: &ten, MaxMachines: &two})
	attachProvider(t, conn, b, bmdb.ProviderLimits{Pool: pool, Provider: "lab", Parallelism: &two, MaxMachines: &ten})
	p := provider(t, conn, "b")
	if *p.Parallelism != 2 || *p.MaxMachines != 2 || p.Manages || p.Manager != "a" || p.Settling {
		t.Errorf("two views: %+v", p)
	}
	rev := p.Rev
	attachProvider(t, conn, b, bmdb.ProviderLimits{Pool: pool, Provider: "lab", Parallelism: &two, MaxMachines: &ten})
	if p := provider(t, conn, "b"); p.Rev != rev {
		t.Error("attaching the same again was a change")
	}
	register(t, conn, 2)
	spec := bmdb.MachineSpec{Pool: pool, Name: "third", Provider: "lab", ProviderID: "third"}
	var full *bmdb.AtLimitError
	if _, err := conn.RegisterMachine(t.Context(), view("third"), spec); !errors.As(err, &full) || full.Limit != 2 {
		t.Errorf("a third machine: %v", err)
	}
	if err := conn.DetachProvider(t.Context(), view("lab"), pool, "lab"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RegisterMachine(t.Context(), view("third"), spec); err != nil {
		t.Errorf("a third machine when the smaller limit is gone: %v", err)
	}
	attachProvider(t, conn, b, bmdb.ProviderLimits{Pool: pool, Provider: "lab"})
	if p := provider(t, conn, "b"); !p.Manages || p.Parallelism != nil || p.MaxMachines != nil || p.Machines != 3 {
		t.Errorf("the last view: %+v", p)
	}
}
