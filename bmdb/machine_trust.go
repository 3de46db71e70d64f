// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// PinHostKey pins an SSH host key (wire format) to the machine, in place of any other, and returns when that is durable. It is audited, and
// refused like an end. A machine that was made with the library and never registered has no place for a pin.
func (w *Work) PinHostKey(ctx context.Context, key []byte) error {
	return w.fenced(ctx, "pin host key", func(ctx context.Context, tx *Tx) error {
		_, err := auditChange(ctx, tx, "PinHostKey", sqlPinHostKey, []any{w.Machine, key}, w.event(AuditHostKeyPinned))
		return err
	})
}

// UseOwnerAcceptance uses up what AcceptOwner allowed, and tells whether there was anything. Call it before the host is taken over. In the same
// transaction it makes intent, which says what is about to be replaced, the work's checkpoint: until the process finishes on the machine, the
// next to work there finds it as PreviousCheckpoint and may go on with that, and with nothing else. It is audited, and refused like an end.
func (w *Work) UseOwnerAcceptance(ctx context.Context, intent []byte) (accepted bool, err error) {
	err = w.fenced(ctx, "use acceptance of owner", func(ctx context.Context, tx *Tx) error {
		accepted = false
		e := w.event(AuditOwnerReplaced)
		tx.queueRows("UseOwnerAcceptance", sqlUseOwnerAcceptance, []any{w.Machine}, func(row pgx.Rows) error {
			accepted = true
			return row.Scan(&e.Pool, &e.Name)
		})
		if err := tx.flush(ctx); err != nil || !accepted {
			return err
		}
		tx.queue("Checkpoint", sqlCheckpoint, w.Machine, w.process, w.id, intent)
		tx.audit(e)
		return nil
	})
	return accepted && err == nil, err
}

func (w *Work) event(event string) AuditEvent {
	return AuditEvent{
		ID: uuid.New(), Kind: KindMachine, Machine: &w.Machine, Event: event, Actor: w.session.actor(), Session: &w.session.UUID,
		Cluster: w.session.conn.config.Cluster, Cause: w.process,
	}
}

// fenced runs fn in a transaction under the machine's mutex, if the work still has its lock: whoever takes it over writes the mutex first.
func (w *Work) fenced(ctx context.Context, doing string, fn func(ctx context.Context, tx *Tx) error) error {
	if err := w.usable(); err != nil {
		return err
	}
	err := w.session.conn.transact(ctx, doing, func(ctx context.Context, tx *Tx) error {
		ours := false
		tx.lockMachines(w.Machine)
		tx.queueRows("OwnWork", sqlOwnWork, []any{w.Machine, w.process, w.id}, func(pgx.Rows) error { ours = true; return nil })
		if err := tx.flush(ctx); err != nil {
			return err
		}
		if !ours {
			return ErrWorkLost
		}
		return fn(ctx, tx)
	})
	if errors.Is(err, ErrWorkLost) {
		w.lose(ErrWorkLost)
	}
	return wrap(fmt.Sprintf("%s of machine %s", doing, w.Machine), err)
}

// AcceptHostKey clears the pinned host key of a machine, so that the next work pins the one that it finds. Where there was one, the machine's
// failures are forgotten with it, so that the next work need not wait for a backoff; an attempt that is under way at that moment may still
// fail for the key that it read. It is audited under the actor's name. ErrNoSuchMachine: there is none of that name.
func (c *Connection) AcceptHostKey(ctx context.Context, pool, name, actor string) error {
	return c.accept(ctx, pool, name, actor, AuditHostKeyAccepted, "ClearHostKey", sqlClearHostKey)
}

// AcceptOwner lets the next work on a machine take over its host, whatever machine or database the owner file there names. The machine's
// failures are forgotten, so that the next work need not wait for a backoff. It is audited under the actor's name. ErrNoSuchMachine: there is
// none of that name.
func (c *Connection) AcceptOwner(ctx context.Context, pool, name, actor string) error {
	return c.accept(ctx, pool, name, actor, AuditOwnerAccepted, "AcceptOwner", sqlAcceptOwner)
}

func (c *Connection) accept(ctx context.Context, pool, name, actor, event, statement, sql string) error {
	machine, err := c.MachineByName(ctx, pool, name)
	if err != nil {
		return err
	}
	e := AuditEvent{ID: uuid.New(), Kind: KindMachine, Machine: &machine, Event: event, Actor: actor, Cluster: c.config.Cluster}
	err = c.transact(ctx, "accept", func(ctx context.Context, tx *Tx) error {
		tx.lockMachines(machine)
		changed, err := auditChange(ctx, tx, statement, sql, []any{machine}, e)
		if err != nil || !changed {
			return err
		}
		tx.forgetFailures(machine)
		tx.recomputeTouched()
		return nil
	})
	return wrap("accept for machine "+pool+"/"+name, err)
}

// forgetFailures queues the end of all backoffs of a machine whose mutex is written, after something changed that they may have come from:
// failures of what the machine was say nothing about what it is. The recompute that follows makes it ready again. A claim's count of
// attempts stays, and so does its quarantine.
func (tx *Tx) forgetFailures(machine uuid.UUID) {
	tx.queue("ForgetFailures", sqlForgetFailures, machine)
}

// auditChange runs a statement that returns the pool and name of what it changed, and records the event if it changed something.
func auditChange(ctx context.Context, tx *Tx, name, sql string, args []any, e AuditEvent) (changed bool, err error) {
	tx.queueRows(name, sql, args, func(row pgx.Rows) error {
		changed = true
		return row.Scan(&e.Pool, &e.Name)
	})
	if err := tx.flush(ctx); err != nil || !changed {
		return false, err
	}
	tx.audit(e)
	return true, nil
}
