// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// holdPage is how many machines a transaction holds or releases.
const holdPage = 500

// Hold keeps everybody from starting work on machines. It is known by its name in its pool.
type Hold struct {
	Pool, Name string
	// Reason and Owner are shown to those who wait.
	Reason, Owner string
	// Until is when it ends by itself, by the database's clock. nil: never.
	Until *time.Time
	// Actor and Cluster say in the audit log who placed it.
	Actor, Cluster string
}

// HoldState is what a hold does at the moment.
type HoldState struct {
	// Machines are the machines that it holds, by ascending ID.
	Machines []uuid.UUID
	// Working is on how many of them work still runs. 0: it is safe to touch them.
	Working int64
}

// PlaceHold adds a hold to machines, or changes what it says. From its return on nobody starts work on them; work that goes on ends as it
// would, HoldOf tells when. Machines that the hold is on already and that are not named keep it: only ReleaseHold ends it. It is
// idempotent, and audited where it changes something.
func (c *Connection) PlaceHold(ctx context.Context, h Hold, machines []uuid.UUID) error {
	fail := func(err error) error { return fmt.Errorf("place hold %s/%s: %w", h.Pool, h.Name, err) }
	if h.Pool == "" || h.Name == "" {
		return fail(errors.New("pool and name must not be empty"))
	}
	sorted := slices.Clone(machines)
	slices.SortFunc(sorted, compareIDs)
	for page := range slices.Chunk(slices.Compact(sorted), holdPage) {
		if err := c.placeHold(ctx, h, page); err != nil {
			return fail(err)
		}
	}
	return nil
}

func (c *Connection) placeHold(ctx context.Context, h Hold, machines []uuid.UUID) error {
	var foreign, differ []uuid.UUID
	err := c.read(ctx, "NotInPool", sqlNotInPool, []any{machines, h.Pool}, func() { foreign = nil }, scanIDs(&foreign))
	if err != nil {
		return err
	}
	if len(foreign) > 0 {
		return fmt.Errorf("machine %s is not in the pool: %w", foreign[0], ErrNoSuchMachine)
	}
	err = c.read(ctx, "HoldDiffers", sqlHoldDiffers, []any{machines, h.Name, h.Reason, h.Owner, h.Until}, func() { differ = nil }, scanIDs(&differ))
	if err != nil || len(differ) == 0 {
		return err
	}
	slices.SortFunc(differ, compareIDs)
	events := c.holdEvents(h, AuditPlaced, differ)
	return c.transact(ctx, "hold", func(_ context.Context, tx *Tx) error {
		tx.lockMachines(differ...)
		tx.queue("PlaceHold", sqlPlaceHold, differ, h.Name, h.Pool, h.Reason, h.Owner, h.Until)
		tx.recomputeTouched()
		for _, e := range events {
			tx.audit(e)
		}
		return nil
	})
}

func (c *Connection) holdEvents(h Hold, event string, machines []uuid.UUID) []AuditEvent {
	cluster := h.Cluster
	if cluster == "" {
		cluster = c.config.Cluster
	}
	events := make([]AuditEvent, len(machines))
	for i := range machines {
		events[i] = AuditEvent{ID: uuid.New(), Pool: h.Pool, Kind: KindHold, Name: h.Name, Machine: &machines[i], Event: event, Actor: h.Actor, Cluster: cluster, Cause: h.Reason}
	}
	return events
}

// ReleaseHold ends a hold on all of its machines. It is idempotent, and audited under the actor's name.
func (c *Connection) ReleaseHold(ctx context.Context, pool, name, actor string) error {
	for {
		var page []uuid.UUID
		err := c.read(ctx, "HoldMachines", sqlHoldMachines, []any{pool, name, holdPage}, func() { page = nil }, scanIDs(&page))
		if err == nil && len(page) == 0 {
			return nil
		}
		if err == nil {
			events := c.holdEvents(Hold{Pool: pool, Name: name, Actor: actor}, AuditReleased, page)
			err = c.transact(ctx, "release hold", func(_ context.Context, tx *Tx) error {
				tx.lockMachines(page...)
				tx.queue("ReleaseHold", sqlReleaseHold, page, name)
				tx.recomputeTouched()
				for _, e := range events {
					tx.audit(e)
				}
				return nil
			})
		}
		if err != nil {
			return fmt.Errorf("release hold %s/%s: %w", pool, name, err)
		}
	}
}

// HoldOf reads which machines a hold keeps, and on how many of them work still goes on. A hold whose time is over keeps none.
func (c *Connection) HoldOf(ctx context.Context, pool, name string) (HoldState, error) {
	var h HoldState
	err := c.read(ctx, "HoldState", sqlHoldState, []any{pool, name}, func() { h = HoldState{} }, func(row pgx.Rows) error {
		var id uuid.UUID
		var working bool
		err := row.Scan(&id, &working)
		h.Machines = append(h.Machines, id)
		if working {
			h.Working++
		}
		return err
	})
	return h, wrap("read hold "+pool+"/"+name, err)
}
