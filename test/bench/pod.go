// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/ours"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/peer"
)

// pod is a process of its own that works off claims with the library. It is this program again, under another command.
type pod struct {
	Name    string
	Claims  int
	Workers int
	Timing  peer.Timing
}

// podReport is what a pod says at its end.
type podReport struct {
	Total, Transactions, Retries, Conflicts, LostSessions int64
}

const (
	podCommand = "pod"
	podEnv     = "BMDB_BENCH_POD"          // the pod, as JSON
	urlEnv     = "BMDB_BENCH_DATABASE_URL" // not among the arguments, which everybody can see
	readyLine  = "ready"                   // it waits for claims
	warmLine   = "warm"                    // it has worked some off, and waits for those that count
)

// patienceWithPods bounds each of the two times that a pod works.
const patienceWithPods = 3 * time.Minute

func newPodCommand() *cobra.Command {
	return &cobra.Command{
		Use:    podCommand,
		Short:  "Work off claims as one of several processes (the benchmarks start it)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(c *cobra.Command, _ []string) error {
			var p pod
			if err := json.Unmarshal([]byte(os.Getenv(podEnv)), &p); err != nil {
				return fmt.Errorf("read %s: %w", podEnv, err)
			}
			return p.work(c.Context(), os.Getenv(urlEnv), c.OutOrStdout())
		},
	}
}

// work waits for claims, works them off, and says what came of it, twice: on two cores sixteen processes make connections and plan statements for
// longer than a round takes.
func (p pod) work(ctx context.Context, databaseURL string, out io.Writer) (err error) {
	program, err := ours.Open(ctx, databaseURL, ours.Options{Name: p.Name})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, program.Close()) }()
	fmt.Fprintln(out, readyLine)
	owned, err := program.Own(ctx, p.Claims)
	if err != nil {
		return err
	}
	if _, err := program.Batched(ctx, owned, p.Workers, peer.Timing{During: patienceWithPods}); err != nil {
		return err
	}
	fmt.Fprintln(out, warmLine)
	if owned, err = program.Own(ctx, p.Claims); err != nil {
		return err
	}
	r, err := program.Batched(ctx, owned, p.Workers, p.Timing)
	counter := program.Counter
	line, jsonErr := json.Marshal(podReport{
		Total: r.Total, Transactions: counter.Transactions.Load(), Retries: counter.Retries.Load(), Conflicts: counter.Conflicts.Load(), LostSessions: counter.Lost.Load(),
	})
	if jsonErr == nil {
		fmt.Fprintln(out, string(line))
	}
	return errors.Join(err, jsonErr)
}

// runningPod is a pod that was started. The caller waits for its end, or kills it.
type runningPod struct {
	process *proc.Process
	log     string
}

// startPod starts a pod and waits until it is ready for claims.
func startPod(ctx context.Context, p pod, databaseURL, log string) (*runningPod, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start pod: %w", err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("start pod: %w", err)
	}
	process, err := proc.Start(proc.Config{
		Path: self, Args: []string{podCommand}, Log: log,
		Env: append(os.Environ(), podEnv+"="+string(text), urlEnv+"="+databaseURL),
	})
	if err != nil {
		return nil, fmt.Errorf("start pod: %w", err)
	}
	r := &runningPod{process: process, log: log}
	if err := r.await(ctx, readyLine); err != nil {
		return nil, errors.Join(fmt.Errorf("start pod: %w", err), r.kill())
	}
	return r, nil
}

// await waits until the pod has said a line.
func (r *runningPod) await(ctx context.Context, line string) error {
	return r.process.WaitReady(ctx, func(context.Context) error {
		text, err := os.ReadFile(r.log)
		if err != nil {
			return err
		}
		if !slices.Contains(strings.Split(string(text), "\n"), line) {
			return fmt.Errorf("it is not %s yet", line)
		}
		return nil
	})
}

// wait waits for the pod's end and returns what it said.
func (r *runningPod) wait(ctx context.Context) (report podReport, err error) {
	ctx, cancel := context.WithTimeout(ctx, patienceWithPods)
	defer cancel()
	if err := r.process.WaitExit(ctx); err != nil {
		return report, fmt.Errorf("pod: %w", err)
	}
	text, err := os.ReadFile(r.log)
	if err != nil {
		return report, fmt.Errorf("read what a pod said: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &report); err != nil {
		return report, fmt.Errorf("read what a pod said: %w", err)
	}
	return report, nil
}

func (r *runningPod) kill() error { return r.process.Stop(context.Background(), syscall.SIGKILL) }
