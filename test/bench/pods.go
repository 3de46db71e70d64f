// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/fleet"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/ours"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/peer"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/stats"
)

const (
	// podClaims is how many claims there are, on the same machines, whatever the number of pods.
	podClaims = 16
	// podWorkers is how many machines one pod works on at once: as many as in P1.
	podWorkers = 64
	// warmPool has the machines that pods work off before those that count.
	warmPool = "warm"
)

// manyPods is P3: more and more processes on the same machines.
func (s *suite) manyPods(ctx context.Context) error {
	counts := []int{1, 4, 16}
	rates := map[int][]float64{}
	var transactions, retries, conflicts, lost int64
	for round := range pick(s, 2, 5) {
		for _, pods := range counts {
			rate, reports, err := s.roundOfPods(ctx, pods, fmt.Sprintf("%d-%d", round, pods))
			if err != nil {
				return fmt.Errorf("%d pods: %w", pods, err)
			}
			rates[pods] = append(rates[pods], rate)
			for _, r := range reports {
				transactions, retries, conflicts, lost = transactions+r.Transactions, retries+r.Retries, conflicts+r.Conflicts, lost+r.LostSessions
			}
			s.say("P3 round %d: %2d pods %8.0f cycles/s", round+1, pods, rate)
		}
	}
	line := result.Line{Name: "batched"}
	for _, pods := range counts {
		s.run.Median(fmt.Sprintf("P3.pods-%d", pods), rates[pods], "cycles/s")
		line.X, line.Y = append(line.X, float64(pods)), append(line.Y, stats.Median(rates[pods]))
	}
	s.run.Plots = append(s.run.Plots, result.Plot{
		Title: "P3: work cycles per second, by pods on the same machines", XAxis: "pods", YAxis: "cycles/s", LogX: true, Lines: []result.Line{line},
	})
	s.run.Ratio("P3.pods-4/pods-1", rates[4], rates[1], "")
	s.run.Ratio("P3.pods-16/pods-4", rates[16], rates[4], "")
	s.run.Value("P3.conflicts", float64(conflicts+lost), "")
	s.run.Value("P3.retries/transactions", float64(retries)/float64(max(transactions, 1)), "")
	return nil
}

// roundOfPods lets pods work off claims on the same machines, and asks the database how fast they were.
func (s *suite) roundOfPods(ctx context.Context, pods int, name string) (rate float64, reports []podReport, err error) {
	warming := fleet.Fleet{Pool: warmPool, Provider: lab, Machines: pick(s, 3000, 8000)}
	url, drop, err := s.databases.fresh(ctx, "ready-twice", filled(ready(fleetMachines), warming))
	if err != nil {
		return 0, nil, err
	}
	defer drop()
	dir, err := os.MkdirTemp("", "bmdb-bench-pods-")
	if err != nil {
		return 0, nil, fmt.Errorf("make directory for logs: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	timing := pick(s, peer.Timing{Warm: time.Second, During: time.Second}, peer.Timing{Warm: 2 * time.Second, During: 5 * time.Second})
	var running []*runningPod
	defer func() {
		for _, r := range running {
			err = errors.Join(err, r.kill())
		}
	}()
	for i := range pods {
		p := pod{Name: fmt.Sprintf("pod-%d", i), Claims: podClaims / pods, Workers: podWorkers, Timing: timing}
		r, err := startPod(ctx, p, url, filepath.Join(dir, fmt.Sprintf("%s-%d.log", name, i)))
		if err != nil {
			return 0, nil, err
		}
		running = append(running, r)
	}
	if err := attachAll(ctx, url, warmPool); err != nil {
		return 0, nil, err
	}
	for _, r := range running {
		if err := r.await(ctx, warmLine); err != nil {
			return 0, nil, fmt.Errorf("warm up: %w", err)
		}
	}
	if err := attachAll(ctx, url, pool); err != nil {
		return 0, nil, err
	}
	var total int64
	for _, r := range running {
		report, err := r.wait(ctx)
		if err != nil {
			return 0, nil, err
		}
		reports, total = append(reports, report), total+report.Total
	}
	done, err := ours.Count(ctx, url, pool)
	if err != nil {
		return 0, nil, err
	}
	if err := done.Whole(); err != nil {
		return 0, nil, err
	}
	if done.Finished != total {
		return 0, nil, fmt.Errorf("the database says %d finished, the pods %d", done.Finished, total)
	}
	rate, err = rateOf(ctx, url, timing)
	return rate, reports, err
}

// attachAll records claims on the machines of a pool, which the pods wait for.
func attachAll(ctx context.Context, url, pool string) (err error) {
	p, err := ours.Open(ctx, url, ours.Options{Name: "bench", WithoutChores: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	for i := range podClaims {
		if err := p.Attach(ctx, ours.Drain(pool, fmt.Sprintf("claim-%02d", i), podWorkers)); err != nil {
			return err
		}
	}
	return nil
}

// rateOf asks the history how many works a second were finished from a time after the first start on, up to the end of the time that counts, or
// of the machines.
func rateOf(ctx context.Context, url string, t peer.Timing) (rate float64, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, fmt.Errorf("ask for the rate: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var n int64
	var seconds float64
	err = conn.QueryRow(ctx, `
WITH b AS (SELECT min(timestamp) + $1::bigint * interval '1 millisecond' AS low, min(timestamp) + ($1::bigint + $2::bigint) * interval '1 millisecond' AS high FROM work_history WHERE phase = 0 AND pool = $3)
SELECT count(*), COALESCE(extract(epoch FROM CASE WHEN (SELECT max(timestamp) FROM work_history WHERE pool = $3) < max(b.high) THEN max(h.timestamp) ELSE max(b.high) END - max(b.low)), 0)::float8
FROM work_history h CROSS JOIN b WHERE h.pool = $3 AND h.phase = 1 AND h.event = 'Finished' AND h.timestamp >= b.low AND h.timestamp < b.high`,
		t.Warm.Milliseconds(), t.During.Milliseconds(), pool).Scan(&n, &seconds)
	if err != nil {
		return 0, fmt.Errorf("ask for the rate: %w", err)
	}
	if seconds <= 0 {
		return 0, errors.New("ask for the rate: nothing was finished in the time that counts")
	}
	return float64(n) / seconds, nil
}
