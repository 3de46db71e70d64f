// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// This file holds everything in which the two databases differ. All other SQL of the library is one text for both.

// dialect is which of the two databases answers.
type dialect int

const (
	postgres dialect = iota
	cockroach
)

// isolation levels, as BEGIN spells them.
const (
	readCommitted  = "READ COMMITTED"
	repeatableRead = "REPEATABLE READ"
	serializable   = "SERIALIZABLE"
)

func dialectOf(conn *pgx.Conn) dialect {
	if conn.PgConn().ParameterStatus("crdb_version") != "" {
		return cockroach
	}
	return postgres
}

// level returns the isolation level for a transaction that wants the given one on PostgreSQL. CockroachDB runs all of them
// SERIALIZABLE: its READ COMMITTED may be off, and mixing levels is not safe with its foreign keys.
func (d dialect) level(want string) string {
	if d == cockroach {
		return serializable
	}
	return want
}

// clockOffset is by how much the clocks of two nodes of the database may differ.
func (d dialect) clockOffset() time.Duration {
	if d == cockroach {
		return 500 * time.Millisecond
	}
	return 0
}

// prepare sets up a new connection. Commits of work are durable before they are acknowledged, whatever the role's defaults say:
// an acknowledged start that a crash forgets is two workers on one machine. Only the beat may be lost.
func (d dialect) prepare(ctx context.Context, conn *pgx.Conn, durable bool) error {
	if d == cockroach {
		return nil
	}
	value := "on"
	if !durable {
		value = "off"
	}
	// Compiling a plan takes longer than any statement of the library, and planning several times as long as carrying it out. So each statement is
	// planned once per connection, for whatever parameters: which one fits the case is not left to the planner anyway. Such a plan may be made while
	// a table is small, and stays while it grows: every statement has an index for what it looks for, and takes it.
	_, err := conn.Exec(ctx, `SELECT set_config('synchronous_commit', $1, false), set_config('jit', 'off', false),
		set_config('plan_cache_mode', 'force_generic_plan', false), set_config('enable_seqscan', 'off', false)`, value)
	return err
}
