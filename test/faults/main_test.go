// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package faults_test lets whole operators, their database and their API server suffer what they will suffer in production, and checks that
// what is promised holds. `make test-faults` runs it; docs/reliability.md says what it shows, and what it does not.
//
// Nothing in the product knows of it. Faults strike on the wire to the database (package wire), at the machines (package bmc), and at
// processes and servers. Each is counted where it takes effect, and a fault that never struck fails its test.
package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// The environment variables that configure a run, as the Makefile sets them.
const (
	quickEnv = "BMDB_FAULTS_QUICK" // not empty: few and short
	seedEnv  = "BMDB_FAULTS_SEED"  // repeats the choices of an earlier run
	keepEnv  = "BMDB_FAULTS_DIR"   // where failing tests leave what happened; default: failed/
)

// run is what all tests of a process have in common. It is process-wide on purpose: a run has one seed and prints one table.
var run struct {
	quick    bool
	seed     uint64
	keep     string
	began    time.Time
	tally    tally
	programs testbed.Programs
	spare    sync.Mutex // of who uses the spare control plane
	plane    *devenv.ControlPlane
}

// sparePlane is a second control plane, which whoever holds run.spare may treat badly.
func sparePlane(t *testing.T) *devenv.ControlPlane {
	t.Helper()
	if run.plane == nil {
		run.plane = startPlane(t)
	}
	return run.plane
}

// startPlane starts a further control plane. The caller stops it.
func startPlane(t *testing.T) *devenv.ControlPlane {
	t.Helper()
	plane, err := devenv.Start(t.Context(), devenv.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return plane
}

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard())
	os.Exit(devtest.Main(suite{m}).Run())
}

type suite struct{ tests *testing.M }

// Run implements devtest.Runner: it starts the database server of the run, and prints the table.
func (s suite) Run() int {
	code, err := s.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func (s suite) run() (code int, err error) {
	if err := configure(); err != nil {
		return 1, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server, err := postgres.Start(ctx, serverOptions())
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, server.Close(), run.programs.Remove()) }()
	// Labs make their databases on it.
	if err := os.Setenv(postgres.URLEnv, server.URL("postgres")); err != nil {
		return 1, err
	}
	fmt.Printf("seed %d\n", run.seed)
	code = s.tests.Run()
	if run.plane != nil {
		defer func() { err = errors.Join(err, run.plane.Stop()) }()
	}
	fmt.Print(run.tally.table())
	fmt.Printf("%s in all, seed %d\n", time.Since(run.began).Round(time.Second), run.seed)
	return code, nil
}

// serverOptions are those of a server as it would be in production, and which remembers when what was committed.
func serverOptions() postgres.Options {
	const connections = 500
	return postgres.Options{Durable: true, MaxConnections: connections, Settings: map[string]string{"track_commit_timestamp": "on"}}
}

func configure() error {
	run.began = time.Now()
	run.quick = os.Getenv(quickEnv) != ""
	run.programs.Tags = "bmdb_witness"
	run.seed = rand.Uint64() >> 16 // short enough to be typed
	if text := os.Getenv(seedEnv); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return fmt.Errorf("read seed: %w", err)
		}
		run.seed = seed
	}
	keep := os.Getenv(keepEnv)
	if keep == "" {
		keep = "failed"
	}
	var err error
	run.keep, err = filepath.Abs(keep)
	return err
}

// pick is a number for the quick run, or for the full one.
func pick[T any](quick, full T) T {
	if run.quick {
		return quick
	}
	return full
}

// choices are a fault's random choices, the same for the same seed whatever else is run.
func choices(fault string) *rand.Rand {
	var n uint64
	for _, c := range fault {
		n = n*31 + uint64(c)
	}
	return rand.New(rand.NewPCG(run.seed, n))
}
