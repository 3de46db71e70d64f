// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/agent"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/providertest"
	driver "github.com/bmdb-dev/bmdb-operator/internal/provider/ssh"
)

// otherAgent is the real agent as another binary.
func otherAgent(t *testing.T) func(*driver.Config) {
	t.Helper()
	name := "bmdb-agent-linux-" + runtime.GOARCH
	content, err := os.ReadFile(filepath.Join(agents, name))
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, name), append(content, "another version"...), 0o600))
	return func(c *driver.Config) { c.AgentBinary = driver.AgentFiles(dir) }
}

func TestUploadOnlyWhatIsNotThere(t *testing.T) {
	for name, b := range map[string]behaviour{"root": {}, "sudo": {asUser: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, b)
			m := newMachine(h)
			first := startAgent(t, newDriver(t, h), m)
			startAgent(t, newDriver(t, h), m)
			if h.uploads != 1 {
				t.Errorf("%d uploads, want 1", h.uploads)
			}

			// Another binary comes beside the agent that runs, which is left alone.
			pid := h.agentPID(t)
			a := startAgent(t, newDriver(t, h, otherAgent(t)), m)
			if h.uploads != 2 || !a.AlreadyRunning || !a.Outdated || h.agentPID(t) != pid || !bytes.Equal(a.PublicKey, first.PublicKey) {
				t.Errorf("%d uploads, agent %d was %d: %+v", h.uploads, h.agentPID(t), pid, a)
			}
			h.stopAgent(t)
			if a = startAgent(t, newDriver(t, h, otherAgent(t)), m); h.uploads != 2 || a.AlreadyRunning || a.Outdated || !bytes.Equal(a.PublicKey, first.PublicKey) {
				t.Errorf("after a restart: %d uploads, %+v", h.uploads, a)
			}

			// One that cannot be run is brought anew.
			h.stopAgent(t)
			must(t, os.Chmod(filepath.Join(h.stateDir, agent.BinaryFile), 0o600))
			if startAgent(t, newDriver(t, h, otherAgent(t)), m); h.uploads != 3 {
				t.Errorf("%d uploads, want 3", h.uploads)
			}
			h.checkFiles(t, m)
		})
	}
}

func TestInterruptedUploadIsRepeatedAndLeavesNothing(t *testing.T) {
	for name, b := range map[string]behaviour{"root": {}, "sudo": {asUser: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, b)
			m := newMachine(h)
			broken, reads := errors.New("broken"), 0
			d := newDriver(t, h, func(c *driver.Config) {
				open := c.AgentBinary
				c.AgentBinary = func(goarch string) (io.ReadCloser, int64, error) {
					content, size, err := open(goarch)
					if reads++; reads == 2 { // the first is for the digest
						content = struct {
							io.Reader
							io.Closer
						}{io.MultiReader(io.LimitReader(content, size/2), failing{broken}), content}
					}
					return content, size, err
				}
			})
			_, err := d.StartAgent(t.Context(), m, &providertest.Steps{})
			wantReason(t, err, provider.ReasonUploadFailed, false)
			if !errors.Is(err, broken) {
				t.Errorf("error %v, want %v", err, broken)
			}
			if h.agentPID(t) != 0 || !strings.Contains(h.snapshot(t), "agent") {
				t.Errorf("half an agent: process %d, files\n%s", h.agentPID(t), h.snapshot(t))
			}
			startAgent(t, d, m)
			h.checkFiles(t, m) // nothing of the first try is left
		})
	}
}

// TestDamagedUploadIsNotInstalled: what gets the agent's name is what was sent, or what was there before.
func TestDamagedUploadIsNotInstalled(t *testing.T) {
	for name, b := range map[string]behaviour{"root": {damages: true}, "sudo": {asUser: true, damages: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, b)
			m := newMachine(h)
			installed := filepath.Join(h.stateDir, agent.BinaryFile)
			_, err := newDriver(t, h).StartAgent(t.Context(), m, &providertest.Steps{})
			wantReason(t, err, provider.ReasonUploadFailed, false)
			if _, err := os.Lstat(installed); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("installed: %v", err)
			}
			must(t, os.WriteFile(installed, []byte("former"), 0o700))
			_, err = newDriver(t, h).StartAgent(t.Context(), m, &providertest.Steps{})
			wantReason(t, err, provider.ReasonUploadFailed, false)
			if content, err := os.ReadFile(installed); err != nil || string(content) != "former" {
				t.Errorf("the former agent is %d bytes now, %v", len(content), err)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestAgentBinaryFails: what is wrong here is not blamed on the machine.
func TestAgentBinaryFails(t *testing.T) {
	t.Parallel()
	h := newHost(t, behaviour{})
	for name, open := range map[string]driver.AgentBinary{
		"cannot be opened": func(string) (io.ReadCloser, int64, error) { return nil, 0, errors.New("disk") },
		"has another size": func(string) (io.ReadCloser, int64, error) {
			return io.NopCloser(strings.NewReader("x")), 2, nil
		},
		"cannot be read": func(string) (io.ReadCloser, int64, error) {
			return io.NopCloser(failing{errors.New("disk")}), 2, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newDriver(t, h, func(c *driver.Config) { c.AgentBinary = open }).StartAgent(t.Context(), newMachineOf(t, h), &providertest.Steps{})
			wantReason(t, err, provider.ReasonUploadFailed, false)
		})
	}
}

// newMachineOf is the machine that the host's owner file names, or makes one.
func newMachineOf(t *testing.T, h *host) provider.Machine {
	t.Helper()
	m := newMachine(h)
	content, err := os.ReadFile(filepath.Join(h.stateDir, agent.OwnerFile))
	if errors.Is(err, os.ErrNotExist) {
		return m
	}
	must(t, err)
	o, err := agent.ParseOwner(content)
	must(t, err)
	m.ID = o.MachineID
	return m
}

// TestAnyStateDirectory: whatever the directory is called, it is one word to
// the machine.
func TestAnyStateDirectory(t *testing.T) {
	for _, name := range []string{
		"with space", "it's", `"quoted" \back\`, "$(touch pwned)", "`touch pwned`", "; touch pwned #", "*?[a]", "new\nline", "-n", "ünï", "~root", "!!",
	} {
		for kind, newOne := range map[string]func(*testing.T, behaviour) *host{"in process": newHost, "OpenSSH": newSSHD} {
			t.Run(kind+" "+name, func(t *testing.T) {
				t.Parallel()
				h := newOne(t, behaviour{asUser: true})
				h.stateDir = filepath.Join(t.TempDir(), name)
				h.remoteStateDir = h.stateDir
				m := newMachine(h)
				startAgent(t, newDriver(t, h, short(20*time.Second)), m)
				h.checkFiles(t, m)
				for _, dir := range []string{".", h.tempDir, filepath.Dir(h.stateDir)} {
					if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
						t.Error("a name was run as a command")
					}
				}
			})
		}
	}
}
