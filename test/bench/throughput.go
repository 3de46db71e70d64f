// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/fleet"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/ours"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/peer"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/stats"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/wire"
)

const (
	// fleetMachines is how many machines P1, P3 and P6 begin with.
	fleetMachines = 20_000
	pool          = "bench"
	lab           = "lab" // the provider
)

// contender is one of those that are measured beside each other.
type contender struct {
	name    string
	workers []int
	// round does one round in a database of its own.
	round func(ctx context.Context, workers int, t peer.Timing) (peer.Result, error)
}

// patienceWithNoise bounds what a quick run spends on a noisy machine before it gives up comparing.
const patienceWithNoise = 45 * time.Second

// throughput is P1.
func (s *suite) throughput(ctx context.Context) error {
	trips, err := s.roundTrips(ctx)
	if err != nil {
		return err
	}
	all := []int{1, 16, 64}
	// A quick run measures what is held against a bound, and little more.
	contenders := []contender{
		{"floor", pick(s, []int{1}, all), func(ctx context.Context, workers int, t peer.Timing) (peer.Result, error) {
			return s.roundOfFloor(ctx, workers, trips, t)
		}},
		{"rows", []int{1}, s.roundOfRows},
		{"one-by-one", pick(s, []int{1, 16}, all), s.roundOneByOne},
		{"batched", pick(s, []int{16, 64}, all), s.roundBatched},
		{"naive", pick(s, []int{16, 64}, all), s.roundNaive},
		{"river", pick(s, []int{64}, all), func(ctx context.Context, workers int, t peer.Timing) (peer.Result, error) {
			return s.roundRiver(ctx, workers, 0, t)
		}},
		{"river-eager", pick(s, []int{64}, all), func(ctx context.Context, workers int, t peer.Timing) (peer.Result, error) {
			return s.roundRiver(ctx, workers, time.Millisecond, t)
		}},
	}
	t := newTable()
	noise, began := "", time.Now()
	for attempt := range pick(s, 2, 3) {
		if attempt > 0 {
			if s.quick && time.Since(began) > patienceWithNoise {
				break
			}
			s.say("P1: %s; once more", noise)
			t = newTable()
		}
		if err := s.rounds(ctx, t, contenders); err != nil {
			return err
		}
		if noise = result.Noise("the floor at 1 worker", t.rates("floor", 1)); noise == "" {
			break
		}
	}
	t.report(s.run, contenders, noise)
	return nil
}

// rounds interleaves the contenders, so that what the machine does beside meets all of them.
func (s *suite) rounds(ctx context.Context, t *table, contenders []contender) error {
	timing := pick(s, peer.Timing{Warm: 400 * time.Millisecond, During: 800 * time.Millisecond}, peer.Timing{Warm: 2 * time.Second, During: 5 * time.Second})
	for round := range result.NoiseRounds {
		for _, c := range contenders {
			for _, workers := range c.workers {
				// The floor and what is held against it at one worker have all rounds, which the rule about noise needs.
				if s.quick && round >= 2 && (workers > 1 || c.name != "floor" && c.name != "rows" && c.name != "one-by-one") {
					continue
				}
				r, err := c.round(ctx, workers, timing)
				if err != nil {
					return fmt.Errorf("%s with %d workers: %w", c.name, workers, err)
				}
				if r.Cycles == 0 {
					return fmt.Errorf("%s with %d workers: all was done before anything counted", c.name, workers)
				}
				t.add(c.name, workers, r)
				s.say("P1 round %d: %-11s %2d workers %8.0f cycles/s, %d retries, %d conflicts", round+1, c.name, workers, r.Rate(), r.Retries, r.Conflicts)
			}
		}
	}
	return nil
}

// ready is a fleet whose machines all need their agent started.
func ready(machines int) fleet.Fleet {
	return fleet.Fleet{Pool: pool, Provider: lab, Machines: machines}
}

// withProgram runs the library in a database of its own, and sees afterwards that everything that was started was finished.
func (s *suite) withProgram(ctx context.Context, machines int, run func(p *ours.Program) (peer.Result, error)) (r peer.Result, err error) {
	url, drop, err := s.databases.fresh(ctx, "ready-"+strconv.Itoa(machines), filled(ready(machines)))
	if err != nil {
		return r, err
	}
	defer drop()
	p, err := ours.Open(ctx, url, ours.Options{Name: "bench"})
	if err != nil {
		return r, err
	}
	r, err = run(p)
	if err = errors.Join(err, p.Close()); err != nil {
		return r, err
	}
	done, err := ours.Count(ctx, url, pool)
	if err != nil {
		return r, err
	}
	if err := done.Whole(); err != nil {
		return r, err
	}
	if done.Finished != r.Total {
		return r, fmt.Errorf("the database says %d finished, the workers %d", done.Finished, r.Total)
	}
	return r, nil
}

func (s *suite) roundOneByOne(ctx context.Context, workers int, t peer.Timing) (peer.Result, error) {
	return s.withProgram(ctx, fleetMachines, func(p *ours.Program) (peer.Result, error) { return p.OneByOne(ctx, workers, t) })
}

func (s *suite) roundBatched(ctx context.Context, workers int, t peer.Timing) (peer.Result, error) {
	return s.withProgram(ctx, fleetMachines, func(p *ours.Program) (peer.Result, error) {
		if err := p.Attach(ctx, ours.Drain(pool, "bench", workers)); err != nil {
			return peer.Result{}, err
		}
		owned, err := p.Own(ctx, 1)
		if err != nil {
			return peer.Result{}, err
		}
		return p.Batched(ctx, owned, workers, t)
	})
}

func (s *suite) roundNaive(ctx context.Context, workers int, t peer.Timing) (r peer.Result, err error) {
	url, drop, err := s.databases.fresh(ctx, "naive", func(ctx context.Context, url string) error { return peer.FillNaive(ctx, url, fleetMachines) })
	if err != nil {
		return r, err
	}
	defer drop()
	n, err := peer.OpenNaive(ctx, url, workers)
	if err != nil {
		return r, err
	}
	defer n.Close()
	return n.Run(ctx, workers, t)
}

func (s *suite) roundRiver(ctx context.Context, workers int, cooldown time.Duration, t peer.Timing) (r peer.Result, err error) {
	jobs := fleetMachines
	if cooldown > 0 && !s.quick {
		jobs *= 5 // or all were done before anything counts
	}
	url, drop, err := s.databases.fresh(ctx, fmt.Sprintf("river-%d", jobs), func(ctx context.Context, url string) error { return peer.FillRiver(ctx, url, jobs) })
	if err != nil {
		return r, err
	}
	defer drop()
	q, err := peer.OpenRiver(ctx, url, workers, ours.Connections, cooldown)
	if err != nil {
		return r, err
	}
	defer q.Close()
	return q.Run(ctx, t)
}

func (s *suite) roundOfFloor(ctx context.Context, workers, trips int, t peer.Timing) (r peer.Result, err error) {
	url, drop, err := s.databases.fresh(ctx, "floor", func(ctx context.Context, url string) error { return peer.FillFloor(ctx, url, maxFloorWorkers) })
	if err != nil {
		return r, err
	}
	defer drop()
	f, err := peer.OpenFloor(ctx, url, workers, ours.Connections, trips)
	if err != nil {
		return r, err
	}
	defer f.Close()
	return f.Run(ctx, workers, t)
}

func (s *suite) roundOfRows(ctx context.Context, workers int, t peer.Timing) (r peer.Result, err error) {
	url, drop, err := s.databases.fresh(ctx, "ready-"+strconv.Itoa(fleetMachines), filled(ready(fleetMachines)))
	if err != nil {
		return r, err
	}
	defer drop()
	rows, err := peer.OpenRows(ctx, url, workers, ours.Connections)
	if err != nil {
		return r, err
	}
	defer rows.Close()
	return rows.Run(ctx, workers, t)
}

const maxFloorWorkers = 64

// roundTrips counts on the wire how many round trips and statements a cycle makes, and returns the former.
func (s *suite) roundTrips(ctx context.Context) (int, error) {
	url, drop, err := s.databases.fresh(ctx, "ready-"+strconv.Itoa(fleetMachines), filled(ready(fleetMachines)))
	if err != nil {
		return 0, err
	}
	defer drop()
	counter, err := wire.Listen(ctx, url)
	if errors.Is(err, wire.ErrTLS) {
		const asTested = 3 // on a server that can be listened to
		s.run.Remarks = append(s.run.Remarks, fmt.Sprintf("The database asks for TLS, so round trips were not counted: the floor makes %d for a cycle.", asTested))
		return asTested, nil
	}
	if err != nil {
		return 0, err
	}
	defer counter.Close()
	// One connection, so that every statement is prepared once.
	p, err := ours.Open(ctx, counter.URL(), ours.Options{Name: "bench", Connections: 1, WithoutChores: true})
	if err != nil {
		return 0, err
	}
	const warm, counted = 50, 200
	cycles := func(n int) error {
		for range n {
			if err := p.Cycle(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	err = cycles(warm)
	before := counter.Counts()
	if err == nil {
		err = cycles(counted)
	}
	said := counter.Counts().Sub(before)
	if err = errors.Join(err, p.Close()); err != nil {
		return 0, fmt.Errorf("count round trips: %w", err)
	}
	trips := int(math.Round(float64(said.RoundTrips) / counted))
	s.run.Value("P1.one-by-one.round-trips", float64(said.RoundTrips)/counted, "per cycle")
	s.run.Value("P1.one-by-one.statements", float64(said.Statements)/counted, "per cycle")
	return trips, nil
}

// table keeps what the contenders did.
type table struct{ results map[string][]peer.Result }

func newTable() *table { return &table{results: map[string][]peer.Result{}} }

func cell(name string, workers int) string { return fmt.Sprintf("%s-%d", name, workers) }

func (t *table) add(name string, workers int, r peer.Result) {
	t.results[cell(name, workers)] = append(t.results[cell(name, workers)], r)
}

func (t *table) rates(name string, workers int) (rates []float64) {
	for _, r := range t.results[cell(name, workers)] {
		rates = append(rates, r.Rate())
	}
	return rates
}

func (t *table) latencies(name string, workers int) (all []time.Duration) {
	for _, r := range t.results[cell(name, workers)] {
		all = append(all, r.Latencies...)
	}
	return all
}

func (t *table) report(run *result.Run, contenders []contender, noise string) {
	rates := result.Plot{Title: "P1: work cycles per second, by workers in one pod", XAxis: "workers", YAxis: "cycles/s", LogX: true, LogY: true}
	latencies := result.Plot{Title: "P1: how long a cycle takes, at 16 workers", XAxis: "percentile", YAxis: "milliseconds", LogY: true}
	for _, c := range contenders {
		line := result.Line{Name: c.name}
		for _, workers := range c.workers {
			run.Median(fmt.Sprintf("P1.%s.workers-%d", c.name, workers), t.rates(c.name, workers), "cycles/s")
			line.X, line.Y = append(line.X, float64(workers)), append(line.Y, stats.Median(t.rates(c.name, workers)))
		}
		rates.Lines = append(rates.Lines, line)
		if l := t.latencies(c.name, 16); len(l) > 0 {
			latencies.Lines = append(latencies.Lines, result.Distribution(c.name, l))
			run.Value(fmt.Sprintf("P1.%s.workers-16.p50", c.name), milliseconds(stats.Percentile(l, 50)), "ms")
			run.Value(fmt.Sprintf("P1.%s.workers-16.p99", c.name), milliseconds(stats.Percentile(l, 99)), "ms")
		}
	}
	run.Plots = append(run.Plots, rates, latencies)
	run.Ratio("P1.one-by-one/floor", t.rates("one-by-one", 1), t.rates("floor", 1), noise)
	run.Ratio("P1.rows/floor", t.rates("rows", 1), t.rates("floor", 1), noise)
	run.Ratio("P1.one-by-one/rows", t.rates("one-by-one", 1), t.rates("rows", 1), noise)
	run.Ratio("P1.one-by-one/naive", t.rates("one-by-one", 16), t.rates("naive", 16), noise)
	run.Ratio("P1.batched/river", t.rates("batched", 64), t.rates("river", 64), noise)
	run.Ratio("P1.batched/river-eager", t.rates("batched", 64), t.rates("river-eager", 64), noise)
	run.Ratio("P1.batched/naive", t.rates("batched", 64), t.rates("naive", 64), noise)
	if noise == "" {
		return
	}
	run.Remarks = append(run.Remarks, "P1: "+noise+".")
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
