// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fleet fills databases with machines, past the library: a million of them are made in a minute. What it writes is what the library
// would have written, which a test compares.
package fleet

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Fleet says which machines are made.
type Fleet struct {
	// Pool and Provider are those of all machines. Required.
	Pool, Provider string
	// Machines is how many there are.
	Machines int
	// Named gives them names, m-00000000 and so on, without which claims cannot name them.
	Named bool
	// Labelled gives them the labels rack, with 40 machines each, and zone, a for the first half and b for the second.
	Labelled bool
	// Done makes their agents started: no process is needed. Otherwise all of them need AgentStart.
	Done bool
}

// MachinesPerRack is how many machines of a labelled fleet have the same rack.
const MachinesPerRack = 40

// Name is the name of a machine of a named fleet.
func Name(i int) string { return fmt.Sprintf("m-%08d", i) }

// states of work rows, as the library numbers them.
const (
	idle  = int64(0)
	ready = int64(2)
)

// chunk bounds how many machines one transaction makes.
const chunk = 100_000

// Fill adds the machines of a fleet to a migrated database. Each pool may be filled once.
func Fill(ctx context.Context, databaseURL string, f Fleet) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return fmt.Errorf("fill database: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := f.stage(ctx, conn); err != nil {
		return fmt.Errorf("fill database: %w", err)
	}
	for low := 0; low < f.Machines; low += chunk {
		if err := f.fill(ctx, conn, low, min(low+chunk, f.Machines)); err != nil {
			return fmt.Errorf("fill database with machines %d to %d: %w", low, low+chunk, err)
		}
	}
	for _, sql := range []string{
		"DROP TABLE bench_fleet",
		// The built-in processes need no filling in any more: the work rows are there.
		"UPDATE processes SET fill_pass = 0, fill_cursor = NULL, fill_not_before = NULL",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("fill database: %s: %w", sql, err)
		}
	}
	return settle(ctx, conn)
}

// stage draws the machines' IDs, so that the tables can be filled one after the other.
func (f Fleet) stage(ctx context.Context, conn *pgx.Conn) error {
	const create = "CREATE TABLE bench_fleet (n BIGINT PRIMARY KEY, machine_id UUID NOT NULL)"
	if _, err := conn.Exec(ctx, create); err != nil {
		return err
	}
	for low := 0; low < f.Machines; low += chunk {
		const insert = "INSERT INTO bench_fleet (n, machine_id) SELECT n, gen_random_uuid() FROM generate_series($1::bigint, $2::bigint) AS s (n)"
		if _, err := conn.Exec(ctx, insert, low, min(low+chunk, f.Machines)-1); err != nil {
			return err
		}
	}
	return nil
}

// statement is one table's part. Its first two parameters are the range of machines.
type statement struct {
	sql  string
	args []any
}

func (f Fleet) statements() []statement {
	const from = " FROM bench_fleet WHERE n >= $1 AND n < $2"
	facts, state := []string{"Provided"}, ready
	if f.Done {
		facts, state = []string{"Provided", "AgentStarted"}, idle
	}
	out := []statement{
		{"INSERT INTO machines (machine_id, machine_created_at) SELECT machine_id, clock_timestamp()" + from, nil},
		{"INSERT INTO machine_state (machine_id, pool, provider, rev, spread_rev, facts, unresponsive_at) " +
			"SELECT machine_id, $3, $4, 1, 1, $5::text[], CASE WHEN $6 THEN clock_timestamp() + interval '30 minutes' END" + from, []any{f.Pool, f.Provider, facts, f.Done}},
		{"INSERT INTO machine_provided (machine_id, provider, provider_id, pool) SELECT machine_id, $4, machine_id::text, $3" + from, []any{f.Pool, f.Provider}},
		{"INSERT INTO work (machine_id, process, slot, pool, provider, state) SELECT machine_id, 'AgentStart', 'access', $3, $4, $5::bigint" + from,
			[]any{f.Pool, f.Provider, state}},
	}
	if f.Done {
		out = append(out, statement{"INSERT INTO machine_agent_started (machine_id, agent_started_at, agent_public_key) " +
			"SELECT machine_id, clock_timestamp(), '\\x00'::bytea" + from, nil})
		// The agents will be looked at when nothing was heard of them for half an hour.
		out = append(out, statement{"INSERT INTO work (machine_id, process, slot, pool, provider, state, not_before) " +
			"SELECT machine_id, 'AgentRecovery', 'access', $3, $4, 1, clock_timestamp() + interval '30 minutes'" + from, []any{f.Pool, f.Provider}})
	}
	if f.Named {
		out = append(out, statement{"INSERT INTO machine_identities (machine_id, pool, name, provider, address) " +
			"SELECT machine_id, $3, 'm-' || lpad(n::text, 8, '0'), $4, ''" + from, []any{f.Pool, f.Provider}})
	}
	if f.Labelled {
		out = append(
			out,
			statement{"INSERT INTO machine_labels (machine_id, key, value, pool) SELECT machine_id, 'rack', 'r' || (n - n % $4::bigint)::text, $3" + from,
				[]any{f.Pool, MachinesPerRack}},
			statement{"INSERT INTO machine_labels (machine_id, key, value, pool) " +
				"SELECT machine_id, 'zone', CASE WHEN n * 2 < $4::bigint THEN 'a' ELSE 'b' END, $3" + from, []any{f.Pool, f.Machines}},
		)
	}
	return out
}

func (f Fleet) fill(ctx context.Context, conn *pgx.Conn, low, high int) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, s := range f.statements() {
			if _, err := tx.Exec(ctx, s.sql, append([]any{low, high}, s.args...)...); err != nil {
				return fmt.Errorf("%s: %w", s.sql, err)
			}
		}
		return nil
	})
}

// Undo makes machines of a fleet that was Done need AgentStart again: all of them, or the first one.
func Undo(ctx context.Context, databaseURL string, f Fleet, first bool) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	name := ""
	if first {
		name = Name(0)
	}
	const which = " (SELECT i.machine_id FROM machine_identities i WHERE i.pool = $1 AND ($2 = '' OR i.name = $2))"
	for _, s := range []statement{
		{"DELETE FROM machine_agent_started WHERE machine_id IN" + which, nil},
		{"UPDATE machine_state SET facts = ARRAY['Provided'], unresponsive_at = NULL WHERE machine_id IN" + which, nil},
		{"UPDATE work SET state = $3::bigint, not_before = NULL WHERE process = 'AgentStart' AND work_id IS NULL AND machine_id IN" + which, []any{ready}},
		{"DELETE FROM work WHERE process = 'AgentRecovery' AND work_id IS NULL AND machine_id IN" + which, nil},
	} {
		if _, err := conn.Exec(ctx, s.sql, append([]any{f.Pool, name}, s.args...)...); err != nil {
			return fmt.Errorf("undo: %s: %w", s.sql, err)
		}
	}
	return settle(ctx, conn)
}

// Hold makes the machines with a label not ready, as if somebody held them for ever.
func Hold(ctx context.Context, conn *pgx.Conn, pool, key, value string) error {
	const which = " (SELECT l.machine_id FROM machine_labels l WHERE l.pool = $1 AND l.key = $2 AND l.value = $3)"
	for _, s := range []statement{
		{"UPDATE machine_state SET held_until = '9999-12-31 00:00:00+00' WHERE machine_id IN" + which, nil},
		{"UPDATE work SET state = $4::bigint WHERE process = 'AgentStart' AND work_id IS NULL AND machine_id IN" + which, []any{idle}},
	} {
		if _, err := conn.Exec(ctx, s.sql, append([]any{pool, key, value}, s.args...)...); err != nil {
			return fmt.Errorf("hold: %s: %w", s.sql, err)
		}
	}
	return settle(ctx, conn)
}

// settle lets the server clean up after a write of the whole fleet, and look at it, as it would by itself in time. Tables that are empty yet
// are left alone: one that was looked at is believed to stay empty.
func settle(ctx context.Context, conn *pgx.Conn) error {
	sql := "VACUUM ANALYZE "
	if conn.PgConn().ParameterStatus("crdb_version") != "" {
		sql = "ANALYZE "
	}
	for _, table := range []string{
		"machines", "machine_state", "machine_provided", "work", "machine_agent_started", "machine_identities", "machine_labels", "processes",
	} {
		var some bool
		if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM "+table+")").Scan(&some); err != nil {
			return fmt.Errorf("look at %s: %w", table, err)
		}
		if !some {
			continue
		}
		if _, err := conn.Exec(ctx, sql+table); err != nil {
			return fmt.Errorf("%s%s: %w", sql, table, err)
		}
	}
	return nil
}
