// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package sshmachine makes machines for the demo and the tests that are reached over SSH. Each has its own address, host
// key, host name, processes and files, can be rebooted from inside and out, and can fail in ways that real ones do. It
// knows neither Kubernetes nor the database.
//
// Root gets machines in namespaces of their own, with their own network and the host's sshd, see init-root.sh. Anybody else
// gets what user namespaces allow: machines at addresses of the loopback interface, whose SSH server is this process, see
// init-user.sh; [Fleet.Reduced] says what is missing there. Nothing of either outlives this process.
package sshmachine

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sync/errgroup"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/statedir"
)

const (
	statePrefix = "bmdb-machines"
	// maxMachines is what fits a network of 256 addresses beside the host's own.
	maxMachines = 240
	// bootTimeout is generous: hundreds of machines may boot at once on two cores.
	bootTimeout = time.Minute
	// bootsAtOnce keeps the boots of a large fleet from timing out each other.
	bootsAtOnce = 16
)

// Options configures a fleet. The zero value is what most tests want.
type Options struct {
	// Names are the machines' names, as many as machines. Nil means m1, m2, ...
	Names []string
	// AuthorizedKeys may log in, beside the fleet's own client key.
	AuthorizedKeys []ssh.PublicKey
	// Unprivileged makes what a user other than root gets, for root too.
	Unprivileged bool
	// Dir is where the state directory is made. Empty means a directory for temporary files.
	Dir string
}

// Fleet is a number of machines. Its methods are safe for concurrent use.
type Fleet struct {
	// Machines are in the order of their names.
	Machines []*Machine

	state     *statedir.Dir
	kind      kind
	clientKey ssh.Signer
	clientPEM []byte
}

// kind is how machines are made.
type kind interface {
	// prepare makes what all machines share.
	prepare(ctx context.Context, state *statedir.Dir) error
	// address is host and port of the machine with an index.
	address(index int) (string, error)
	// furnish makes a machine's files, once.
	furnish(m *Machine) error
	// command is the program that runs as long as the machine is on, and whose only child is the machine's pid 1.
	command(m *Machine) (path string, args []string, err error)
	// on is called when the machine's pid 1 runs, off after it has ended; off may come without on.
	on(ctx context.Context, m *Machine, r *running) error
	off(m *Machine)
	// close ends what prepare made.
	close() error
	reduced() string
}

// Start makes n machines, at most 240, and switches them on. It returns when all of them answer; the caller ends them with
// Stop. ctx bounds the start only. It fails when this user may make neither kind of machine, and says why.
func Start(ctx context.Context, n int, options Options) (*Fleet, error) {
	if n < 1 || n > maxMachines {
		return nil, fmt.Errorf("start %d machines: want 1 to %d", n, maxMachines)
	}
	if options.Names != nil && len(options.Names) != n {
		return nil, fmt.Errorf("start %d machines: there are %d names", n, len(options.Names))
	}
	kind, err := chooseKind(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("start machines: %w", err)
	}
	dir, err := stateParent(options.Dir)
	if err != nil {
		return nil, fmt.Errorf("start machines: %w", err)
	}
	state, err := statedir.New(dir, statePrefix, nil)
	if err != nil {
		return nil, err
	}
	f := &Fleet{state: state, kind: kind}
	if err := f.start(ctx, n, options); err != nil {
		return nil, errors.Join(fmt.Errorf("start machines: %w", err), f.Stop())
	}
	return f, nil
}

func (f *Fleet) start(ctx context.Context, n int, options Options) error {
	var err error
	if f.clientKey, f.clientPEM, err = newKey(); err != nil {
		return err
	}
	if err := f.kind.prepare(ctx, f.state); err != nil {
		return err
	}
	authorized := authorizedKeys(append([]ssh.PublicKey{f.clientKey.PublicKey()}, options.AuthorizedKeys...))
	for i := range n {
		name := fmt.Sprintf("m%d", i+1)
		if options.Names != nil {
			name = options.Names[i]
		}
		machine, err := newMachine(f.kind, f.state, name, i, authorized)
		if err != nil {
			return fmt.Errorf("make machine %s: %w", name, err)
		}
		f.Machines = append(f.Machines, machine)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(bootsAtOnce)
	for _, machine := range f.Machines {
		group.Go(func() error { return machine.PowerOn(ctx) })
	}
	return group.Wait()
}

// Stop ends the machines and removes all that was made for them. The fleet cannot be used afterwards.
func (f *Fleet) Stop() error {
	var group errgroup.Group
	for _, machine := range f.Machines {
		group.Go(machine.remove)
	}
	return errors.Join(group.Wait(), f.kind.close(), f.state.Remove())
}

// Reduced says in a sentence what these machines lack, and is empty when they lack nothing.
func (f *Fleet) Reduced() string { return f.kind.reduced() }

// ClientKey may log in to every machine.
func (f *Fleet) ClientKey() ssh.Signer { return f.clientKey }

// ClientKeyPEM is ClientKey as ssh-keygen writes it.
func (f *Fleet) ClientKeyPEM() []byte { return bytes.Clone(f.clientPEM) }

// KnownHosts lists the machines' present host keys in the format of a known_hosts file.
func (f *Fleet) KnownHosts() []byte {
	var text bytes.Buffer
	for _, machine := range f.Machines {
		fmt.Fprintln(&text, knownhosts.Line([]string{machine.Address}, machine.HostKey()))
	}
	return text.Bytes()
}

// chooseKind takes the best kind of machine that this user may make.
func chooseKind(ctx context.Context, options Options) (kind, error) {
	var rootErr error
	if !options.Unprivileged {
		if rootErr = probeRoot(ctx); rootErr == nil {
			return &rootKind{}, nil
		}
	}
	if err := probeUser(ctx); err != nil {
		return nil, errors.Join(rootErr, err)
	}
	return &userKind{}, nil
}

// stateParent finds a place that an overlay can have its upper layer on: where the temporary directory is an overlay itself,
// as in a container, shared memory has to do.
func stateParent(wanted string) (string, error) {
	if wanted != "" {
		return wanted, nil
	}
	const sharedMemory = "/dev/shm"
	for _, dir := range []string{os.TempDir(), sharedMemory} {
		overlay, err := onOverlay(dir)
		if err == nil && !overlay {
			return dir, nil
		}
	}
	return "", fmt.Errorf("find a directory for machines: %s and %s are overlays or missing", os.TempDir(), sharedMemory)
}

func newKey() (ssh.Signer, []byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make SSH key: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("make SSH key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(private, "bmdb-devenv")
	if err != nil {
		return nil, nil, fmt.Errorf("encode SSH key: %w", err)
	}
	return signer, pem.EncodeToMemory(block), nil
}

func authorizedKeys(keys []ssh.PublicKey) []byte {
	var text []byte
	for _, key := range keys {
		text = append(text, ssh.MarshalAuthorizedKey(key)...)
	}
	return text
}

// answers says whether an SSH server greets at an address.
func answers(ctx context.Context, address string) error {
	const timeout = time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	greeting := make([]byte, len("SSH-2.0-"))
	if _, err := conn.Read(greeting); err != nil {
		return err
	}
	if !bytes.HasPrefix(greeting, []byte("SSH-")) {
		return fmt.Errorf("%s greets with %q", address, greeting)
	}
	return nil
}
