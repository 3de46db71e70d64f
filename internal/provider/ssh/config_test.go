// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh_test

import (
	"crypto/ed25519"
	"encoding/pem"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	driver "github.com/bmdb-dev/bmdb-operator/internal/provider/ssh"
)

func encrypted(t *testing.T, passphrase string) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	must(t, err)
	block, err := ssh.MarshalPrivateKeyWithPassphrase(key, "test", []byte(passphrase))
	must(t, err)
	return pem.EncodeToMemory(block)
}

func TestNewChecksItsConfig(t *testing.T) {
	good := newKey(t, "").private
	locked := encrypted(t, "opensesame")
	for _, test := range []struct {
		name, message string
		change        func(*driver.Config)
	}{
		{"good", "", func(*driver.Config) {}},
		{"good with passphrase", "", func(c *driver.Config) { c.PrivateKey, c.Passphrase = locked, []byte("opensesame") }},
		{"needless passphrase", "", func(c *driver.Config) { c.Passphrase = []byte("opensesame") }},
		{"empty list", "", func(c *driver.Config) { c.TrustOnFirstUse = false }},
		{"no user", "user", func(c *driver.Config) { c.User = "" }},
		{"no agent", "agent", func(c *driver.Config) { c.AgentBinary = nil }},
		{"no key", "private key is missing", func(c *driver.Config) { c.PrivateKey = []byte("\n") }},
		{"bad key", "cannot be read", func(c *driver.Config) { c.PrivateKey = []byte("opensesame") }},
		{"cut key", "cannot be read", func(c *driver.Config) { c.PrivateKey = good[:len(good)/2] }},
		{"damaged key", "cannot be read", func(c *driver.Config) {
			c.PrivateKey = pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: []byte("opensesame")})
		}},
		{"public key", "cannot be read", func(c *driver.Config) { c.PrivateKey = []byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIopensesame") }},
		{"encrypted key", "no passphrase", func(c *driver.Config) { c.PrivateKey = locked }},
		{"wrong passphrase", "passphrase is not", func(c *driver.Config) { c.PrivateKey, c.Passphrase = locked, []byte("opensesamE") }},
		{"list and first use", "only one of them", func(c *driver.Config) { c.KnownHosts = []byte("x") }},
		{"bad list", "line 3", func(c *driver.Config) { c.TrustOnFirstUse, c.KnownHosts = false, []byte("# c\n\nhost nonsense\n") }},
		{"long bad list", "line 1", func(c *driver.Config) {
			c.TrustOnFirstUse, c.KnownHosts = false, []byte("nonsense\n"+strings.Repeat("# comment\n", 1<<20))
		}},
		{"relative directory", "absolute path", func(c *driver.Config) { c.StateDir = "var/lib/bmdb" }},
		{"roundabout directory", "shortest", func(c *driver.Config) { c.StateDir = "/var/lib/../lib/bmdb" }},
		{"root directory", "state directory", func(c *driver.Config) { c.StateDir = "/" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := driver.Config{User: "root", PrivateKey: good, TrustOnFirstUse: true, AgentBinary: driver.AgentFiles(agents)}
			test.change(&c)
			d, err := driver.New(c)
			if test.message == "" {
				must(t, err)
				must(t, d.Close())
				return
			}
			wantReason(t, err, provider.ReasonConfigInvalid, true)
			if err == nil || !strings.Contains(err.Error(), test.message) || strings.Contains(strings.ToLower(err.Error()), "opensesame") {
				t.Errorf("error %v: want %q, and no secret", err, test.message)
			}
		})
	}
}
