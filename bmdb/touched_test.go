// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// What an operation writes is exactly what it is about, and what it reads does not grow with the fleet. Times differ from machine to machine,
// these do not.
func TestRowsTouched(t *testing.T) {
	t.Parallel()
	for _, machines := range []int{20, 3000} {
		t.Run(fmt.Sprint(machines), func(t *testing.T) {
			t.Parallel()
			touchRows(t, machines)
		})
	}
}

func touchRows(t *testing.T, machines int) {
	l := newLab(t, inClusterA, func(c *bmdb.Config) { c.MaxConnections = 1 })
	fill(l, machines)
	ctx, s := t.Context(), l.session(bmdb.WithoutBeat())
	claim := drain(l, s)

	around := int64(0)
	touches := func(what string, wantWritten, mayRead int64, do func() error) (read int64) {
		t.Helper()
		readBefore, writtenBefore, _, err := l.conn.RowsTouched(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := do(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		read, written, ok, err := l.conn.RowsTouched(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return 0
		}
		read, written = read-readBefore, written-writtenBefore
		if written < wantWritten || written > wantWritten+around || read > mayRead || read == 0 {
			t.Errorf("%s wrote %d rows and read %d; want %d, and at most %d", what, written, read, wantWritten, mayRead)
		}
		return read
	}

	for _, machine := range machinesOf(t, l, pool)[:2] { // a first time may differ from any other
		var w *bmdb.Work
		// Its machine, its work row, and its start in the history.
		touches("a start in the general form", 3, 20, func() (err error) {
			w, err = s.Work(ctx, model.ProcessAgentStart, constantly(machine))
			return err
		})
		touches("a check", 0, 1, func() error { return w.Check(ctx) })
		// Work row, history, machine, and that it is backed off.
		touches("a failure", 4, 60, func() error { return w.Fail(ctx, &bmdb.Backoff{Initial: 1, Maximum: 1}, "test") })
		w = l.work(s, model.ProcessAgentStart, machine)
		// Work row, history, the agent, the machine with its facts, and when its agent would have to be looked at.
		touches("an end in the general form", 5, 60, func() error { return w.FinishData(ctx, bmdb.Outcome{AgentPublicKey: keyOf(w)}) })
	}
	var works []*bmdb.Work
	// Who comes to the end of what is ready goes on at its beginning, with another start that counts in the claim.
	around = 1
	// Each as one in the general form, and the claim's count once.
	touches("the first start of a claim", 9*3+1, 2*1001+9*30, func() (err error) {
		works, err = s.ClaimRound(ctx, claim, 9)
		return err
	})
	if len(works) != 9 {
		t.Fatalf("started %d works, want 9", len(works))
	}
	around = 0
	for _, w := range works[:2] {
		// As in the general form, and what it means for the claim: the machine is done, and the count. Tables of some rows are read whole, once they were analyzed.
		touches("an end for a claim", 7, 120, func() error { return w.FinishData(ctx, bmdb.Outcome{AgentPublicKey: keyOf(w)}) })
	}
	// What is left of the first look is enough, unless that came to the end of what is ready, or was too long ago.
	around = 1
	least := int64(math.MaxInt64)
	for range 2 {
		least = min(least, touches("another start of a claim", 2*3+1, 2*1001+2*40, func() (err error) {
			works, err = s.ClaimRound(ctx, claim, 9)
			return err
		}))
		for _, w := range works {
			if err := w.FinishData(ctx, bmdb.Outcome{AgentPublicKey: keyOf(w)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if least > 2*40 {
		t.Errorf("another start of a claim reads at least %d rows", least)
	}
	few := once(l, s, 3)
	// Who wants a few does not look at all that is ready.
	touches("the first start of a claim for a few", 3*3+1, 3*32+3*30, func() (err error) {
		works, err = s.ClaimRound(ctx, few, 3)
		return err
	})
	if len(works) != 3 {
		t.Fatalf("started %d works, want 3", len(works))
	}
}

// What an operation reads does not grow with the works that go on beside it, either: statements were planned when there were none.
func TestRowsTouchedWhileWorksGoOn(t *testing.T) {
	t.Parallel()
	const going = 2000
	l := newLab(t, inClusterA, func(c *bmdb.Config) { c.MaxConnections = 1 })
	fill(l, 3000)
	ctx, s := t.Context(), l.session(bmdb.WithoutBeat(), bmdb.WithoutMaintenance())
	claim := drain(l, s)
	machines := machinesOf(t, l, pool)
	var works []*bmdb.Work
	var w *bmdb.Work
	operations := []struct {
		what    string
		mayRead int64
		do      func() error
	}{
		{"a start in the general form", 40, func() (err error) {
			w, err = s.Work(ctx, model.ProcessAgentStart, constantly(machines[0]))
			machines = machines[1:]
			return err
		}},
		{"a check", 10, func() error { return w.Check(ctx) }},
		{"a checkpoint", 10, func() error { return w.Checkpoint(ctx, []byte("x")) }},
		{"a progress", 20, func() error {
			_, err := s.ShowProgress(ctx, []bmdb.Progress{{Work: w, Step: "x"}})
			return err
		}},
		{"an end", 80, func() error { return w.FinishData(ctx, bmdb.Outcome{AgentPublicKey: keyOf(w)}) }},
		{"a start of a claim", 2*1001 + 9*40, func() (err error) {
			works, err = s.ClaimRound(ctx, claim, 9)
			return err
		}},
		{"what the status of a claim shows", 9 * 20, func() error {
			_, err := l.conn.ClaimSnapshot(ctx, pool, claim.Spec.Key, bmdb.ClaimLimits{})
			return err
		}},
		{"what the status of a machine shows", 40, func() error {
			_, err := l.conn.MachineSnapshots(ctx, machines[:1])
			return err
		}},
		{"an end for a claim", 80, func() error { return works[0].FinishData(ctx, bmdb.Outcome{AgentPublicKey: keyOf(works[0])}) }},
		{"the other ends for the claim", 8 * 80, func() error {
			for _, w := range works[1:] {
				if err := w.FinishData(ctx, bmdb.Outcome{AgentPublicKey: keyOf(w)}); err != nil {
					return err
				}
			}
			return nil
		}},
	}
	for _, o := range operations {
		if err := o.do(); err != nil {
			t.Fatalf("%s: %v", o.what, err)
		}
	}
	l.exec(`UPDATE work SET state = 3, work_id = gen_random_uuid(), session_id = gen_random_uuid(), claim_key = 'other', started_at = now()
		WHERE machine_id IN (SELECT machine_id FROM work WHERE state = 2 AND machine_id > $1 ORDER BY machine_id DESC LIMIT $2::bigint)`, machines[0], going)
	for _, o := range operations {
		before, _, _, err := l.conn.RowsTouched(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.do(); err != nil {
			t.Fatalf("%s: %v", o.what, err)
		}
		after, _, counted, err := l.conn.RowsTouched(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if read := after - before; counted && (read == 0 || read > o.mayRead) {
			t.Errorf("%s reads %d rows while %d works go on, want at most %d", o.what, read, going, o.mayRead)
		}
	}
}

// fill makes machines that need an agent, past the library.
func fill(l *lab, machines int) {
	l.t.Helper()
	l.exec("INSERT INTO machines SELECT gen_random_uuid(), now() FROM generate_series(1, $1::bigint)", machines)
	l.exec("INSERT INTO machine_state (machine_id, pool, provider, facts) SELECT machine_id, $1, 'lab', ARRAY['Provided'] FROM machines", pool)
	l.exec("INSERT INTO machine_provided (machine_id, provider, provider_id, pool) SELECT machine_id, 'lab', machine_id::text, $1 FROM machines", pool)
	l.exec("INSERT INTO work (machine_id, process, slot, pool, provider, state) SELECT machine_id, 'AgentStart', 'access', $1, 'lab', $2::bigint FROM machines", pool, ready)
	for _, table := range []string{"machines", "machine_state", "machine_provided", "work"} {
		l.exec("ANALYZE " + table)
	}
}

// drain makes a session own a claim on every machine that needs an agent, nine at once.
func drain(l *lab, s *bmdb.Session) *bmdb.OwnedClaim {
	l.t.Helper()
	return owned(l, s, bmdb.ClaimSpec{Key: "all", Mode: bmdb.ModeDrain, Parallelism: 9})
}

// once makes a session own a claim on some of them.
func once(l *lab, s *bmdb.Session, machines int64) *bmdb.OwnedClaim {
	l.t.Helper()
	return owned(l, s, bmdb.ClaimSpec{Key: "few", Mode: bmdb.ModeOnce, Parallelism: machines, Completions: &machines})
}

func owned(l *lab, s *bmdb.Session, spec bmdb.ClaimSpec) *bmdb.OwnedClaim {
	l.t.Helper()
	spec.Pool, spec.Process, spec.Selector = pool, string(model.ProcessAgentStart), &bmdb.Selector{}
	attachOnly(l.t, l.conn, spec)
	claims, err := s.OwnClaims(l.t.Context(), 1)
	if err != nil || len(claims) != 1 {
		l.t.Fatalf("owned %d claims: %v", len(claims), err)
	}
	return claims[0]
}

// A claim that waits for room at a provider does not go through all that it knows to be ready there, each time that it looks.
func TestRoundAtLimit(t *testing.T) {
	t.Parallel()
	l, p := newProxiedLab(t, inClusterA, func(c *bmdb.Config) { c.MaxConnections = 1 })
	fill(l, 400)
	l.exec("INSERT INTO limits (limit_id, maximum) VALUES ('provider/' || $1 || '/lab', 1)", pool)
	l.exec("INSERT INTO limit_slots (limit_id, n, open) VALUES ('provider/' || $1 || '/lab', 1, true)", pool)
	ctx, s := t.Context(), l.session(bmdb.WithoutBeat())
	claim := drain(l, s)
	works, err := s.ClaimRound(ctx, claim, 1)
	if err != nil || len(works) != 1 {
		t.Fatalf("started %d works: %v", len(works), err)
	}
	before := p.syncs.Load()
	if _, err := s.ClaimRound(ctx, claim, 2); !errors.Is(err, bmdb.ErrNothingToDo) {
		t.Errorf("got %v, want nothing to do", err)
	}
	// The claim, a try from what is in stock, and the providers that have room.
	if got := p.syncs.Load() - before; got > 3 {
		t.Errorf("it took %d round trips", got)
	}
}
