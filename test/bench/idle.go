// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/fleet"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/usage"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/wire"
)

// idleMachines is how many machines there are while nothing is to be done.
const idleMachines = 100_000

// idle is P9: what a pod costs while there is nothing to do.
func (s *suite) idle(ctx context.Context) (err error) {
	// Objects take a time to make that a quick run does not have. The others are in the database all the same, in another pool.
	objects := pick(s, 300, idleMachines)
	others := fleet.Fleet{Pool: "others", Provider: lab, Machines: idleMachines - objects, Done: true}
	s.say("P9: making %d machines in the database", others.Machines)
	url, drop, err := s.databases.fresh(ctx, "", filled(others))
	if err != nil {
		return err
	}
	defer drop()
	counter, err := wire.Listen(ctx, url)
	if errors.Is(err, wire.ErrTLS) {
		return errors.New("statements cannot be counted: the database asks for TLS")
	}
	if err != nil {
		return err
	}
	defer counter.Close()
	c, err := s.openCluster(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	c.databases = counter.URL()
	if err := c.provider(ctx, 0); err != nil {
		return err
	}
	o, err := c.start(ctx, "pod")
	if err != nil {
		return err
	}
	s.say("P9: making %d machines in the cluster", objects)
	if err := c.makeMachines(ctx, 0, objects, 2*time.Hour); err != nil {
		return err
	}
	settle, during := pick(s, 10*time.Second, time.Minute), pick(s, 20*time.Second, 3*time.Minute)
	s.say("P9: leaving the operator alone for %s, and looking at it for %s", settle, during)
	if err := pause(ctx, settle); err != nil {
		return err
	}
	said, texts := counter.Counts(), counter.Texts()
	used, err := usage.Of(o.process.Pid())
	if err != nil {
		return err
	}
	if err := pause(ctx, during); err != nil {
		return err
	}
	now, err := usage.Of(o.process.Pid())
	if err != nil {
		return err
	}
	took := now.At.Sub(used.At).Seconds()
	said = counter.Counts().Sub(said)
	note := fmt.Sprintf("%d of %d machines are objects of the cluster", objects, idleMachines)
	for _, f := range []result.Figure{
		{Name: "P9.cpu", Value: now.Since(used), Unit: "cores", Note: note},
		{Name: "P9.statements", Value: float64(said.Statements) / took, Unit: "per second", Note: note},
		{Name: "P9.round-trips", Value: float64(said.RoundTrips) / took, Unit: "per second", Note: note},
		{Name: "P9.pod.memory", Value: float64(now.Resident) / (1 << 20), Unit: "MiB", Note: note},
		{Name: "P9.pod.memory.peak", Value: float64(now.Peak) / (1 << 20), Unit: "MiB", Note: note},
	} {
		s.run.Add(f)
	}
	s.showStatements(texts, counter.Texts(), took)
	return nil
}

// showStatements tells which statements an idle pod sends, the most frequent first.
func (s *suite) showStatements(before, after map[string]int64, seconds float64) {
	for text, n := range before {
		after[text] -= n
	}
	texts := slices.SortedFunc(maps.Keys(after), func(a, b string) int { return int(after[b] - after[a]) })
	const most = 10
	for _, text := range texts[:min(most, len(texts))] {
		if after[text] > 0 {
			const width = 100
			line := strings.Join(strings.Fields(text), " ")
			s.say("P9: %5.2f/s  %s", float64(after[text])/seconds, line[:min(width, len(line))])
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
