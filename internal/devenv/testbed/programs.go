// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/statedir"
)

// Programs are the operator and the agent, built by the first test that asks, for all tests of a process. The zero value builds what is
// released. It is safe for concurrent use; Remove ends it.
type Programs struct {
	// Tags are those of the build, separated by commas.
	Tags string
	// Overlay is a file that replaces source files in the build, as `go build -overlay` takes it. Empty: none.
	Overlay string

	mu  sync.Mutex
	dir *statedir.Dir
	err error // of the build; the next test would fail the same way
}

// Build returns the directory with bmdb-operator and the agent, as the operator looks for it.
func (b *Programs) Build(t testing.TB) string {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == nil && b.err == nil {
		b.dir, b.err = buildPrograms(b.Tags, b.Overlay)
	}
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.dir.Path
}

// Remove removes what was built.
func (b *Programs) Remove() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == nil {
		return nil
	}
	err := b.dir.Remove()
	b.dir = nil
	return err
}

// OperatorProgram is the name of the operator's program.
const OperatorProgram = "bmdb-operator"

func buildPrograms(tags, overlay string) (*statedir.Dir, error) {
	root, err := devenv.ModuleRoot()
	if err != nil {
		return nil, err
	}
	dir, err := statedir.New("", "bmdb-testbed", nil)
	if err != nil {
		return nil, err
	}
	for program, source := range map[string]string{
		OperatorProgram:                      "./cmd/bmdb-operator",
		"bmdb-agent-linux-" + runtime.GOARCH: "./cmd/bmdb-agent",
	} {
		build := exec.Command("go", "build", "-tags", tags, "-overlay", overlay, "-o", filepath.Join(dir.Path, program), source)
		build.Dir = root
		// Static: the agent runs on machines that have other libraries.
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("build %s: %w\n%s", program, err, out), dir.Remove())
		}
	}
	return dir, nil
}

// Run runs the operator's program until it ends. Arguments of the form NAME=value are for the environment.
func (l *Lab) Run(database string, args ...string) (string, error) {
	l.T.Helper()
	ctx, cancel := context.WithTimeout(l.T.Context(), Patience)
	defer cancel()
	env := []string{"HOME=" + l.Dir, "KUBECONFIG=" + l.kubeconfig(), "BMDB_METRICS_BIND_ADDRESS=0", "BMDB_HEALTH_PROBE_BIND_ADDRESS=0"}
	if database != "" {
		env = append(env, "BMDB_DATABASE_URL="+database)
	}
	var flags []string
	for _, a := range args {
		if strings.HasPrefix(a, "BMDB_") {
			env = append(env, a)
		} else {
			flags = append(flags, a)
		}
	}
	cmd := exec.CommandContext(ctx, filepath.Join(l.Programs, OperatorProgram), flags...)
	cmd.Env = env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ctx.Err() != nil {
		l.T.Fatalf("it did not end by itself:\n%s", out.String())
	}
	return out.String(), err
}

// Command runs the operator's program with a command, and returns what it prints.
func (l *Lab) Command(args ...string) string {
	l.T.Helper()
	cmd := exec.CommandContext(l.T.Context(), filepath.Join(l.Programs, OperatorProgram), args...)
	cmd.Env = l.environ()
	out, err := cmd.Output()
	if err != nil {
		l.T.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
