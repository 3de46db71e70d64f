// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ssh is the driver for machines that are up and answer to SSH.
//
// It starts the agent in five steps: Connect (host key verified, and pinned
// before anything else), CheckOwner, Upload, Start, ReadKey. All that it leaves
// on the machine is in one directory, see package agent. A machine whose owner
// file names another database or another machine is left exactly as it was.
//
// Every step has a timeout that ends it whatever the machine does: when it
// passes, or the caller's context is done, the connection is closed, which
// wakes up everything that waits for it. What runs on the machine ends by a
// timeout of its own there, so a step whose connection was cut does not go on
// for longer than it might have.
//
// On the machine it needs sh, sudo for a user other than root, an SFTP server,
// and of coreutils or busybox: cat, chmod, cut, head, id, ln, mkdir, mktemp, mv,
// nohup, rm, sha256sum, stat, tail, timeout, uname; and setsid. Where logind
// ends all processes of a user who logs out (KillUserProcesses, which few
// systems set and which spares root), the agent needs root's own login.
package ssh

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bmdb-dev/bmdb-operator/agent"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// Config says how the machines of a provider are reached.
type Config struct {
	// User to log in as: root, or one who may use sudo without a password.
	// Required.
	User string
	// PrivateKey to log in with, in any format that ssh-keygen writes (PEM).
	// Required.
	PrivateKey []byte
	// Passphrase of the private key. Nil: it is not encrypted.
	Passphrase []byte

	// KnownHosts is the list of host keys, in the format of OpenSSH's
	// known_hosts with hashed names, ports, patterns and @revoked; lines of
	// @cert-authority are not used. It counts unless TrustOnFirstUse is set,
	// and wins over what is pinned. A host that is not in it is refused.
	KnownHosts []byte
	// TrustOnFirstUse trusts the first key that a machine shows, and none but
	// that one from then on. KnownHosts must be empty.
	TrustOnFirstUse bool

	// AgentBinary opens the agent for an architecture, see [AgentFiles]. It is
	// called more than once per machine. Required.
	AgentBinary AgentBinary

	// StateDir is the agent's directory on the machines, absolute. Empty:
	// agent.DefaultStateDir.
	StateDir string

	// Timeouts of the steps. Zero ones have defaults.
	Timeouts Timeouts
}

// AgentBinary opens the agent's binary for an architecture as Go names it
// (amd64, arm64, ...) and says how many bytes it has. Where there is none the
// error is os.ErrNotExist. The caller closes it. Safe for concurrent use.
type AgentBinary func(goarch string) (content io.ReadCloser, size int64, err error)

// AgentFiles opens the agents that lie in a directory as
// bmdb-agent-linux-<goarch>.
func AgentFiles(dir string) AgentBinary {
	return func(goarch string) (io.ReadCloser, int64, error) {
		f, err := os.Open(filepath.Join(dir, "bmdb-agent-linux-"+goarch))
		if err != nil {
			return nil, 0, err
		}
		info, err := f.Stat()
		if err != nil {
			_ = f.Close() // nothing was written to it
			return nil, 0, err
		}
		return f, info.Size(), nil
	}
}

// Timeouts bound the steps, each as a whole but for the time that the caller's
// Steps take. On the machine they are rounded up to
// whole seconds.
type Timeouts struct {
	Connect    time.Duration // 0: 20 s
	CheckOwner time.Duration // 0: 20 s
	Upload     time.Duration // 0: 5 min
	Start      time.Duration // 0: 30 s
	ReadKey    time.Duration // 0: 20 s
}

func (t Timeouts) withDefaults() Timeouts {
	for _, d := range []struct {
		value    *time.Duration
		standard time.Duration
	}{
		{&t.Connect, 20 * time.Second}, {&t.CheckOwner, 20 * time.Second}, {&t.Upload, 5 * time.Minute},
		{&t.Start, 30 * time.Second}, {&t.ReadKey, 20 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.standard
		}
	}
	return t
}

// Driver starts agents over SSH. It holds no connection between calls.
type Driver struct {
	user     string
	signer   ssh.Signer
	hostKeys hostKeys
	binary   AgentBinary
	stateDir string
	timeouts Timeouts
}

var _ provider.Driver = (*Driver)(nil)

// New checks the configuration and returns a driver. It reaches nothing. Its
// errors are [*provider.Error]s of reason ConfigInvalid, and hold nothing of
// the key or the passphrase.
func New(c Config) (*Driver, error) {
	if c.User == "" {
		return nil, configInvalid("the user to log in as is missing")
	}
	if c.AgentBinary == nil {
		return nil, configInvalid("there is no agent to upload")
	}
	d := &Driver{user: c.User, binary: c.AgentBinary, stateDir: c.StateDir, timeouts: c.Timeouts.withDefaults()}
	if d.stateDir == "" {
		d.stateDir = agent.DefaultStateDir
	}
	if !path.IsAbs(d.stateDir) || path.Clean(d.stateDir) != d.stateDir || d.stateDir == "/" {
		return nil, configInvalid(fmt.Sprintf("state directory %q is not an absolute path in its shortest form", d.stateDir))
	}
	var err error
	if d.signer, err = parsePrivateKey(c.PrivateKey, c.Passphrase); err != nil {
		return nil, err
	}
	if d.hostKeys, err = newHostKeys(c.KnownHosts, c.TrustOnFirstUse); err != nil {
		return nil, err
	}
	return d, nil
}

// Close does nothing: the driver holds nothing.
func (d *Driver) Close() error { return nil }

// StartAgent implements [provider.AgentStarter].
func (d *Driver) StartAgent(ctx context.Context, m provider.Machine, s provider.Steps) (provider.Agent, error) {
	w := &work{driver: d, machine: m, steps: s}
	defer w.close()
	for _, step := range []struct {
		name    string
		percent int
		timeout time.Duration
		run     func(context.Context) error
	}{
		{"Connect", 0, d.timeouts.Connect, w.connect},
		{"CheckOwner", 20, d.timeouts.CheckOwner, w.checkOwner},
		{"Upload", 40, d.timeouts.Upload, w.upload},
		{"Start", 70, d.timeouts.Start, w.start},
		{"ReadKey", 90, d.timeouts.ReadKey, w.readKey},
	} {
		w.step, w.percent, w.timeout, w.left = step.name, step.percent, step.timeout, step.timeout
		if err := w.ask(ctx); err != nil {
			return provider.Agent{}, err
		}
		if err := step.run(ctx); err != nil {
			return provider.Agent{}, err
		}
	}
	return w.agent, nil
}
