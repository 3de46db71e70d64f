// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// MaxReportBytes bounds a report.
const MaxReportBytes = 1 << 20

// Report is the line that an agent prints when it starts.
type Report struct {
	// Version of the agent that runs, for people.
	Version string `json:"version"`
	// PublicKey is the agent's ed25519 key, base64 in JSON.
	PublicKey ed25519.PublicKey `json:"publicKey"`
	// PID of the agent that runs.
	PID int `json:"pid"`
	// BinaryDigest is the SHA-256 of the binary that runs, in hexadecimal.
	// Empty: the agent could not read it.
	BinaryDigest string `json:"binaryDigest,omitempty"`
	// AlreadyRunning: an agent ran already, and the key is that one's.
	AlreadyRunning bool `json:"alreadyRunning"`
	// Facts is a JSON object about the machine, see [Facts].
	Facts json.RawMessage `json:"facts"`
}

// ParseReport reads what an agent printed: one line, of which nothing is taken
// on trust but that it is what this machine says. Members that it does not
// know are ignored. Facts are any JSON object, encoded again so that every
// database can keep it.
func ParseReport(data []byte) (Report, error) {
	r, err := parseReport(data)
	if err != nil {
		return Report{}, fmt.Errorf("parse report of agent: %w", err)
	}
	return r, nil
}

func parseReport(data []byte) (Report, error) {
	var r Report
	members, err := parseObject(data, MaxReportBytes)
	if err != nil {
		return Report{}, err
	}
	var key []byte
	if err := errors.Join(
		member(members, "publicKey", &key),
		member(members, "alreadyRunning", &r.AlreadyRunning),
		member(members, "facts", &r.Facts),
		optional(members, "version", &r.Version),
		optional(members, "pid", &r.PID),
		optional(members, "binaryDigest", &r.BinaryDigest),
	); err != nil {
		return Report{}, err
	}
	if len(key) != ed25519.PublicKeySize {
		return Report{}, fmt.Errorf("public key has %d bytes, want %d", len(key), ed25519.PublicKeySize)
	}
	r.PublicKey = key
	if d, err := hex.DecodeString(r.BinaryDigest); err != nil || (len(d) != 0 && len(d) != 32) {
		return Report{}, errors.New("binary digest is no SHA-256")
	}
	if r.Facts, err = normalize(r.Facts); err != nil {
		return Report{}, fmt.Errorf("facts: %w", err)
	}
	return r, nil
}

// Encode returns the report as one line.
func (r Report) Encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode report: %w", err)
	}
	return append(b, '\n'), nil
}
