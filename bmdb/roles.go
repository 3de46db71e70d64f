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

// rolesPage is how many roles are looked for at once.
const rolesPage = 200

// SilentClusters lists the other clusters that have views, and whose programs have had no live session for at least the given time: their managing roles
// may be taken over. It reads little, however many views there are. It needs no session.
func (c *Connection) SilentClusters(ctx context.Context, cluster string, silence time.Duration) (silent []string, err error) {
	err = c.read(ctx, "SilentManagers", sqlSilentManagers, []any{cluster, silence.Milliseconds()}, func() { silent = nil }, func(row pgx.Rows) error {
		var other string
		err := row.Scan(&other)
		silent = append(silent, other)
		return err
	})
	return silent, wrap("look for clusters without a session", err)
}

// Takeover says which managing roles pass to another cluster's views.
type Takeover struct {
	// From has managed so far; To manages from now on what it has views of.
	From, To string
	// Pools are those whose roles pass. Empty: all.
	Pools []string
	// Silence is for how long From must have had no live session. 0: it may have one; a person has decided.
	Silence time.Duration
	// Actor and Cause are written to the audit log.
	Actor, Cause string
}

// TakeOverRoles makes views manage where those of another cluster have managed so far, and returns how many roles have passed. Their specs count from
// when they are attached the next time; until then everything stays as it is: no hold is released and no limit changed. Each role passes in a
// transaction of its own, under the mutex of what is managed, and is audited. It is idempotent; an interrupted one goes on where it was.
func (c *Connection) TakeOverRoles(ctx context.Context, t Takeover) (roles int, err error) {
	if t.From == "" || t.To == "" || t.From == t.To {
		return 0, fmt.Errorf("take over roles of cluster %q for cluster %q: two clusters are needed", t.From, t.To)
	}
	if len(t.Pools) == 0 {
		t.Pools = nil // NULL in statements
	}
	for _, k := range []struct{ kind, find, pass string }{
		{KindMachine, sqlMachineRoles, sqlPassMachine}, {KindClaim, sqlClaimRoles, sqlPassClaim}, {KindProvider, sqlProviderRoles, sqlPassProvider},
	} {
		for found := rolesPage; found == rolesPage && err == nil; {
			var passed int
			found, passed, err = c.takeRoles(ctx, t, k.kind, k.find, k.pass)
			roles += passed
		}
	}
	return roles, wrap("take over roles of cluster "+t.From, err)
}

// role is what is managed: a machine by its ID, a claim or provider by pool and name.
type role struct {
	Pool, Name string
	Machine    *uuid.UUID
}

// takeRoles takes a page of roles of one kind, and returns how many there were and how many have passed.
func (c *Connection) takeRoles(ctx context.Context, t Takeover, kind, find, pass string) (found, passed int, err error) {
	var roles []role
	err = c.read(ctx, "Roles", find, []any{t.From, t.To, t.Pools, rolesPage}, func() { roles = nil }, func(row pgx.Rows) error {
		r, err := pgx.RowToStructByPos[role](row)
		roles = append(roles, r)
		return err
	})
	for _, r := range roles {
		ok, passErr := c.passRole(ctx, t, kind, r, pass)
		if ok {
			passed++
		}
		err = errors.Join(err, passErr)
	}
	if passed == 0 {
		return 0, 0, err // the cluster is back, or others took them
	}
	return len(roles), passed, err
}

// passRole passes one role on, if the cluster that has it still is silent.
func (c *Connection) passRole(ctx context.Context, t Takeover, kind string, r role, pass string) (passed bool, err error) {
	event := AuditEvent{
		ID: uuid.New(), Pool: r.Pool, Kind: kind, Name: r.Name, Machine: r.Machine, Event: AuditManages, Actor: t.Actor, Cluster: t.To, Cause: t.Cause,
	}
	args := []any{t.From, t.To, r.Pool, r.Name}
	err = c.transact(ctx, "take over role", func(ctx context.Context, tx *Tx) error {
		passed = false
		silent := t.Silence == 0
		switch kind {
		case KindMachine:
			tx.lockMachines(*r.Machine)
			args = []any{t.From, t.To, *r.Machine}
		case KindClaim:
			tx.queue("TouchClaim", sqlTouchClaim, r.Pool, r.Name)
		case KindProvider:
			tx.queue("LockProvider", sqlLockRegistration, r.Pool, r.Name)
		}
		if !silent {
			tx.queueRows("Silent", sqlSilent, []any{t.From, t.Silence.Milliseconds()}, func(row pgx.Rows) error { return row.Scan(&silent) })
			if err := tx.flush(ctx); err != nil || !silent {
				return err
			}
		}
		tx.queueRows("PassRole", pass, args, func(pgx.Rows) error { passed = true; return nil })
		if err := tx.flush(ctx); err != nil || !passed {
			return err
		}
		tx.audit(event)
		return nil
	})
	return passed && err == nil, err
}

// ViewRow is a view of a cluster, as the database has it.
type ViewRow struct {
	View
	// Kind is one of the Kind constants, Pool and ID say what the view is of: a machine's ID, a claim's key, a provider's name.
	Kind, Pool, ID string
}

// ViewsOf lists views of a cluster, at most limit of one kind, after the last that was seen: pool and, for machines the object's name, for the others
// the ID. Those whose objects are gone are to be detached. It needs no session.
func (c *Connection) ViewsOf(ctx context.Context, cluster, kind string, after ViewRow, limit int) (views []ViewRow, err error) {
	return c.viewsOf(ctx, cluster, kind, nil, "", after, limit)
}

// viewsOf is ViewsOf in some pools, nil for all, and of objects that were in one API server, empty for any.
func (c *Connection) viewsOf(ctx context.Context, cluster, kind string, pools []string, origin string, after ViewRow, limit int) (views []ViewRow, err error) {
	sql, known := map[string]string{KindMachine: sqlMachineViewsOf, KindClaim: sqlClaimViewsOf, KindProvider: sqlProviderViewsOf}[kind]
	if !known {
		return nil, fmt.Errorf("list views of cluster %s: there is no kind %q", cluster, kind)
	}
	last := after.ID
	if kind == KindMachine {
		last = after.Name
	}
	err = c.read(ctx, "ViewsOf", sql, []any{cluster, after.Pool, last, limit, pools, origin}, func() { views = nil }, func(row pgx.Rows) error {
		v := ViewRow{Kind: kind}
		v.Cluster = cluster
		err := row.Scan(&v.Pool, &v.ID, &v.Name, &v.UID)
		views = append(views, v)
		return err
	})
	return views, wrap("list views of cluster "+cluster, err)
}
