// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// A start waits for its claim, and meanwhile the machine is worked on for the same claim and is done. Its row is ready again, as it was
// when the start first looked, because nothing about the machine says that it was rebooted. It is not rebooted twice.
func TestStartDoesNotRepeatWhatWasDoneWhileItWaited(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLab(t, inClusterA, named("waiting"))
	l.exec(`INSERT INTO processes (pool, process, slot, requires, forbids, sets, clears, destructive, convergent, indexed, generation, fill_pass)
		VALUES ('metal', 'Reboot', 'Reboot', ARRAY['Provided'], '{}', '{}', '{}', true, false, true, 1, 0)`)
	machines := register(t, l.conn, 2)
	s := l.session()
	spec := agentStart("reboot", bmdb.ModeOnce)
	spec.Process, spec.Names, spec.Parallelism = "Reboot", names(2), 2
	o := attach(t, l.conn, s, spec)
	err := pgx.BeginFunc(ctx, l.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT 1 FROM claims FOR UPDATE"); err != nil {
			return err
		}
		result := make(chan []*bmdb.Work, 1)
		go func() {
			works, err := s.StartBatch(ctx, bmdb.StartRequest{
				Process: "Reboot", Pool: pool, Provider: "lab", Candidates: machines[:1], Limit: 1, Claim: &bmdb.ClaimRef{Key: "reboot", Epoch: o.Epoch},
			})
			if err != nil {
				t.Errorf("start: %v", err)
			}
			result <- works
		}()
		eventually(t, "the start to wait for the claim", func() bool { return l.blocked("waiting") })
		done1 := uuid.New()
		for _, sql := range []string{ // a start and an end, as one
			"UPDATE machine_state SET rev = rev + 2 WHERE machine_id = $1 AND $2::uuid IS NOT NULL",
			"UPDATE work SET fence = 2, session_id = $2, started_at = clock_timestamp() WHERE machine_id = $1 AND process = 'Reboot'",
			"INSERT INTO claim_machines (pool, claim_key, machine_id, finished_work_id, changed_at) VALUES ('metal', 'reboot', $1, $2, clock_timestamp())",
			"UPDATE claims SET succeeded = succeeded + 1 WHERE $1::uuid <> $2::uuid",
		} {
			if _, err := tx.Exec(ctx, sql, machines[0], done1); err != nil {
				return err
			}
		}
		if err := tx.Commit(ctx); err != nil {
			return err
		}
		if works := done(t, "the start", result); len(works) != 0 {
			t.Error("a machine that was done meanwhile was started again")
		}
		return nil
	})
	if err != nil && !strings.Contains(err.Error(), "closed") {
		t.Fatal(err)
	}
}

// A machine needs the process no more when a start that waited for its claim comes to lock it, and its provider has a limit. The others start:
// PostgreSQL evaluates the start's conditions again on the newest version of the row, and what they read of the process must not be there
// twice afterwards.
func TestStartWhileItsMachinesChange(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLab(t, inClusterA, named("waiting"))
	machines := register(t, l.conn, 3)
	l.exec("INSERT INTO limits (limit_id, maximum) VALUES ('provider/metal/lab', 3)")
	l.exec("INSERT INTO limit_slots (limit_id, n, open) SELECT 'provider/metal/lab', n, true FROM generate_series(1, 3) AS s (n)")
	s := l.session()
	spec := agentStart("changing", bmdb.ModeDrain)
	spec.Selector, spec.Parallelism = &bmdb.Selector{}, 3
	o := attach(t, l.conn, s, spec)
	tx, err := l.db.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, "SELECT 1 FROM claims FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	result := make(chan []*bmdb.Work, 1)
	go func() {
		works, err := s.StartBatch(ctx, bmdb.StartRequest{
			Process: "AgentStart", Pool: pool, Provider: "lab", Candidates: machines, Limit: 3, Claim: &bmdb.ClaimRef{Key: "changing", Epoch: o.Epoch},
		})
		if err != nil {
			t.Errorf("start: %v", err)
		}
		result <- works
	}()
	eventually(t, "the start to wait for the claim", func() bool { return l.blocked("waiting") })
	const agentStarted = "UPDATE machine_state SET rev = rev + 1, facts = ARRAY['Provided', 'AgentStarted'] WHERE machine_id = $1"
	if _, err := tx.Exec(ctx, agentStarted, machines[0]); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if works := done(t, "the start", result); len(works) != 2 {
		t.Errorf("started %d works, want 2", len(works))
	}
}

// What is asked all the time, and mostly finds nothing, looks at what there is to find and not at the fleet.
func TestPlansOfIdleQuestions(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.exec("INSERT INTO machines (machine_id, machine_created_at) SELECT gen_random_uuid(), clock_timestamp() FROM generate_series(1, 20000)")
	l.exec("INSERT INTO machine_state (machine_id, pool, spread_rev) SELECT machine_id, 'default', 1 FROM machines")
	l.exec("INSERT INTO work (machine_id, process, slot, pool, provider) SELECT machine_id, 'AgentStart', 'access', 'default', '' FROM machines")
	l.exec("INSERT INTO projection (cluster, kind, pool, id, rev, done_rev) SELECT 'cluster-a', 'machine', 'default', machine_id::text, 1, 1 FROM machines")
	l.exec("ANALYZE")
	for name, question := range bmdb.IdleQuestions() {
		rows, err := l.db.Query(t.Context(), "EXPLAIN "+question.SQL, append([]any{pgx.QueryExecModeExec}, question.Args...)...)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		text := strings.Join(plan, "\n")
		if strings.Contains(text, "Seq Scan on machine") || strings.Contains(text, "Seq Scan on work") || strings.Contains(text, "Seq Scan on projection") || !strings.Contains(text, question.Index) {
			t.Errorf("%s looks at the whole fleet, want index %s:\n%s", name, question.Index, text)
		}
	}
}

// How much a claim may start is judged where it starts, whatever its owner believes.
func TestRoomOfClaimIsExact(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	machines := register(t, l.conn, 6)
	s := l.session()
	spec := agentStart("room", bmdb.ModeOnce)
	completions := int64(3)
	spec.Selector, spec.Completions, spec.Parallelism = &bmdb.Selector{}, &completions, 2
	o := attach(t, l.conn, s, spec)
	start := func(want int) []*bmdb.Work {
		t.Helper()
		works, err := s.StartBatch(t.Context(), bmdb.StartRequest{
			Process: "AgentStart", Pool: pool, Provider: "lab", Candidates: machines, Limit: 6, Claim: &bmdb.ClaimRef{Key: "room", Epoch: o.Epoch},
		})
		if err != nil || len(works) != want {
			t.Fatalf("started %d works, %v; want %d", len(works), err, want)
		}
		return works
	}
	works := start(2) // its parallelism
	start(0)
	if err := works[0].FinishData(t.Context(), bmdb.Outcome{AgentPublicKey: []byte("key")}); err != nil {
		t.Fatal(err)
	}
	start(1)
	if err := works[1].FinishData(t.Context(), bmdb.Outcome{AgentPublicKey: []byte("key")}); err != nil {
		t.Fatal(err)
	}
	start(0) // its completions
	checkInvariants(t, l.db)
}
