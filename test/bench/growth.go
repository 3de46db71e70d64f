// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/fleet"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/ours"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/stats"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/wire"
)

// eligible says how many machines of a fleet need the process.
type eligible string

const (
	none eligible = "none"
	one  eligible = "one"
	all  eligible = "all"
)

// selections are how a claim may select machines. The one eligible machine is among those of each.
func selections() map[string]func(s *bmdb.ClaimSpec) {
	var names []string
	for i := range 10 {
		names = append(names, fleet.Name(i))
	}
	return map[string]func(s *bmdb.ClaimSpec){
		"pool":     func(s *bmdb.ClaimSpec) { s.Selector = &bmdb.Selector{} },
		"provider": func(s *bmdb.ClaimSpec) { s.Provider = lab },
		"names":    func(s *bmdb.ClaimSpec) { s.Names = names },
		"label":    func(s *bmdb.ClaimSpec) { s.Selector = &bmdb.Selector{MatchLabels: map[string]string{"rack": "r0"}} },
	}
}

// grownFleet is a fleet of one size, with a program that uses it.
type grownFleet struct {
	fleet   fleet.Fleet
	url     string
	drop    func()
	program *ours.Program
}

// growth is P2: one retrieval for a claim, by its owner, at fleets of growing size. The sizes take turns, so that what the machine does
// beside meets all of them.
func (s *suite) growth(ctx context.Context) (err error) {
	var fleets []*grownFleet
	defer func() {
		for _, g := range fleets {
			err = errors.Join(err, g.program.Close())
			g.drop()
		}
	}()
	for _, machines := range pick(s, []int{1_000, 20_000}, []int{1_000, 100_000, 1_000_000}) {
		s.say("P2: making %d machines", machines)
		g, err := s.grow(ctx, machines)
		if err != nil {
			return fmt.Errorf("make %d machines: %w", machines, err)
		}
		fleets = append(fleets, g)
	}
	plot := result.Plot{Title: "P2: one retrieval, by the size of the fleet (median)", XAxis: "machines", YAxis: "milliseconds", LogX: true, LogY: true}
	for _, how := range []eligible{none, one, all} {
		for _, g := range fleets {
			if how == none {
				continue
			}
			if err := fleet.Undo(ctx, g.url, g.fleet, how == one); err != nil {
				return err
			}
		}
		for _, selection := range []string{"pool", "provider", "names", "label"} {
			line, err := s.compare(ctx, fleets, selection, how)
			if err != nil {
				return fmt.Errorf("select by %s, %s eligible: %w", selection, how, err)
			}
			plot.Lines = append(plot.Lines, line)
		}
	}
	s.run.Plots = append(s.run.Plots, plot)
	for _, g := range fleets {
		if err := s.broadLabel(ctx, g); err != nil {
			return fmt.Errorf("select by a broad label: %w", err)
		}
	}
	return nil
}

// grow makes a fleet of one size. No machine needs the process yet.
func (s *suite) grow(ctx context.Context, machines int) (*grownFleet, error) {
	g := &grownFleet{fleet: fleet.Fleet{Pool: pool, Provider: lab, Machines: machines, Named: true, Labelled: true, Done: true}}
	var err error
	if g.url, g.drop, err = s.databases.fresh(ctx, "", filled(g.fleet)); err != nil {
		return nil, err
	}
	if g.program, err = ours.Open(ctx, g.url, ours.Options{Name: "bench", WithoutChores: true}); err != nil {
		g.drop()
		return nil, err
	}
	return g, nil
}

// compare measures retrievals of one kind at all sizes.
func (s *suite) compare(ctx context.Context, fleets []*grownFleet, selection string, how eligible) (result.Line, error) {
	name := selection + "." + string(how)
	line := result.Line{Name: name}
	spec := bmdb.ClaimSpec{Pool: pool, Key: name, Process: string(model.ProcessAgentStart), Mode: bmdb.ModeContinuous, Parallelism: 1}
	selections()[selection](&spec)
	owned := make([]*bmdb.OwnedClaim, len(fleets))
	took := make([][]time.Duration, len(fleets))
	for i, g := range fleets {
		var err error
		if owned[i], err = own(ctx, g.program, spec); err != nil {
			return line, err
		}
	}
	const rounds = 10
	warm, counted := 5, pick(s, 8, 40)
	if how == none {
		warm, counted = 50, 10*counted // they take a tenth of the time
	}
	for round := range rounds {
		for i, g := range fleets {
			samples, err := retrievals(ctx, g.program, owned[i], how, counted+warm)
			if err != nil {
				return line, err
			}
			if round > 0 {
				took[i] = append(took[i], samples[warm:]...)
			}
		}
	}
	var medians []float64
	for i, g := range fleets {
		// Without a view it is nobody's to take up again.
		if _, err := g.program.Connection().DetachClaim(ctx, bmdb.View{Name: spec.Key}, spec.Pool, spec.Key); err != nil {
			return line, err
		}
		if err := g.program.Session().ReleaseClaim(ctx, owned[i]); err != nil {
			return line, err
		}
		median := milliseconds(stats.Percentile(took[i], 50))
		medians = append(medians, median)
		line.X, line.Y = append(line.X, float64(g.fleet.Machines)), append(line.Y, median)
		s.run.Value(fmt.Sprintf("P2.%s.machines-%d", name, g.fleet.Machines), median, "ms")
	}
	largest := len(fleets) - 1
	f := result.Figure{
		Name: "P2." + name + ".growth", Value: medians[largest] / medians[0],
		Note: fmt.Sprintf("%d machines by %d", fleets[largest].fleet.Machines, fleets[0].fleet.Machines),
	}
	s.run.Add(f)
	s.say("P2: %-4s eligible, selected by %-8s %6.2f ms, %.2f times as long at %s", how, selection, medians[0], f.Value, f.Note)
	return line, nil
}

// retrievals times retrievals for one claim, each of which must start as many works as there are: one or none.
func retrievals(ctx context.Context, p *ours.Program, owned *bmdb.OwnedClaim, how eligible, n int) ([]time.Duration, error) {
	took := make([]time.Duration, 0, n)
	for range n {
		began := time.Now()
		works, err := p.Session().ClaimRound(ctx, owned, 1)
		took = append(took, time.Since(began))
		switch {
		case how == none && errors.Is(err, bmdb.ErrNothingToDo):
		case err != nil:
			return nil, err
		case how == none || len(works) != 1:
			return nil, fmt.Errorf("a retrieval started %d works", len(works))
		}
		for _, w := range works {
			w.Cancel(ctx)
		}
	}
	return took, nil
}

func own(ctx context.Context, p *ours.Program, spec bmdb.ClaimSpec) (*bmdb.OwnedClaim, error) {
	if err := p.Attach(ctx, spec); err != nil {
		return nil, err
	}
	owned, err := p.Own(ctx, 1)
	if err != nil {
		return nil, err
	}
	if owned[0].Spec.Key != spec.Key {
		return nil, fmt.Errorf("took up claim %s instead of %s", owned[0].Spec.Key, spec.Key)
	}
	return owned[0], nil
}

// broadLabel counts what it costs to find out that a broad label and a broad set of ready machines do not meet: half of the machines are made
// ready no more, and the claim selects that half.
func (s *suite) broadLabel(ctx context.Context, g *grownFleet) error {
	const zone = "b"
	conn, err := pgx.Connect(ctx, g.url)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := fleet.Hold(ctx, conn, pool, "zone", zone); err != nil {
		return err
	}
	counter, err := wire.Listen(ctx, g.url)
	if errors.Is(err, wire.ErrTLS) {
		return nil
	}
	if err != nil {
		return err
	}
	defer counter.Close()
	owner, err := ours.Open(ctx, counter.URL(), ours.Options{Name: "bench", WithoutChores: true})
	if err != nil {
		return err
	}
	defer func() { _ = owner.Close() }()
	owned, err := own(ctx, owner, bmdb.ClaimSpec{
		Pool: pool, Key: "broad", Process: string(model.ProcessAgentStart), Mode: bmdb.ModeContinuous, Parallelism: 1,
		Selector: &bmdb.Selector{MatchLabels: map[string]string{"zone": zone}},
	})
	if err != nil {
		return err
	}
	const page = "w.machine_id >= $8"
	before, began, rounds := counter.Matching(page), time.Now(), 0
	for {
		rounds++
		works, err := owner.Session().ClaimRound(ctx, owned, 1)
		if errors.Is(err, bmdb.ErrNothingToDo) {
			break
		}
		if err != nil || len(works) > 0 {
			return fmt.Errorf("retrieval by a label that no ready machine has returned %d works and %w", len(works), err)
		}
	}
	name := fmt.Sprintf("P2.broad-label.machines-%d", g.fleet.Machines)
	s.run.Value(name+".pages", float64(counter.Matching(page)-before), "pages of 1000 machines, once around")
	s.run.Value(name+".rounds", float64(rounds), "rounds")
	s.run.Value(name+".pass", milliseconds(time.Since(began)), "ms (over a proxy that reads along)")
	return nil
}
