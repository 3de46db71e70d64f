// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package sshmachine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/statedir"
)

// ErrOff says that a machine is switched off.
var ErrOff = errors.New("the machine is off")

// shellRestart is how a shell would report the end by the signal of a reboot.
const shellRestart = 128 + int(syscall.SIGHUP)

// Machine is a machine with an SSH server. Its methods are safe for concurrent use. Files outside /run and /tmp survive
// reboots and power cuts.
type Machine struct {
	// Name is also its host name.
	Name string
	// Address is host and port of its SSH server.
	Address string
	// User may log in with the fleet's keys, and is root there.
	User string

	kind       kind
	index      int
	dir        string
	authorized []byte

	mu      sync.Mutex // held while the machine is switched on or off
	running *running   // nil when off
	removed bool

	keyMu   sync.Mutex
	hostKey ssh.Signer
}

// running is a machine's time from one boot to its end.
type running struct {
	process *proc.Process // its only child is the machine's pid 1
	init    int           // pid 1 as this process sees it
}

func newMachine(kind kind, state *statedir.Dir, name string, index int, authorized []byte) (*Machine, error) {
	address, err := kind.address(index)
	if err != nil {
		return nil, err
	}
	m := &Machine{
		Name: name, Address: address, User: "root",
		kind: kind, index: index, dir: state.Join(strconv.Itoa(index)), authorized: authorized,
	}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		return nil, err
	}
	if err := m.newHostKey(); err != nil {
		return nil, err
	}
	return m, kind.furnish(m)
}

// HostKey is the public key that the machine's SSH server shows now.
func (m *Machine) HostKey() ssh.PublicKey {
	m.keyMu.Lock()
	defer m.keyMu.Unlock()
	return m.hostKey.PublicKey()
}

func (m *Machine) newHostKey() error {
	key, text, err := newKey()
	if err != nil {
		return err
	}
	if err := os.WriteFile(m.hostKeyFile(), text, 0o600); err != nil {
		return fmt.Errorf("write host key: %w", err)
	}
	m.keyMu.Lock()
	defer m.keyMu.Unlock()
	m.hostKey = key
	return nil
}

// hostKeyFile is outside what the machine can write to; init puts it in its place at each boot.
func (m *Machine) hostKeyFile() string { return filepath.Join(m.dir, "host_key") }

// LogFile is what the machine's boots and its SSH server said, gone after Stop.
func (m *Machine) LogFile() string { return filepath.Join(m.dir, "console") }

// PowerOn boots the machine and returns when its SSH server answers. It does nothing when the machine is on.
func (m *Machine) PowerOn(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.powerOn(ctx)
}

// powerOn is called with mu held.
func (m *Machine) powerOn(ctx context.Context) error {
	if m.removed {
		return fmt.Errorf("boot machine %s: it was removed", m.Name)
	}
	if m.running != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	path, args, err := m.kind.command(m)
	if err != nil {
		return fmt.Errorf("boot machine %s: %w", m.Name, err)
	}
	process, err := proc.Start(proc.Config{Path: path, Args: args, Env: minimalEnv(), Dir: "/", Log: m.LogFile()})
	if err != nil {
		return fmt.Errorf("boot machine %s: %w", m.Name, err)
	}
	r := &running{process: process}
	if err := m.waitBooted(ctx, r); err != nil {
		err = errors.Join(fmt.Errorf("boot machine %s: %w", m.Name, err), m.end(r))
		m.kind.off(m)
		return err
	}
	m.running = r
	go m.supervise(r)
	return nil
}

func (m *Machine) waitBooted(ctx context.Context, r *running) error {
	if err := r.process.WaitReady(ctx, r.findInit); err != nil {
		return err
	}
	if err := m.kind.on(ctx, m, r); err != nil {
		return err
	}
	return r.process.WaitReady(ctx, func(ctx context.Context) error { return answers(ctx, m.Address) })
}

// findInit finds the machine's pid 1.
func (r *running) findInit(context.Context) error {
	pid := r.process.Pid()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return err
	}
	init, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil {
		return fmt.Errorf("the machine's pid 1 has not started: %w", err)
	}
	r.init = init
	return nil
}

// supervise boots the machine again when it asked for a reboot, and notes that it is off when it ended otherwise.
func (m *Machine) supervise(r *running) {
	<-r.process.Done()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running != r {
		return // somebody switched it off
	}
	m.kind.off(m)
	m.running = nil
	if askedForReboot(r.process.Exit()) {
		// A machine that does not come back is what a test or a person then sees; the console says why.
		_ = m.powerOn(context.Background())
	}
}

// askedForReboot: in a pid namespace, reboot(2) ends pid 1 with SIGHUP for a restart and SIGINT for power off.
func askedForReboot(state *os.ProcessState) bool {
	status, ok := state.Sys().(syscall.WaitStatus)
	return ok && (status.Signaled() && status.Signal() == syscall.SIGHUP || status.Exited() && status.ExitStatus() == shellRestart)
}

// PowerOff cuts the power: nothing on the machine gets to end in order. It does nothing when the machine is off.
func (m *Machine) PowerOff() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.powerOff()
}

// powerOff is called with mu held.
func (m *Machine) powerOff() error {
	r := m.running
	m.running = nil
	if r == nil {
		return nil
	}
	err := m.end(r)
	m.kind.off(m)
	return err
}

func (m *Machine) end(r *running) error {
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	defer cancel()
	select {
	case <-r.process.Done():
		return nil
	default:
	}
	// The end of pid 1 is the end of every process of the machine, and its parent follows when all are gone.
	if r.init != 0 {
		if err := syscall.Kill(r.init, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("switch off machine %s: %w", m.Name, err)
		}
		select {
		case <-r.process.Done():
			return nil
		case <-ctx.Done():
		}
	}
	return r.process.Stop(ctx, syscall.SIGKILL)
}

// Reboot is a power cut and a boot; it returns when the SSH server answers.
func (m *Machine) Reboot(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.powerOff(); err != nil {
		return err
	}
	return m.powerOn(ctx)
}

// ChangeHostKey reboots the machine with a new host key, as after a new installation. Its files stay.
func (m *Machine) ChangeHostKey(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.powerOff(); err != nil {
		return err
	}
	if err := m.newHostKey(); err != nil {
		return err
	}
	return m.powerOn(ctx)
}

// On says whether the machine is switched on; one that hangs is.
func (m *Machine) On() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running != nil
}

// Hang stops everything on the machine without ending it: its address takes connections and never answers. Resume ends
// that, and so does any power cut.
func (m *Machine) Hang() error { return m.signalAll(syscall.SIGSTOP) }

// Resume lets a machine that hangs go on.
func (m *Machine) Resume() error { return m.signalAll(syscall.SIGCONT) }

func (m *Machine) signalAll(signal syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running == nil {
		return fmt.Errorf("stop machine %s: %w", m.Name, ErrOff)
	}
	if user, ok := m.kind.(*userKind); ok {
		user.hang(m, signal == syscall.SIGSTOP)
	}
	// Again until no new one is found: a process may have forked before it was stopped.
	stopped := map[int]bool{}
	for {
		pids, err := processesLike(m.running.init)
		if err != nil {
			return fmt.Errorf("list processes of machine %s: %w", m.Name, err)
		}
		fresh := false
		for _, pid := range pids {
			if stopped[pid] {
				continue
			}
			stopped[pid], fresh = true, true
			if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("send %s to a process of machine %s: %w", signal, m.Name, err)
			}
		}
		if !fresh {
			return nil
		}
	}
}

// processesLike lists the processes in the pid namespace of one of them.
func processesLike(pid int) ([]int, error) {
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		candidate, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		// What has ended meanwhile, or is somebody else's, cannot be read.
		if of, err := os.Readlink(filepath.Join("/proc", entry.Name(), "ns", "pid")); err == nil && of == namespace {
			pids = append(pids, candidate)
		}
	}
	return pids, nil
}

// Processes lists the command names of what runs on the machine, in no particular order.
func (m *Machine) Processes() ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running == nil {
		return nil, fmt.Errorf("list processes of machine %s: %w", m.Name, ErrOff)
	}
	pids, err := processesLike(m.running.init)
	if err != nil {
		return nil, fmt.Errorf("list processes of machine %s: %w", m.Name, err)
	}
	var names []string
	for _, pid := range pids {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
			names = append(names, string(bytes.TrimSpace(comm)))
		}
	}
	return names, nil
}

// Files opens the machine's file system, as root there would see it. The caller closes it before the machine is switched
// off. Paths are relative to the machine's root directory: "var/lib/bmdb/owner.json".
func (m *Machine) Files() (*os.Root, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running == nil {
		return nil, fmt.Errorf("open files of machine %s: %w", m.Name, ErrOff)
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/%d/root", m.running.init))
	if err != nil {
		return nil, fmt.Errorf("open files of machine %s: %w", m.Name, err)
	}
	return root, nil
}

// remove switches the machine off for good.
func (m *Machine) remove() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.removed = true
	return m.powerOff()
}

// uptime is how long the host has been up; machines subtract it to begin at zero.
func uptime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	var seconds, idle float64
	if _, err := fmt.Sscan(string(text), &seconds, &idle); err != nil {
		return 0, fmt.Errorf("read /proc/uptime: %w", err)
	}
	return time.Duration(seconds) * time.Second, nil
}

// minimalEnv is what a machine's first process inherits.
func minimalEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
}
