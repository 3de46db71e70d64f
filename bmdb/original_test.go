// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// The tests of this file hold the library to what code written for the original expects of it.

func start(t *testing.T, conn *bmdb.Connection, opts ...bmdb.SessionOption) *bmdb.Session {
	t.Helper()
	s, err := conn.StartSession(t.Context(), opts...)
	if err != nil {
		t.Fatalf("start session: %v", err)
	}
	t.Cleanup(func() { closeSession(t, s) })
	return s
}

func closeSession(t *testing.T, s *bmdb.Session) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Errorf("close session: %v", err)
	}
}

func provided(t *testing.T, s *bmdb.Session, providerID string) uuid.UUID {
	t.Helper()
	var machine model.Machine
	err := s.Transact(t.Context(), func(q *model.Queries) (err error) {
		if machine, err = q.NewMachine(t.Context()); err != nil {
			return err
		}
		return q.MachineAddProvided(t.Context(), model.MachineAddProvidedParams{
			MachineID: machine.MachineID, Provider: model.ProviderEquinix, ProviderID: providerID,
		})
	})
	if err != nil {
		t.Fatalf("make machine: %v", err)
	}
	return machine.MachineID
}

func constantly(machines ...uuid.UUID) func(*model.Queries) ([]uuid.UUID, error) {
	return func(*model.Queries) ([]uuid.UUID, error) { return machines, nil }
}

func forAgentStart(ctx context.Context) func(*model.Queries) ([]uuid.UUID, error) {
	return func(q *model.Queries) ([]uuid.UUID, error) {
		machines, err := q.GetMachinesForAgentStart(ctx, 1)
		if err != nil {
			return nil, err
		}
		var ids []uuid.UUID
		for _, m := range machines {
			ids = append(ids, m.MachineID)
		}
		return ids, nil
	}
}

func TestWorkExcludes(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t)
	ctx := t.Context()
	s1, s2 := start(t, conn), start(t, conn)
	machine := provided(t, s1, "1")

	work, err := s1.Work(ctx, model.ProcessUnitTest1, constantly(machine))
	if err != nil {
		t.Fatalf("first work: %v", err)
	}
	for _, s := range []*bmdb.Session{s1, s2} {
		other, err := s.Work(ctx, model.ProcessUnitTest2, constantly(machine))
		if err != nil {
			t.Errorf("another process on the same machine: %v", err)
		}
		other.Cancel(ctx)
		same, err := s.Work(ctx, model.ProcessUnitTest1, constantly(machine))
		if !errors.Is(err, bmdb.ErrWorkConflict) {
			t.Errorf("the same process on the same machine: %v, want ErrWorkConflict", err)
		}
		same.Cancel(ctx) // on nil
	}
	work.Cancel(ctx)
	work.Cancel(ctx)
	for _, s := range []*bmdb.Session{s1, s2} {
		work, err := s.Work(ctx, model.ProcessUnitTest1, constantly(machine))
		if err != nil {
			t.Errorf("work after the end of the first: %v", err)
		}
		work.Cancel(ctx)
	}
}

func TestAgentStartWorkflow(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t)
	ctx := t.Context()
	s := start(t, conn)
	machine := provided(t, s, "123")
	work, err := s.Work(ctx, model.ProcessShepherdAgentStart, forAgentStart(ctx))
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	if work.Machine != machine {
		t.Fatalf("works on %s, want %s", work.Machine, machine)
	}
	if _, err := s.Work(ctx, model.ProcessShepherdAgentStart, forAgentStart(ctx)); !errors.Is(err, bmdb.ErrNothingToDo) {
		t.Errorf("a machine that is worked on was listed: %v, want ErrNothingToDo", err)
	}
	if _, err := s.Work(ctx, model.ProcessAgentStart, constantly(machine)); !errors.Is(err, bmdb.ErrWorkConflict) {
		t.Errorf("processes that share a slot do not exclude each other: %v", err)
	}
	err = work.Finish(ctx, func(q *model.Queries) error {
		return q.MachineSetAgentStarted(ctx, model.MachineSetAgentStartedParams{
			MachineID: work.Machine, AgentStartedAt: time.Now(), AgentPublicKey: []byte("key"),
		})
	})
	if err != nil {
		t.Fatalf("finish: %v", err)
	}
	if _, err := s.Work(ctx, model.ProcessShepherdAgentStart, forAgentStart(ctx)); !errors.Is(err, bmdb.ErrNothingToDo) {
		t.Errorf("a machine whose agent was started was listed: %v, want ErrNothingToDo", err)
	}
	history, err := conn.ListHistoryOf(ctx, machine)
	if err != nil {
		t.Fatalf("history: %v", err)
	}
	var events []model.WorkHistoryEvent
	for _, h := range history {
		events = append(events, h.Event)
	}
	if diff := cmp.Diff([]model.WorkHistoryEvent{model.WorkHistoryEventStarted, model.WorkHistoryEventFinished}, events); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}

func TestWorkBackoff(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t)
	ctx := t.Context()
	s := start(t, conn)
	machine := provided(t, s, "123")
	backoff := bmdb.Backoff{Initial: time.Second, Maximum: 3 * time.Second, Exponent: 2}

	wait := func() *bmdb.Work {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			work, err := s.Work(ctx, model.ProcessShepherdAgentStart, forAgentStart(ctx))
			if err == nil {
				return work
			}
			if !errors.Is(err, bmdb.ErrNothingToDo) {
				t.Fatalf("start: %v", err)
			}
			select {
			case <-deadline:
				t.Fatal("the machine did not come back after its backoff")
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	fail := func(want int64) {
		t.Helper()
		if err := wait().Fail(ctx, &backoff, "test"); err != nil {
			t.Fatalf("fail: %v", err)
		}
		var rows []model.WorkBackoff
		err := s.Transact(ctx, func(q *model.Queries) (err error) {
			rows, err = q.WorkBackoffOf(ctx, model.WorkBackoffOfParams{MachineID: machine, Process: model.ProcessShepherdAgentStart})
			return err
		})
		if err != nil || len(rows) != 1 {
			t.Fatalf("backoff: %v, %v", rows, err)
		}
		if got := rows[0].LastIntervalSeconds.Int64; got != want {
			t.Errorf("backoff of %d s, want %d s", got, want)
		}
		if _, err := s.Work(ctx, model.ProcessShepherdAgentStart, forAgentStart(ctx)); !errors.Is(err, bmdb.ErrNothingToDo) {
			t.Errorf("a machine that is backed off was listed: %v", err)
		}
	}
	fail(1)
	fail(2)
	fail(3)
	if err := wait().Finish(ctx, nil); err != nil {
		t.Fatalf("finish: %v", err)
	}
	fail(1)
}
