// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"

	"github.com/google/uuid"
)

// Machine is all that a driver may know of the machine that it works on, read
// when the work started. It is passed by value; a driver changes neither the
// map nor the slice in it.
type Machine struct {
	// ID is the machine's row in the database, DatabaseID the database's own
	// identity. Both are written to the machine, as its owner. Never nil UUIDs.
	ID, DatabaseID uuid.UUID

	// Pool, Name, Provider and ProviderID say which machine it is. Provider
	// and ProviderID are never empty; Name is for messages and may be.
	Pool, Name, Provider, ProviderID string

	// Address is where the machine answers, as in Machine.spec.address: host,
	// host:port or [v6]:port. Empty: none is known.
	Address string

	// Fence is the fencing number of this work. It grows with every work on
	// the machine, so hardware that remembers numbers can refuse an old one.
	Fence int64

	// Attempt is which try of its claim this is on this machine, from 1.
	// 0: not known.
	Attempt int

	// Process is the process whose work this is, with its parameters. A nil
	// map has no parameters.
	Process    string
	Parameters map[string]string

	// HostKey is the key pinned to the machine, in SSH wire format
	// (ssh.PublicKey.Marshal). Nil: none is pinned yet.
	HostKey []byte
}

// Steps connects a driver to the work that it runs under. The caller
// implements it, safe for concurrent use.
type Steps interface {
	// Step is called before each side effect. It verifies that the work is
	// still ours and shows what is about to happen: a name in CamelCase, and
	// how much of the whole is done, in percent, from 0 to 100 and never
	// falling. It may be called more than once with the same name. When it
	// returns an error the driver does nothing more to the machine.
	Step(ctx context.Context, name string, percent int) error

	// PinHostKey makes key (SSH wire format) the machine's pinned host key and
	// returns when that is durable. It is called before any side effect: with
	// the first key ever seen where that is trusted, and with a key that a
	// list of known hosts names and that is not the one pinned. When it
	// returns an error the driver does nothing more to the machine.
	PinHostKey(ctx context.Context, key []byte) error

	// UseOwnerAcceptance tells whether a person accepted that the host is this
	// machine although it says that it is another's. file says which owner file
	// on which host would be replaced, in any form that is another for any
	// other file. What was accepted is durably bound to the first file that it
	// is asked for: for that it is true again in later works until one
	// finishes, so that a takeover that was cut off is completed; for any other
	// file it is false. It is called once in a work, before a host is taken
	// over; when it returns false or an error the driver does nothing more to
	// the machine.
	UseOwnerAcceptance(ctx context.Context, file []byte) (bool, error)
}

// Agent is what a driver learned about a running agent.
type Agent struct {
	// PublicKey is the agent's ed25519 public key, 32 bytes.
	PublicKey []byte

	// Facts is a JSON object of facts about the machine, as the agent printed
	// it. Bounded (1 MiB); made by the machine, so not to be trusted further
	// than the machine. Never nil.
	Facts []byte

	// AlreadyRunning: the agent ran before this call, and was left alone.
	// A driver that cannot know says false.
	AlreadyRunning bool

	// Outdated: the agent that runs is another binary than the one that this
	// driver would have started. It was left running.
	Outdated bool
}

// AgentStarter makes sure that the agent runs on a machine.
type AgentStarter interface {
	// StartAgent starts the agent on m unless it runs already, and returns
	// its public key and facts. It may be called any number of times: an
	// agent that runs is found, is not restarted, and has the same key.
	//
	// The caller's context ends all of it. An error that wraps the context's,
	// or one of Steps', says nothing about the machine; any other is an
	// [*Error]. Whatever the error, calling again is safe.
	StartAgent(ctx context.Context, m Machine, s Steps) (Agent, error)
}

// Driver reaches the machines of one provider. Its methods are safe for
// concurrent use. What a driver can do beyond starting agents it declares by
// further small interfaces, found by a type assertion.
type Driver interface {
	AgentStarter

	// Close releases what the driver holds. Called when nothing uses the
	// driver any more, at least once.
	Close() error
}
