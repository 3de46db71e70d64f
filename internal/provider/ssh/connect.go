// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// connect logs in, pins the host's key where it is new, and finds out who we
// are there and what machine it is. It changes nothing on the machine.
func (w *work) connect(ctx context.Context) error {
	if w.machine.Address == "" {
		return w.fail(provider.ReasonAddressMissing, true, nil, "the machine has no address")
	}
	var err error
	if w.address, err = parseAddress(w.machine.Address); err != nil {
		return w.fail(provider.ReasonAddressInvalid, true, err, "the machine's address is not host, host:port or [v6]:port")
	}
	if err := w.within(ctx, "dial", w.dial); err != nil {
		return err
	}
	var key ssh.PublicKey
	var pin bool
	if err := w.within(ctx, "SSH handshake", func(context.Context) (err error) {
		key, pin, err = w.handshake()
		return err
	}); err != nil {
		return err
	}
	w.hostKey = key.Marshal()
	if pin {
		if err := w.steps.PinHostKey(ctx, w.hostKey); err != nil {
			return fmt.Errorf("%s: pin host key: %w", w.what(), err)
		}
	}
	return w.within(ctx, "first command", w.probe)
}

func (w *work) dial(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", w.address.String())
	if err == nil {
		w.conn = conn
		return nil
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return w.fail(provider.ReasonUnreachable, false, err, "resolve %s", dns.Name)
	}
	return w.fail(provider.ReasonUnreachable, false, err, "dial")
}

// handshake negotiates, verifies the host and logs in.
func (w *work) handshake() (key ssh.PublicKey, pin bool, err error) {
	var (
		shown   ssh.PublicKey
		first   bool
		verdict error // the handshake returns it too, but not always so that it can be found
	)
	config := &ssh.ClientConfig{
		User:              w.driver.user,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(w.driver.signer)},
		ClientVersion:     "SSH-2.0-bmdb",
		HostKeyAlgorithms: w.driver.hostKeys.algorithms(w.address, w.machine.HostKey),
		HostKeyCallback: func(_ string, remote net.Addr, key ssh.PublicKey) error {
			// Keys are exchanged again during long connections, from then on
			// beside the work: the key must be the same, and nothing is written.
			if shown != nil {
				if !bytes.Equal(shown.Marshal(), key.Marshal()) {
					return errors.New("the host shows another key than before")
				}
				return nil
			}
			shown = key
			first, verdict = w.driver.hostKeys.verdict(w, remote, key)
			return verdict
		},
	}
	conn, channels, requests, err := ssh.NewClientConn(w.conn, w.address.String(), config)
	switch {
	case err == nil:
		w.client = ssh.NewClient(conn, channels, requests)
		return shown, first, nil
	case verdict != nil:
		return nil, false, verdict
	case strings.Contains(err.Error(), "unable to authenticate"): // there is no type for it
		return nil, false, w.fail(provider.ReasonAuthenticationFailed, true, nil,
			"user %s with key %s is not let in", w.driver.user, ssh.FingerprintSHA256(w.driver.signer.PublicKey()))
	default:
		return nil, false, w.fail(provider.ReasonUnreachable, false, err, "something answers, but not as an SSH server that we can talk to")
	}
}

// probe asks the machine who we are and what it is.
func (w *work) probe(ctx context.Context) error {
	out, err := w.run(ctx, asUser, `id -u && uname -s && uname -m`)
	if err != nil {
		return err
	}
	fields := strings.Fields(string(out))
	if len(fields) != 3 {
		return w.fail(provider.ReasonCommandFailed, false, nil, "the machine does not say who we are there: %q", out)
	}
	w.root = fields[0] == "0"
	if w.goarch = goarch(fields[2]); w.goarch == "" || fields[1] != "Linux" {
		return w.fail(provider.ReasonArchitectureUnsupported, true, nil, "there is no agent for %s on %s", fields[1], fields[2])
	}
	return nil
}

// goarch translates what uname -m says. "": not known.
func goarch(machine string) string {
	switch machine {
	case "x86_64", "amd64":
		return "amd64"
	case "aarch64", "arm64":
		return "arm64"
	case "i386", "i486", "i586", "i686":
		return "386"
	case "armv6l", "armv7l", "armv8l":
		return "arm"
	case "riscv64", "ppc64le", "s390x":
		return machine
	case "loongarch64":
		return "loong64"
	default:
		return ""
	}
}
