// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// RegisterMachine records a machine, or finds the one that its identity is of, and attaches the view to it. It is idempotent and writes only
// what differs, so it can be called for every change of an object. The same (pool, provider, provider ID) is the same row for ever,
// whichever cluster looks at it and however often its object is made again.
//
// The first view manages: its name, address and labels go to the database. With another address the machine's failures are forgotten: it is
// tried again at once. The role passes to the next that calls when it is detached. A machine that had views and lost the last one gives its
// name and address up to another that is registered with them, unless work goes on on it.
//
// *ConflictError: it contradicts another machine; nothing was changed. *AtLimitError: the provider may have no further machine.
func (c *Connection) RegisterMachine(ctx context.Context, v View, spec MachineSpec) (Registration, error) {
	r := &registration{view: v, origin: c.config.Origin, spec: spec, id: uuid.New(), takeover: c.manages(v)}
	fail := func(err error) (Registration, error) {
		return Registration{}, fmt.Errorf("register machine %s/%s: %w", spec.Pool, spec.Name, err)
	}
	if spec.Pool == "" || spec.Name == "" || spec.Provider == "" || spec.ProviderID == "" {
		return fail(errors.New("pool, name, provider and provider ID must not be empty"))
	}
	// Mostly nothing differs, and then no row is locked.
	err := c.transact(ctx, "register machine", func(ctx context.Context, tx *Tx) error {
		if err := r.look(ctx, tx); err != nil {
			return err
		}
		return r.decide()
	})
	if err != nil {
		return fail(err)
	}
	if r.differs {
		if err := c.writeMachine(ctx, r); err != nil {
			return fail(err)
		}
	}
	return r.result, nil
}

func (c *Connection) writeMachine(ctx context.Context, r *registration) error {
	if !r.seen.named {
		// New machines wait for one another, over all pods, and for a pod whose connection is slow in the middle of it. Those that wait must leave connections
		// to works.
		select {
		case c.newcomer <- struct{}{}:
			defer func() { <-c.newcomer }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := c.transact(ctx, "register machine", r.write)
	if constraint(err) == "machine_provided_identity" { // a program made the same machine at that moment
		err = c.transact(ctx, "register machine", r.write)
	}
	return err
}

// manages is the event of a view that takes the role of the manager over.
func (c *Connection) manages(v View) AuditEvent {
	return AuditEvent{ID: uuid.New(), Event: AuditManages, Actor: c.config.RuntimeInfo, Cluster: v.Cluster, Cause: "nobody managed any more"}
}

// registration is one call of RegisterMachine.
type registration struct {
	view   View
	origin string
	spec   MachineSpec
	id     uuid.UUID // for a machine that is new, the same in every attempt

	takeover AuditEvent // of the role of the manager

	seen    seenMachine
	plan    registrationPlan
	differs bool
	result  Registration
}

// seenMachine is what the database has of a machine and of those that are in its way.
type seenMachine struct {
	found, named  bool
	id            uuid.UUID
	name, address string
	rev           int64
	views         []seenView
	labels        map[string]string
	elsewhere     string
	occupants     []occupant
}

type seenView struct {
	View
	origin            string
	manages, attached bool
}

// occupant is another machine that has the name, the address or the view's name.
type occupant struct {
	ID                                  uuid.UUID
	Name, Provider, Address, ProviderID string
	Gone, Lost, Busy, Same              bool
}

// registrationPlan is what has to be written.
type registrationPlan struct {
	manages, takes              bool
	view, identity, labels      bool
	gone, giveName, giveAddress []uuid.UUID
}

// viewless tells that the caller has no object.
func (r *registration) viewless() bool { return r.view == View{} }

func (r *registration) look(ctx context.Context, tx *Tx) error {
	r.seen = seenMachine{labels: map[string]string{}}
	s := &r.seen
	identity := []any{r.spec.Pool, r.spec.Provider, r.spec.ProviderID}
	tx.queueRows("FindMachine", sqlFindMachine, identity, func(row pgx.Rows) error {
		s.found = true
		return row.Scan(&s.id, &s.named, &s.name, &s.address, &s.rev)
	})
	tx.queueRows("ViewsOfIdentity", sqlViewsOfIdentity, identity, func(row pgx.Rows) error {
		var v seenView
		err := row.Scan(&v.Cluster, &v.Name, &v.UID, &v.manages, &v.attached, &v.origin)
		s.views = append(s.views, v)
		return err
	})
	tx.queueRows("LabelsOfIdentity", sqlLabelsOfIdentity, identity, func(row pgx.Rows) error {
		var key, value string
		err := row.Scan(&key, &value)
		s.labels[key] = value
		return err
	})
	tx.queueRows("Elsewhere", sqlElsewhere, append(slices.Clone(identity), r.spec.Address), func(row pgx.Rows) error {
		var pool, name string
		err := row.Scan(&pool, &name)
		s.elsewhere = fmt.Sprintf("machine %s of pool %s, which has the same provider ID %s and address", name, pool, r.spec.ProviderID)
		return err
	})
	tx.queueRows("Occupants", sqlOccupants, append(slices.Clone(identity), r.spec.Name, r.spec.Address, r.view.Cluster, r.view.UID), func(row pgx.Rows) error {
		o, err := pgx.RowToStructByPos[occupant](row)
		s.occupants = append(s.occupants, o)
		return err
	})
	return tx.flush(ctx)
}

// decide finds conflicts, and what has to be written.
func (r *registration) decide() error {
	s := &r.seen
	r.plan = registrationPlan{}
	if s.elsewhere != "" {
		return &ConflictError{Kind: IdentityConflict, Other: s.elsewhere}
	}
	var mine, manager *seenView
	for i := range s.views {
		v := &s.views[i]
		switch {
		case !v.attached:
			continue
		case v.manages:
			manager = v
		}
		if !r.viewless() && v.Cluster == r.view.Cluster {
			// That of another API server, which this one has taken the place of, was of this object.
			former := v.origin != "" && r.origin != "" && v.origin != r.origin
			if mine = v; v.Name != r.view.Name && !former {
				return &ConflictError{Kind: IdentityConflict, Other: fmt.Sprintf("object %s of this cluster, which has the same provider ID %s", v.Name, r.spec.ProviderID)}
			}
		} else if s.name != r.spec.Name {
			return &ConflictError{Kind: IdentityConflict, Other: fmt.Sprintf("object %s of cluster %q, which has the same provider ID %s", v.Name, v.Cluster, r.spec.ProviderID)}
		}
	}
	p := &r.plan
	p.manages = manager == nil || manager == mine
	r.result = Registration{MachineID: s.id, Rev: s.rev, Manages: p.manages, Manager: r.view.Cluster}
	if !p.manages {
		r.result.Manager = manager.Cluster
	}
	if err := r.displace(); err != nil {
		return err
	}
	p.takes = p.manages && s.named && !r.viewless() && (mine == nil || !mine.manages)
	p.view = !r.viewless() && (mine == nil || mine.View != r.view || mine.manages != p.manages)
	p.identity = p.manages && (!s.named || s.name != r.spec.Name || s.address != r.spec.Address)
	p.labels = p.manages && !maps.Equal(s.labels, r.spec.Labels)
	r.differs = !s.found || p.view || p.identity || p.labels || len(p.gone)+len(p.giveName)+len(p.giveAddress) > 0
	return nil
}

// displace decides which of the machines that are in the way give way.
func (r *registration) displace() error {
	for _, o := range r.seen.occupants {
		if o.Same && !r.viewless() {
			return &ConflictError{Kind: IdentityConflict, Other: fmt.Sprintf("the machine of provider %s and provider ID %s, which this object was of before", o.Provider, o.ProviderID)}
		}
		if o.Gone && !r.viewless() {
			r.plan.gone = append(r.plan.gone, o.ID)
		}
		if !r.plan.manages {
			continue
		}
		stays := !o.Lost || o.Busy
		if o.Name == r.spec.Name {
			if stays {
				return &ConflictError{Kind: NameConflict, Other: fmt.Sprintf("the machine of that name, which has provider %s and provider ID %s", o.Provider, o.ProviderID)}
			}
			r.plan.giveName = append(r.plan.giveName, o.ID)
		}
		if r.spec.Address != "" && o.Provider == r.spec.Provider && o.Address == r.spec.Address {
			if stays {
				return &ConflictError{Kind: AddressConflict, Other: fmt.Sprintf("machine %s, which has the same address %s", o.Name, o.Address)}
			}
			r.plan.giveAddress = append(r.plan.giveAddress, o.ID)
		}
	}
	return nil
}

// write does it all again under the mutexes of everything that it writes: of the machine or of what makes it new, and of those that give way.
func (r *registration) write(ctx context.Context, tx *Tx) error {
	before := r.locks()
	if !r.seen.named {
		tx.queue("LockRegistration", sqlLockRegistration, "", r.spec.Provider)
		tx.queue("LockProvider", sqlLockRegistration, r.spec.Pool, r.spec.Provider)
	}
	tx.lockMachines(before...)
	if err := r.look(ctx, tx); err != nil {
		return err
	}
	if err := r.decide(); err != nil {
		return err
	}
	if !slices.Equal(before, r.locks()) {
		return errRetry
	}
	if !r.differs {
		return nil
	}
	if !r.seen.named {
		if err := r.countMachine(ctx, tx); err != nil {
			return err
		}
	}
	id := r.seen.id
	if !r.seen.found {
		id = r.id
		tx.queue("InsertMachine", sqlInsertMachine, id)
		tx.queue("InsertMachineState", sqlInsertMachineState, id, r.spec.Pool, r.spec.Provider)
		tx.queue("InsertProvided", sqlInsertProvided, id, r.spec.Provider, r.spec.ProviderID, r.spec.Pool)
		tx.touched[id] = true
		r.result.MachineID = id
	}
	r.queueWrites(tx, id)
	tx.recomputeTouched()
	tx.queueRows("RevOf", sqlRevOf, []any{id}, func(row pgx.Rows) error { return row.Scan(&r.result.Rev) })
	return nil
}

// locks are the machines that have to be locked, by ascending ID.
func (r *registration) locks() []uuid.UUID {
	var ids []uuid.UUID
	if r.seen.found {
		ids = append(ids, r.seen.id)
	}
	for _, o := range r.seen.occupants {
		ids = append(ids, o.ID)
	}
	slices.SortFunc(ids, compareIDs)
	return ids
}

func (r *registration) countMachine(ctx context.Context, tx *Tx) error {
	counted, maximum := false, int64(0)
	tx.queueRows("CountMachine", sqlCountMachine, []any{r.spec.Pool, r.spec.Provider}, func(pgx.Rows) error { counted = true; return nil })
	tx.queueRows("MaxMachines", sqlMaxMachines, []any{r.spec.Pool, r.spec.Provider}, func(row pgx.Rows) error {
		var limit *int64
		err := row.Scan(&limit)
		if limit != nil {
			maximum = *limit
		}
		return err
	})
	if err := tx.flush(ctx); err != nil {
		return err
	}
	if !counted {
		return &AtLimitError{Pool: r.spec.Pool, Provider: r.spec.Provider, Limit: maximum}
	}
	return nil
}

func (r *registration) queueWrites(tx *Tx, id uuid.UUID) {
	p := &r.plan
	if len(p.gone) > 0 {
		tx.queue("DetachGoneViews", sqlDetachGoneViews, p.gone, r.view.Cluster, r.view.Name, r.view.UID)
	}
	if len(p.giveName) > 0 {
		tx.queue("GiveUpName", sqlGiveUpName, p.giveName)
	}
	if len(p.giveAddress) > 0 {
		tx.queue("GiveUpAddress", sqlGiveUpAddress, p.giveAddress)
	}
	if r.seen.found && p.identity && r.seen.address != r.spec.Address {
		tx.forgetFailures(id) // they are of another host
	}
	if p.identity {
		tx.queue("SetIdentity", sqlSetIdentity, id, r.spec.Pool, r.spec.Name, r.spec.Provider, r.spec.Address)
	}
	if p.labels {
		keys := slices.AppendSeq([]string{}, maps.Keys(r.spec.Labels))
		values := make([]string, len(keys))
		for i, k := range keys {
			values[i] = r.spec.Labels[k]
		}
		tx.queue("DeleteLabels", sqlDeleteLabels, id, keys)
		tx.queue("SetLabels", sqlSetLabels, id, keys, values, r.spec.Pool)
	}
	if p.takes {
		e := r.takeover
		e.Pool, e.Kind, e.Name, e.Machine = r.spec.Pool, KindMachine, r.spec.Name, &id
		tx.audit(e)
	}
	if p.view {
		tx.queue("SetMachineView", sqlSetMachineView, id, r.view.Cluster, r.spec.Pool, r.view.Name, r.view.UID, p.manages, r.origin)
	}
}

// DetachMachine takes a view from a machine, because its object is gone; a view of another UID or another Config.Origin stays. A machine that loses its last view is not
// retrievable any more, work that goes on on it ends as it would, and row and history stay: registered again, it is the same machine. It is
// idempotent.
func (c *Connection) DetachMachine(ctx context.Context, v View, machine uuid.UUID) error {
	attached := false
	err := c.read(ctx, "FindView", sqlFindView, []any{machine, v.Cluster, v.UID, c.config.Origin}, func() { attached = false }, func(pgx.Rows) error { attached = true; return nil })
	if err == nil && attached {
		err = c.transact(ctx, "detach machine", func(_ context.Context, tx *Tx) error {
			tx.lockMachines(machine)
			tx.queue("DetachView", sqlDetachView, machine, v.Cluster, v.UID)
			tx.queue("ForgetMachine", sqlForgetMachine, v.Cluster, machine)
			tx.recomputeTouched()
			return nil
		})
	}
	return wrap("detach machine "+machine.String(), err)
}
