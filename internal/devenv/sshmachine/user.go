// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package sshmachine

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/statedir"
)

//go:embed init-user.sh
var userInit []byte

// userNamespaces are what a machine of a user other than root has of its own.
var userNamespaces = []string{"--user", "--map-root-user", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL"}

// userKind makes machines without root: pid 1 and its file system in a user namespace, at an address of the loopback
// interface, where this process is the SSH server.
type userKind struct {
	script string
	port   int

	mu      sync.Mutex
	servers map[*Machine]*server // of machines that are on
}

// probeUser says why this process cannot make such machines.
func probeUser(ctx context.Context) error {
	args := append(append([]string{}, userNamespaces...), "mount", "-t", "proc", "proc", "/proc")
	if out, err := exec.CommandContext(ctx, "unshare", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("machines without root need user namespaces, which this host does not allow (%w: %s); run it as root", err, bytes.TrimSpace(out))
	}
	return nil
}

func (k *userKind) reduced() string {
	return "without root, machines share this host's network and see its files, and the SSH servers are part of this program"
}

func (k *userKind) prepare(_ context.Context, state *statedir.Dir) error {
	k.servers = map[*Machine]*server{}
	k.script = state.Join("init-user.sh")
	if err := os.WriteFile(k.script, userInit, 0o755); err != nil {
		return fmt.Errorf("write boot script: %w", err)
	}
	var err error
	k.port, err = proc.FreePort()
	return err
}

// address is one of the loopback interface for each machine, with the same port.
func (k *userKind) address(index int) (string, error) {
	return net.JoinHostPort(fmt.Sprintf("127.0.1.%d", firstHost+index), strconv.Itoa(k.port)), nil
}

func (k *userKind) furnish(m *Machine) error {
	for _, dir := range []string{"root", "lib"} {
		if err := os.Mkdir(filepath.Join(m.dir, dir), 0o755); err != nil {
			return err
		}
	}
	machineID := make([]byte, 16)
	if _, err := rand.Read(machineID); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"machine-id": hex.EncodeToString(machineID) + "\n",
		"hostname":   m.Name + "\n",
	} {
		if err := os.WriteFile(filepath.Join(m.dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (k *userKind) command(m *Machine) (path string, args []string, err error) {
	args = append(append([]string{}, userNamespaces...), "/bin/sh", k.script, m.Name, m.dir)
	return "/usr/bin/unshare", args, nil
}

// on waits until the machine's file system is complete and opens its SSH server.
func (k *userKind) on(ctx context.Context, m *Machine, r *running) error {
	root := fmt.Sprintf("/proc/%d/root", r.init)
	err := r.process.WaitReady(ctx, func(context.Context) error {
		_, err := os.Stat(filepath.Join(root, "run", "booted"))
		return err
	})
	if err != nil {
		return err
	}
	m.keyMu.Lock()
	hostKey := m.hostKey
	m.keyMu.Unlock()
	server, err := serve(ctx, m.Address, hostKey, m.authorized, r.init)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.servers[m] = server
	return nil
}

func (k *userKind) off(m *Machine) {
	if server := k.take(m); server != nil {
		server.close()
	}
}

func (k *userKind) take(m *Machine) *server {
	k.mu.Lock()
	defer k.mu.Unlock()
	server := k.servers[m]
	delete(k.servers, m)
	return server
}

// hang makes the machine's server take connections without answering, or lets it go on.
func (k *userKind) hang(m *Machine, hang bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if server := k.servers[m]; server != nil {
		server.hang(hang)
	}
}

func (k *userKind) close() error { return nil }

// commandTimeout bounds how long the end of a command waits for those that inherited its output.
const commandTimeout = 2 * time.Second

// enter is a command on the machine whose pid 1 is given.
func enter(init int, command string) *exec.Cmd {
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(init), "--user", "--preserve-credentials", "--mount", "--uts", "--ipc", "--pid",
		"/bin/sh", "-c", `cd && exec "$0" -c "$1"`, "/bin/sh", command)
	cmd.Env = append(minimalEnv(), "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh")
	cmd.WaitDelay = commandTimeout
	return cmd
}

func parseAuthorizedKeys(text []byte) (map[string]bool, error) {
	keys := map[string]bool{}
	for len(bytes.TrimSpace(text)) > 0 {
		key, _, _, rest, err := ssh.ParseAuthorizedKey(text)
		if err != nil {
			return nil, fmt.Errorf("parse authorized keys: %w", err)
		}
		keys[string(key.Marshal())] = true
		text = rest
	}
	return keys, nil
}

var errNotAuthorized = errors.New("this key may not log in")
