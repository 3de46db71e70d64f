// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Command bench measures the library and the operator on the machine that it runs on, beside others that do the same on the same
// database, and holds the ratios against thresholds.yaml. docs/performance.md explains it; `make bench` runs it.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/report"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
)

//go:embed thresholds.yaml
var thresholdsFile []byte

// version is set by the linker.
var version = "unknown"

// errMissed says that a threshold was missed, which the table has shown.
var errMissed = errors.New("a threshold was missed")

func main() {
	ctrllog.SetLogger(logr.Discard()) // what our own clients say; operators have logs of their own
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func command() *cobra.Command {
	o := options{version: version}
	c := &cobra.Command{
		Use:           "bench",
		Short:         "Measure the library and the operator beside others on this machine",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.execute(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	c.AddCommand(newPodCommand())
	flags := c.Flags()
	flags.StringSliceVar(&o.benchmarks, "benchmarks", nil, "which to run, as in P1,P4. Default: all")
	flags.BoolVar(&o.quick, "quick", false, "few and short rounds, smaller fleets: all of it in less than five minutes")
	flags.StringVar(&o.output, "output", "bench-results", "directory for results.json and report.html")
	flags.StringVar(&o.database, "database-url", "", "server to measure on, whose user may make databases; of PostgreSQL or CockroachDB. Default: a PostgreSQL of its own")
	flags.StringVar(&o.programs, "programs", "bin", "directory with bmdb-operator, for those that run it")
	return c
}

// execute measures, checks, and writes what came of it.
func (o options) execute(ctx context.Context, out, progress io.Writer) error {
	thresholds, err := result.ParseThresholds(thresholdsFile)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.output, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	run, err := measure(ctx, o, progress)
	if run == nil {
		return err
	}
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	good := run.Check(thresholds)
	report.Text(out, run)
	if writeErr := report.Write(o.output, run); writeErr != nil {
		return errors.Join(err, writeErr)
	}
	fmt.Fprintf(progress, "\n%s and report.html are in %s\n", report.ResultsFile, o.output)
	if err == nil && !good {
		err = errMissed
	}
	return err
}
