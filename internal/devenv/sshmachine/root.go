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
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/statedir"
)

//go:embed init-root.sh
var rootInit []byte

//go:embed switch.sh
var switchScript []byte

const (
	sshdPath = "/usr/sbin/sshd"
	// firstHost is the last byte of the first machine's address; the host itself has 1.
	firstHost = 10
	// networkAttempts bounds the search for a network that nothing on this host uses.
	networkAttempts = 200
	networkTimeout  = 20 * time.Second
)

// sshdConfig is the machine's whole /etc/ssh/bmdb_sshd_config.
const sshdConfig = `ListenAddress 0.0.0.0:22
HostKey /etc/ssh/bmdb_host_key
PidFile none
AuthorizedKeysFile /root/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
MaxStartups 200:30:400
Subsystem sftp internal-sftp
`

// rootKind makes machines in namespaces of their own, with their own network. They hang on a bridge in a network namespace
// that a child process keeps, so that all of it goes when that process goes; the host has one interface into it.
type rootKind struct {
	network netip.Prefix // of 256 addresses
	claim   net.Listener // of the network, among the runs on this host
	leg     string       // the host's interface
	bridge  *proc.Process
	script  string // init-root.sh on disk
}

// probeRoot says why this process cannot make such machines.
func probeRoot(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("machines with a network of their own need root")
	}
	if _, err := os.Stat(sshdPath); err != nil {
		return fmt.Errorf("machines need an SSH server, on Debian: apt-get install openssh-server: %w", err)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return fmt.Errorf("machines need iproute2, on Debian: apt-get install iproute2: %w", err)
	}
	args := []string{"--mount", "--net", "--uts", "--ipc", "--pid", "--time", "--fork", "ip", "link", "add", "probe", "type", "bridge"}
	if out, err := exec.CommandContext(ctx, "unshare", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("root may not make namespaces with a bridge here: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func (k *rootKind) reduced() string { return "" }

func (k *rootKind) prepare(ctx context.Context, state *statedir.Dir) error {
	k.script = state.Join("init-root.sh")
	if err := os.WriteFile(k.script, rootInit, 0o755); err != nil {
		return fmt.Errorf("write boot script: %w", err)
	}
	if err := k.claimNetwork(ctx); err != nil {
		return err
	}
	suffix := make([]byte, 3)
	if _, err := rand.Read(suffix); err != nil {
		return fmt.Errorf("name network interface: %w", err)
	}
	k.leg = "bmdb" + hex.EncodeToString(suffix)

	script := state.Join("switch.sh")
	if err := os.WriteFile(script, switchScript, 0o755); err != nil {
		return fmt.Errorf("write network script: %w", err)
	}
	process, err := proc.Start(proc.Config{
		Path: "/usr/bin/unshare",
		Args: []string{"--net", "/bin/sh", script, fmt.Sprint(os.Getpid()), k.leg},
		Env:  minimalEnv(),
		Dir:  "/",
		Log:  state.Join("switch.log"),
	})
	if err != nil {
		return err
	}
	k.bridge = process
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	return process.WaitReady(ctx, k.addressLeg)
}

// claimNetwork finds 256 addresses of 198.18.0.0/15, which is for tests of networks and nothing else, that no interface of
// this host and no other run uses. The claim is a socket without a file: it goes when this process goes.
func (k *rootKind) claimNetwork(ctx context.Context) error {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("list addresses of this host: %w", err)
	}
	for range networkAttempts {
		const networks = 2 * 256 // of 256 addresses, in 198.18.0.0/15
		n, err := rand.Int(rand.Reader, big.NewInt(networks))
		if err != nil {
			return fmt.Errorf("choose a network: %w", err)
		}
		base := netip.AddrFrom4([4]byte{198, byte(18 + n.Int64()/256), byte(n.Int64() % 256), 0})
		network := netip.PrefixFrom(base, 24)
		if inUse(network, addresses) {
			continue
		}
		claim, err := (&net.ListenConfig{}).Listen(ctx, "unix", "@bmdb-machines-"+base.String())
		if err != nil {
			continue
		}
		k.network, k.claim = network, claim
		return nil
	}
	return errors.New("find a free network in 198.18.0.0/15: all that were tried are in use")
}

func inUse(network netip.Prefix, addresses []net.Addr) bool {
	for _, address := range addresses {
		if prefix, err := netip.ParsePrefix(address.String()); err == nil && prefix.Overlaps(network) {
			return true
		}
	}
	return false
}

// addressLeg gives the host's end of the network its address, once the switch has made it.
func (k *rootKind) addressLeg(ctx context.Context) error {
	own := netip.PrefixFrom(k.network.Addr().Next(), k.network.Bits())
	for _, args := range [][]string{
		{"address", "replace", own.String(), "dev", k.leg},
		{"link", "set", k.leg, "up"},
	} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

func (k *rootKind) ip(index int) netip.Addr {
	b := k.network.Addr().As4()
	b[3] = byte(firstHost + index)
	return netip.AddrFrom4(b)
}

func (k *rootKind) address(index int) (string, error) {
	return netip.AddrPortFrom(k.ip(index), 22).String(), nil
}

// furnish makes the layer of the machine's own files that lies over the host's.
func (k *rootKind) furnish(m *Machine) error {
	upper := filepath.Join(m.dir, "upper")
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{
		{"upper", 0o755}, {"work", 0o755}, {"machine", 0o755}, {"lower", 0o755},
		{"upper/etc", 0o755}, {"upper/etc/ssh", 0o755},
		{"upper/root", 0o700}, {"upper/root/.ssh", 0o700},
		{"upper/home", 0o755},
		{"upper/var", 0o755}, {"upper/var/lib", 0o755},
	} {
		if err := os.Mkdir(filepath.Join(m.dir, dir.path), dir.mode); err != nil {
			return err
		}
	}
	// What people have on this host is not on the machine, nor is what this host is as a machine.
	for _, dir := range []string{"root", "home"} {
		if err := unix.Setxattr(filepath.Join(upper, dir), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
			return fmt.Errorf("hide /%s of the host: %w", dir, err)
		}
	}
	if err := unix.Mknod(filepath.Join(upper, "var/lib/bmdb"), unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("hide /var/lib/bmdb of the host: %w", err)
	}
	machineID := make([]byte, 16)
	if _, err := rand.Read(machineID); err != nil {
		return err
	}
	for path, content := range map[string][]byte{
		"etc/hostname":              []byte(m.Name + "\n"),
		"etc/machine-id":            []byte(hex.EncodeToString(machineID) + "\n"),
		"etc/ssh/bmdb_sshd_config":  []byte(sshdConfig),
		"root/.ssh/authorized_keys": m.authorized,
	} {
		if err := os.WriteFile(filepath.Join(upper, path), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (k *rootKind) command(m *Machine) (path string, args []string, err error) {
	up, err := uptime()
	if err != nil {
		return "", nil, err
	}
	seconds := fmt.Sprintf("-%d", int64(up/time.Second))
	mac := fmt.Sprintf("02:bd:%02x:%02x:00:%02x", k.network.Addr().As4()[1], k.network.Addr().As4()[2], m.index+1)
	return "/usr/bin/unshare", []string{
		"--mount", "--net", "--uts", "--ipc", "--pid", "--time", "--boottime", seconds, "--monotonic", seconds,
		"--fork", "--kill-child=KILL",
		"/bin/sh", k.script, m.Name, m.dir, netip.PrefixFrom(k.ip(m.index), k.network.Bits()).String(),
		fmt.Sprint(k.bridge.Pid()), fmt.Sprintf("v%d", m.index), mac,
	}, nil
}

func (k *rootKind) on(context.Context, *Machine, *running) error { return nil }
func (k *rootKind) off(*Machine)                                 {}

// close ends the network. The kernel takes the interfaces away a moment after the last process of their namespace.
func (k *rootKind) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), networkTimeout)
	defer cancel()
	var errs []error
	if k.bridge != nil {
		errs = append(errs, k.bridge.Stop(ctx, syscall.SIGKILL), waitGone(ctx, k.leg))
	}
	if k.claim != nil {
		errs = append(errs, k.claim.Close())
	}
	return errors.Join(errs...)
}

func waitGone(ctx context.Context, name string) error {
	const interval = 10 * time.Millisecond
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if _, err := net.InterfaceByName(name); err != nil {
			return nil // it is gone
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until network interface %s is gone: %w", name, ctx.Err())
		}
	}
}

// onOverlay says whether a directory is on an overlay, which cannot be the upper layer of another.
func onOverlay(dir string) (bool, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return false, err
	}
	return stat.Type == unix.OVERLAYFS_SUPER_MAGIC, nil
}
