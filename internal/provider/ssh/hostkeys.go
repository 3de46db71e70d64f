// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// hostKeys decides which host keys are right. There is no third way: either a
// list says so, or the key is the one that the machine always had.
type hostKeys struct {
	// list is nil with trust on first use.
	list ssh.HostKeyCallback
}

func newHostKeys(list []byte, firstUse bool) (hostKeys, error) {
	if firstUse {
		if len(bytes.TrimSpace(list)) > 0 {
			return hostKeys{}, configInvalid("there is a list of known hosts, and trust on first use: only one of them can count")
		}
		return hostKeys{}, nil
	}
	callback, err := parseKnownHosts(list)
	if err != nil {
		return hostKeys{}, configInvalid(oneLine(fmt.Sprintf("the list of known hosts cannot be read: %v", err)))
	}
	return hostKeys{list: callback}, nil
}

// parseKnownHosts reads a list from memory. The parser takes only names of
// files: it gets that of a pipe, since a container's file system may be
// read-only.
func parseKnownHosts(list []byte) (callback ssh.HostKeyCallback, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(withoutAuthorities(list))
		written <- errors.Join(err, w.Close())
	}()
	name := fmt.Sprintf("/dev/fd/%d", r.Fd())
	callback, err = knownhosts.New(name)
	// Closed before the writer is waited for: where the parser gave up early,
	// nobody reads the rest.
	closeErr := r.Close()
	writeErr := <-written
	if err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), name+":", "line "))
	}
	if err := errors.Join(closeErr, writeErr); err != nil {
		return nil, fmt.Errorf("read list: %w", err)
	}
	return callback, nil
}

// withoutAuthorities empties the lines of certificate authorities: certificates
// are not asked for, and the parser would take an authority's key for the
// host's own.
func withoutAuthorities(list []byte) []byte {
	lines := bytes.Split(list, []byte("\n"))
	for i, l := range lines {
		if bytes.HasPrefix(bytes.TrimSpace(l), []byte("@cert-authority")) {
			lines[i] = nil
		}
	}
	return bytes.Join(lines, []byte("\n"))
}

// algorithms returns the host key algorithms to ask for: those of the keys that
// are right first, so that a host with several keys shows the one we know, and
// then all others, so that a host with another key is told from one that cannot
// be talked to.
func (h hostKeys) algorithms(a address, pinned []byte) []string {
	var known []string
	if h.list != nil {
		for _, k := range h.wanted(a) {
			known = append(known, k.Key.Type())
		}
	} else if key, err := ssh.ParsePublicKey(pinned); err == nil {
		known = append(known, key.Type())
	}
	var first, rest []string
	for _, name := range ssh.SupportedAlgorithms().HostKeys {
		switch keyType := keyType(name); {
		case strings.Contains(name, "-cert-v01@"):
		case slices.Contains(known, keyType):
			first = append(first, name)
		default:
			rest = append(rest, name)
		}
	}
	return append(first, rest...)
}

// keyType is the type of the keys that an algorithm signs with.
func keyType(algorithm string) string {
	if algorithm == ssh.KeyAlgoRSASHA256 || algorithm == ssh.KeyAlgoRSASHA512 {
		return ssh.KeyAlgoRSA
	}
	return algorithm
}

// noKey equals no key, so a list that is asked for it says what it has.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return nil }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }

// wanted returns the keys that the list has for an address.
func (h hostKeys) wanted(a address) []knownhosts.KnownKey {
	e, ok := errors.AsType[*knownhosts.KeyError](h.list(a.String(), &net.TCPAddr{}, noKey{}))
	if !ok {
		return nil
	}
	return e.Want
}

// verdict says whether key is right for the machine, and whether it is to be
// pinned. The error is typed; its message says what to do.
func (h hostKeys) verdict(w *work, remote net.Addr, key ssh.PublicKey) (pin bool, err error) {
	pinned := w.machine.HostKey
	got := key.Type() + " " + ssh.FingerprintSHA256(key)
	if h.list == nil {
		switch {
		case len(pinned) == 0:
			return true, nil
		case bytes.Equal(pinned, key.Marshal()):
			return false, nil
		}
		want := "one that cannot be read"
		if k, err := ssh.ParsePublicKey(pinned); err == nil {
			want = k.Type() + " " + ssh.FingerprintSHA256(k)
		}
		return false, w.fail(provider.ReasonHostKeyMismatch, true, nil,
			"the host shows key %s, pinned is %s; nothing was done; if the machine was installed anew, accept its host key", got, want)
	}
	err = h.list(w.address.String(), remote, key)
	if err == nil {
		return !bytes.Equal(pinned, key.Marshal()), nil
	}
	if _, ok := errors.AsType[*knownhosts.RevokedError](err); ok {
		return false, w.fail(provider.ReasonHostKeyRevoked, true, nil, "the list of known hosts says that the host's key %s is revoked", got)
	}
	e, ok := errors.AsType[*knownhosts.KeyError](err)
	if !ok {
		return false, w.fail(provider.ReasonHostKeyUnknown, true, err, "look up %s in the list of known hosts", w.address)
	}
	if len(e.Want) == 0 {
		return false, w.fail(provider.ReasonHostKeyUnknown, true, nil,
			"the list of known hosts has no line for %s; the host shows key %s", knownhosts.Normalize(w.address.String()), got)
	}
	var want []string
	for _, k := range e.Want {
		want = append(want, k.Key.Type()+" "+ssh.FingerprintSHA256(k.Key))
	}
	return false, w.fail(provider.ReasonHostKeyMismatch, true, nil,
		"the host shows key %s, the list of known hosts has %s; nothing was done", got, strings.Join(want, ", "))
}
