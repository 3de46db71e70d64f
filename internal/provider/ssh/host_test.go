// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/bmdb-dev/bmdb-operator/agent"
)

// host is a machine that answers to SSH: an address, keys, and a directory of
// this computer that is its state directory.
type host struct {
	address string
	user    string
	login   keyPair   // who may log in
	keys    []keyPair // its host keys

	remoteStateDir string // as the driver names it
	stateDir       string // where it is here
	tempDir        string // its TMPDIR
	path           string // its PATH

	behaviour behaviour

	mu      sync.Mutex
	scripts []string // that ran on it
	uploads int      // SFTP sessions

	released chan struct{} // closed at the end of the test: what hangs goes on
	running  sync.WaitGroup
	close    func() // ends the host and waits for all that runs on it
}

// behaviour is what is wrong with a host. The zero value is a good one.
type behaviour struct {
	hangAt    string // accept, banner, kex, auth, session, exec, sftp
	noUser    bool   // nobody may log in
	noSFTP    bool
	damages   bool              // what is uploaded has another byte when it arrives
	noise     string            // printed by the login shell before each command
	asUser    bool              // the user is not root
	noSudo    bool              // and may not use sudo
	keyTypes  []string          // of its host keys; default ed25519
	programs  map[string]string // scripts that replace programs on it
	noProgram bool              // it has no programs at all
}

// programsOf makes a PATH on which the host's user seems to be root, or to need
// sudo, whoever runs the test.
func (h *host) programsOf(t *testing.T) {
	t.Helper()
	bin := t.TempDir()
	uid := "0"
	if h.behaviour.asUser {
		uid = "1000"
	}
	realStat, err := exec.LookPath("stat")
	must(t, err)
	programs := map[string]string{
		"id":   `if [ -n "$FAKE_ROOT" ]; then echo 0; else echo ` + uid + `; fi`,
		"stat": `if [ "$2" = %u ]; then echo 0; else exec ` + realStat + ` "$@"; fi`,
		"sudo": `[ "$1" = -n ] || exit 9; shift; FAKE_ROOT=1 exec "$@"`,
	}
	if h.behaviour.noSudo {
		programs["sudo"] = `echo "sudo: a password is required" >&2; exit 1`
	}
	for name, script := range h.behaviour.programs {
		programs[name] = script
	}
	for name, script := range programs {
		must(t, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	}
	h.path = bin + ":" + os.Getenv("PATH")
	if h.behaviour.noProgram {
		h.path = t.TempDir()
	}
}

// prepare makes the host's keys and directories, and ends its agent with the
// test.
func (h *host) prepare(t *testing.T) {
	t.Helper()
	h.login = newKey(t, ssh.KeyAlgoED25519)
	types := h.behaviour.keyTypes
	if len(types) == 0 {
		types = []string{ssh.KeyAlgoED25519}
	}
	for _, keyType := range types {
		h.keys = append(h.keys, newKey(t, keyType))
	}
	h.tempDir = t.TempDir()
	h.stateDir = filepath.Join(t.TempDir(), "state")
	h.released = make(chan struct{})
	h.programsOf(t)
	t.Cleanup(func() { h.stopAgent(t) })
}

// serve accepts connections until the test ends, and then waits for them.
func (h *host) serve(t *testing.T, handle func(net.Conn)) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	h.address = listener.Addr().String()
	open := map[net.Conn]bool{}
	h.running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			h.mu.Lock()
			open[conn] = true
			h.mu.Unlock()
			h.running.Go(func() { handle(conn) })
		}
	})
	h.close = sync.OnceFunc(func() {
		_ = listener.Close()
		close(h.released)
		h.mu.Lock()
		for conn := range open {
			_ = conn.Close()
		}
		h.mu.Unlock()
		h.running.Wait()
	})
	t.Cleanup(h.close)
}

// remoteStateDir of in-process hosts. Each has a directory of its own here.
const inProcessStateDir = "/nonexistent/bmdb"

// newHost starts an SSH server in this process.
func newHost(t *testing.T, b behaviour) *host {
	t.Helper()
	h := &host{user: "root", behaviour: b, remoteStateDir: inProcessStateDir}
	h.prepare(t)
	h.serve(t, h.handle)
	return h
}

// hang waits for the end of the test, where the host hangs at this point.
func (h *host) hang(at string) bool {
	if h.behaviour.hangAt != at {
		return false
	}
	<-h.released
	return true
}

func (h *host) handle(conn net.Conn) {
	defer conn.Close()
	if h.hang("accept") {
		return
	}
	if h.behaviour.hangAt == "banner" { // half a line
		_, _ = io.WriteString(conn, "SSH-2.0-")
		<-h.released
		return
	}
	if h.behaviour.hangAt == "kex" {
		_, _ = io.WriteString(conn, "SSH-2.0-hangs\r\n")
		_, _ = io.Copy(io.Discard, conn)
		<-h.released
		return
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		h.hang("auth")
		if h.behaviour.noUser || !bytes.Equal(key.Marshal(), h.login.public().Marshal()) {
			return nil, errors.New("not let in")
		}
		return &ssh.Permissions{}, nil
	}}
	for _, k := range h.keys {
		config.AddHostKey(k.signer)
	}
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	var sessions sync.WaitGroup
	for c := range channels {
		if h.hang("session") {
			break
		}
		channel, requests, err := c.Accept()
		if err != nil {
			break
		}
		sessions.Go(func() { h.session(channel, requests) })
	}
	sessions.Wait()
}

func (h *host) session(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	for r := range requests {
		var payload struct{ Value string }
		if err := ssh.Unmarshal(r.Payload, &payload); err != nil {
			return
		}
		switch {
		case r.Type == "exec":
			_ = r.Reply(true, nil)
			if !h.hang("exec") {
				status := h.exec(channel, payload.Value)
				_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
			}
			return
		case r.Type == "subsystem" && payload.Value == "sftp" && !h.behaviour.noSFTP:
			_ = r.Reply(true, nil)
			h.mu.Lock()
			h.uploads++
			h.mu.Unlock()
			if !h.hang("sftp") {
				server := sftp.NewRequestServer(channel, sftp.Handlers{FilePut: h})
				_ = server.Serve()
				_ = server.Close()
			}
			return
		default:
			_ = r.Reply(false, nil)
		}
	}
}

// Filewrite implements sftp.FileWriter.
func (h *host) Filewrite(r *sftp.Request) (io.WriterAt, error) {
	file, err := os.OpenFile(h.local(r.Filepath), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err == nil && h.behaviour.damages {
		return &damaging{file}, nil
	}
	return file, err
}

// damaging is a file to which another first byte is written.
type damaging struct{ *os.File }

func (d *damaging) WriteAt(p []byte, at int64) (int, error) {
	if p = bytes.Clone(p); at == 0 {
		p[0]++
	}
	return d.File.WriteAt(p, at)
}

// local translates the names of the state directory.
func (h *host) local(s string) string { return strings.ReplaceAll(s, h.remoteStateDir, h.stateDir) }

// exec runs a command as a login shell would.
func (h *host) exec(channel ssh.Channel, command string) (status int) {
	script, err := io.ReadAll(channel)
	if err != nil {
		return 255
	}
	h.mu.Lock()
	h.scripts = append(h.scripts, string(script))
	h.mu.Unlock()
	_, _ = io.WriteString(channel, h.behaviour.noise)
	c := exec.Command("/bin/sh", "-c", command)
	c.Env = []string{"PATH=" + h.path, "TMPDIR=" + h.tempDir, "HOME=" + h.tempDir}
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(h.local(string(script))), channel, channel.Stderr()
	err = c.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		return 255
	}
	return 0
}

// ran counts the scripts that ran on the host and hold s.
func (h *host) ran(s string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, script := range h.scripts {
		if strings.Contains(script, s) {
			n++
		}
	}
	return n
}

// newSSHD starts a real OpenSSH server: a process for each connection.
func newSSHD(t *testing.T, b behaviour) *host {
	t.Helper()
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		sshd = "/usr/sbin/sshd"
	}
	if _, err := os.Stat(sshd); err != nil {
		t.Fatalf("these tests need OpenSSH's server (Debian: openssh-server): %v", err)
	}
	if os.Geteuid() == 0 { // where sshd drops its rights; its package makes it at boot
		must(t, os.MkdirAll("/run/sshd", 0o755))
	}
	h := &host{user: currentUser(t), behaviour: b}
	h.prepare(t)
	h.remoteStateDir = h.stateDir
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "authorized_keys"), ssh.MarshalAuthorizedKey(h.login.public()), 0o600))
	config := fmt.Sprintf(`AuthorizedKeysFile %s/authorized_keys
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
Subsystem sftp internal-sftp
SetEnv "PATH=%s" "TMPDIR=%s" "HOME=%s"
`, dir, h.path, h.tempDir, t.TempDir())
	for i, k := range h.keys {
		name := filepath.Join(dir, fmt.Sprintf("host_key_%d", i))
		must(t, os.WriteFile(name, k.private, 0o600))
		config += "HostKey " + name + "\n"
	}
	must(t, os.WriteFile(filepath.Join(dir, "sshd_config"), []byte(config), 0o600))
	h.serve(t, func(conn net.Conn) {
		defer conn.Close()
		file, err := conn.(*net.TCPConn).File()
		if err != nil {
			t.Error(err)
			return
		}
		c := exec.Command(sshd, "-i", "-f", filepath.Join(dir, "sshd_config"), "-E", filepath.Join(dir, "log"))
		c.Stdin, c.Stdout = file, file
		err = c.Start()
		_ = file.Close()
		if err != nil {
			t.Error(err)
			return
		}
		_ = c.Wait() // it ends with 255 when the connection is cut
	})
	return h
}

func currentUser(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("id", "-un").Output()
	must(t, err)
	return strings.TrimSpace(string(out))
}

// snapshot is all that is in the host's directories, but for when and by whom.
func (h *host) snapshot(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for label, root := range map[string]string{"state": h.stateDir, "temp": h.tempDir} {
		must(t, filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || name == root {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			sum := ""
			// The agent says that it runs, and then writes to its log.
			if info.Mode().IsRegular() && e.Name() != agent.LogFile {
				content, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				sum = fmt.Sprintf("%x", sha256.Sum256(content))
			}
			fmt.Fprintf(&b, "%s%s %s %s\n", label, strings.TrimPrefix(name, root), info.Mode(), sum)
			return nil
		}))
	}
	lines := strings.Split(b.String(), "\n")
	return strings.Join(sorted(lines), "\n")
}

// agentPID is the process of the agent that runs on the host, 0 where none does.
func (h *host) agentPID(t *testing.T) int {
	t.Helper()
	r, err := agent.Running(h.stateDir)
	if errors.Is(err, agent.ErrNotRunning) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOTDIR) {
		return 0
	}
	if _, syntax := errors.AsType[*json.SyntaxError](err); syntax {
		return 0
	}
	must(t, err)
	return r.PID
}

func (h *host) stopAgent(t *testing.T) {
	t.Helper()
	pid := h.agentPID(t)
	if pid == 0 {
		return
	}
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	eventually(t, "the agent ends", func() bool { return h.agentPID(t) == 0 })
}

// eventually polls, and fails the test after a time that is far too long.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick, patience := time.NewTicker(10*time.Millisecond), time.NewTimer(30*time.Second)
	defer tick.Stop()
	defer patience.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-patience.C:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
