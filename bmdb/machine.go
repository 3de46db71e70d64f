// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// View is the object by which a Kubernetes cluster shows a machine, claim or provider. Of several views, in several clusters, one manages:
// its spec counts. The zero View stands for a program without Kubernetes, which manages what nobody else does.
type View struct {
	// Cluster is the cluster's ID; empty for a program outside of any.
	Cluster string
	// UID and Name are the object's.
	UID, Name string
}

// MachineSpec is what a machine's managing view says of it.
type MachineSpec struct {
	// Pool and Name are how people call it. A name is unique in its pool.
	Pool, Name string
	// Provider and ProviderID are its identity in the pool: the same pair is the same machine for ever.
	Provider, ProviderID string
	// Address is where it is reached; empty where the driver knows. It is unique among the machines of its provider.
	Address string
	// Labels are what claims select by. nil: none.
	Labels map[string]string
}

// Registration is a machine's row as RegisterMachine left it.
type Registration struct {
	MachineID uuid.UUID
	// Rev is the revision of the machine's row.
	Rev int64
	// Manages tells whether this view manages. If not, Manager is the cluster of the one that does.
	Manages bool
	Manager string
}

// Kinds of ConflictError.
const (
	IdentityConflict = "IdentityConflict" // the provider ID belongs to another object of the cluster, another name, or another pool
	NameConflict     = "NameConflict"     // the name belongs to another machine of the pool
	AddressConflict  = "AddressConflict"  // the address belongs to another machine of the provider
)

// ConflictError says that a machine cannot be registered because it contradicts another one. Nothing was changed. It clears when the other
// party gives way: register again.
type ConflictError struct {
	// Kind is one of IdentityConflict, NameConflict, AddressConflict.
	Kind string
	// Other names the other party, for people.
	Other string
}

func (e *ConflictError) Error() string { return fmt.Sprintf("%s with %s", e.Kind, e.Other) }

// AtLimitError says that a provider may have no further machine. Nothing was changed.
type AtLimitError struct {
	// Pool and Provider are whose limit it is.
	Pool, Provider string
	// Limit is the greatest number of machines.
	Limit int64
}

func (e *AtLimitError) Error() string {
	return fmt.Sprintf("provider %s of pool %s has its maximum of %d machines", e.Provider, e.Pool, e.Limit)
}

// MachineSnapshot is everything that the status of a machine shows, as of one moment. Times are by the database's clock.
type MachineSnapshot struct {
	MachineID  uuid.UUID
	Rev        int64
	Standing   Standing // as objects show it
	Pool       string
	Name       string // empty: the machine was made with the library and has none
	Provider   string
	ProviderID string
	Address    string
	// Facts are what predicates are evaluated on.
	Facts []string
	Tags  MachineTags
	// Works are what is being done to it now, the oldest first.
	Works []MachineWork
	// Backoffs are the processes that leave it alone for now.
	Backoffs []MachineBackoff
	Holds    []MachineHold
	// Views are the attached ones.
	Views []MachineView
	// Failures are the last ends of processes that failed since they last succeeded, one for each process.
	Failures []MachineFailure
	// Labels are those that the managing view has.
	Labels map[string]string
	// HostKey is the pinned SSH host key in wire format; nil: none.
	HostKey []byte
	// Refresh is when what this shows changes by itself, without a new revision, because a hold or backoff ends. 0: it does not.
	Refresh time.Duration
}

// MachineTags are the built-in tags of a machine; those that are nil are not set.
type MachineTags struct {
	AgentStarted   *AgentStartedTag
	AgentHeartbeat *time.Time
	// HardwareReport is the agent's last inventory; nil: none.
	HardwareReport []byte
	Custom         []CustomTag
}

// AgentStartedTag says when the agent was started, and its ed25519 public key.
type AgentStartedTag struct {
	At        time.Time
	PublicKey []byte
}

// CustomTag is a tag that a user defined.
type CustomTag struct {
	Name  string
	SetAt time.Time
}

// MachineWork is a work that holds a machine.
type MachineWork struct {
	Process, Slot string
	WorkID        uuid.UUID
	// Claim is the key of the claim that the work is done for; empty for none.
	Claim   string
	Session uuid.UUID
	// Holder and Cluster are the runtime info and cluster of the session.
	Holder, Cluster string
	Start           time.Time
	Attempt         int64
	Step            string
	Percent         int
}

// MachineBackoff is a period in which a process leaves a machine alone.
type MachineBackoff struct {
	Process  string
	Until    time.Time
	Attempts int64
	Cause    string
}

// MachineHold is a hold on a machine.
type MachineHold struct {
	Name, Reason, Owner string
	// Until is nil for a hold without an end.
	Until *time.Time
	At    time.Time
	// Active is false for a hold whose time is over.
	Active bool
}

// MachineView is an attached view of a machine.
type MachineView struct {
	View
	Manages bool
}

// MachineFailure is how a process last failed on a machine.
type MachineFailure struct {
	Process  string
	At       time.Time
	Attempts int64
	Cause    string
}

// Target is what a driver needs to know of a machine.
type Target struct {
	MachineID            uuid.UUID
	Pool, Name           string
	Provider, ProviderID string
	Address              string
	// HostKey is the pinned SSH host key in wire format; nil: none is pinned yet.
	HostKey []byte
	// OwnerAccepted tells that a person accepted that the host is this machine, whatever its owner file says, and that no work has begun
	// to take the host over. The one that does calls Work.UseOwnerAcceptance before.
	OwnerAccepted bool
}

// ErrNoSuchMachine is returned where a machine is named that the database does not have.
var ErrNoSuchMachine = errors.New("no such machine")

// MachineByName finds a machine by its name in its pool. ErrNoSuchMachine: there is none.
func (c *Connection) MachineByName(ctx context.Context, pool, name string) (uuid.UUID, error) {
	id := uuid.Nil
	err := c.read(ctx, "MachineByName", sqlMachineByName, []any{pool, name}, func() { id = uuid.Nil }, func(row pgx.Rows) error { return row.Scan(&id) })
	if err == nil && id == uuid.Nil {
		err = ErrNoSuchMachine
	}
	return id, wrap("find machine "+pool+"/"+name, err)
}

// MachineTargets reads what drivers need of machines, by ID. Machines that the database does not have are missing. It needs no session.
func (c *Connection) MachineTargets(ctx context.Context, ids []uuid.UUID) (map[uuid.UUID]Target, error) {
	targets := make(map[uuid.UUID]Target, len(ids))
	err := c.read(ctx, "Targets", sqlTargets, []any{ids}, func() { clear(targets) }, func(row pgx.Rows) error {
		target, err := pgx.RowToStructByPos[Target](row)
		targets[target.MachineID] = target
		return err
	})
	return targets, wrap("read machines", err)
}

// MachineSnapshots reads what the statuses of machines show, as of one moment, in a few queries for all of them. Machines that the database
// does not have are missing in the result, which is ordered by ID. It needs no session.
func (c *Connection) MachineSnapshots(ctx context.Context, ids []uuid.UUID) ([]MachineSnapshot, error) {
	var list []MachineSnapshot
	err := c.snapshot(ctx, "machine snapshots", func(ctx context.Context, tx *Tx) error {
		b := &snapshots{of: map[uuid.UUID]int{}}
		b.queue(tx, ids)
		if err := tx.flush(ctx); err != nil {
			return err
		}
		list = b.list
		for i := range list {
			list[i].Refresh = list[i].refresh(b.read)
		}
		return nil
	})
	return list, wrap("read machines", err)
}

// refresh is from a moment, by the database's clock, until the first hold or backoff ends.
func (m *MachineSnapshot) refresh(at time.Time) (first time.Duration) {
	ends := func(until time.Time) {
		if left := max(until.Sub(at), time.Millisecond); first == 0 || left < first {
			first = left
		}
	}
	for _, h := range m.Holds {
		if h.Active && h.Until != nil {
			ends(*h.Until)
		}
	}
	for _, b := range m.Backoffs {
		ends(b.Until)
	}
	return first
}

// snapshots gathers the rows of several statements by machine. The machines' own rows come first.
type snapshots struct {
	list []MachineSnapshot
	of   map[uuid.UUID]int
	read time.Time // by the database's clock
}

func (b *snapshots) at(id uuid.UUID) *MachineSnapshot { return &b.list[b.of[id]] }

func (b *snapshots) queue(tx *Tx, ids []uuid.UUID) {
	args := []any{ids}
	tx.queueRows("SnapshotMachines", sqlSnapshotMachines, args, b.machine)
	tx.queueIdentity(func(id uuid.UUID, incarnation int64) {
		for i := range b.list {
			b.list[i].Standing = Standing{id, revisionIn(incarnation, b.list[i].Rev)}
		}
	})
	var id uuid.UUID
	tx.queueRows("SnapshotWorks", sqlSnapshotWorks, args, func(row pgx.Rows) error {
		var w MachineWork
		err := row.Scan(&id, &w.Process, &w.Slot, &w.WorkID, &w.Claim, &w.Session, &w.Holder, &w.Cluster, &w.Start, &w.Attempt, &w.Step, &w.Percent)
		b.at(id).Works = append(b.at(id).Works, w)
		return err
	})
	tx.queueRows("SnapshotFailures", sqlSnapshotFailures, args, func(row pgx.Rows) error {
		var f MachineFailure
		var until *time.Time
		var runs bool
		if err := row.Scan(&id, &f.Process, &until, &f.Attempts, &f.Cause, &runs, &f.At); err != nil {
			return err
		}
		if runs {
			b.at(id).Backoffs = append(b.at(id).Backoffs, MachineBackoff{Process: f.Process, Until: *until, Attempts: f.Attempts, Cause: f.Cause})
		}
		b.at(id).Failures = append(b.at(id).Failures, f)
		return nil
	})
	tx.queueRows("SnapshotHolds", sqlSnapshotHolds, args, func(row pgx.Rows) error {
		var h MachineHold
		err := row.Scan(&id, &h.Name, &h.Reason, &h.Owner, &h.Until, &h.At, &h.Active)
		b.at(id).Holds = append(b.at(id).Holds, h)
		return err
	})
	tx.queueRows("SnapshotViews", sqlSnapshotViews, args, func(row pgx.Rows) error {
		var v MachineView
		err := row.Scan(&id, &v.Cluster, &v.UID, &v.Name, &v.Manages)
		b.at(id).Views = append(b.at(id).Views, v)
		return err
	})
	tx.queueRows("SnapshotTags", sqlSnapshotTags, args, func(row pgx.Rows) error {
		var t CustomTag
		err := row.Scan(&id, &t.Name, &t.SetAt)
		b.at(id).Tags.Custom = append(b.at(id).Tags.Custom, t)
		return err
	})
	tx.queueRows("SnapshotLabels", sqlSnapshotLabels, args, func(row pgx.Rows) error {
		var key, value string
		err := row.Scan(&id, &key, &value)
		b.at(id).Labels[key] = value
		return err
	})
}

func (b *snapshots) machine(row pgx.Rows) error {
	s := MachineSnapshot{Labels: map[string]string{}}
	var started *time.Time
	var publicKey []byte
	err := row.Scan(&s.MachineID, &s.Rev, &s.Pool, &s.Name, &s.Provider, &s.ProviderID, &s.Address, &s.Facts, &s.HostKey, &started, &publicKey,
		&s.Tags.AgentHeartbeat, &s.Tags.HardwareReport, &b.read)
	if started != nil {
		s.Tags.AgentStarted = &AgentStartedTag{At: *started, PublicKey: publicKey}
	}
	b.of[s.MachineID] = len(b.list)
	b.list = append(b.list, s)
	return err
}
