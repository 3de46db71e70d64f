// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
)

// The reasons of failures. They are used as reasons of conditions, so they
// are never renamed. Those marked (person) come with Error.NeedsPerson.
const (
	// ReasonConfigInvalid: the provider's configuration cannot be used, for
	// example because its private key cannot be read (person).
	ReasonConfigInvalid = "ConfigInvalid"
	// ReasonTypeUnknown: no driver is registered for the type (person).
	ReasonTypeUnknown = "TypeUnknown"
	// ReasonAddressMissing: the machine has no address and the driver knows
	// none (person).
	ReasonAddressMissing = "AddressMissing"
	// ReasonAddressInvalid: the address is not host, host:port or [v6]:port
	// (person).
	ReasonAddressInvalid = "AddressInvalid"
	// ReasonUnreachable: nothing answers at the address as it should: its
	// name does not resolve, the connection is refused or was cut.
	ReasonUnreachable = "Unreachable"
	// ReasonTimedOut: a step was not done in its time.
	ReasonTimedOut = "TimedOut"
	// ReasonHostKeyMismatch: the host shows another key than the known or
	// pinned one (person).
	ReasonHostKeyMismatch = "HostKeyMismatch"
	// ReasonHostKeyUnknown: the list of known hosts does not have the host
	// (person).
	ReasonHostKeyUnknown = "HostKeyUnknown"
	// ReasonHostKeyRevoked: the list of known hosts says that the key that
	// the host shows is revoked (person).
	ReasonHostKeyRevoked = "HostKeyRevoked"
	// ReasonAuthenticationFailed: the machine does not accept our credentials
	// (person).
	ReasonAuthenticationFailed = "AuthenticationFailed"
	// ReasonNeedsSudo: the user is not root and may not use sudo without a
	// password (person).
	ReasonNeedsSudo = "NeedsSudo"
	// ReasonOwnedByAnotherDatabase: the machine says that it belongs to
	// another database. Nothing was written (person).
	ReasonOwnedByAnotherDatabase = "OwnedByAnotherDatabase"
	// ReasonOwnedByAnotherMachine: the machine says that it is another
	// machine of our database. Nothing was written (person).
	ReasonOwnedByAnotherMachine = "OwnedByAnotherMachine"
	// ReasonOwnerUnclear: what the machine says about its owner cannot be
	// understood. Nothing was written (person).
	ReasonOwnerUnclear = "OwnerUnclear"
	// ReasonArchitectureUnsupported: there is no agent for the machine's
	// architecture (person).
	ReasonArchitectureUnsupported = "ArchitectureUnsupported"
	// ReasonUploadFailed: the agent could not be brought to the machine.
	ReasonUploadFailed = "UploadFailed"
	// ReasonCommandFailed: a command failed on the machine.
	ReasonCommandFailed = "CommandFailed"
	// ReasonAgentFailed: the agent did not start, or what it printed is not
	// what an agent prints.
	ReasonAgentFailed = "AgentFailed"
	// ReasonSimulated: a simulated machine failed, as it was told to.
	ReasonSimulated = "SimulatedFailure"
)

// Error is a typed failure of a driver. Find it with errors.As or [ReasonOf].
type Error struct {
	// Reason is one of the constants of this package.
	Reason string
	// Message says in one line what happened, to what, and where it helps,
	// what to do. It holds nothing secret.
	Message string
	// NeedsPerson: this does not pass by itself. Trying again changes
	// nothing, and harms nothing, until a person has acted.
	NeedsPerson bool
	// Err is the cause. May be nil.
	Err error
}

// Error returns the message, and the cause where there is one.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf returns the reason of the first [*Error] in err's chain, and ""
// where there is none: then err is of the context or of [Steps].
func ReasonOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return ""
}

// NeedsPerson tells whether err has an [*Error] in its chain that does not
// pass by itself.
func NeedsPerson(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.NeedsPerson
}

// ContextError returns nil while ctx lives. Once it is done it returns an
// error that begins with what and wraps ctx.Err() and, where it says more,
// the context's cause. Drivers return it for what ctx has ended.
func ContextError(ctx context.Context, what string) error {
	err := ctx.Err()
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); !errors.Is(err, cause) {
		return fmt.Errorf("%s: %w: %w", what, err, cause)
	}
	return fmt.Errorf("%s: %w", what, err)
}
