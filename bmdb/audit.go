// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"time"

	"github.com/google/uuid"
)

// AuditEvent is something that was done and is no work: a hold, a release, a takeover, something accepted by hand.
type AuditEvent struct {
	ID   uuid.UUID
	At   time.Time
	Pool string
	// Kind and Name say to what it was done: machine, claim, hold or provider, and its name.
	Kind, Name string
	// Machine is nil where it is about none.
	Machine *uuid.UUID
	// Event is what was done: Placed, Released, TakenOver, HostKeyPinned, HostKeyAccepted, ...
	Event string
	// Actor, Session and Cluster say who did it; Session is nil where none did.
	Actor   string
	Session *uuid.UUID
	Cluster string
	Cause   string
}
