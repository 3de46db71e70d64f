// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"

	"github.com/google/uuid"
)

var errNotYet = errors.New("not available yet")


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

