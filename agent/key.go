// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

const pemType = "PRIVATE KEY"

// pkcs8Prefix is what precedes the seed of an ed25519 key in PKCS #8 (RFC
// 8410). The encoding has no choices, and crypto/x509 would double the size of
// the binary.
func pkcs8Prefix() []byte {
	return []byte{0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20}
}

// loadOrMakeKey returns the key in the file, and makes it where there is none.
// The key is durable when it returns. A file that is there is never replaced:
// the database knows this machine by it. The caller holds the lock.
func loadOrMakeKey(name string) (ed25519.PrivateKey, error) {
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(name)
	}
	if err != nil {
		return nil, fmt.Errorf("look at key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key %s has mode %s, want a file that only its owner can read", name, info.Mode())
	}
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	key, err := decodeKey(content)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", name, err)
	}
	return key, nil
}

func makeKey(name string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	if err := writeFile(name, encodeKey(key)); err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	return key, nil
}

func encodeKey(key ed25519.PrivateKey) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: append(pkcs8Prefix(), key.Seed()...)})
}

// decodeKey's errors hold nothing of the content.
func decodeKey(content []byte) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(content)
	if block == nil || block.Type != pemType || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("not one PEM block of a private key")
	}
	seed, ok := bytes.CutPrefix(block.Bytes, pkcs8Prefix())
	if !ok || len(seed) != ed25519.SeedSize {
		return nil, errors.New("not an ed25519 key in PKCS #8")
	}
	return ed25519.NewKeyFromSeed(seed), nil
}
