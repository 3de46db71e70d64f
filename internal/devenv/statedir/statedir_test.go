// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package statedir

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const helperEnv = "BMDB_STATEDIR_TEST_PARENT"

// TestMain is also the process that dies: with helperEnv set it makes a directory, prints it and waits to be killed.
func TestMain(m *testing.M) {
	if parent := os.Getenv(helperEnv); parent != "" {
		dir, err := New(parent, "helper", nil)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(dir.Path)
		select {}
	}
	os.Exit(m.Run())
}

func TestRemove(t *testing.T) {
	t.Parallel()
	dir, err := New(t.TempDir(), "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir.Join("deep", "er"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := dir.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

func TestDirectoryGoesWithItsProcess(t *testing.T) {
	t.Parallel()
	helper, path := startHelper(t, t.TempDir())
	kill(t, helper)
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there: %v", path, err)
		}
	}
}

// TestSweep: what is locked is left alone, what is not is reported and removed.
func TestSweep(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	helper, living := startHelper(t, parent)
	dead := parent + "/helper-dead"
	if err := os.Mkdir(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dead+"/"+lockName, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	young := parent + "/helper-young"
	if err := os.Mkdir(young, 0o700); err != nil {
		t.Fatal(err)
	}

	var leftovers []string
	dir, err := New(parent, "helper", func(path string) { leftovers = append(leftovers, path) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := dir.Remove(); err != nil {
			t.Error(err)
		}
	}()
	if len(leftovers) != 1 || leftovers[0] != dead {
		t.Errorf("leftovers: got %v, want [%s]", leftovers, dead)
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory of a dead process: %v", err)
	}
	for _, kept := range []string{living, young} {
		if _, err := os.Stat(kept); err != nil {
			t.Errorf("directory of a living process: %v", err)
		}
	}
	kill(t, helper)
}

func startHelper(t *testing.T, parent string) (*exec.Cmd, string) {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	helper := exec.CommandContext(ctx, executable)
	helper.Env = append(os.Environ(), helperEnv+"="+parent)
	helper.Stderr = os.Stderr
	stdout, err := helper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := helper.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return helper, strings.TrimSpace(line)
}

func kill(t *testing.T, helper *exec.Cmd) {
	t.Helper()
	if err := helper.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = helper.Wait() // says that it was killed
}
