// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/uuid"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	driver "github.com/bmdb-dev/bmdb-operator/internal/provider/ssh"
)

// agents is where TestMain put the real agent, as AgentFiles expects it.
var agents string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if agents, err = os.MkdirTemp("", "bmdb-agents"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(agents)
		build := exec.Command("go", "build", "-o", filepath.Join(agents, "bmdb-agent-linux-"+runtime.GOARCH), "github.com/bmdb-dev/bmdb-operator/cmd/bmdb-agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build agent: %v\n%s", err, out)
			return 1
		}
		code := m.Run()
		if err := goleak.Find(); code == 0 && err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}())
}

// keyPair is a key as a user or a host has it.
type keyPair struct {
	private []byte // PEM
	signer  ssh.Signer
}

func (k keyPair) public() ssh.PublicKey { return k.signer.PublicKey() }

func newKey(t *testing.T, keyType string) keyPair {
	t.Helper()
	var private any
	var err error
	switch keyType {
	case ssh.KeyAlgoRSA:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	case ssh.KeyAlgoECDSA256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		_, key, e := ed25519.GenerateKey(rand.Reader)
		private, err = &key, e
	}
	must(t, err)
	block, err := ssh.MarshalPrivateKey(private, "test")
	must(t, err)
	signer, err := ssh.NewSignerFromKey(private)
	must(t, err)
	return keyPair{private: pem.EncodeToMemory(block), signer: signer}
}

// newDriver makes a driver for a host: with trust on first use and the real
// agent, and changed by the options.
func newDriver(t *testing.T, h *host, options ...func(*driver.Config)) *driver.Driver {
	t.Helper()
	c := driver.Config{
		User: h.user, PrivateKey: h.login.private, TrustOnFirstUse: true,
		AgentBinary: driver.AgentFiles(agents), StateDir: h.remoteStateDir,
	}
	for _, o := range options {
		o(&c)
	}
	d, err := driver.New(c)
	must(t, err)
	return d
}

// newMachine is a machine at the host that nobody knows yet.
func newMachine(h *host) provider.Machine {
	id := uuid.New()
	return provider.Machine{
		ID: id, DatabaseID: uuid.MustParse("91aa0000-0000-4000-8000-000000000001"), Pool: "metal", Name: "m-" + id.String()[:8],
		Provider: "lab", ProviderID: id.String(), Address: h.address, Fence: 1, Process: "AgentStart",
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
