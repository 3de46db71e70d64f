// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/bmdb-dev/bmdb-operator/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// output hands on what the agent prints.
type output chan []byte

func (o output) Write(b []byte) (int, error) {
	o <- bytes.Clone(b)
	return len(b), nil
}

// startAgent runs an agent until the test ends or stop is called, and returns
// what it printed.
func startAgent(t *testing.T, dir string) (r agent.Report, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	printed, ended := make(output, 1), make(chan error, 1)
	go func() { ended <- agent.Run(ctx, agent.Config{StateDir: dir, Version: "v1", Output: printed}) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("agent ended with %v", err)
		}
	})
	t.Cleanup(stop)
	select {
	case b := <-printed:
		return parse(t, b), stop
	case err := <-ended:
		ended <- nil
		t.Fatalf("agent ended at once: %v", err)
	}
	return agent.Report{}, stop
}

func parse(t *testing.T, b []byte) agent.Report {
	t.Helper()
	if bytes.Count(b, []byte("\n")) != 1 || !bytes.HasSuffix(b, []byte("\n")) {
		t.Errorf("%q is not one line", b)
	}
	r, err := agent.ParseReport(b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRunMakesItsKeyOnceAndKeepsIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, stop := startAgent(t, dir)
	if first.AlreadyRunning || first.PID != os.Getpid() || first.Version != "v1" || len(first.BinaryDigest) != 64 {
		t.Errorf("report is %+v", first)
	}
	for name, want := range map[string]os.FileMode{".": 0o700, agent.KeyFile: 0o600, agent.RunningFile: 0o600, agent.LockFile: 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", name, info.Mode().Perm(), want)
		}
	}
	stop()
	if _, err := agent.Running(dir); !errors.Is(err, agent.ErrNotRunning) {
		t.Errorf("after its end: %v", err)
	}
	second, _ := startAgent(t, dir)
	if !bytes.Equal(first.PublicKey, second.PublicKey) || second.AlreadyRunning {
		t.Errorf("restarted with key %x and alreadyRunning %v; had %x", second.PublicKey, second.AlreadyRunning, first.PublicKey)
	}
}

func TestSecondStartFindsTheFirst(t *testing.T) {
	dir := t.TempDir()
	first, _ := startAgent(t, dir)
	var out bytes.Buffer
	if err := agent.Run(t.Context(), agent.Config{StateDir: dir, Version: "v2", Output: &out}); err != nil {
		t.Fatal(err)
	}
	second := parse(t, out.Bytes())
	if !second.AlreadyRunning || !bytes.Equal(first.PublicKey, second.PublicKey) || second.Version != "v1" {
		t.Errorf("second start printed %+v", second)
	}
}

func TestManyStartsAtOnceRunOneAgent(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const n = 8
	printed := make(output, n)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if err := agent.Run(ctx, agent.Config{StateDir: dir, Output: printed}); err != nil {
				t.Error(err)
			}
		})
	}
	running, keys := 0, map[string]bool{}
	for range n {
		r := parse(t, <-printed)
		keys[string(r.PublicKey)] = true
		if !r.AlreadyRunning {
			running++
		}
	}
	cancel()
	wg.Wait()
	if running != 1 || len(keys) != 1 {
		t.Errorf("%d agents run with %d keys, want 1 and 1", running, len(keys))
	}
}

func TestReportOfADeadAgentDoesNotCount(t *testing.T) {
	dir := t.TempDir()
	_, stop := startAgent(t, dir)
	left, err := os.ReadFile(filepath.Join(dir, agent.RunningFile))
	if err != nil {
		t.Fatal(err)
	}
	stop()
	// Its number belongs to another process now: same number, other start.
	var content map[string]any
	if err := json.Unmarshal(left, &content); err != nil {
		t.Fatal(err)
	}
	content["process"] = "another boot/1"
	changed, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, agent.RunningFile), changed, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Running(dir); !errors.Is(err, agent.ErrNotRunning) {
		t.Errorf("error %v, want not running", err)
	}
	if r, _ := startAgent(t, dir); r.AlreadyRunning {
		t.Error("a dead agent was found running")
	}
}

func TestWaitRunning(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := agent.WaitRunning(ctx, dir); !errors.Is(err, agent.ErrNotRunning) {
		t.Errorf("error %v, want not running", err)
	}
	found := make(chan error, 1)
	go func() {
		_, err := agent.WaitRunning(t.Context(), dir)
		found <- err
	}()
	startAgent(t, dir)
	if err := <-found; err != nil {
		t.Error(err)
	}
}

func TestRunRefuses(t *testing.T) {
	for _, test := range []struct {
		name, want string
		prepare    func(t *testing.T, dir string)
	}{
		{"a directory that others can write", "writable for others", func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o700))
			must(t, os.Chmod(dir, 0o777))
		}},
		{"a link instead of a directory", "no directory", func(t *testing.T, dir string) {
			must(t, os.Symlink(t.TempDir(), dir))
		}},
		{"a key that others can read", "only its owner can read", func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o700))
			must(t, os.WriteFile(filepath.Join(dir, agent.KeyFile), []byte("secret"), 0o644))
		}},
		{"a key that is none", "not one PEM block", func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o700))
			must(t, os.WriteFile(filepath.Join(dir, agent.KeyFile), []byte("secret"), 0o600))
		}},
		{"a key of another kind", "not an ed25519 key", func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o700))
			must(t, os.WriteFile(filepath.Join(dir, agent.KeyFile),
				[]byte("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"), 0o600))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			test.prepare(t, dir)
			var out bytes.Buffer
			err := agent.Run(t.Context(), agent.Config{StateDir: dir, Output: &out})
			if err == nil || !strings.Contains(err.Error(), test.want) || out.Len() > 0 {
				t.Errorf("error %v, printed %q; want an error with %q", err, &out, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("error %v holds the key", err)
			}
		})
	}
}

// TestLockIsHeldByASilentProcess: whoever holds the lock and never says who it
// is must not keep the second start for ever.
func TestLockIsHeldByASilentProcess(t *testing.T) {
	dir := t.TempDir()
	_, stop := startAgent(t, dir)
	must(t, os.Rename(filepath.Join(dir, agent.RunningFile), filepath.Join(dir, "away")))
	err := agent.Run(t.Context(), agent.Config{StateDir: dir, Output: &bytes.Buffer{}, Patience: 50 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "not said who it is") {
		t.Errorf("error %v", err)
	}
	must(t, os.Rename(filepath.Join(dir, "away"), filepath.Join(dir, agent.RunningFile)))
	stop()
}

func TestGather(t *testing.T) {
	root := fstest.MapFS{
		"etc/machine-id":                   {Data: []byte("0123\n")},
		"proc/sys/kernel/random/boot_id":   {Data: []byte("boot\n")},
		"proc/sys/kernel/osrelease":        {Data: []byte("6.1.0\n")},
		"proc/stat":                        {Data: []byte("cpu  1\ncpu0 1\ncpu1 1\ncpu2 1\nintr 1\n")},
		"proc/meminfo":                     {Data: []byte("MemTotal:       16 kB\nMemFree: 1 kB\n")},
		"proc/uptime":                      {Data: []byte("12.34 5.6\n")},
		"sys/block/sda/size":               {Data: []byte("8\n")},
		"sys/block/sda/device/model":       {Data: []byte("DISK\x00 \xff  \n")},
		"sys/block/sda/queue/rotational":   {Data: []byte("1\n")},
		"sys/block/nvme0n1/size":           {Data: []byte("16\n")},
		"sys/block/nvme0n1/wwid":           {Data: []byte("eui.1\n")},
		"sys/block/nvme0n1/device/serial":  {Data: []byte("S1\n")},
		"sys/block/loop0/size":             {Data: []byte("8\n")},
		"sys/block/sr0/size":               {Data: []byte("0\n")},
		"sys/class/net/eth0/device/vendor": {Data: []byte("1\n")},
	}
	got := agent.Gather(root)
	want := agent.Facts{
		Hostname: got.Hostname, Architecture: got.Architecture, NetworkInterfaces: got.NetworkInterfaces,
		MachineID: "0123", BootID: "boot", Kernel: "6.1.0", CPUs: 3, MemoryBytes: 16 << 10, UptimeSeconds: 12,
		BlockDevices: []agent.BlockDevice{
			{Name: "nvme0n1", SizeBytes: 8192, SerialNumber: "S1", WWN: "eui.1"},
			{Name: "sda", SizeBytes: 4096, Model: "DISK", Rotational: true},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	empty := agent.Gather(fstest.MapFS{})
	if empty.Architecture == "" || empty.CPUs == 0 || empty.MemoryBytes != 0 || empty.BlockDevices != nil {
		t.Errorf("without files: %+v", empty)
	}
	if here := agent.Gather(os.DirFS("/")); here.CPUs == 0 {
		t.Errorf("here: %+v", here)
	}
}

func TestFactsAreBounded(t *testing.T) {
	root := fstest.MapFS{}
	for i := range 1000 {
		root["sys/block/sd"+strconv.Itoa(i)+"/size"] = &fstest.MapFile{Data: []byte("8\n")}
	}
	if n := len(agent.Gather(root).BlockDevices); n != 256 {
		t.Errorf("%d block devices", n)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
