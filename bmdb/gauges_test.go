// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// Each machine that needs a process counts once, under what Explain says of it.
func TestFleetGauges(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s := l.session(bmdb.WithoutMaintenance())
	var machines []uuid.UUID
	for i := range 9 {
		machines = append(machines, provided(t, s, fmt.Sprint(i)))
	}
	if err := hold(ctx, l.conn, "stop", machines[0]); err != nil {
		t.Fatal(err)
	}
	if err := hold(ctx, l.conn, "stop too", machines[0]); err != nil {
		t.Fatal(err)
	}
	for _, m := range machines[1:3] {
		if err := l.work(s, model.ProcessAgentStart, m).Fail(ctx, &bmdb.Backoff{Initial: time.Hour, Maximum: time.Hour, Exponent: 1}, "broken"); err != nil {
			t.Fatal(err)
		}
	}
	l.work(s, model.ProcessAgentStart, machines[3])
	l.work(s, model.ProcessShepherdAccess, machines[4]) // another process of the slot
	wantInstall(t, s, machines[5])
	l.exec("INSERT INTO machine_views (machine_id, cluster, pool, name, uid, manages, attached, changed_at) VALUES ($1, 'a', 'default', 'm', 'u', false, false, clock_timestamp())", machines[6])
	if err := l.conn.Reevaluate(ctx, machines[6]); err != nil {
		t.Fatal(err)
	}
	l.exec("UPDATE machines SET machine_created_at = clock_timestamp() - interval '1 hour' WHERE machine_id = $1", machines[7])

	want := map[string]bmdb.ProcessGauge{
		"AgentStart":    {Eligible: 2, Held: 1, Locked: 2, BackedOff: 2, Unmanaged: 1},
		"OSInstall":     {Eligible: 1},
		"AgentRecovery": {},
	}
	for _, page := range []int64{1, 2, 4, 9, 10000} {
		got, err := l.conn.FleetGaugesByPages(ctx, page)
		if err != nil {
			t.Fatal(err)
		}
		if old := got.Processes["AgentStart"].OldestEligible; old < time.Hour || old > 2*time.Hour {
			t.Errorf("by pages of %d: the oldest has waited for %s, want an hour", page, old)
		}
		for process, g := range got.Processes {
			g.OldestEligible = 0
			got.Processes[process] = g
		}
		if diff := cmp.Diff(want, got.Processes); diff != "" || got.Machines != 9 || got.Pages != 9/page+1 {
			t.Errorf("by pages of %d: %d machines in %d pages (-want +got):\n%s", page, got.Machines, got.Pages, diff)
		}
	}
	for process, g := range want {
		explained := bmdb.ProcessGauge{Unmanaged: g.Unmanaged} // of which Explain says NotNeeded
		for _, m := range machines {
			e, err := l.conn.Explain(ctx, m, process)
			if err != nil {
				t.Fatal(err)
			}
			switch e.Reason {
			case bmdb.ExplainReady:
				explained.Eligible++
			case bmdb.OutlookHeld:
				explained.Held++
			case bmdb.OutlookLockedBy:
				explained.Locked++
			case bmdb.OutlookBackedOff:
				explained.BackedOff++
			}
		}
		if explained != g {
			t.Errorf("%s: Explain says %+v", process, explained)
		}
	}
}

// Worked on a moment ago, a machine has not waited for an hour.
func TestOldestEligible(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.session(bmdb.WithoutMaintenance())
	machine := provided(t, s, "1")
	l.exec("UPDATE machines SET machine_created_at = clock_timestamp() - interval '1 hour'")
	l.work(s, model.ProcessAgentStart, machine).Cancel(t.Context())
	got, err := l.conn.FleetGauges(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if g := got.Processes["AgentStart"]; g.Eligible != 1 || g.OldestEligible > time.Minute {
		t.Errorf("after a start: %+v", g)
	}
}

func TestWorkGauges(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s := l.session(bmdb.WithoutMaintenance())
	if got, err := l.conn.WorkGauges(ctx); err != nil || len(got) != 0 {
		t.Errorf("without works: %v, %v", got, err)
	}
	old := l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
	l.work(s, model.ProcessAgentStart, provided(t, s, "2"))
	l.work(s, model.ProcessUnitTest1, provided(t, s, "3"))
	l.exec("UPDATE work SET started_at = started_at - interval '2 hours', deadline = clock_timestamp() - interval '1 hour' WHERE work_id = $1", old.ID())
	got, err := l.conn.WorkGauges(ctx)
	if err != nil {
		t.Fatal(err)
	}
	start, unit := got["AgentStart"], got["UnitTest1"]
	if start.Open != 2 || start.Overdue != 1 || start.Oldest < 2*time.Hour || unit.Open != 1 || unit.Overdue != 0 || unit.Oldest > time.Hour || len(got) != 2 {
		t.Errorf("works: %+v", got)
	}
}

func TestOldestSession(t *testing.T) {
	t.Parallel()
	inCluster := func(name string) func(*bmdb.Config) { return func(c *bmdb.Config) { c.Cluster = name } }
	l := newLab(t, inCluster("a"))
	ctx := t.Context()
	want := func(what string, id uuid.UUID) {
		t.Helper()
		if got, err := l.conn.OldestSession(ctx); err != nil || got != id {
			t.Errorf("%s: %s, %v, want %s", what, got, err, id)
		}
	}
	want("no session", uuid.Nil)
	start(t, l.another(inCluster("b")), bmdb.WithoutMaintenance())
	want("a session of another cluster", uuid.Nil)
	first, second := l.session(bmdb.WithoutBeat(), bmdb.WithoutMaintenance()), l.session(bmdb.WithoutMaintenance())
	want("two sessions", first.UUID)
	l.exec("UPDATE session_leases SET deadline = clock_timestamp() - interval '1 second' WHERE session_id = $1", first.UUID)
	want("the first has missed its deadline", second.UUID)
}

// timed is an observer that is told how long transactions take.
type timed struct {
	*retries
	mu    sync.Mutex
	ended map[string]int // by operation, and whether it was committed
}

// TransactionEnded implements bmdb.TransactionObserver.
func (o *timed) TransactionEnded(operation string, committed bool, took time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if took <= 0 {
		operation += " in no time"
	}
	o.ended[fmt.Sprint(operation, " ", committed)]++
}

func (o *timed) count(what string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ended[what]
}

func TestTransactionsAreTimed(t *testing.T) {
	t.Parallel()
	o := &timed{retries: newRetries(), ended: map[string]int{}}
	l := newLab(t, func(c *bmdb.Config) { c.Observer = o })
	s := l.session(bmdb.WithoutMaintenance())
	w := l.work(s, model.ProcessAgentStart, provided(t, s, "1"))
	w.Cancel(t.Context())
	if err := s.Transact(t.Context(), func(*model.Queries) error { return context.Canceled }); err == nil {
		t.Fatal("the transaction succeeded")
	}
	for _, what := range []string{"start session true", "start true", "end true", "transact false"} {
		if o.count(what) != 1 {
			t.Errorf("%s: %d times of %v", what, o.count(what), o.ended)
		}
	}
}
