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
		"ANALYZE",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("fill database: %s: %w", sql, err)
		}
	}
	return nil
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
