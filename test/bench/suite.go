// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/usage"
)

// options are what the command line says.
type options struct {
	benchmarks []string
	quick      bool
	output     string
	database   string
	programs   string
	version    string
}

// benchmark is one line of the table.
type benchmark struct {
	name, what string
	run        func(ctx context.Context, s *suite) error
}

func benchmarks() []benchmark {
	return []benchmark{
		{"P1", "work cycles per second, beside others", func(ctx context.Context, s *suite) error { return s.throughput(ctx) }},
		{"P2", "one retrieval, in fleets of growing size", func(ctx context.Context, s *suite) error { return s.growth(ctx) }},
		{"P3", "many pods on the same machines", func(ctx context.Context, s *suite) error { return s.manyPods(ctx) }},
		{"P4", "takeover from a pod that dies, and from one that ends", func(ctx context.Context, s *suite) error { return s.takeover(ctx) }},
		{"P5", "claims through a real API server", func(ctx context.Context, s *suite) error { return s.endToEnd(ctx) }},
		{"P6", "one large claim", func(ctx context.Context, s *suite) error { return s.largeClaim(ctx) }},
		{"P9", "what an idle pod costs", func(ctx context.Context, s *suite) error { return s.idle(ctx) }},
	}
}

// suite is one run. It is for one goroutine.
type suite struct {
	options
	databases *databases
	run       *result.Run
	progress  io.Writer
	began     time.Time
}

// selected are the benchmarks that were asked for, in the order of the table.
func (o options) selected() ([]benchmark, error) {
	all := benchmarks()
	if len(o.benchmarks) == 0 {
		return all, nil
	}
	var names []string
	for _, b := range all {
		names = append(names, b.name)
	}
	for _, name := range o.benchmarks {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("there is no benchmark %q: there are %s", name, strings.Join(names, ", "))
		}
	}
	return slices.DeleteFunc(all, func(b benchmark) bool { return !slices.Contains(o.benchmarks, b.name) }), nil
}

// measure runs the benchmarks, and returns what they measured. Where one fails, the others still run; the error says all.
func measure(ctx context.Context, o options, progress io.Writer) (*result.Run, error) {
	chosen, err := o.selected()
	if err != nil {
		return nil, err
	}
	s := &suite{options: o, progress: progress, began: time.Now(), run: &result.Run{Started: time.Now().UTC().Truncate(time.Second), Quick: o.quick}}
	s.say("starting the database server")
	if s.databases, err = openDatabases(ctx, o.database); err != nil {
		return nil, err
	}
	var failed error
	if err := s.environment(ctx); err != nil {
		return nil, errors.Join(err, s.databases.close())
	}
	for _, b := range chosen {
		s.say("%s: %s", b.name, b.what)
		if err := b.run(ctx, s); err != nil {
			failed = errors.Join(failed, fmt.Errorf("benchmark %s: %w", b.name, err))
			s.say("%s failed: %v", b.name, err)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		s.run.Benchmarks = append(s.run.Benchmarks, b.name)
	}
	s.run.Took = time.Since(s.began)
	return s.run, errors.Join(failed, s.databases.close())
}

// say shows how far the run is.
func (s *suite) say(format string, args ...any) {
	fmt.Fprintf(s.progress, "%7.1fs  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// pick is one of two values.
func pick[T any](s *suite, quick, full T) T {
	if s.quick {
		return quick
	}
	return full
}

// environment notes what the run runs on.
func (s *suite) environment(ctx context.Context) error {
	const gigabyte = 1 << 30
	s.run.Environment = []result.Fact{
		{Name: "version", Value: s.version},
		{Name: "processor", Value: fmt.Sprintf("%s, %d cores", usage.Processor(), runtime.NumCPU())},
		{Name: "memory", Value: fmt.Sprintf("%.0f GiB", float64(usage.Memory())/gigabyte)},
		{Name: "kernel", Value: usage.Kernel()},
		{Name: "go", Value: runtime.Version()},
		{Name: "load before the run", Value: fmt.Sprintf("%.2f", usage.Load())},
	}
	facts, err := s.databases.facts(ctx)
	if err != nil {
		return err
	}
	s.run.Environment = append(s.run.Environment, facts...)
	return nil
}
