// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/stats"
)

// takenMachines is how many machines the pod holds that dies.
const takenMachines = 100

// takeover is P4: how long it takes until another operator has begun to work on what one held that died, and on what one held that was told to end.
// Both clocks are this machine's: that of the history, and the one that is read when the signal is sent.
func (s *suite) takeover(ctx context.Context) error {
	plot := result.Plot{Title: "P4: from the end of a pod to the next holder's start", XAxis: "percentile", YAxis: "milliseconds", LogY: true}
	worst := 0.0
	var terms []time.Duration
	for _, lease := range pick(s, []time.Duration{3 * time.Second}, []time.Duration{3 * time.Second, 10 * time.Second}) {
		kills, closes, err := s.takeovers(ctx, lease)
		if err != nil {
			return fmt.Errorf("lease of %s: %w", lease, err)
		}
		terms = append(terms, closes...)
		p99 := stats.Percentile(kills, 99)
		worst = max(worst, float64(p99)/float64(lease))
		name := fmt.Sprintf("P4.kill.lease-%s", lease)
		s.run.Value(name+".p50", milliseconds(stats.Percentile(kills, 50)), "ms")
		s.run.Value(name+".p99", milliseconds(p99), "ms")
		plot.Lines = append(plot.Lines, result.Distribution("kill -9, lease of "+lease.String(), kills), result.Distribution("SIGTERM, lease of "+lease.String(), closes))
	}
	s.run.Plots = append(s.run.Plots, plot)
	s.run.Value("P4.kill.p99/lease", worst, "")
	s.run.Value("P4.sigterm.p50", stats.Percentile(terms, 50).Seconds(), "s")
	s.run.Value("P4.sigterm.p99", stats.Percentile(terms, 99).Seconds(), "s")
	return nil
}

// takeovers ends one operator after the other, by kill -9 and by SIGTERM in turns. There always is one other.
func (s *suite) takeovers(ctx context.Context, lease time.Duration) (kills, closes []time.Duration, err error) {
	url, drop, err := s.databases.fresh(ctx, "ready-"+strconv.Itoa(takenMachines), filled(ready(takenMachines)))
	if err != nil {
		return nil, nil, err
	}
	defer drop()
	c, err := s.openCluster(ctx, url)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	const forever = time.Hour
	if err := c.provider(ctx, forever); err != nil {
		return nil, nil, err
	}
	flags := []string{"--lease", lease.String(), "--work-concurrency", strconv.Itoa(takenMachines)}
	running := map[string]*operator{}
	start := func(n int) error {
		name := fmt.Sprintf("pod-%d", n)
		o, err := c.start(ctx, name, flags...)
		running[name] = o
		return err
	}
	for n := range 2 {
		if err := start(n); err != nil {
			return nil, nil, err
		}
	}
	spec := v1alpha1.WorkClaimSpec{Mode: v1alpha1.WorkModeDrain, Parallelism: takenMachines, TimeoutSeconds: int32(forever.Seconds())}
	if err := c.client.Create(ctx, claim("held", spec)); err != nil {
		return nil, nil, err
	}
	rounds := pick(s, 2, 5)
	for round := range rounds {
		for i, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
			took, holder, err := c.oneTakeover(ctx, running, signal, lease)
			if err != nil {
				return nil, nil, err
			}
			delete(running, holder)
			if signal == syscall.SIGKILL {
				kills = append(kills, took...)
			} else {
				closes = append(closes, took...)
			}
			s.say("P4 round %d: lease of %s, %s: p50 %.2f s, p99 %.2f s", round+1, lease, signal, stats.Percentile(took, 50).Seconds(), stats.Percentile(took, 99).Seconds())
			if err := start(2 + 2*round + i); err != nil {
				return nil, nil, err
			}
		}
	}
	return kills, closes, nil
}

// oneTakeover ends the operator that holds the machines and returns after which time each of them was started on by another, and who it was.
func (c *cluster) oneTakeover(ctx context.Context, running map[string]*operator, signal syscall.Signal, lease time.Duration) (took []time.Duration, holder string, err error) {
	const patience = time.Minute
	err = c.until(ctx, patience, "one operator to hold all machines", func(ctx context.Context) error {
		var held int
		err := c.db.QueryRow(ctx, `SELECT COALESCE(min(s.session_runtime_info), ''), count(*) FROM work w JOIN sessions s ON s.session_id = w.session_id
			WHERE w.work_id IS NOT NULL AND s.session_ended_at IS NULL HAVING count(DISTINCT s.session_id) = 1`).Scan(&holder, &held)
		if err == nil && held < takenMachines {
			err = fmt.Errorf("%d of %d are held", held, takenMachines)
		}
		return err
	})
	if err != nil {
		return nil, "", err
	}
	o := running[holder]
	if o == nil {
		return nil, "", fmt.Errorf("the machines are held by %q, which is not running", holder)
	}
	var before time.Time
	if err := c.db.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&before); err != nil {
		return nil, "", fmt.Errorf("read the database's clock: %w", err)
	}
	began := time.Now()
	if apart := began.Sub(before).Abs(); apart > time.Second {
		return nil, "", fmt.Errorf("the database's clock is %s away from this machine's: it must be on this machine", apart)
	}
	if err := o.process.Signal(signal); err != nil {
		return nil, "", err
	}
	err = c.until(ctx, patience+2*lease, "another operator to hold all machines", func(ctx context.Context) error {
		rows, err := c.db.Query(ctx, `SELECT min(h.timestamp) FROM work_history h JOIN sessions s ON s.session_id = h.session_id
			WHERE h.phase = 0 AND h.timestamp > $1 AND s.session_runtime_info <> $2 GROUP BY h.machine_id`, began, holder)
		if err != nil {
			return err
		}
		starts, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
		if err == nil && len(starts) < takenMachines {
			err = fmt.Errorf("%d of %d machines are started on again", len(starts), takenMachines)
		}
		took = took[:0]
		for _, start := range starts {
			took = append(took, start.Sub(began))
		}
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return took, holder, o.end(signal)
}
