// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/providertest"
	driver "github.com/bmdb-dev/bmdb-operator/internal/provider/ssh"
)

func knownHosts(lines ...string) func(*driver.Config) {
	return func(c *driver.Config) {
		c.TrustOnFirstUse = false
		c.KnownHosts = []byte("# a comment\n\n" + strings.Join(lines, "\n") + "\n")
	}
}

func line(h *host, k keyPair) string { return knownhosts.Line([]string{h.address}, k.public()) }

// stopAt lets a start go as far as CheckOwner: the host key was accepted then.
var errAccepted = errors.New("accepted")

func stopAtOwner() *providertest.Steps {
	return &providertest.Steps{OnStep: func(_ int, c providertest.StepCall) error {
		if c.Name == "CheckOwner" {
			return errAccepted
		}
		return nil
	}}
}

func TestFirstKeyIsPinnedBeforeAnythingElse(t *testing.T) {
	t.Parallel()
	h := newHost(t, behaviour{})
	d, m := newDriver(t, h), newMachine(h)

	lost := errors.New("database gone")
	s := &providertest.Steps{OnPin: func([]byte) error {
		if n := h.ran(""); n != 0 {
			t.Errorf("%d commands ran before the key was pinned", n)
		}
		return lost
	}}
	if _, err := d.StartAgent(t.Context(), m, s); !errors.Is(err, lost) || h.ran("") != 0 {
		t.Errorf("key could not be pinned: error %v, %d commands ran", err, h.ran(""))
	}

	s = &providertest.Steps{}
	_, err := d.StartAgent(t.Context(), m, s)
	must(t, err)
	if pins := s.Pins(); len(pins) != 1 || !bytes.Equal(pins[0], h.keys[0].public().Marshal()) {
		t.Errorf("pinned %x", pins)
	}
	m.HostKey, s = s.Pins()[0], &providertest.Steps{}
	_, err = d.StartAgent(t.Context(), m, s)
	must(t, err)
	if len(s.Pins()) != 0 {
		t.Error("pinned again")
	}
}

func TestKeyThatIsNotPinnedIsRefused(t *testing.T) {
	t.Parallel()
	h, other := newHost(t, behaviour{}), newKey(t, ssh.KeyAlgoECDSA256)
	m, s := newMachine(h), &providertest.Steps{}
	for _, pin := range [][]byte{other.public().Marshal(), []byte("nonsense")} {
		m.HostKey = pin
		_, err := newDriver(t, h).StartAgent(t.Context(), m, s)
		wantReason(t, err, provider.ReasonHostKeyMismatch, true)
		if !strings.Contains(fmt.Sprint(err), ssh.FingerprintSHA256(h.keys[0].public())) {
			t.Errorf("error %v does not say what the host shows", err)
		}
		if string(pin) != "nonsense" && !strings.Contains(fmt.Sprint(err), ssh.FingerprintSHA256(other.public())) {
			t.Errorf("error %v does not say what is pinned", err)
		}
	}
	if h.ran("") != 0 || len(s.Pins()) != 0 {
		t.Errorf("%d commands ran, %d keys were pinned", h.ran(""), len(s.Pins()))
	}
}

// TestKnownKeyIsAskedFor: a host with several keys shows the one that we know,
// whatever both sides would prefer.
func TestKnownKeyIsAskedFor(t *testing.T) {
	types := []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoRSA}
	for name, newOne := range map[string]func(*testing.T, behaviour) *host{"in process": newHost, "OpenSSH": newSSHD} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newOne(t, behaviour{keyTypes: types})
			for _, key := range h.keys {
				m := newMachine(h)
				m.HostKey = key.public().Marshal()
				if _, err := newDriver(t, h).StartAgent(t.Context(), m, stopAtOwner()); !errors.Is(err, errAccepted) {
					t.Errorf("pinned %s: %v", key.public().Type(), err)
				}
				m.HostKey = nil
				if _, err := newDriver(t, h, knownHosts(line(h, key))).StartAgent(t.Context(), m, stopAtOwner()); !errors.Is(err, errAccepted) {
					t.Errorf("known %s: %v", key.public().Type(), err)
				}
			}
		})
	}
}

func TestKnownHosts(t *testing.T) {
	h, other := newHost(t, behaviour{}), newKey(t, "")
	right := h.keys[0]
	authorized := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(right.public())))
	for _, test := range []struct {
		name   string
		lines  []string
		reason string // "" is accepted
	}{
		{"the line", []string{line(h, right)}, ""},
		{"hashed", []string{knownhosts.HashHostname(knownhosts.Normalize(h.address)) + " " + authorized}, ""},
		// The parser takes a port of digits only.
		{"pattern", []string{"[127.0.*]:" + h.address[strings.LastIndex(h.address, ":")+1:] + " " + authorized}, ""},
		{"among others", []string{line(h, other), line(h, right)}, ""},
		{"no line", nil, provider.ReasonHostKeyUnknown},
		{"another port", []string{knownhosts.Line([]string{"127.0.0.1:1"}, right.public())}, provider.ReasonHostKeyUnknown},
		{"without the port", []string{"127.0.0.1 " + authorized}, provider.ReasonHostKeyUnknown},
		{"another key", []string{line(h, other)}, provider.ReasonHostKeyMismatch},
		{"another kind of key", []string{line(h, newKey(t, ssh.KeyAlgoRSA))}, provider.ReasonHostKeyMismatch},
		{"revoked", []string{line(h, right), "@revoked * " + authorized}, provider.ReasonHostKeyRevoked},
		{"as an authority", []string{"@cert-authority " + line(h, right)}, provider.ReasonHostKeyUnknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			for pin, key := range map[string][]byte{"nothing": nil, "the key": right.public().Marshal(), "another": other.public().Marshal()} {
				m, s := newMachine(h), stopAtOwner()
				m.HostKey = key
				before := h.ran("")
				_, err := newDriver(t, h, knownHosts(test.lines...)).StartAgent(t.Context(), m, s)
				if test.reason != "" {
					wantReason(t, err, test.reason, true)
					if h.ran("") != before || len(s.Pins()) != 0 {
						t.Errorf("%s pinned: refused, but commands ran or %d keys were pinned", pin, len(s.Pins()))
					}
					continue
				}
				if !errors.Is(err, errAccepted) {
					t.Errorf("%s pinned: %v", pin, err)
				}
				// The list wins, and what is pinned follows it.
				want := 1
				if pin == "the key" {
					want = 0
				}
				if pins := s.Pins(); len(pins) != want || want == 1 && !bytes.Equal(pins[0], right.public().Marshal()) {
					t.Errorf("%s pinned: pinned %x", pin, pins)
				}
			}
		})
	}
}

func TestKnownHostsMismatchNamesBothKeys(t *testing.T) {
	t.Parallel()
	h, other := newHost(t, behaviour{}), newKey(t, "")
	_, err := newDriver(t, h, knownHosts(line(h, other))).StartAgent(t.Context(), newMachine(h), &providertest.Steps{})
	wantReason(t, err, provider.ReasonHostKeyMismatch, true)
	for _, k := range []keyPair{h.keys[0], other} {
		if !strings.Contains(fmt.Sprint(err), ssh.FingerprintSHA256(k.public())) {
			t.Errorf("error %v does not name %s", err, ssh.FingerprintSHA256(k.public()))
		}
	}
}
