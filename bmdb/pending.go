// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"

	"github.com/google/uuid"
)

var errNotYet = errors.New("not available yet")


// RegisterMachine records a machine, or finds the one that is recorded, and attaches the view to it.
func (c *Connection) RegisterMachine(ctx context.Context, v View, spec MachineSpec) (Registration, error) {
	return Registration{}, errNotYet
}

// DetachMachine takes a view from a machine.
func (c *Connection) DetachMachine(ctx context.Context, v View, machine uuid.UUID) error {
	return errNotYet
}

// MachineSnapshots reads what the statuses of machines show. Machines that do not exist are missing.
func (c *Connection) MachineSnapshots(ctx context.Context, ids []uuid.UUID) ([]MachineSnapshot, error) {
	return nil, errNotYet
}

// MachineByName finds a machine. ErrNoSuchMachine.
func (c *Connection) MachineByName(ctx context.Context, pool, name string) (uuid.UUID, error) {
	return uuid.Nil, errNotYet
}

// MachineTarget reads what a driver needs of a machine. ErrNoSuchMachine.
func (c *Connection) MachineTarget(ctx context.Context, id uuid.UUID) (Target, error) {
	return Target{}, errNotYet
}

// PinHostKey pins a host key to the machine. ErrWorkLost.
func (w *Work) PinHostKey(ctx context.Context, key []byte) error { return errNotYet }

// UseOwnerAcceptance uses up the acceptance of an owner. ErrWorkLost.
func (w *Work) UseOwnerAcceptance(ctx context.Context) (bool, error) { return false, errNotYet }

// AcceptHostKey clears the pinned host key of a machine.
func (c *Connection) AcceptHostKey(ctx context.Context, pool, name, actor string) error {
	return errNotYet
}

// AcceptOwner lets the next work take over a host whose owner file names another machine or database.
func (c *Connection) AcceptOwner(ctx context.Context, pool, name, actor string) error {
	return errNotYet
}

// PlaceHold adds a hold to machines.
func (c *Connection) PlaceHold(ctx context.Context, h Hold, machines []uuid.UUID) error {
	return errNotYet
}

// ReleaseHold ends a hold on all of its machines.
func (c *Connection) ReleaseHold(ctx context.Context, pool, name, actor string) error {
	return errNotYet
}

// HoldOf reads what a hold does.
func (c *Connection) HoldOf(ctx context.Context, pool, name string) (HoldState, error) {
	return HoldState{}, errNotYet
}

// AttachProvider records a view's limits for a provider.
func (c *Connection) AttachProvider(ctx context.Context, v View, l ProviderLimits) error {
	return errNotYet
}

// DetachProvider takes a view from a provider.
func (c *Connection) DetachProvider(ctx context.Context, v View, pool, provider string) error {
	return errNotYet
}

// ProviderSnapshot reads a provider, as seen by the view of a cluster.
func (c *Connection) ProviderSnapshot(ctx context.Context, cluster, pool, provider string) (ProviderState, error) {
	return ProviderState{}, errNotYet
}

// RegisterProcess records a process, or changes it.
func (c *Connection) RegisterProcess(ctx context.Context, p ProcessDefinition) error {
	return errNotYet
}

// Processes lists the processes of a pool, with those of every pool.
func (c *Connection) Processes(ctx context.Context, pool string) ([]ProcessState, error) {
	return nil, errNotYet
}

// ProcessState is a process as the database knows it.
type ProcessState struct {
	ProcessDefinition
	// Filling tells that not every machine was evaluated against the definition yet.
	Filling bool
}

// Explain says why a process is not started on a machine.
func (c *Connection) Explain(ctx context.Context, machine uuid.UUID, process string) (Explanation, error) {
	return Explanation{}, errNotYet
}

// RegisterCluster records that a cluster shows machines and claims.
func (c *Connection) RegisterCluster(ctx context.Context, cluster string) error { return errNotYet }

// UnregisterCluster forgets a cluster.
func (c *Connection) UnregisterCluster(ctx context.Context, cluster string) error { return errNotYet }

// PendingProjections reads what a cluster has still to show.
func (c *Connection) PendingProjections(ctx context.Context, cluster string, limit int) ([]Pending, error) {
	return nil, errNotYet
}

// AckProjections records what a cluster has shown.
func (c *Connection) AckProjections(ctx context.Context, cluster string, shown []Pending) error {
	return errNotYet
}

// Spread copies changes to the clusters that show them.
func (c *Connection) Spread(ctx context.Context, limit int) (int, error) { return 0, errNotYet }

// AuditOf lists what was done to something, the latest first.
func (c *Connection) AuditOf(ctx context.Context, pool, kind, name string, limit int) ([]AuditEvent, error) {
	return nil, errNotYet
}
