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

const (
	fillPage = 1000
	fillTurn = time.Second // after which a turn ends, and the next one may be another program's
)

// RegisterProcess records a process, or changes it. It is idempotent. A new or changed one is filled in over the fleet by whichever programs have
// sessions, in pages and in two passes; until that is over Processes says Filling, and some machines are not found by retrieval yet. None is
// started on that the definition does not allow: each start evaluates it.
//
// The name must not be that of a built-in process, and not be defined both for one pool and for every pool.
func (c *Connection) RegisterProcess(ctx context.Context, p ProcessDefinition) error {
	fail := func(err error) error { return fmt.Errorf("register process %s/%s: %w", p.Pool, p.Name, err) }
	if p.Slot == "" {
		p.Slot = p.Name
	}
	switch {
	case p.Name == "":
		return fail(errors.New("the name must not be empty"))
	case slices.ContainsFunc(builtinProcesses(), func(b ProcessDefinition) bool { return b.Name == p.Name }):
		return fail(errors.New("the name is that of a built-in process"))
	case slices.Contains(p.Forbids, FactAgentUnresponsive):
		return fail(fmt.Errorf("the fact %s comes with time: it cannot be forbidden", FactAgentUnresponsive))
	}
	args := []any{p.Pool, p.Name, p.Slot, facts(p.Requires), facts(p.Forbids), facts(p.Sets), facts(p.Clears), p.Destructive, p.Convergent}
	err := c.transact(ctx, "register process", func(ctx context.Context, tx *Tx) error {
		other, found := "", false
		tx.queue("LockProcesses", sqlLockProcesses)
		tx.queue("RegisterProcess", sqlRegisterProcess, args...)
		tx.queueRows("OtherDefinition", sqlOtherDefinition, []any{p.Pool, p.Name}, func(row pgx.Rows) error { found = true; return row.Scan(&other) })
		if err := tx.flush(ctx); err != nil {
			return err
		}
		if found {
			return fmt.Errorf("it is defined in pool %q already", other)
		}
		return nil
	})
	return wrap("register process "+p.Pool+"/"+p.Name, err)
}

// facts are a sorted set, and never NULL.
func facts(names []string) []string {
	set := append([]string{}, names...)
	slices.Sort(set)
	return slices.Compact(set)
}

// ProcessState is a process as the database knows it.
type ProcessState struct {
	ProcessDefinition
	// ByClaims tells that claims may order it. The others are started by programs alone, through their own retrievers.
	ByClaims bool
	// Filling tells that not every machine was evaluated against the definition yet.
	Filling bool
}

// Processes lists the processes of a pool, with those of every pool. It needs no session.
func (c *Connection) Processes(ctx context.Context, pool string) (list []ProcessState, err error) {
	err = c.read(ctx, "Processes", sqlProcesses, []any{pool}, func() { list = nil }, func(row pgx.Rows) error {
		var p ProcessState
		err := row.Scan(&p.Pool, &p.Name, &p.Slot, &p.Requires, &p.Forbids, &p.Sets, &p.Clears, &p.Destructive, &p.Convergent, &p.ByClaims, &p.Filling)
		p.indexed = p.ByClaims
		list = append(list, p)
		return err
	})
	return list, wrap("list processes of pool "+pool, err)
}

// fillProcesses goes on with new and changed processes, for a turn of the chore.
func (c *Connection) fillProcesses(ctx context.Context) error {
	for began := now(); now().sub(began) < fillTurn; {
		more, err := c.fillPage(ctx)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// fillPage evaluates the next page of machines against a process that is to be filled in. Each page is evaluated under its machines' mutexes.
// A transaction that changed a fact with the old definition in its snapshot may commit behind the first pass; when the second begins, all
// of these are over.
func (c *Connection) fillPage(ctx context.Context) (more bool, err error) {
	err = c.transact(ctx, "fill process", func(ctx context.Context, tx *Tx) error {
		var pool, process string
		var pass int64
		var cursor uuid.UUID
		more = false
		tx.queueRows("FillNext", sqlFillNext, nil, func(row pgx.Rows) error {
			more = true
			return row.Scan(&pool, &process, &pass, &cursor)
		})
		if err := tx.flush(ctx); err != nil || !more {
			return err
		}
		var page []uuid.UUID
		tx.queueRows("LockFillPage", sqlLockFillPage, []any{pool, cursor, fillPage}, scanIDs(&page))
		if err := tx.flush(ctx); err != nil {
			return err
		}
		if len(page) > 0 {
			tx.queue("RecomputeProcess", sqlRecomputeProcess, page, process)
			tx.queue("FillReached", sqlFillReached, pool, process, page[len(page)-1])
		}
		if len(page) < fillPage {
			tx.queue("FillPassed", sqlFillPassed, pool, process, c.settle.Milliseconds())
		}
		return nil
	})
	return more, wrap("fill in a process", err)
}
