// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const helperEnv = "BMDB_PROC_TEST_LOG"

// TestMain is also the parent that dies: with helperEnv set it starts a child, prints its process ID and waits to be killed.
func TestMain(m *testing.M) {
	log := os.Getenv(helperEnv)
	if log == "" {
		goleak.VerifyTestMain(m)
		return
	}
	child, err := Start(Config{Path: "/bin/sleep", Args: []string{"1000"}, Log: log})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(child.Pid())
	select {}
}

func TestStop(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		script string
		killed bool
	}{
		"ends on the signal": {script: "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done"},
		"ignores the signal": {script: "trap '' TERM; echo ready; while :; do sleep 0.01; done", killed: true},
		"has ended already":  {script: "echo ready; exit 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			process := start(t, test.script)
			waitLog(t, process, "ready")
			patience := time.Minute
			if test.killed {
				patience = 100 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			err := process.Stop(ctx, syscall.SIGTERM)
			if killed := errors.Is(err, context.DeadlineExceeded); killed != test.killed || (err != nil) != test.killed {
				t.Errorf("Stop: got %v, want killed %v", err, test.killed)
			}
			select {
			case <-process.Done():
			default:
				t.Error("it still runs after Stop")
			}
			if err := process.Signal(syscall.SIGTERM); err != nil {
				t.Errorf("Signal after the end: %v", err)
			}
		})
	}
}

func TestErrorsCarryTheLog(t *testing.T) {
	t.Parallel()
	process := start(t, "echo what went wrong >&2; exit 3")
	err := process.WaitExit(t.Context())
	if err == nil || !strings.Contains(err.Error(), "what went wrong") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("WaitExit: got %v", err)
	}
	err = process.WaitReady(t.Context(), func(context.Context) error { return errors.New("not ready") })
	if err == nil || !strings.Contains(err.Error(), "what went wrong") {
		t.Errorf("WaitReady: got %v", err)
	}
	if process.Exit().ExitCode() != 3 {
		t.Errorf("Exit: got %v", process.Exit())
	}
	if err := start(t, "exit 0").WaitExit(t.Context()); err != nil {
		t.Errorf("WaitExit of a success: %v", err)
	}
	if _, err := Start(Config{Path: "/no/such/program", Log: filepath.Join(t.TempDir(), "log")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Start of no program: got %v", err)
	}
}

func TestWaitReadyEndsWithItsContext(t *testing.T) {
	t.Parallel()
	process := start(t, "exec sleep 1000")
	if process.Err() != nil || process.Exit() != nil {
		t.Errorf("it runs, and yet Err is %v, Exit is %v", process.Err(), process.Exit())
	}
	notReady := errors.New("not ready")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := process.WaitReady(ctx, func(context.Context) error { return notReady })
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, notReady) {
		t.Errorf("WaitReady: got %v", err)
	}
	if err := process.WaitExit(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitExit: got %v", err)
	}
}

// TestChildDiesWithItsParent: a parent that is killed cannot clean up, the kernel does.
func TestChildDiesWithItsParent(t *testing.T) {
	t.Parallel()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(executable)
	parent.Env = append(os.Environ(), helperEnv+"="+filepath.Join(t.TempDir(), "log"))
	parent.Stderr = os.Stderr
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child := filepath.Join("/proc", strings.TrimSpace(line))
	if _, err := os.Stat(child); err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // says that it was killed
	eventually(t, "the child ends", func() bool {
		// Nothing is left to run, even where nobody takes leave of it.
		status, err := os.ReadFile(filepath.Join(child, "status"))
		return err != nil || strings.Contains(string(status), "State:\tZ")
	})
}

func TestTail(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	if got := Tail(path); !strings.Contains(got, "no such file") {
		t.Errorf("of no file: got %q", got)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 2*tailBytes)+"end"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Tail(path); len(got) != tailBytes || !strings.HasSuffix(got, "end") {
		t.Errorf("of a long file: got %d bytes", len(got))
	}
}

func TestFreePort(t *testing.T) {
	t.Parallel()
	port, err := FreePort()
	if err != nil || port < firstPort || port >= lastPort {
		t.Errorf("got %d, %v", port, err)
	}
}

func start(t *testing.T, script string) *Process {
	t.Helper()
	process, err := Start(Config{Path: "/bin/sh", Args: []string{"-c", script}, Log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Stop(context.Background(), syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	return process
}

func waitLog(t *testing.T, process *Process, text string) {
	t.Helper()
	eventually(t, "its log says "+text, func() bool { return strings.Contains(Tail(process.config.Log), text) })
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !check() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
