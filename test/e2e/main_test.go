// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e_test holds whole operator processes against a real API server, a real database and, where it matters, real SSH machines:
// they are killed, stopped and handed over, their objects are deleted and restored, their database goes away. What must hold is asked
// of the database in SQL, not of the operators.
package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/statedir"
)

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard()) // what clients in the tests say; operators have logs of their own
	os.Exit(devtest.Main(suite{m}).Run())
}

// suite removes the programs after the tests.
type suite struct{ tests *testing.M }

func (s suite) Run() int {
	code := s.tests.Run()
	if err := errors.Join(programs.remove(), nextPrograms.remove()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// programs are the operator and the agent as they are now, built by the first test that asks. They are process-wide on purpose: all
// tests run the same. nextPrograms are one schema version ahead.
var programs, nextPrograms = builder{}, builder{tags: "bmdb_next"}

type builder struct {
	tags string // of the build

	mu  sync.Mutex
	dir *statedir.Dir
	err error // of the build; the next test would fail the same way
}

// build returns the directory with bmdb-operator and the agent, as the operator looks for it.
func (b *builder) build(t testing.TB) string {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == nil && b.err == nil {
		b.dir, b.err = buildPrograms(b.tags)
	}
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.dir.Path
}

func (b *builder) remove() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == nil {
		return nil
	}
	err := b.dir.Remove()
	b.dir = nil
	return err
}

const operatorProgram = "bmdb-operator"

func buildPrograms(tags string) (*statedir.Dir, error) {
	root, err := devenv.ModuleRoot()
	if err != nil {
		return nil, err
	}
	dir, err := statedir.New("", "bmdb-e2e", nil)
	if err != nil {
		return nil, err
	}
	for program, source := range map[string]string{
		operatorProgram:                      "./cmd/bmdb-operator",
		"bmdb-agent-linux-" + runtime.GOARCH: "./cmd/bmdb-agent",
	} {
		build := exec.Command("go", "build", "-tags", tags, "-o", filepath.Join(dir.Path, program), source)
		build.Dir = root
		// Static: the agent runs on machines that have other libraries.
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("build %s: %w\n%s", program, err, out), dir.Remove())
		}
	}
	return dir, nil
}
