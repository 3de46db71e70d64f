// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Boundary is a point between two statements of a transaction of the library.
type Boundary struct {
	// Operation is what the transaction is for: start, end, beat, reap, ...
	Operation string
	// Statement is the name of the statement that comes next; COMMIT is one too.
	Statement string
	// Index counts the statements of the transaction from 0, BEGIN excluded.
	Index int
}

// Tx is one attempt of a transaction. Writes are queued and sent with the next read or at the end, so that a transaction that only
// writes is one round trip. A Tx is not safe for concurrent use and must not be used after its function returned.
type Tx struct {
	conn     *pgxpool.Conn
	op       string
	level    string
	hook     func(context.Context, Boundary) error
	pending  []statement
	begun    bool
	readOnly bool  // nothing hangs on the outcome of COMMIT
	checked  bool  // something that is queued has a verdict that Go must see before COMMIT
	failed   error // what was sent failed, or had a verdict that forbids COMMIT, whatever the function that sent it made of that
	index    int
	touched  map[uuid.UUID]bool // machines whose machine_state row this transaction has written
}

// errRetry makes the loop try again, for outcomes that are not errors of the database.
var errRetry = errors.New("try the transaction again")

const (
	maxAttempts  = 100
	firstBackoff = 5 * time.Millisecond
	lastBackoff  = time.Second
)

// transact runs fn in a transaction at READ COMMITTED (SERIALIZABLE on CockroachDB): for writes that are data.
func (c *Connection) transact(ctx context.Context, op string, fn func(ctx context.Context, tx *Tx) error) error {
	return c.transactAt(ctx, op, readCommitted, fn)
}

// transactAt runs fn in a transaction and commits it. fn may run any number of times, each time in a fresh transaction: it must not
// have effects outside of it. Errors of fn end the transaction and are returned as they are, but for those of the database that a
// new attempt may cure. A connection that breaks while COMMIT is under way gives an ambiguousError, which the caller resolves by
// reading.
func (c *Connection) transactAt(ctx context.Context, op, level string, fn func(ctx context.Context, tx *Tx) error) (err error) {
	defer func(began boottime) { c.transactionEnded(op, err == nil, began) }(now())
	for attempt := 1; ; attempt++ {
		err = c.attempt(ctx, op, level, fn)
		if err == nil {
			return nil
		}
		code, again := retryable(err)
		if !again || attempt == maxAttempts || ctx.Err() != nil {
			return err
		}
		c.observer.TransactionRetried(op, code)
		if !pause(ctx, attempt) {
			return err
		}
	}
}

// snapshot runs reads that belong together: they see one moment. Unlike a transaction that writes, it can be tried again whatever
// became of its COMMIT.
func (c *Connection) snapshot(ctx context.Context, op string, fn func(ctx context.Context, tx *Tx) error) error {
	return c.transactAt(ctx, op, repeatableRead, func(ctx context.Context, tx *Tx) error {
		tx.readOnly = true
		return fn(ctx, tx)
	})
}

func (c *Connection) attempt(ctx context.Context, op, level string, fn func(ctx context.Context, tx *Tx) error) error {
	// A closure that hangs must not keep its locks: the server ends an idle transaction after the same time.
	ctx, cancel := context.WithTimeout(ctx, max(c.lease.idle(), time.Second))
	defer cancel()
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("acquire connection for %s: %w", op, err)
	}
	defer conn.Release()
	tx := &Tx{conn: conn, op: op, level: c.level(level), hook: c.config.BeforeStatement, touched: map[uuid.UUID]bool{}}
	if err := fn(ctx, tx); err != nil {
		if sqlState(err) == "" && lostConnection(err) && !conn.Conn().IsClosed() {
			err = &callersError{err} // it speaks of something else than our connection
		}
		tx.rollback(ctx)
		return err
	}
	proves := !tx.readOnly && (tx.begun || len(tx.pending) > 0) // else nothing is committed
	if err := tx.commit(ctx); err != nil {
		tx.rollback(ctx)
		return err
	}
	if proves {
		c.committed.Store(int64(now()))
	}
	return nil
}

func (c *Connection) level(want string) string {
	if c.config.ForceIsolation != "" {
		return c.config.ForceIsolation
	}
	return c.dialect.level(want)
}

// statement is a queued statement. read, if not nil, is given its rows, and closes nothing.
type statement struct {
	name, sql string
	args      []any
	read      func(rows pgx.Rows) error
}

// queue adds a statement whose rows, if any, nobody wants.
func (tx *Tx) queue(name, sql string, args ...any) {
	tx.pending = append(tx.pending, statement{name: name, sql: sql, args: args})
}

// queueRows adds a statement whose rows are given to scan, one call per row, when the queue is sent. What scan leaves behind
// counts only if the transaction commits.
func (tx *Tx) queueRows(name, sql string, args []any, scan func(row pgx.Rows) error) {
	tx.pending = append(tx.pending, statement{name: name, sql: sql, args: args, read: func(rows pgx.Rows) error {
		for rows.Next() {
			if err := scan(rows); err != nil {
				return err
			}
		}
		return nil
	}})
}

// queueChecked is queueRows for a statement whose verdict, an error of check, must be known before COMMIT may be sent.
func (tx *Tx) queueChecked(name, sql string, args []any, check func(rows pgx.Rows) error) {
	tx.checked = true
	tx.pending = append(tx.pending, statement{name: name, sql: sql, args: args, read: check})
}

// flush sends what is queued, in one round trip.
func (tx *Tx) flush(ctx context.Context) error {
	if len(tx.pending) == 0 {
		return nil
	}
	if tx.hook == nil {
		return tx.send(ctx, tx.take())
	}
	if err := tx.open(ctx); err != nil {
		return err
	}
	for _, s := range tx.take() {
		if err := tx.hook(ctx, Boundary{Operation: tx.op, Statement: s.name, Index: tx.index}); err != nil {
			return err
		}
		tx.index++
		if err := tx.send(ctx, []statement{s}); err != nil {
			return err
		}
	}
	return nil
}

// query sends what is queued and a read after it, in one round trip. The caller closes the rows before anything else is sent.
func (tx *Tx) query(ctx context.Context, name, sql string, args []any) (pgx.Rows, error) {
	if tx.hook != nil {
		if err := tx.flushForRead(ctx, name); err != nil {
			return nil, err
		}
		return tx.conn.Query(ctx, sql, args...)
	}
	statements := tx.take()
	batch := batchOf(statements)
	batch.Queue(sql, args...)
	results := tx.conn.Conn().SendBatch(ctx, batch)
	if err := readResults(results, statements); err != nil {
		_ = results.Close()
		tx.failed = err
		return nil, err
	}
	tx.checked = false
	rows, err := results.Query()
	if err != nil {
		_ = results.Close()
		return nil, err
	}
	return &lastRows{Rows: rows, results: results}, nil
}

// flushForRead makes sure that the transaction is open and sees its own writes, where each statement is sent by itself.
func (tx *Tx) flushForRead(ctx context.Context, name string) error {
	if err := tx.open(ctx); err != nil {
		return err
	}
	if err := tx.flush(ctx); err != nil {
		return err
	}
	if err := tx.hook(ctx, Boundary{Operation: tx.op, Statement: name, Index: tx.index}); err != nil {
		return err
	}
	tx.index++
	return nil
}

// open sends BEGIN by itself, unless it was sent.
func (tx *Tx) open(ctx context.Context) error {
	if tx.begun {
		return nil
	}
	tx.begun = true
	return tx.send(ctx, []statement{tx.begin()})
}

func (tx *Tx) begin() statement {
	return statement{name: "BEGIN", sql: "BEGIN ISOLATION LEVEL " + tx.level}
}

// take returns what is queued, after BEGIN if that is still due.
func (tx *Tx) take() []statement {
	pending := tx.pending
	tx.pending = nil
	if tx.begun {
		return pending
	}
	tx.begun = true
	return append([]statement{tx.begin()}, pending...)
}

func (tx *Tx) send(ctx context.Context, statements []statement) error {
	err := sendBatch(ctx, tx.conn.Conn(), statements)
	if err != nil {
		tx.failed = err
		return err
	}
	tx.checked = false // all verdicts were seen
	return nil
}

// sendBatch sends statements in one round trip and gives each its rows.
func sendBatch(ctx context.Context, conn *pgx.Conn, statements []statement) error {
	results := conn.SendBatch(ctx, batchOf(statements))
	err := readResults(results, statements)
	if e := results.Close(); err == nil {
		err = e
	}
	return err
}

func batchOf(statements []statement) *pgx.Batch {
	batch := &pgx.Batch{QueuedQueries: make([]*pgx.QueuedQuery, 0, len(statements)+1)}
	for _, s := range statements {
		batch.Queue(s.sql, s.args...)
	}
	return batch
}

// readResults reads what became of statements, up to the first error.
func readResults(results pgx.BatchResults, statements []statement) error {
	for _, s := range statements {
		rows, err := results.Query()
		if err == nil && s.read != nil {
			err = s.read(rows)
		}
		rows.Close()
		if e := rows.Err(); e != nil {
			err = e
		}
		if err == nil && s.name == "COMMIT" && rows.CommandTag().String() != "COMMIT" {
			err = pgx.ErrTxCommitRollback
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// lastRows are the rows of the last statement of a batch, which ends with them.
type lastRows struct {
	pgx.Rows
	results pgx.BatchResults
	ended   bool
	err     error
}

func (r *lastRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

func (r *lastRows) Close() {
	r.Rows.Close()
	if !r.ended {
		r.ended, r.err = true, r.results.Close()
	}
}

func (r *lastRows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return err
	}
	return r.err
}

// commit sends what is queued and COMMIT: together, unless a verdict has to be seen first.
func (tx *Tx) commit(ctx context.Context) error {
	if tx.failed != nil {
		return tx.failed
	}
	if !tx.begun && len(tx.pending) == 0 {
		return nil
	}
	if tx.checked || tx.hook != nil {
		if err := tx.flush(ctx); err != nil {
			return err
		}
	}
	tx.queue("COMMIT", "COMMIT")
	err := tx.flush(ctx)
	if err != nil && lostConnection(err) && !tx.readOnly {
		return &ambiguousError{err}
	}
	if err == nil {
		tx.begun = false
	}
	return err
}

// rollback ends the transaction if it is still open. It works when ctx is already cancelled.
func (tx *Tx) rollback(ctx context.Context) {
	if !tx.begun || tx.conn.Conn().IsClosed() || tx.conn.Conn().PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, err := tx.conn.Exec(ctx, "ROLLBACK"); err != nil {
		_ = tx.conn.Conn().Close(ctx) // the pool drops a closed connection; the server rolls back
	}
}

// autocommit sends one statement that is a transaction of its own, at the server's default level, and gives its rows to scan, which
// must start afresh at each call of reset. Errors that a new attempt may cure are retried.
func (c *Connection) autocommit(ctx context.Context, op, name, sql string, args []any, reset func(), scan func(rows pgx.Rows) error) error {
	return c.transact(ctx, op, func(_ context.Context, tx *Tx) error {
		reset()
		tx.queueRows(name, sql, args, scan)
		return nil
	})
}

// read runs a plain read outside of any transaction, or a write that is one statement and may be repeated.
func (c *Connection) read(ctx context.Context, name, sql string, args []any, reset func(), scan func(rows pgx.Rows) error) error {
	for attempt := 1; ; attempt++ {
		reset()
		err := func() error {
			rows, err := c.pool.Query(ctx, sql, args...)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				if err := scan(rows); err != nil {
					return err
				}
			}
			return rows.Err()
		}()
		if err == nil {
			return nil
		}
		code, again := retryable(err)
		if (!again && !lostConnection(err)) || attempt == maxAttempts || ctx.Err() != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		c.observer.TransactionRetried(name, code)
		if !pause(ctx, attempt) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// again runs something that may be done twice until it succeeds, or fails in a way that no new attempt cures.
func (c *Connection) again(ctx context.Context, name string, do func() error) error {
	for attempt := 1; ; attempt++ {
		err := do()
		if err == nil {
			return nil
		}
		code, again := retryable(err)
		if !again || attempt == maxAttempts || ctx.Err() != nil {
			return err
		}
		c.observer.TransactionRetried(name, code)
		if !pause(ctx, attempt) {
			return err
		}
	}
}

// pause waits before the next attempt: full jitter, so that those that met once do not meet again. It returns false when ctx ended.
func pause(ctx context.Context, attempt int) bool {
	limit := min(firstBackoff<<min(attempt-1, 10), lastBackoff)
	t := time.NewTimer(rand.N(limit) + time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// retryable tells whether a fresh attempt may succeed where this one failed, and under which code the retry is counted. Losing the
// connection before COMMIT was sent is retryable, because the server rolls back; while COMMIT is under way it is not.
func retryable(err error) (code string, again bool) {
	var ambiguous *ambiguousError
	var callers *callersError
	if errors.As(err, &ambiguous) || errors.As(err, &callers) {
		return "", false
	}
	if errors.Is(err, errRetry) {
		return "again", true
	}
	switch code := sqlState(err); code {
	case "40001", "40P01", "55P03", "CR000":
		return code, true
	case "0A000":
		return code, strings.Contains(err.Error(), "cached plan")
	case "23505":
		return code, raced(constraint(err))
	case "57P01", "57P02", "57P03", "25P03", "53300":
		return code, true
	case "":
	default:
		return code, false
	}
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return "rollback", true
	}
	if pgconn.SafeToRetry(err) || lostConnection(err) {
		return "connection", true
	}
	return "", false
}

// raced tells whether a unique index was violated that only a race violates: a new attempt sees the other party and reacts to it.
func raced(constraint string) bool {
	switch constraint {
	case "work_slot", "limit_slots_work", "machine_identities_name", "machine_identities_address", "machine_views_name":
		return true
	}
	return false
}

// lostConnection tells whether the connection broke, so that the fate of what was under way is not known. 40003 is CockroachDB's
// word for the same.
func lostConnection(err error) bool {
	switch code := sqlState(err); {
	case code == "40003", code == "57P01", code == "57P02", strings.HasPrefix(code, "08"):
		return true
	case code != "":
		return false
	}
	var netErr net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.As(err, &netErr) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || pgconn.Timeout(err) || strings.Contains(err.Error(), "conn closed")
}

// sendOn sends statements over a pool's connection, outside of any explicit transaction, in one round trip.
func sendOn(ctx context.Context, pool *pgxpool.Pool, statements ...statement) error {
	return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return sendBatch(ctx, conn.Conn(), statements) })
}
