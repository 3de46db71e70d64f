// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package sshmachine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sys/unix"
)

// helperEnv makes the test's executable a program of the test: "reboot" on a machine, or "fleet" in a directory, to be
// killed.
const helperEnv = "BMDB_SSHMACHINE_HELPER"

func TestMain(m *testing.M) {
	role, arg, _ := strings.Cut(os.Getenv(helperEnv), "=")
	var err error
	switch role {
	case "":
		goleak.VerifyTestMain(m)
		return
	case "reboot":
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "fleet":
		var fleet *Fleet
		kind, dir, _ := strings.Cut(arg, ":")
		if fleet, err = Start(context.Background(), 2, Options{Dir: dir, Unprivileged: kind == unprivileged}); err == nil {
			fmt.Println(fleet.Machines[0].Address)
			select {}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

const (
	privileged   = "root"
	unprivileged = "user"
)

// kinds are those that this user can make: root makes both.
func kinds() []string {
	if os.Geteuid() == 0 {
		return []string{privileged, unprivileged}
	}
	return []string{unprivileged}
}

// eachKind runs a test with a fleet of each kind, and sees that nothing is left of it.
func eachKind(t *testing.T, n int, test func(ctx context.Context, t *testing.T, fleet *Fleet)) {
	t.Helper()
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			dir := t.TempDir()
			fleet, err := Start(ctx, n, Options{Dir: dir, Unprivileged: kind == unprivileged})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := fleet.Stop(); err != nil {
					t.Error(err)
				}
				left := traces(t, dir)
				if root, ok := fleet.kind.(*rootKind); ok {
					left = append(left, traces(t, root.leg)...)
				}
				if len(left) > 0 {
					t.Errorf("left after Stop:\n%s", strings.Join(left, "\n"))
				}
			})
			if (fleet.Reduced() == "") != (kind == privileged) {
				t.Errorf("Reduced: %q", fleet.Reduced())
			}
			test(ctx, t, fleet)
		})
	}
}

func TestMachinesAreApart(t *testing.T) {
	t.Parallel()
	eachKind(t, 3, func(ctx context.Context, t *testing.T, fleet *Fleet) {
		seen := map[string]bool{}
		for _, machine := range fleet.Machines {
			client := login(ctx, t, fleet, machine)
			if got := run(t, client, "hostname"); got != machine.Name {
				t.Errorf("host name: got %s, want %s", got, machine.Name)
			}
			if got := run(t, client, "id -u; echo $HOME"); got != "0\n/root" {
				t.Errorf("user: got %q", got)
			}
			for _, command := range []string{"cat /etc/machine-id", "cat /proc/sys/kernel/random/boot_id", "readlink /proc/self/ns/pid"} {
				got := command + ": " + run(t, client, command)
				if seen[got] {
					t.Errorf("two machines say %s", got)
				}
				seen[got] = true
			}
			if got := run(t, client, "ls -A /var/lib/bmdb /tmp 2>/dev/null | grep bmdb || true; mkdir -p /var/lib/bmdb && echo "+machine.Name+" >/var/lib/bmdb/mine && cat /var/lib/bmdb/mine"); got != machine.Name {
				t.Errorf("/var/lib/bmdb: got %q", got)
			}
		}
	})
}

func TestUploadAndRun(t *testing.T) {
	t.Parallel()
	eachKind(t, 1, func(ctx context.Context, t *testing.T, fleet *Fleet) {
		machine := fleet.Machines[0]
		client := login(ctx, t, fleet, machine)
		upload(t, client, []byte("#!/bin/sh\necho \"args: $*\"\ncat\necho wrong >&2\nexit 7\n"), "/root/program")

		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		session.Stdin, session.Stdout, session.Stderr = strings.NewReader("from stdin\n"), &stdout, &stderr
		err = session.Run("/root/program a b")
		var exit *ssh.ExitError
		if !errors.As(err, &exit) || exit.ExitStatus() != 7 {
			t.Errorf("exit status: got %v, want 7", err)
		}
		if stdout.String() != "args: a b\nfrom stdin\n" || stderr.String() != "wrong\n" {
			t.Errorf("output: got %q and %q", stdout.String(), stderr.String())
		}

		run(t, client, "setsid sh -c 'exec sleep 4242' >/dev/null 2>&1 </dev/null &")
		client.Close()
		client = login(ctx, t, fleet, machine)
		if got := run(t, client, "ps -e -o args | grep -c '^sleep 4242'"); got != "1" {
			t.Errorf("a detached program after its session: got %s running, want 1", got)
		}
		names, err := machine.Processes()
		if err != nil || !slices.Contains(names, "sleep") {
			t.Errorf("Processes: got %v, %v", names, err)
		}
		files, err := machine.Files()
		if err != nil {
			t.Fatal(err)
		}
		defer files.Close()
		if content, err := files.ReadFile("root/program"); err != nil || !bytes.HasPrefix(content, []byte("#!/bin/sh")) {
			t.Errorf("Files: got %q, %v", content, err)
		}
	})
}

// TestPower: files outlive what ends a machine, processes do not.
func TestPower(t *testing.T) {
	t.Parallel()
	eachKind(t, 1, func(ctx context.Context, t *testing.T, fleet *Fleet) {
		machine := fleet.Machines[0]
		executable, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		program, err := os.ReadFile(executable)
		if err != nil {
			t.Fatal(err)
		}
		upload(t, login(ctx, t, fleet, machine), program, "/root/helper")

		boots := map[string]bool{}
		for _, step := range []struct {
			name string
			end  func() error
		}{
			{"first boot", func() error { return nil }},
			{"reboot", func() error { return machine.Reboot(ctx) }},
			{"power cut", func() error { return errors.Join(machine.PowerOff(), expectOff(ctx, machine), machine.PowerOn(ctx)) }},
			{"reboot(2)", func() error { return rebootInside(ctx, t, fleet, machine) }},
		} {
			name := step.name
			if err := step.end(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			client := login(ctx, t, fleet, machine)
			boot := run(t, client, "cat /proc/sys/kernel/random/boot_id")
			if boots[boot] {
				t.Errorf("%s: the boot id is still %s", name, boot)
			}
			boots[boot] = true
			if got := run(t, client, "test -x /root/helper && echo kept; pgrep -c -f '^sleep 4242' || true"); got != "kept\n0" {
				t.Errorf("%s: file and process from before: got %q", name, got)
			}
			run(t, client, "setsid sh -c 'exec sleep 4242' >/dev/null 2>&1 </dev/null &")
		}
	})
}

func rebootInside(ctx context.Context, t *testing.T, fleet *Fleet, machine *Machine) error {
	t.Helper()
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	client := login(ctx, t, fleet, machine)
	before := run(t, client, bootID)
	session, err := client.NewSession()
	if err != nil {
		return err
	}
	if err := session.Run(helperEnv + "=reboot /root/helper"); err == nil {
		return errors.New("the machine did not reboot")
	}
	// It may answer for another moment.
	return eventually(ctx, func() error {
		client, err := dial(ctx, t, fleet, machine, fleet.KnownHosts())
		if err != nil {
			return err
		}
		defer client.Close()
		session, err := client.NewSession()
		if err != nil {
			return err
		}
		if now, err := session.Output(bootID); err != nil || strings.TrimSpace(string(now)) == before {
			return fmt.Errorf("the machine has not rebooted: %w", err)
		}
		return nil
	})
}

func expectOff(ctx context.Context, machine *Machine) error {
	if machine.On() {
		return errors.New("the machine says that it is on")
	}
	if err := machine.Hang(); !errors.Is(err, ErrOff) {
		return fmt.Errorf("Hang of a machine that is off: got %w", err)
	}
	if err := answers(ctx, machine.Address); err == nil {
		return errors.New("a machine that is off answers")
	}
	return nil
}

func TestHang(t *testing.T) {
	t.Parallel()
	eachKind(t, 2, func(ctx context.Context, t *testing.T, fleet *Fleet) {
		machine, other := fleet.Machines[0], fleet.Machines[1]
		client := login(ctx, t, fleet, machine)
		if err := machine.Hang(); err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", machine.Address)
		if err != nil {
			t.Fatalf("a machine that hangs refuses connections: %v", err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a machine that hangs answers: %d bytes, %v", n, err)
		}
		if err := answers(ctx, other.Address); err != nil {
			t.Errorf("another machine: %v", err)
		}
		if err := machine.Resume(); err != nil {
			t.Fatal(err)
		}
		if got := run(t, client, "echo back"); got != "back" {
			t.Errorf("after Resume: got %q", got)
		}
		// One that hangs can be switched off all the same.
		if err := errors.Join(machine.Hang(), machine.Reboot(ctx)); err != nil {
			t.Fatal(err)
		}
		login(ctx, t, fleet, machine)
	})
}

func TestChangeHostKey(t *testing.T) {
	t.Parallel()
	eachKind(t, 1, func(ctx context.Context, t *testing.T, fleet *Fleet) {
		machine := fleet.Machines[0]
		before := fleet.KnownHosts()
		run(t, login(ctx, t, fleet, machine), "echo kept >/root/file")
		if err := machine.ChangeHostKey(ctx); err != nil {
			t.Fatal(err)
		}
		_, err := dial(ctx, t, fleet, machine, before)
		var mismatch *knownhosts.KeyError
		if !errors.As(err, &mismatch) || len(mismatch.Want) != 1 {
			t.Errorf("with the key from before: got %v, want a key error", err)
		}
		if got := run(t, login(ctx, t, fleet, machine), "cat /root/file"); got != "kept" {
			t.Errorf("file from before: got %q", got)
		}
	})
}

func TestStrangersMayNotLogIn(t *testing.T) {
	t.Parallel()
	eachKind(t, 1, func(_ context.Context, t *testing.T, fleet *Fleet) {
		stranger, _, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		config := &ssh.ClientConfig{
			User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(stranger)}, Timeout: time.Minute,
			HostKeyCallback: ssh.FixedHostKey(fleet.Machines[0].HostKey()),
		}
		if client, err := ssh.Dial("tcp", fleet.Machines[0].Address, config); err == nil {
			t.Errorf("a stranger's key was accepted: %v", client.Close())
		}
	})
}

// TestFleetDiesWithItsProcess: a process that is killed leaves no machine, no network, no mount and no file.
func TestFleetDiesWithItsProcess(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			dir := t.TempDir()
			executable, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			helper := exec.CommandContext(ctx, executable)
			helper.Env = append(os.Environ(), helperEnv+"=fleet="+kind+":"+dir)
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
			address := strings.TrimSpace(line)
			if err := answers(ctx, address); err != nil {
				t.Fatal(err)
			}
			if err := helper.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = helper.Wait() // says that it was killed
			err = eventually(ctx, func() error {
				if left := traces(t, dir); len(left) > 0 {
					return fmt.Errorf("left:\n%s", strings.Join(left, "\n"))
				}
				return networkGone(address)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// networkGone: no interface of this host is in the network of a machine, which would be its host's leg.
func networkGone(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, address := range addresses {
		if network, ok := address.(*net.IPNet); ok && !network.IP.IsLoopback() && network.Contains(net.ParseIP(host)) {
			return fmt.Errorf("this host still has an interface with %s", network)
		}
	}
	return nil
}

// TestHostIsOutOfReach: root on a machine is the host's root, but cannot get at the host.
func TestHostIsOutOfReach(t *testing.T) {
	t.Parallel()
	eachKind(t, 1, func(ctx context.Context, t *testing.T, fleet *Fleet) {
		if fleet.Reduced() != "" {
			return // there it is an ordinary user
		}
		client := login(ctx, t, fleet, fleet.Machines[0])
		// Whether it works is not tried: it would be this host that reboots.
		if got := run(t, client, "test ! -e /proc/sysrq-trigger || stat -c %F /proc/sysrq-trigger"); got != "" && got != "character special file" {
			t.Errorf("/proc/sysrq-trigger is a %s, want none, or /dev/null in its place", got)
		}
		for _, command := range []string{
			"mknod /root/disk b 7 0", "mount -t tmpfs none /mnt", "umount /proc/sys",
			"echo 1 >/proc/sys/kernel/panic", "mount -o remount,rw /sys",
		} {
			if got := run(t, client, "("+command+") 2>/dev/null && echo allowed || echo refused"); got != "refused" {
				t.Errorf("%s: %s", command, got)
			}
		}
		if got := run(t, client, "ls -A /home /root | grep -v -e : -e '^$' -e '^.ssh$' || true"); got != "" {
			t.Errorf("what people have on this host is on the machine: %s", got)
		}
	})
}
