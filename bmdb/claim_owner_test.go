// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// Two that saw the same claim without an owner: the slower one must not take it from the faster one, who lives.
func TestTakeoverDoesNotStealFromALivingOwner(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	var stops gates
	slow := l.another(inClusterA, stops.config)
	register(t, l.conn, 1)
	spec := agentStart("c", bmdb.ModeOnce)
	spec.Names = names(1)
	dead := l.session()
	attach(t, l.conn, dead, spec)
	if err := dead.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	late := start(t, slow, bmdb.WithoutMaintenance())
	stop := stops.at("own claims", "TakeClaims")
	type result struct {
		owned []*bmdb.OwnedClaim
		err   error
	}
	results := make(chan result, 1)
	go func() {
		owned, err := late.OwnClaims(context.Background(), 1)
		results <- result{owned, err}
	}()
	done(t, "the slower one has read the epoch", stop.reached)
	owner := l.session()
	owned, err := owner.OwnClaims(t.Context(), 1)
	if err != nil || len(owned) != 1 {
		t.Fatalf("the faster one owns %d claims, %v", len(owned), err)
	}
	stop.open <- nil
	if r := done(t, "the slower one", results); r.err != nil || len(r.owned) != 0 {
		t.Fatalf("the slower one took %d claims, %v", len(r.owned), r.err)
	}
	if works := round(t, owner, owned[0], 1); len(works) != 1 {
		t.Errorf("the owner started %d works, want 1", len(works))
	} else {
		works[0].Cancel(t.Context())
	}
	// While the owner lives there is nothing to take up.
	if again, err := late.OwnClaims(t.Context(), 1); err != nil || len(again) != 0 {
		t.Errorf("took %d claims of a living owner, %v", len(again), err)
	}
	events, err := l.conn.AuditOf(t.Context(), pool, bmdb.KindClaim, "c", 10)
	if err != nil || len(events) != 1 || events[0].Event != bmdb.AuditTakenOver {
		t.Errorf("audit: %+v, %v", events, err)
	}
}

// An owner that sleeps through its own succession starts nothing more, and says so.
func TestFormerOwnerStartsNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	register(t, l.conn, 2)
	spec := agentStart("c", bmdb.ModeOnce)
	spec.Names, spec.Parallelism = names(2), 2
	former := l.session()
	o := attach(t, l.conn, former, spec)
	if err := former.ReleaseClaim(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	successor := l.session()
	owned, err := successor.OwnClaims(t.Context(), 1)
	if err != nil || len(owned) != 1 {
		t.Fatalf("owns %d claims, %v", len(owned), err)
	}
	works, err := former.StartBatch(t.Context(), bmdb.StartRequest{
		Process: "AgentStart", Pool: pool, Provider: "lab", Limit: 2, Claim: &bmdb.ClaimRef{Key: "c", Epoch: o.Epoch},
		Candidates: machinesOf(t, l, pool),
	})
	if err != nil || len(works) != 0 {
		t.Errorf("a former owner started %d works, %v", len(works), err)
	}
	if _, err := former.ClaimRound(t.Context(), o, 1); !errors.Is(err, bmdb.ErrClaimLost) {
		t.Errorf("round of a former owner: %v", err)
	}
	if _, err := former.ReviewClaim(t.Context(), o); !errors.Is(err, bmdb.ErrClaimLost) {
		t.Errorf("review by a former owner: %v", err)
	}
	finish(t, round(t, successor, owned[0], 2)...)
	if got := snapshot(t, l.conn, "c"); got.State != bmdb.ClaimComplete || got.Succeeded != 2 {
		t.Errorf("at the end: %+v", got)
	}
}

// Only pods of clusters that can reach the machines own a claim; one that cannot any more gives it up.
func TestOwnerThatCannotRunReleases(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	inB := l.another(func(c *bmdb.Config) { c.Cluster = "b" })
	b := start(t, inB, bmdb.WithoutMaintenance())
	register(t, l.conn, 1)
	spec := agentStart("c", bmdb.ModeOnce)
	spec.Names = names(1)
	a := l.session()
	o := attach(t, l.conn, a, spec)
	ofB := bmdb.View{Cluster: "b", UID: "b", Name: "c"}
	if _, err := inB.AttachClaim(t.Context(), ofB, spec, true); err != nil {
		t.Fatal(err)
	}
	if owned, err := b.OwnClaims(t.Context(), 1); err != nil || len(owned) != 0 {
		t.Fatalf("b owns %d claims, %v", len(owned), err)
	}
	if _, err := l.conn.AttachClaim(t.Context(), view("c"), spec, false); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ClaimRound(t.Context(), o, 1); !errors.Is(err, bmdb.ErrClaimLost) {
		t.Fatalf("round without a provider: %v", err)
	}
	if owned, err := a.OwnClaims(t.Context(), 1); err != nil || len(owned) != 0 {
		t.Fatalf("a owns %d claims again, %v", len(owned), err)
	}
	owned, err := b.OwnClaims(t.Context(), 1)
	if err != nil || len(owned) != 1 {
		t.Fatalf("b owns %d claims, %v", len(owned), err)
	}
	finish(t, round(t, b, owned[0], 1)...)
}

// Sixteen workers under one owner after another, who are killed: the counts in the claim's row are those of the rows that they count,
// parallelism is never exceeded, and each machine is done once.
func TestCountsUnderWorkersAndAKiller(t *testing.T) {
	t.Parallel()
	const fleet, parallelism, workers = 60, 7, 16
	l := newLab(t, inClusterA)
	ids := register(t, l.conn, fleet)
	spec := agentStart("many", bmdb.ModeOnce)
	spec.Names, spec.Parallelism, spec.MaxAttempts = names(fleet), parallelism, 1000
	attachOnly(t, l.conn, spec)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	var monitored sync.WaitGroup
	over := make(chan struct{})
	monitored.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(2 * time.Millisecond):
			}
			var working, active int64
			err := l.db.QueryRow(ctx, `SELECT (SELECT count(*) FROM work WHERE claim_key = 'many' AND work_id IS NOT NULL), active FROM claims WHERE claim_key = 'many'`).Scan(&working, &active)
			if err == nil && (working != active || working > parallelism) {
				t.Errorf("%d works, %d counted, at most %d allowed", working, active, parallelism)
			}
		}
	})
	for complete := false; !complete && ctx.Err() == nil; {
		s := l.session()
		complete = ownUntil(ctx, t, l, s, workers)
	}
	close(over)
	monitored.Wait()
	got := snapshot(t, l.conn, "many")
	if got.State != bmdb.ClaimComplete || got.Succeeded != fleet || got.Active != 0 {
		t.Fatalf("at the end: %+v", got)
	}
	if n := l.int("SELECT count(*) FROM claim_machines WHERE finished_work_id IS NOT NULL"); n != fleet {
		t.Errorf("%d machines are done, want %d", n, fleet)
	}
	if n := l.int("SELECT count(DISTINCT machine_id) FROM work_history WHERE event = 'Finished'"); n != fleet {
		t.Errorf("%d machines have a success in their history, want %d", n, fleet)
	}
	if n := l.int("SELECT count(*) FROM work_history WHERE event = 'Finished'"); n != fleet {
		t.Errorf("%d successes, want %d", n, fleet)
	}
	if n := l.int("SELECT count(*) FROM work_history WHERE event = 'Lost'"); n == 0 {
		t.Error("no work was lost: the killer did nothing")
	}
	checkInvariants(t, l.db, ids...)
}

// ownUntil owns the claim and works for it until it is complete, or until the session is killed after some works.
func ownUntil(ctx context.Context, t *testing.T, l *lab, s *bmdb.Session, workers int) (complete bool) {
	owned, err := s.OwnClaims(ctx, 1)
	if err != nil || len(owned) != 1 {
		return errors.Is(err, context.DeadlineExceeded) || snapshot(t, l.conn, "many").State == bmdb.ClaimComplete
	}
	var busy sync.WaitGroup
	defer busy.Wait()
	free := make(chan struct{}, workers)
	for range workers {
		free <- struct{}{}
	}
	for left := 10 + rand.IntN(10); ; {
		works, err := s.ClaimRound(ctx, owned[0], len(free))
		switch {
		case errors.Is(err, bmdb.ErrClaimLost):
			return snapshot(t, l.conn, "many").State == bmdb.ClaimComplete
		case errors.Is(err, bmdb.ErrNothingToDo):
			select {
			case <-ctx.Done():
				return false
			case <-time.After(5 * time.Millisecond):
			}
		case err != nil:
			t.Errorf("round: %v", err)
			return true
		}
		if left -= len(works); left <= 0 && len(works) > 0 {
			// Killed in the middle, with works that nobody ended, as another pod's reaper does it.
			l.expire(s.UUID)
			l.reap(l.conn)
			return false
		}
		for _, w := range works {
			<-free
			busy.Go(func() {
				defer func() { free <- struct{}{} }()
				var err error
				switch rand.IntN(6) {
				case 0:
					err = w.Fail(ctx, &bmdb.Backoff{Initial: time.Second}, "by chance")
				case 1:
					w.Cancel(ctx)
				default:
					err = w.FinishData(ctx, bmdb.Outcome{AgentPublicKey: []byte("key")})
				}
				if err != nil && !errors.Is(err, bmdb.ErrWorkLost) {
					t.Errorf("end: %v", err)
				}
			})
		}
	}
}
