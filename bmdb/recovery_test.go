// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// A recovery that succeeded is not repeated: the heartbeat whose lapse brought it goes with it, also where ends of many works share a
// transaction, and that of a member that was refused stays.
func TestRecoveryConverges(t *testing.T) {
	t.Parallel()
	g := &gates{}
	l := newLab(t, g.config)
	ctx := t.Context()
	s := l.session(bmdb.WithoutBeat())
	// Of the members: one that is lost, one whose agent was heard of while it was worked on, one whose agent was, but too long ago.
	const stale, heard, long = 4, 5, 6
	var works []*bmdb.Work
	for i := range 7 {
		machine := provided(t, s, fmt.Sprint(i))
		l.silence(s, machine)
		w := l.work(s, model.ProcessAgentRecovery, machine)
		works = append(works, w)
	}
	err := s.Transact(ctx, func(q *model.Queries) error {
		return q.MachineSetAgentHeartbeat(ctx, model.MachineSetAgentHeartbeatParams{MachineID: works[heard].Machine, AgentHeartbeatAt: time.Now().Add(time.Minute)})
	})
	if err != nil {
		t.Fatal(err)
	}
	errs := make([]error, len(works))
	var wg sync.WaitGroup
	finish := func(i int) {
		wg.Go(func() { errs[i] = works[i].FinishData(ctx, bmdb.Outcome{AgentPublicKey: keyOf(works[i])}) })
	}
	// Both committers are kept busy, so that the others share a transaction.
	var stops []*gate
	for i := range 2 {
		stop := g.at("end", "LockMachines")
		stops = append(stops, stop)
		finish(i)
		done(t, "a committer", stop.reached)
	}
	l.exec("UPDATE work SET work_id = $2 WHERE work_id = $1", works[stale].ID(), uuid.New())
	l.exec("UPDATE work SET started_at = clock_timestamp() - interval '1 hour' WHERE work_id = $1", works[long].ID())
	for i := 2; i < len(works); i++ {
		finish(i)
	}
	for _, stop := range stops {
		stop.open <- nil
	}
	wg.Wait()
	for i, w := range works {
		heartbeats := l.int("SELECT count(*) FROM machine_agent_heartbeat WHERE machine_id = $1", w.Machine)
		switch i {
		case stale:
			if !errors.Is(errs[i], bmdb.ErrWorkLost) || heartbeats != 1 {
				t.Errorf("the member that was lost: %v, %d heartbeats", errs[i], heartbeats)
			}
		case heard:
			if errs[i] != nil || heartbeats != 1 {
				t.Errorf("the member whose agent was heard of: %v, %d heartbeats", errs[i], heartbeats)
			}
		default:
			if errs[i] != nil || heartbeats != 0 {
				t.Errorf("member %d: %v, %d heartbeats", i, errs[i], heartbeats)
			}
		}
		if i == stale {
			continue
		}
		if got := l.state(w.Machine, model.ProcessAgentRecovery); got != waiting {
			t.Errorf("member %d after its recovery: state %d, want that it waits for the next lapse", i, got)
		}
		if again, err := batch(ctx, s, model.ProcessAgentRecovery, 1, w.Machine); err != nil || len(again) != 0 {
			t.Errorf("member %d is recovered again: %d works, %v", i, len(again), err)
		}
	}
	// Only another lapse brings another recovery.
	l.silence(s, works[0].Machine)
	if again, err := batch(ctx, s, model.ProcessAgentRecovery, 1, works[0].Machine); err != nil || len(again) != 1 {
		t.Errorf("after another lapse: %d works, %v", len(again), err)
	}
}

// silence makes a machine's agent not heard of for eleven minutes.
func (l *lab) silence(s *bmdb.Session, machine uuid.UUID) {
	l.t.Helper()
	ctx := l.t.Context()
	err := s.Transact(ctx, func(q *model.Queries) error {
		return errors.Join(
			q.MachineSetAgentStarted(ctx, model.MachineSetAgentStartedParams{MachineID: machine, AgentStartedAt: time.Now().Add(-time.Hour), AgentPublicKey: []byte("key")}),
			q.MachineSetAgentHeartbeat(ctx, model.MachineSetAgentHeartbeatParams{MachineID: machine, AgentHeartbeatAt: time.Now().Add(-11 * time.Minute)}))
	})
	if err != nil {
		l.t.Fatal(err)
	}
	if got := l.state(machine, model.ProcessAgentRecovery); got != ready {
		l.t.Fatalf("a machine not heard of for eleven minutes: state %d", got)
	}
}
