// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bmdb-dev/bmdb-operator/agent"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/providertest"
	driver "github.com/bmdb-dev/bmdb-operator/internal/provider/ssh"
)

func sorted(s []string) []string { slices.Sort(s); return s }

func startAgent(t *testing.T, d *driver.Driver, m provider.Machine) provider.Agent {
	t.Helper()
	a, err := d.StartAgent(t.Context(), m, &providertest.Steps{})
	must(t, err)
	return a
}

func wantReason(t *testing.T, err error, reason string, person bool) {
	t.Helper()
	e, ok := errors.AsType[*provider.Error](err)
	if !ok || e.Reason != reason || e.NeedsPerson != person {
		t.Errorf("error %v (reason %q, needs person %v), want %s, %v", err, provider.ReasonOf(err), provider.NeedsPerson(err), reason, person)
	}
}

// TestStartAgent is the whole way, on every kind of host.
func TestStartAgent(t *testing.T) {
	for _, test := range []struct {
		name string
		host func(*testing.T) *host
	}{
		{"in process, root", func(t *testing.T) *host { return newHost(t, behaviour{}) }},
		{"in process, sudo", func(t *testing.T) *host { return newHost(t, behaviour{asUser: true}) }},
		{"in process, noisy shell", func(t *testing.T) *host { return newHost(t, behaviour{noise: "Welcome!\nbegin-\n"}) }},
		{"OpenSSH, root", func(t *testing.T) *host { return newSSHD(t, behaviour{}) }},
		{"OpenSSH, sudo", func(t *testing.T) *host { return newSSHD(t, behaviour{asUser: true}) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := test.host(t)
			d, m := newDriver(t, h), newMachine(h)
			s := &providertest.Steps{}
			first, err := d.StartAgent(t.Context(), m, s)
			must(t, err)
			if first.AlreadyRunning || first.Outdated {
				t.Errorf("first start: already running %v, outdated %v", first.AlreadyRunning, first.Outdated)
			}
			var facts agent.Facts
			must(t, json.Unmarshal(first.Facts, &facts))
			if facts.Kernel == "" || facts.CPUs == 0 {
				t.Errorf("facts are %s", first.Facts)
			}
			want := []providertest.StepCall{
				{Name: "Connect", Percent: 0}, {Name: "CheckOwner", Percent: 20}, {Name: "CheckOwner", Percent: 20},
				{Name: "Upload", Percent: 40}, {Name: "Start", Percent: 70}, {Name: "ReadKey", Percent: 90},
			}
			if diff := cmp.Diff(want, s.Calls()); diff != "" {
				t.Errorf("steps: %s", diff)
			}
			h.checkFiles(t, m)

			// It lives on without the connection, and is found.
			before, pid := h.snapshot(t), h.agentPID(t)
			m.HostKey = s.Pins()[0]
			second := startAgent(t, d, m)
			if !second.AlreadyRunning || second.Outdated || !bytes.Equal(first.PublicKey, second.PublicKey) || h.agentPID(t) != pid || pid == 0 {
				t.Errorf("second start: %+v with process %d; first %+v with %d", second, h.agentPID(t), first, pid)
			}
			if after := h.snapshot(t); after != before {
				t.Errorf("the second start changed the machine: %s", cmp.Diff(before, after))
			}

			// Killed, it is started again and has the same key.
			h.stopAgent(t)
			third := startAgent(t, d, m)
			if third.AlreadyRunning || !bytes.Equal(first.PublicKey, third.PublicKey) || h.agentPID(t) == pid {
				t.Errorf("after a kill: %+v", third)
			}
		})
	}
}

func (h *host) checkFiles(t *testing.T, m provider.Machine) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(h.stateDir, agent.OwnerFile))
	must(t, err)
	o, err := agent.ParseOwner(content)
	must(t, err)
	want := agent.Owner{DatabaseID: m.DatabaseID, MachineID: m.ID, Pool: m.Pool, Name: m.Name, Provider: m.Provider, ProviderID: m.ProviderID}
	if d := cmp.Diff(want, o); d != "" {
		t.Error(d)
	}
	for name, mode := range map[string]os.FileMode{
		".": 0o700, agent.OwnerFile: 0o600, agent.BinaryFile: 0o700, agent.KeyFile: 0o600, agent.LogFile: 0o600,
	} {
		info, err := os.Stat(filepath.Join(h.stateDir, name))
		must(t, err)
		if info.Mode().Perm() != mode {
			t.Errorf("%s has mode %o, want %o", name, info.Mode().Perm(), mode)
		}
	}
	for line := range strings.Lines(h.snapshot(t)) {
		if strings.HasPrefix(line, "temp") || strings.HasPrefix(line, "state/.") {
			t.Errorf("left on the machine: %s", line)
		}
	}
}
