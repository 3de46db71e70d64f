// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// recorder is the executor of a closure's queries. It knows by name which of them write to which machine, writes that machine's
// mutex before the first of them, and remembers the machine, so that its eligibility is evaluated again at the end. Writes are queued
// and leave with the next read or with the COMMIT; their errors surface there.
type recorder struct {
	tx        *Tx
	mutations map[string]model.Mutation
	made      *madeMachines
	round     int
}

// madeMachines are the IDs for the machines that a closure makes: the same in each of its attempts.
type madeMachines struct {
	pool string
	ids  []uuid.UUID
}

func (c *Connection) newMadeMachines() *madeMachines { return &madeMachines{pool: c.config.Pool} }

func newRecorder(tx *Tx, made *madeMachines) *recorder {
	return &recorder{tx: tx, mutations: mutations(), made: made}
}

var mutations = sync.OnceValue(model.Mutations)

// NewMachine implements model.Machines.
func (r *recorder) NewMachine() (uuid.UUID, string) {
	if r.round == len(r.made.ids) {
		r.made.ids = append(r.made.ids, uuid.New())
	}
	r.round++
	return r.made.ids[r.round-1], r.made.pool
}

// Exec implements model.DBTX for queries that write. It sends nothing.
func (r *recorder) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	name := queryName(sql)
	m, known := r.mutations[name]
	if !known {
		return pgconn.CommandTag{}, fmt.Errorf("query %q writes and is not listed in model.Mutations", name)
	}
	switch {
	case m.Lookup != "":
		if err := r.lockFound(ctx, name, m, args); err != nil {
			return pgconn.CommandTag{}, err
		}
	case m.New:
		r.tx.touched[args[0].(uuid.UUID)] = true
	default:
		r.tx.lockMachines(args[0].(uuid.UUID))
	}
	r.tx.queue(name, sql, args...)
	return pgconn.CommandTag{}, nil
}

func (r *recorder) lockFound(ctx context.Context, name string, m model.Mutation, args []any) error {
	var ids []uuid.UUID
	by := make([]any, len(m.LookupArgs))
	for i, at := range m.LookupArgs {
		by[i] = args[at]
	}
	r.tx.queueRows(name+" machines", m.Lookup, by, func(row pgx.Rows) error {
		var id uuid.UUID
		err := row.Scan(&id)
		ids = append(ids, id)
		return err
	})
	if err := r.tx.flush(ctx); err != nil {
		return err
	}
	r.tx.lockMachines(ids...)
	return nil
}

// Query implements model.DBTX for queries that read, after what is queued.
func (r *recorder) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return r.tx.query(ctx, queryName(sql), sql, args)
}

// QueryRow implements model.DBTX for queries that read, after what is queued.
func (r *recorder) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := r.Query(ctx, sql, args...)
	return onlyRow{rows, err}
}

// onlyRow is the first of some rows.
type onlyRow struct {
	rows pgx.Rows
	err  error
}

// Scan implements pgx.Row.
func (o onlyRow) Scan(dest ...any) error {
	if o.err != nil {
		return o.err
	}
	defer o.rows.Close()
	if !o.rows.Next() {
		if err := o.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := o.rows.Scan(dest...); err != nil {
		return err
	}
	o.rows.Close()
	return o.rows.Err()
}

// queryName returns the name that sqlc wrote into a query: "-- name: Name :kind".
func queryName(sql string) string {
	fields := strings.Fields(sql[:min(len(sql), 120)])
	if len(fields) > 2 && fields[0] == "--" && fields[1] == "name:" {
		return fields[2]
	}
	return "unnamed"
}

// lockMachines queues the write of the machines' mutexes, but for those that this transaction has written already. One call locks in
// ascending order; a transaction that needs several machines names them all at once where it can.
func (tx *Tx) lockMachines(ids ...uuid.UUID) {
	var fresh []uuid.UUID
	for _, id := range ids {
		if !tx.touched[id] {
			tx.touched[id] = true
			fresh = append(fresh, id)
		}
	}
	switch len(fresh) {
	case 0:
	case 1:
		tx.queue("LockMachines", sqlLockMachine, fresh[0])
	default:
		tx.queue("LockMachines", sqlLockMachines, fresh)
	}
}

// recompute queues the evaluation of the machines: their facts, and what work they need by these. It adds revise, 0 or 1, to their revisions: 1 where
// their mutexes were only locked.
func (tx *Tx) recompute(ids []uuid.UUID, revise int64) {
	if len(ids) > 0 {
		tx.queue("Recompute", sqlRecompute, ids, revise)
	}
}

// recomputeTouched queues the evaluation of every machine that the transaction has touched, by ascending ID.
func (tx *Tx) recomputeTouched() {
	ids := make([]uuid.UUID, 0, len(tx.touched))
	for id := range tx.touched {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, compareIDs)
	tx.recompute(ids, 0)
}

func compareIDs(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }
