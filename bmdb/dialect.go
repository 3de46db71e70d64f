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
	// Compiling a plan takes longer than any statement of the library. Making it anew for each call takes longer than most: PostgreSQL would, for
	// an array of one machine, because it takes arrays that it does not know for longer ones. No plan here depends on a parameter's value.
	_, err := conn.Exec(ctx, `SELECT set_config('synchronous_commit', $1, false), set_config('jit', 'off', false),
		set_config('plan_cache_mode', 'force_generic_plan', false)`, value)
	return err
}
