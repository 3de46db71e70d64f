// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package sshmachine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// traces lists processes, mounts, files and interfaces with a text in their name.
func traces(t *testing.T, text string) []string {
	t.Helper()
	var found []string
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		// The test's own helper has it in its environment, not in its command line.
		if line, err := os.ReadFile(file); err == nil && strings.Contains(string(line), text) {
			found = append(found, file+": "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if i.Name == text {
			found = append(found, "interface "+i.Name)
		}
	}
	if entries, err := os.ReadDir(text); err == nil {
		for _, entry := range entries {
			found = append(found, filepath.Join(text, entry.Name()))
		}
	}
	return found
}

func login(ctx context.Context, t *testing.T, fleet *Fleet, machine *Machine) *ssh.Client {
	t.Helper()
	client, err := dial(ctx, t, fleet, machine, fleet.KnownHosts())
	if err != nil {
		console, _ := os.ReadFile(machine.LogFile())
		t.Fatalf("log in to %s: %v\n%s", machine.Name, err, console)
	}
	return client
}

func dial(ctx context.Context, t *testing.T, fleet *Fleet, machine *Machine, knownHosts []byte) (*ssh.Client, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(file, knownHosts, 0o600); err != nil {
		t.Fatal(err)
	}
	check, err := knownhosts.New(file)
	if err != nil {
		t.Fatal(err)
	}
	// From the file, as a user has it.
	key, err := ssh.ParsePrivateKey(fleet.ClientKeyPEM())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", machine.Address)
	if err != nil {
		return nil, err
	}
	config := &ssh.ClientConfig{User: machine.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: check}
	sshConn, channels, requests, err := ssh.NewClientConn(conn, machine.Address, config)
	if err != nil {
		conn.Close()
		return nil, err
	}
	client := ssh.NewClient(sshConn, channels, requests)
	t.Cleanup(func() { client.Close() })
	return client, nil
}

func run(t *testing.T, client *ssh.Client, command string) string {
	t.Helper()
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	var stderr bytes.Buffer
	session.Stderr = &stderr
	out, err := session.Output(command)
	if err != nil {
		t.Fatalf("%s: %v: %s%s", command, err, out, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// upload writes a program as the operator does: under another name, and then renamed.
func upload(t *testing.T, client *ssh.Client, content []byte, path string) {
	t.Helper()
	files, err := sftp.NewClient(client)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	temporary := path + ".new"
	file, err := files.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(file, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Close(), files.Chmod(temporary, 0o755), files.PosixRename(temporary, path)); err != nil {
		t.Fatal(err)
	}
	info, err := files.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != int64(len(content)) || info.Mode().Perm() != 0o755 {
		t.Errorf("uploaded: %d bytes with mode %v, want %d with 0755", info.Size(), info.Mode(), len(content))
	}
	if _, err := files.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL); err == nil {
		t.Error("a file that exists was created")
	}
}

func eventually(ctx context.Context, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return err
		}
	}
}
