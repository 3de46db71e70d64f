// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/ours"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/peer"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/stats"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/usage"
)

// endToEnd is P5: claims through a real API server, beside a client that does no more than make the same objects and write their statuses as often.
func (s *suite) endToEnd(ctx context.Context) (err error) {
	claims, rounds := pick(s, 100, 2000), pick(s, 2, 3)
	url, drop, err := s.databases.fresh(ctx, "migrated", migrated)
	if err != nil {
		return err
	}
	defer drop()
	c, err := s.openCluster(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := c.provider(ctx, 0); err != nil {
		return err
	}
	m := &claimMeasure{suite: s, cluster: c, claims: claims}
	if err := m.start(ctx, "pod"); err != nil {
		return err
	}
	s.say("P5: making %d machines", claims*rounds)
	if err := c.makeMachines(ctx, 0, claims*rounds, 30*time.Minute); err != nil {
		return err
	}
	for round := range rounds {
		if err := m.round(ctx, round); err != nil {
			return err
		}
	}
	m.report()
	return nil
}

// claimMeasure is P5's rounds.
type claimMeasure struct {
	*suite
	cluster  *cluster
	claims   int
	operator *operator

	rates, plain                    []float64 // claims and objects a second
	claimWrites, machineWrites, cpu []float64 // writes for a claim; cores
	resident                        int64
	allWrites                       []float64 // requests of the operator that write, for a claim
	waits, works                    []float64 // milliseconds until a claim is taken up, and until it is complete
}

// start starts an operator, and waits until it has nothing to do.
func (m *claimMeasure) start(ctx context.Context, name string) (err error) {
	if m.operator, err = m.cluster.start(ctx, name); err != nil {
		return err
	}
	const calm = 3 * time.Second // it looks at all objects at its start
	if err := pause(ctx, calm); err != nil {
		return err
	}
	return m.shown(ctx)
}

// round lets the operator carry out claims, and then the plain client make as many objects, with as many writes of a status.
func (m *claimMeasure) round(ctx context.Context, round int) error {
	before, err := m.cluster.requests(ctx)
	if err != nil {
		return err
	}
	used, err := usage.Of(m.operator.process.Pid())
	if err != nil {
		return err
	}
	took, err := m.cluster.carriedOut(ctx, m.claims, fmt.Sprintf("claim-%d", round), func(ctx context.Context, name string) error {
		return m.cluster.client.Create(ctx, claim(name, v1alpha1.WorkClaimSpec{Mode: v1alpha1.WorkModeOnce, Completions: 1}))
	})
	if err != nil {
		return fmt.Errorf("claims: %w", err)
	}
	now, err := usage.Of(m.operator.process.Pid())
	if err != nil {
		return err
	}
	if err := m.settled(ctx, m.claims*(round+1)); err != nil {
		return err
	}
	after, err := m.cluster.requests(ctx)
	if err != nil {
		return err
	}
	if err := m.phases(ctx, round, fmt.Sprintf("claim-%d-", round)); err != nil {
		return err
	}
	per := func(resource string) float64 {
		return float64(writesOf(after, resource)-writesOf(before, resource)) / float64(m.claims)
	}
	perClaim, perMachine := per("workclaims/status"), per("machines/status")
	m.allWrites = append(m.allWrites, per("")-1) // it was not the operator that made the claims
	for _, what := range slices.Sorted(maps.Keys(after)) {
		if n := after[what] - before[what]; n >= int64(m.claims)/10 {
			m.say("P5 round %d: %6.2f  %s for each claim", round+1, float64(n)/float64(m.claims), what)
		}
	}
	m.rates, m.claimWrites, m.machineWrites = append(m.rates, float64(m.claims)/took.Seconds()), append(m.claimWrites, perClaim), append(m.machineWrites, perMachine)
	m.cpu, m.resident = append(m.cpu, now.Since(used)), max(m.resident, now.Peak)
	// Nobody but the plain client writes meanwhile.
	if err := m.operator.end(syscall.SIGTERM); err != nil {
		return err
	}
	writes := max(int(math.Round(perClaim+perMachine)), 1)
	took, err = m.cluster.carriedOut(ctx, m.claims, fmt.Sprintf("plain-%d", round), func(ctx context.Context, name string) error { return m.cluster.plainClaim(ctx, name, writes) })
	if err != nil {
		return fmt.Errorf("plain client: %w", err)
	}
	if err := m.cluster.deletePlain(ctx, fmt.Sprintf("plain-%d", round)); err != nil {
		return err
	}
	if err := m.start(ctx, fmt.Sprintf("pod-%d", round)); err != nil {
		return err
	}
	m.plain = append(m.plain, float64(m.claims)/took.Seconds())
	m.say("P5 round %d: %.0f claims/s with %.2f writes of their and %.2f of machines' statuses each; plain client %.0f/s with %d", round+1,
		m.rates[round], perClaim, perMachine, m.plain[round], writes)
	return nil
}

// phases shows where the time of a round went, by the database: claims are recorded, taken up, and complete.
func (m *claimMeasure) phases(ctx context.Context, round int, prefix string) error {
	var recorded, taken, complete, waited, worked float64
	err := m.cluster.db.QueryRow(ctx, `
SELECT extract(epoch FROM max(created_at) - min(created_at))::float8, extract(epoch FROM max(started_at) - min(created_at))::float8,
    extract(epoch FROM max(completed_at) - min(created_at))::float8,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - created_at)::float8),
    percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM completed_at - started_at)::float8)
FROM claims WHERE pool = $1 AND claim_key LIKE $2 || '%'`, pool, prefix).Scan(&recorded, &taken, &complete, &waited, &worked)
	if err != nil {
		return fmt.Errorf("ask where the time went: %w", err)
	}
	m.say("P5 round %d: from the first claim's record until the last was recorded %.1f s, taken up %.1f s, complete %.1f s; a claim waited %.2f s to be taken up and was complete %.2f s later (median)",
		round+1, recorded, taken, complete, waited, worked)
	m.waits, m.works = append(m.waits, waited*1000), append(m.works, worked*1000)
	return nil
}

// shown waits until nothing is left to show.
func (m *claimMeasure) shown(ctx context.Context) error {
	const patience = 5 * time.Minute
	return m.cluster.until(ctx, patience, "everything to be shown", func(ctx context.Context) error {
		var pending int
		err := m.cluster.db.QueryRow(ctx, `SELECT (SELECT count(*) FROM machine_state WHERE rev <> spread_rev) + (SELECT count(*) FROM claims WHERE rev <> spread_rev)
			+ (SELECT count(*) FROM projection WHERE rev <> done_rev)`).Scan(&pending)
		if err == nil && pending > 0 {
			err = fmt.Errorf("%d changes are to be shown", pending)
		}
		return err
	})
}

// settled waits until nothing is left to show, and sees that as many machines were done as there are claims.
func (m *claimMeasure) settled(ctx context.Context, want int) error {
	if err := m.shown(ctx); err != nil {
		return err
	}
	done, err := ours.Count(ctx, m.cluster.databases, pool)
	if err != nil {
		return err
	}
	if err := done.Whole(); err != nil {
		return err
	}
	if int(done.Finished) != want {
		return fmt.Errorf("the database says %d works finished for %d claims of one machine", done.Finished, want)
	}
	return nil
}

func (m *claimMeasure) report() {
	r := m.run
	r.Median("P5.claims", m.rates, "claims/s")
	r.Median("P5.plain", m.plain, "objects/s")
	r.Ratio("P5.claims/plain", m.rates, m.plain, "")
	r.Median("P5.status-writes/claim", m.claimWrites, "")
	r.Median("P5.machine-status-writes/claim", m.machineWrites, "")
	r.Median("P5.api-writes/claim", m.allWrites, "of whatever")
	r.Median("P5.claim.until-taken-up", m.waits, "ms (median of the claims)")
	r.Median("P5.claim.until-complete", m.works, "ms after that (median of the claims)")
	r.Median("P5.pod.cpu", m.cpu, "cores")
	r.Value("P5.pod.memory", float64(m.resident)/(1<<20), "MiB at most")
}

// carriedOut makes objects, several at once, and returns how long it took until all of them were seen to be complete.
func (c *cluster) carriedOut(ctx context.Context, n int, prefix string, create func(ctx context.Context, name string) error) (time.Duration, error) {
	const patience = 15 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	names := map[string]bool{}
	for i := range n {
		names[objectName(prefix, i)] = true
	}
	began := time.Now()
	var making sync.WaitGroup
	failed := error(nil)
	making.Go(func() {
		failed = each(ctx, 0, n, func(ctx context.Context, i int) error { return create(ctx, objectName(prefix, i)) })
		if failed != nil {
			cancel()
		}
	})
	err := c.seeComplete(ctx, names)
	took := time.Since(began)
	making.Wait()
	return took, errors.Join(failed, err)
}

func objectName(prefix string, i int) string { return fmt.Sprintf("%s-%05d", prefix, i) }

// seeComplete returns when all objects of these names were seen to be complete.
func (c *cluster) seeComplete(ctx context.Context, names map[string]bool) error {
	n := len(names)
	see := func(w *v1alpha1.WorkClaim) {
		if isComplete(w) {
			delete(names, w.Name)
		}
	}
	for len(names) > 0 {
		// An API server may end a watch at any time.
		list := &v1alpha1.WorkClaimList{}
		if err := c.client.List(ctx, list, client.InNamespace(pool)); err != nil {
			return fmt.Errorf("%d of %d are not complete: %w", len(names), n, err)
		}
		for i := range list.Items {
			see(&list.Items[i])
		}
		watching, err := c.client.Watch(ctx, &v1alpha1.WorkClaimList{}, client.InNamespace(pool), &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.ResourceVersion}})
		if err != nil {
			return fmt.Errorf("%d of %d are not complete: %w", len(names), n, err)
		}
		for open := true; open && len(names) > 0; {
			var event watch.Event
			if event, open = <-watching.ResultChan(); open {
				if w, isClaim := event.Object.(*v1alpha1.WorkClaim); isClaim {
					see(w)
				}
			}
		}
		watching.Stop()
	}
	return nil
}

func isComplete(w *v1alpha1.WorkClaim) bool {
	for _, condition := range w.Status.Conditions {
		if condition.Type == string(v1alpha1.ConditionComplete) {
			return condition.Status == metav1.ConditionTrue
		}
	}
	return false
}

// plainClaim makes an object and writes its status so many times; the last time it says that it is complete.
func (c *cluster) plainClaim(ctx context.Context, name string, writes int) error {
	suspended := true
	w := claim(name, v1alpha1.WorkClaimSpec{Mode: v1alpha1.WorkModeOnce, Completions: 1, Suspend: &suspended})
	if err := c.client.Create(ctx, w); err != nil {
		return err
	}
	for i := range writes {
		status, reason := metav1.ConditionFalse, v1alpha1.ReasonPending
		if i == writes-1 {
			status, reason = metav1.ConditionTrue, v1alpha1.ReasonComplete
		}
		now := metav1.Now()
		w.Status.Conditions = nil
		for _, condition := range []v1alpha1.ConditionType{
			v1alpha1.ConditionReady, v1alpha1.ConditionManaged, v1alpha1.ConditionFinished, v1alpha1.ConditionComplete, v1alpha1.ConditionFailed,
		} {
			w.Status.Conditions = append(w.Status.Conditions, metav1.Condition{
				Type: string(condition), Status: status, Reason: string(reason), Message: fmt.Sprintf("write %d", i), LastTransitionTime: now, ObservedGeneration: w.Generation,
			})
		}
		w.Status.Key, w.Status.Progress = name, fmt.Sprintf("%d/%d", i+1, writes)
		if err := c.client.Status().Update(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

// deletePlain deletes what the plain client made, before the operator sees it.
func (c *cluster) deletePlain(ctx context.Context, prefix string) error {
	list := &v1alpha1.WorkClaimList{}
	if err := c.client.List(ctx, list, client.InNamespace(pool)); err != nil {
		return fmt.Errorf("list claims: %w", err)
	}
	return each(ctx, 0, len(list.Items), func(ctx context.Context, i int) error {
		if w := &list.Items[i]; len(w.Name) > len(prefix) && w.Name[:len(prefix)] == prefix {
			return c.client.Delete(ctx, w)
		}
		return nil
	})
}

// largeClaim is P6: one claim on many machines, beside the library alone with the workers of P1, and with as many as the operator has.
func (s *suite) largeClaim(ctx context.Context) error {
	const (
		workersOfP1       = 64
		workersOfOperator = 128 // its default
	)
	machines, rounds := pick(s, 1500, 10_000), pick(s, 1, 5)
	var rates, alone, asMany, writes, writesPerSecond []float64
	for round := range rounds {
		few, err := s.libraryAlone(ctx, machines, workersOfP1)
		if err != nil {
			return err
		}
		many, err := s.libraryAlone(ctx, machines, workersOfOperator)
		if err != nil {
			return err
		}
		alone, asMany = append(alone, few), append(asMany, many)
		rate, n, took, err := s.roundOfLargeClaim(ctx, machines)
		if err != nil {
			return err
		}
		rates, writes, writesPerSecond = append(rates, rate), append(writes, float64(n)), append(writesPerSecond, float64(n)/took.Seconds())
		s.say("P6 round %d: %.0f machines/s with %d writes of the status in %.1f s; library alone %.0f/s with %d workers, %.0f/s with %d", round+1,
			rate, n, took.Seconds(), few, workersOfP1, many, workersOfOperator)
	}
	s.run.Median("P6.claim", rates, "machines/s")
	s.run.Median("P6.batched", alone, "machines/s")
	s.run.Ratio("P6.claim/batched", rates, alone, "")
	s.run.Ratio("P6.claim/as-many", rates, asMany, "the library with as many workers as the operator")
	s.run.Median("P6.status-writes", writes, fmt.Sprintf("for %d machines", machines))
	s.run.Add(result.Figure{Name: "P6.status-writes/machine", Value: stats.Median(writes) / float64(machines)})
	s.run.Median("P6.status-writes-per-second", writesPerSecond, "while it runs")
	return nil
}

// libraryAlone is how many machines a second the library works off for one claim with some workers.
func (s *suite) libraryAlone(ctx context.Context, machines, workers int) (rate float64, err error) {
	r, err := s.withProgram(ctx, machines, func(p *ours.Program) (peer.Result, error) {
		owned, err := own(ctx, p, ours.Drain(pool, "bench", workers))
		if err != nil {
			return peer.Result{}, err
		}
		return p.Batched(ctx, []*bmdb.OwnedClaim{owned}, workers, peer.Timing{During: time.Minute})
	})
	if err != nil {
		return 0, fmt.Errorf("library alone: %w", err)
	}
	return r.Rate(), nil
}

// roundOfLargeClaim lets an operator with its default flags carry out one claim, on machines that the database has and the cluster does not show.
func (s *suite) roundOfLargeClaim(ctx context.Context, machines int) (rate float64, writes int64, took time.Duration, err error) {
	url, drop, err := s.databases.fresh(ctx, fmt.Sprintf("ready-%d", machines), filled(ready(machines)))
	if err != nil {
		return 0, 0, 0, err
	}
	defer drop()
	c, err := s.openCluster(ctx, url)
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := c.provider(ctx, 0); err != nil {
		return 0, 0, 0, err
	}
	if _, err := c.start(ctx, "pod"); err != nil {
		return 0, 0, 0, err
	}
	if _, err := c.carriedOut(ctx, 1, "large", func(ctx context.Context, name string) error {
		return c.client.Create(ctx, claim(name, v1alpha1.WorkClaimSpec{Mode: v1alpha1.WorkModeOnce, Completions: int32(machines), Parallelism: 10_000}))
	}); err != nil {
		return 0, 0, 0, err
	}
	if writes, err = c.statusWrites(ctx, "workclaims"); err != nil {
		return 0, 0, 0, err
	}
	done, err := ours.Count(ctx, url, pool)
	if err != nil {
		return 0, 0, 0, err
	}
	if err := done.Whole(); err != nil {
		return 0, 0, 0, err
	}
	if int(done.Finished) != machines {
		return 0, 0, 0, fmt.Errorf("the database says %d finished, the claim wanted %d", done.Finished, machines)
	}
	var seconds float64
	const span = "SELECT extract(epoch FROM max(timestamp) - min(timestamp))::float8 FROM work_history"
	if err := c.db.QueryRow(ctx, span).Scan(&seconds); err != nil {
		return 0, 0, 0, fmt.Errorf("ask for the rate: %w", err)
	}
	return float64(machines) / seconds, writes, time.Duration(seconds * float64(time.Second)), nil
}
