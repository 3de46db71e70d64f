// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/agent"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/providertest"
	driver "github.com/bmdb-dev/bmdb-operator/internal/provider/ssh"
)

func TestConformance(t *testing.T) {
	for _, test := range []struct {
		name string
		host func(t *testing.T, b behaviour) *host
		b    behaviour
	}{
		{"in process, root", newHost, behaviour{}},
		{"in process, sudo", newHost, behaviour{asUser: true}},
		{"OpenSSH", newSSHD, behaviour{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			providertest.Run(t, func(t *testing.T) providertest.Harness {
				f := &fleet{hosts: map[uuid.UUID]*host{}, drivers: map[uuid.UUID]*driver.Driver{}}
				return providertest.Harness{
					Driver:   f,
					Machine:  func(t *testing.T) provider.Machine { return f.add(t, test.host(t, test.b)) },
					Effects:  func(t *testing.T, m provider.Machine) string { return f.hosts[m.ID].snapshot(t) },
					Failures: failures(t),
					Hanging:  hanging(t),
				}
			})
		})
	}
}

// fleet is a driver of many hosts. All of them are this computer, so each needs
// a state directory, and with it a driver, of its own.
type fleet struct {
	mu      sync.Mutex
	hosts   map[uuid.UUID]*host
	drivers map[uuid.UUID]*driver.Driver
}

func (f *fleet) add(t *testing.T, h *host) provider.Machine {
	t.Helper()
	m := newMachine(h)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts[m.ID], f.drivers[m.ID] = h, newDriver(t, h)
	return m
}

func (f *fleet) StartAgent(ctx context.Context, m provider.Machine, s provider.Steps) (provider.Agent, error) {
	f.mu.Lock()
	d := f.drivers[m.ID]
	f.mu.Unlock()
	return d.StartAgent(ctx, m, s)
}

func (f *fleet) Close() error {
	for _, d := range f.drivers {
		if err := d.Close(); err != nil {
			return err
		}
	}
	return nil
}

func hanging(t *testing.T) []providertest.Hanging {
	t.Helper()
	var all []providertest.Hanging
	for _, at := range []string{"accept", "banner", "kex", "auth", "session", "exec", "sftp"} {
		h := newHost(t, behaviour{hangAt: at})
		all = append(all, providertest.Hanging{Name: at, Driver: newDriver(t, h), Machine: newMachine(h)})
	}
	return all
}

// failures are all that have a reason of their own and need no story.
func failures(t *testing.T) []providertest.Failure {
	t.Helper()
	var all []providertest.Failure
	add := func(name, reason string, person bool, b behaviour, change func(*host, *provider.Machine, *driver.Config)) {
		h := newHost(t, b)
		m := newMachine(h)
		d := newDriver(t, h, func(c *driver.Config) {
			if change != nil {
				change(h, &m, c)
			}
		})
		all = append(all, providertest.Failure{Name: name, Driver: d, Machine: m, Reason: reason, NeedsPerson: person})
	}
	agentOf := func(script string) func(*host, *provider.Machine, *driver.Config) {
		return func(_ *host, _ *provider.Machine, c *driver.Config) {
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, "bmdb-agent-linux-"+runtime.GOARCH), []byte(script), 0o600))
			c.AgentBinary = driver.AgentFiles(dir)
		}
	}
	add("no address", provider.ReasonAddressMissing, true, behaviour{}, func(_ *host, m *provider.Machine, _ *driver.Config) { m.Address = "" })
	add("no such address", provider.ReasonAddressInvalid, true, behaviour{}, func(_ *host, m *provider.Machine, _ *driver.Config) { m.Address = "a b\n" })
	add("no such name", provider.ReasonUnreachable, false, behaviour{}, func(_ *host, m *provider.Machine, _ *driver.Config) { m.Address = "no-such-host.invalid" })
	add("refused", provider.ReasonUnreachable, false, behaviour{}, func(_ *host, m *provider.Machine, _ *driver.Config) { m.Address = closedPort(t) })
	add("closes at once", provider.ReasonUnreachable, false, behaviour{}, func(_ *host, m *provider.Machine, _ *driver.Config) {
		other := &host{released: make(chan struct{})}
		other.serve(t, func(c net.Conn) { _ = c.Close() })
		m.Address = other.address
	})
	add("no SSH", provider.ReasonUnreachable, false, behaviour{}, func(_ *host, m *provider.Machine, _ *driver.Config) {
		other := &host{released: make(chan struct{})}
		other.serve(t, func(c net.Conn) {
			_, _ = c.Write([]byte("HTTP/1.1 400 \x1b[31mBad Request\r\n\r\n"))
			_ = c.Close()
		})
		m.Address = other.address
	})
	add("not let in", provider.ReasonAuthenticationFailed, true, behaviour{noUser: true}, nil)
	add("no sudo", provider.ReasonNeedsSudo, true, behaviour{asUser: true, noSudo: true}, nil)
	add("unknown host", provider.ReasonHostKeyUnknown, true, behaviour{}, func(_ *host, _ *provider.Machine, c *driver.Config) { c.TrustOnFirstUse = false })
	add("another host", provider.ReasonHostKeyMismatch, true, behaviour{}, func(_ *host, m *provider.Machine, _ *driver.Config) {
		m.HostKey = newKey(t, "").public().Marshal()
	})
	add("another system", provider.ReasonArchitectureUnsupported, true,
		behaviour{programs: map[string]string{"uname": `[ "$1" = -s ] && echo Darwin || echo arm64`}}, nil)
	add("another architecture", provider.ReasonArchitectureUnsupported, true,
		behaviour{programs: map[string]string{"uname": `[ "$1" = -s ] && echo Linux || echo vax`}}, nil)
	add("no agent for it", provider.ReasonArchitectureUnsupported, true, behaviour{}, func(_ *host, _ *provider.Machine, c *driver.Config) {
		c.AgentBinary = driver.AgentFiles(t.TempDir())
	})
	add("no programs", provider.ReasonCommandFailed, false, behaviour{noProgram: true}, nil)
	add("no SFTP", provider.ReasonUploadFailed, false, behaviour{noSFTP: true}, nil)
	add("upload is damaged", provider.ReasonUploadFailed, false, behaviour{programs: map[string]string{"sha256sum": "echo 0000"}}, nil)
	add("owner is unclear", provider.ReasonOwnerUnclear, true, behaviour{}, func(h *host, _ *provider.Machine, _ *driver.Config) { h.own(t, "{}") })
	add("agent does not run", provider.ReasonAgentFailed, false, behaviour{}, agentOf("#!/bin/sh\necho 'no \x1b[31m\nchance' >&2; exit 1\n"))
	add("agent is no program", provider.ReasonAgentFailed, false, behaviour{}, agentOf("\x7fELF nonsense"))
	add("agent ends at once", provider.ReasonAgentFailed, false, behaviour{}, func(h *host, m *provider.Machine, c *driver.Config) {
		agentOf("#!/bin/sh\n[ \"$1\" = report ] && exit 3\nexit 1\n")(h, m, c)
	})
	add("agent says nonsense", provider.ReasonAgentFailed, false, behaviour{}, agentOf("#!/bin/sh\necho '{}'\n"))
	return all
}

// own writes an owner file to a host.
func (h *host) own(t *testing.T, content string) {
	t.Helper()
	must(t, os.MkdirAll(h.stateDir, 0o700))
	must(t, os.WriteFile(filepath.Join(h.stateDir, agent.OwnerFile), []byte(content), 0o600))
}

// owner is what the owner file says.
func (h *host) owner(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(h.stateDir, agent.OwnerFile))
	must(t, err)
	return string(content)
}

// closedPort is an address at which nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}
