// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// claimRecord is what attaching and detaching look at of a claim's row.
type claimRecord struct {
	found       bool
	hash        string
	spec        ClaimSpec // what may change of it
	state       string
	rev, active int64
	views       []claimView
}

// claimView is a view of a claim, as its row has it.
type claimView struct {
	View
	manages, suspended, runnable bool
}

// queueClaim reads a claim's row and views into r. With lock the row stays locked until the transaction ends: it is the mutex of its views.
func (r *claimRecord) queue(tx *Tx, pool, key string, lock bool) {
	*r = claimRecord{}
	name, sql := "ReadClaim", sqlReadClaim
	if lock {
		name, sql = "LockClaim", sqlLockClaim
	}
	tx.queueRows(name, sql, []any{pool, key}, func(row pgx.Rows) error {
		r.found = true
		return row.Scan(&r.hash, &r.spec.Parallelism, &r.spec.TimeoutSeconds, &r.spec.ActiveDeadlineSeconds, &r.spec.MaxAttempts, &r.spec.MaxFailedMachines,
			&r.spec.BackoffInitialSeconds, &r.spec.BackoffMaximumSeconds, &r.spec.Suspended, &r.state, &r.rev, &r.active)
	})
	tx.queueRows("ClaimViews", sqlClaimViews, []any{pool, key}, func(row pgx.Rows) error {
		var v claimView
		err := row.Scan(&v.Cluster, &v.Name, &v.UID, &v.manages, &v.suspended, &v.runnable)
		r.views = append(r.views, v)
		return err
	})
}

func (r *claimRecord) manager() *claimView {
	for i := range r.views {
		if r.views[i].manages {
			return &r.views[i]
		}
	}
	return nil
}

func (r *claimRecord) view(cluster string) *claimView {
	for i := range r.views {
		if r.views[i].Cluster == cluster {
			return &r.views[i]
		}
	}
	return nil
}

// AttachClaim records a claim, or finds the one that its key stands for, and attaches the view to it. It is idempotent and writes only what
// differs, so it can be called for every change of an object. runnable tells that programs of the view's cluster can reach the
// claim's machines; only they may own it.
//
// The first view manages: what may be changed of its spec goes to the database. The role passes to the next that calls when it is
// detached. Suspended counts from every view. Raising MaxAttempts tries quarantined machines again. A *KeyConflictError is returned if the
// key stands for another spec; then nothing was changed.
func (c *Connection) AttachClaim(ctx context.Context, v View, spec ClaimSpec, runnable bool) (Attachment, error) {
	spec = spec.normalized()
	fail := func(err error) (Attachment, error) {
		return Attachment{}, fmt.Errorf("attach claim %s/%s: %w", spec.Pool, spec.Key, err)
	}
	if err := spec.validate(); err != nil {
		return fail(err)
	}
	hash, err := spec.hash()
	if err != nil {
		return fail(err)
	}
	a := claimAttach{view: v, origin: c.config.Origin, spec: spec, hash: hash, runnable: runnable, takeover: c.manages(v)}
	// Mostly nothing differs, and then the claim's row, which starts and ends of work write, is left alone.
	for _, lock := range []bool{false, true} {
		err := c.transact(ctx, "attach claim", func(ctx context.Context, tx *Tx) error { return a.run(ctx, tx, lock) })
		if err != nil {
			return fail(err)
		}
		if a.settled {
			break
		}
	}
	return a.result, nil
}

// claimAttach is one call of AttachClaim.
type claimAttach struct {
	view     View
	origin   string
	spec     ClaimSpec
	hash     string
	runnable bool
	takeover AuditEvent // of the role of the manager

	settled bool
	result  Attachment
}

func (a *claimAttach) run(ctx context.Context, tx *Tx, lock bool) error {
	a.settled = false
	if lock {
		if err := a.queueInsert(tx); err != nil {
			return err
		}
	}
	var r claimRecord
	r.queue(tx, a.spec.Pool, a.spec.Key, lock)
	if err := tx.flush(ctx); err != nil {
		return err
	}
	if !r.found {
		return nil
	}
	manager := r.manager()
	if r.hash != a.hash {
		conflict := &KeyConflictError{Pool: a.spec.Pool, Key: a.spec.Key}
		if manager != nil {
			conflict.Cluster, conflict.Name = manager.Cluster, manager.Name
		}
		return conflict
	}
	wanted := claimView{View: a.view, manages: manager == nil || manager.Cluster == a.view.Cluster, suspended: a.spec.Suspended, runnable: a.runnable}
	mine := r.view(a.view.Cluster)
	next := r.spec
	if wanted.manages {
		next = mutable(a.spec)
	}
	next.Suspended = wanted.suspended
	for _, other := range r.views {
		next.Suspended = next.Suspended || other.Cluster != a.view.Cluster && other.suspended
	}
	viewDiffers := mine == nil || *mine != wanted
	// A change of who shows or manages it is shown; whether pods may carry it out is not.
	rowDiffers := !sameMutable(next, r.spec) || r.state == ClaimDetached || mine == nil || mine.manages != wanted.manages
	a.result = Attachment{Manages: wanted.manages, Manager: a.view.Cluster, State: r.state, Rev: r.rev}
	if !wanted.manages {
		a.result.Manager = manager.Cluster
	}
	a.settled = !viewDiffers && !rowDiffers
	if a.settled || !lock {
		return nil
	}
	a.settled = true
	if viewDiffers {
		tx.queue("SetClaimView", sqlSetClaimView, a.spec.Pool, a.spec.Key, a.view.Cluster, a.view.Name, a.view.UID, wanted.manages, wanted.suspended, wanted.runnable, a.origin)
	}
	if isNew := r.rev == 1 && len(r.views) == 0; !isNew && wanted.manages && (mine == nil || !mine.manages) {
		e := a.takeover
		e.Pool, e.Kind, e.Name = a.spec.Pool, KindClaim, a.spec.Key
		tx.audit(e)
	}
	if rowDiffers {
		a.queueUpdate(tx, next, r)
	}
	return nil
}

func (a *claimAttach) queueInsert(tx *Tx) error {
	selected, parameters, err := a.spec.columns()
	if err != nil {
		return err
	}
	s := a.spec
	tx.queue("InsertClaim", sqlInsertClaim, s.Pool, s.Key, a.hash, s.Process, s.Mode, selected, parameters, s.Completions, s.Parallelism, s.TimeoutSeconds,
		s.ActiveDeadlineSeconds, s.MaxAttempts, s.MaxFailedMachines, s.BackoffInitialSeconds, s.BackoffMaximumSeconds, s.Suspended)
	return nil
}

func (a *claimAttach) queueUpdate(tx *Tx, next ClaimSpec, r claimRecord) {
	tx.queue("UpdateClaim", sqlUpdateClaim, a.spec.Pool, a.spec.Key, next.Parallelism, next.TimeoutSeconds, next.ActiveDeadlineSeconds, next.MaxAttempts,
		next.MaxFailedMachines, next.BackoffInitialSeconds, next.BackoffMaximumSeconds, next.Suspended)
	if next.MaxAttempts > r.spec.MaxAttempts {
		tx.queue("ReleaseQuarantined", sqlReleaseQuarantined, a.spec.Pool, a.spec.Key, true)
	}
	tx.queueRows("ReadClaim", sqlReadClaim, []any{a.spec.Pool, a.spec.Key}, func(row pgx.Rows) error {
		var after claimRecord
		err := row.Scan(&after.hash, &after.spec.Parallelism, &after.spec.TimeoutSeconds, &after.spec.ActiveDeadlineSeconds, &after.spec.MaxAttempts,
			&after.spec.MaxFailedMachines, &after.spec.BackoffInitialSeconds, &after.spec.BackoffMaximumSeconds, &after.spec.Suspended, &after.state, &after.rev, &after.active)
		a.result.State, a.result.Rev = after.state, after.rev
		return err
	})
}

// mutable keeps of a spec what may change.
func mutable(s ClaimSpec) ClaimSpec {
	return ClaimSpec{
		Parallelism: s.Parallelism, TimeoutSeconds: s.TimeoutSeconds, MaxAttempts: s.MaxAttempts, BackoffInitialSeconds: s.BackoffInitialSeconds,
		BackoffMaximumSeconds: s.BackoffMaximumSeconds, ActiveDeadlineSeconds: s.ActiveDeadlineSeconds, MaxFailedMachines: s.MaxFailedMachines,
		Suspended: s.Suspended,
	}
}

func sameMutable(a, b ClaimSpec) bool {
	same := func(a, b *int64) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
	return a.Parallelism == b.Parallelism && a.TimeoutSeconds == b.TimeoutSeconds && a.MaxAttempts == b.MaxAttempts &&
		a.BackoffInitialSeconds == b.BackoffInitialSeconds && a.BackoffMaximumSeconds == b.BackoffMaximumSeconds && a.Suspended == b.Suspended &&
		same(a.ActiveDeadlineSeconds, b.ActiveDeadlineSeconds) && same(a.MaxFailedMachines, b.MaxFailedMachines)
}

// DetachClaim takes a view from a claim; a view of another UID or another Config.Origin stays. When it was the last one, the claim starts nothing more, its works are
// cancelled by those that perform them, and what was done still counts: attached again, anywhere, the claim goes on with what
// remains. remaining is how many works then still go on; call again to find out. It is idempotent.
func (c *Connection) DetachClaim(ctx context.Context, v View, pool, key string) (remaining int64, err error) {
	var r claimRecord
	elsewhere := false
	err = c.transact(ctx, "detach claim", func(ctx context.Context, tx *Tx) error {
		elsewhere = false
		r.queue(tx, pool, key, false)
		tx.queueRows("ClaimViewElsewhere", sqlClaimViewElsewhere, []any{pool, key, v.Cluster, c.config.Origin}, func(pgx.Rows) error { elsewhere = true; return nil })
		return tx.flush(ctx)
	})
	if mine := r.view(v.Cluster); err == nil && mine != nil && mine.UID == v.UID && !elsewhere {
		err = c.transact(ctx, "detach claim", func(ctx context.Context, tx *Tx) error {
			return r.endView(ctx, tx, v, pool, key)
		})
	}
	if err != nil {
		return 0, fmt.Errorf("detach claim %s/%s: %w", pool, key, err)
	}
	if len(r.views) > 0 {
		return 0, nil
	}
	return r.active, nil
}

// endView takes a view from a claim, and reads into r what is left.
func (r *claimRecord) endView(ctx context.Context, tx *Tx, v View, pool, key string) error {
	tx.queue("LockClaim", sqlLockClaim, pool, key)
	tx.queue("DeleteClaimView", sqlDeleteClaimView, pool, key, v.Cluster, v.UID)
	tx.queue("ForgetProjection", sqlForgetProjection, v.Cluster, KindClaim, pool, key)
	r.queue(tx, pool, key, true)
	if err := tx.flush(ctx); err != nil || !r.found {
		return err
	}
	if len(r.views) == 0 {
		tx.queue("DetachClaim", sqlDetachClaim, pool, key)
		return nil
	}
	suspended := false
	for _, other := range r.views {
		suspended = suspended || other.suspended
	}
	tx.queue("ClaimViewsChanged", sqlClaimViewsChanged, pool, key, suspended)
	return nil
}

// SuspendClaim suspends a claim by a view that is attached, and brings nothing else of the view's spec: for when the database is in doubt, so that what a
// person does not want is stopped before the database is acknowledged. It is idempotent; without the view it does nothing.
func (c *Connection) SuspendClaim(ctx context.Context, v View, pool, key string) error {
	err := c.transact(ctx, "suspend claim", func(ctx context.Context, tx *Tx) error {
		changes := false
		tx.queue("LockClaim", sqlLockClaim, pool, key)
		tx.queueRows("SuspendView", sqlSuspendView, []any{pool, key, v.Cluster, v.UID}, func(pgx.Rows) error { changes = true; return nil })
		if err := tx.flush(ctx); err != nil || !changes {
			return err
		}
		tx.queue("SuspendClaim", sqlSuspendClaim, pool, key)
		return nil
	})
	return wrap("suspend claim "+pool+"/"+key, err)
}
