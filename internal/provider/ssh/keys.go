// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"bytes"
	"crypto/x509"
	"errors"

	"golang.org/x/crypto/ssh"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

func configInvalid(message string) error {
	return &provider.Error{Reason: provider.ReasonConfigInvalid, Message: message, NeedsPerson: true}
}

// parsePrivateKey says in its own words what is wrong: the parser's errors are
// about bytes that nobody should see.
func parsePrivateKey(key, passphrase []byte) (ssh.Signer, error) {
	if len(bytes.TrimSpace(key)) == 0 {
		return nil, configInvalid("the private key is missing")
	}
	signer, err := ssh.ParsePrivateKey(key)
	if _, encrypted := errors.AsType[*ssh.PassphraseMissingError](err); encrypted {
		if len(passphrase) == 0 {
			return nil, configInvalid("the private key is encrypted, and there is no passphrase")
		}
		signer, err = ssh.ParsePrivateKeyWithPassphrase(key, passphrase)
		if errors.Is(err, x509.IncorrectPasswordError) {
			return nil, configInvalid("the passphrase is not that of the private key")
		}
	}
	if err != nil {
		return nil, configInvalid("the private key cannot be read: it is not a private key in PEM, or of an unknown kind")
	}
	return signer, nil
}
