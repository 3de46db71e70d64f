// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package deploy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
)

// database is a server that takes clients over TLS by their certificates, as a CockroachDB cluster does, and one database of it.
type database struct {
	url   string            // for tests, without TLS
	pod   string            // for pods: as docs/install.md has it, with this server's address
	files map[string][]byte // what pods have of certificates, by name
}

const (
	databaseUser = "bmdb"
	databaseName = "bmdb"
)

// newDatabase starts a server that ends with the test.
func newDatabase(t *testing.T) *database {
	t.Helper()
	server, err := postgres.Start(t.Context(), postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	d := &database{}
	if d.url, err = server.CreateDatabase(t.Context(), databaseName); err != nil {
		t.Fatal(err)
	}
	ca := newAuthority(t)
	certificate, key := ca.issue(t, "node", net.IPv4(127, 0, 0, 1))
	secureServer(t, d.url, map[string][]byte{"ca.crt": ca.pem, "server.crt": certificate, "server.key": key})

	certificate, key = ca.issue(t, databaseUser)
	d.files = map[string][]byte{"ca.crt": ca.pem, "client." + databaseUser + ".crt": certificate, "client." + databaseUser + ".key": key}
	documented, err := url.Parse(documentedURL(t))
	if err != nil {
		t.Fatal(err)
	}
	documented.Host = server.Address()
	d.pod = documented.String()
	return d
}

// documentedURL is the URL that people are told to put into the Secret.
func documentedURL(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(moduleRoot(t), "docs", "install.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`postgresql://[^'"\s]*verify-full[^'"\s]*`).FindString(string(text))
	if found == "" {
		t.Fatal("docs/install.md has no URL with sslmode=verify-full")
	}
	return found
}

// secureServer makes a server take its superuser over TLS by certificate alone. The files are written by the server itself, as a user
// whom this process does not know.
func secureServer(t *testing.T, databaseURL string, files map[string][]byte) {
	t.Helper()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var data string
	if err := conn.QueryRow(ctx, "SHOW data_directory").Scan(&data); err != nil {
		t.Fatal(err)
	}
	execute := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	write := func(name string, content []byte) {
		t.Helper()
		lines := strings.ReplaceAll(strings.TrimSpace(string(content)), "\n", "','")
		execute(fmt.Sprintf("COPY (SELECT unnest(ARRAY['%s'])) TO PROGRAM 'umask 077; cat > %s'", lines, filepath.Join(data, name)))
	}
	for name, content := range files {
		write(name, content)
	}
	write("pg_hba.conf", []byte("hostssl all all 127.0.0.1/32 cert\nhostnossl all all 127.0.0.1/32 scram-sha-256"))
	for name, value := range map[string]string{"ssl": "on", "ssl_ca_file": "ca.crt", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"} {
		execute(fmt.Sprintf("ALTER SYSTEM SET %s = '%s'", name, value))
	}
	execute("SELECT pg_reload_conf()")
	eventually(t, "the server speaks TLS", func(ctx context.Context) error {
		var on string
		if err := conn.QueryRow(ctx, "SHOW ssl").Scan(&on); err != nil {
			return err
		}
		if on != "on" {
			return fmt.Errorf("ssl is %s", on)
		}
		return nil
	})
}

// authority is a certificate authority.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{certificate, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue issues a certificate: a node's that has addresses, a client's that has none.
func (a *authority) issue(t *testing.T, name string, addresses ...net.IP) (certificatePEM, keyPEM []byte) {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: addresses, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
