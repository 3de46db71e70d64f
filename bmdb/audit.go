// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Events of the audit log.
const (
	AuditTakenOver       = "TakenOver"       // a claim, from an owner whose session is over
	AuditManages         = "Manages"         // a view, after another managed the machine or claim
	AuditGivenUp         = "GivenUp"         // a view of a cluster or API server that is gone for good, by a person
	AuditPlaced          = "Placed"          // a hold
	AuditReleased        = "Released"        // a hold
	AuditHostKeyPinned   = "HostKeyPinned"   // by a work
	AuditHostKeyAccepted = "HostKeyAccepted" // by a person
	AuditOwnerAccepted   = "OwnerAccepted"   // by a person
	AuditOwnerReplaced   = "OwnerReplaced"   // by a work, as a person allowed
	AuditAcknowledged    = "Acknowledged"    // the database, by a person
	AuditWithdrawn       = "Withdrawn"       // what objects of a cluster said against the database, by a person
)

// KindHold is the kind of a hold in the audit log.
const KindHold = "hold"

// KindDatabase is the kind of the database itself in the audit log; its name is its ID.
const KindDatabase = "database"

// AuditEvent is something that was done and is no work: a hold, a release, a takeover, something accepted by hand.
type AuditEvent struct {
	ID   uuid.UUID
	At   time.Time
	Pool string
	// Kind and Name say to what it was done: one of the Kind constants, and its name.
	Kind, Name string
	// Machine is nil where it is about none.
	Machine *uuid.UUID
	// Event is one of the Audit constants.
	Event string
	// Actor, Session and Cluster say who did it; Session is nil where none did.
	Actor   string
	Session *uuid.UUID
	Cluster string
	Cause   string
}

// audit records an event with the transaction. Its time is the database's.
func (tx *Tx) audit(e AuditEvent) {
	tx.queue("Audit", sqlAudit, e.ID, e.Pool, e.Kind, e.Name, e.Machine, e.Event, e.Actor, e.Session, e.Cluster, bounded(e.Cause))
}

// AuditOf lists what was done to something that is no work, the latest first, at most limit. It needs no session.
func (c *Connection) AuditOf(ctx context.Context, pool, kind, name string, limit int) (events []AuditEvent, err error) {
	err = c.read(ctx, "AuditOf", sqlAuditOf, []any{pool, kind, name, limit}, func() { events = nil }, func(row pgx.Rows) error {
		e, err := pgx.RowToStructByPos[AuditEvent](row)
		events = append(events, e)
		return err
	})
	return events, wrap("list audit of "+kind+" "+pool+"/"+name, err)
}
