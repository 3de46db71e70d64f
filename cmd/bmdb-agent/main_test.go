// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bmdb-dev/bmdb-operator/agent"
)

// build makes the binary as it is shipped.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "bmdb-agent")
	c := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w -X main.version=v0.0.0-test", "-o", binary, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return binary
}

// start starts an agent and returns the report that it printed.
func start(t *testing.T, binary, dir string) (*exec.Cmd, agent.Report) {
	t.Helper()
	c := exec.CommandContext(t.Context(), binary, "--state-dir", dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	printed, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	r, err := agent.ParseReport(printed)
	if err != nil {
		t.Fatal(err)
	}
	return c, r
}

func TestProcess(t *testing.T) {
	binary, dir := build(t), filepath.Join(t.TempDir(), "state")
	first, r := start(t, binary, dir)
	if r.PID != first.Process.Pid || r.AlreadyRunning || r.Version != "v0.0.0-test" {
		t.Errorf("report of %d is %+v", first.Process.Pid, r)
	}

	again, found := start(t, binary, dir)
	if err := again.Wait(); err != nil {
		t.Errorf("second start: %v", err)
	}
	if !found.AlreadyRunning || found.PID != r.PID || !bytes.Equal(found.PublicKey, r.PublicKey) {
		t.Errorf("second start printed %+v, first %+v", found, r)
	}

	// Killed, it leaves a report that does not count, and a lock that is free.
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(); err == nil {
		t.Error("killed, and no error")
	}
	if out, code := output(t, binary, "report", "--state-dir", dir); code != exitNotRunning || !strings.Contains(out, "no agent is running") {
		t.Errorf("report of a killed agent: exit %d, %q", code, out)
	}
	next, r2 := start(t, binary, dir)
	if r2.AlreadyRunning || r2.PID != next.Process.Pid || !bytes.Equal(r2.PublicKey, r.PublicKey) {
		t.Errorf("after kill: %+v, before %+v", r2, r)
	}
	if out, code := output(t, binary, "report", "--state-dir", dir, "--wait", "10s"); code != 0 || !strings.Contains(out, `"alreadyRunning":true`) {
		t.Errorf("report: exit %d, %q", code, out)
	}

	// SIGTERM is its proper end.
	if err := next.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := next.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, agent.RunningFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after SIGTERM its report is there: %v", err)
	}
}

func output(t *testing.T, binary string, args ...string) (string, int) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), binary, args...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(out), 0
}

func TestBinaryIsStaticAndSmall(t *testing.T) {
	binary := build(t)
	info, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 5<<20 {
		t.Errorf("the binary has %d bytes, want at most 5 MiB: it is uploaded to every machine", info.Size())
	}
	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary needs an interpreter, so it is not static")
		}
	}
}

func TestCommandLine(t *testing.T) {
	for _, test := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"version"}, 0, "bmdb-agent ", ""},
		{[]string{"--help"}, 0, "-state-dir", ""},
		{[]string{"report", "-h"}, 0, "Usage:", ""},
		{[]string{"--nonsense"}, exitUsage, "", "nonsense"},
		{[]string{"nonsense"}, exitUsage, "", `unknown argument "nonsense"`},
		{[]string{"report", "--state-dir", t.TempDir()}, exitNotRunning, "", "no agent is running"},
		{[]string{"--state-dir", "/dev/null/x"}, exitFailure, "", "state directory"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(context.Background(), test.args, &stdout, &stderr)
			if code != test.code || !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("exit %d, stdout %q, stderr %q", code, &stdout, &stderr)
			}
			if test.stderr == "" && stderr.Len() > 0 || test.stdout == "" && stdout.Len() > 0 {
				t.Errorf("unexpected output: stdout %q, stderr %q", &stdout, &stderr)
			}
		})
	}
}
