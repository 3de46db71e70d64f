// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// What a machine failed for says nothing about it after a person accepted what it shows, or after it got another address: it is ready at once,
// and its object says nothing of the failure any more. What changes nothing about the host leaves the machine alone for as long as before.
func TestChangedMachineIsTriedAtOnce(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		pin     bool
		change  func(l *lab) error
		forgets bool
	}{
		{"host key accepted", true, func(l *lab) error { return l.conn.AcceptHostKey(t.Context(), pool, "m0", "alice") }, true},
		{"no host key was pinned", false, func(l *lab) error { return l.conn.AcceptHostKey(t.Context(), pool, "m0", "alice") }, false},
		{"owner accepted", false, func(l *lab) error { return l.conn.AcceptOwner(t.Context(), pool, "m0", "alice") }, true},
		{"another address", false, func(l *lab) error { return l.move("m0", "10.9.9.9", nil) }, true},
		{"other labels", false, func(l *lab) error { return l.move("m0", "10.0.0.0", map[string]string{"rack": "other"}) }, false},
		{"another name", false, func(l *lab) error { return l.rename("m0", "m9") }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, inClusterA)
			ids := register(t, l.conn, 2)
			s := l.session()
			for _, id := range ids {
				for _, process := range []model.Process{model.ProcessAgentStart, model.ProcessUnitTest1} {
					w := l.work(s, process, id)
					if test.pin {
						if err := w.PinHostKey(t.Context(), []byte("key")); err != nil {
							t.Fatal(err)
						}
					}
					if err := w.Fail(t.Context(), &bmdb.Backoff{Initial: time.Hour}, "HostKeyMismatch: of before"); err != nil {
						t.Fatal(err)
					}
				}
			}
			rev := snapshotOf(t, l.conn, ids[0]).Rev
			if err := test.change(l); err != nil {
				t.Fatal(err)
			}
			checkInvariants(t, l.db)
			for i, id := range ids {
				failures, state := 2, int64(waiting)
				if i == 0 && test.forgets {
					failures, state = 0, ready
				}
				got := snapshotOf(t, l.conn, id)
				if len(got.Failures) != failures || len(got.Backoffs) != failures || l.state(id, model.ProcessAgentStart) != state {
					t.Errorf("machine %d: failures %+v, backoffs %+v, state %d; want %d of each, state %d",
						i, got.Failures, got.Backoffs, l.state(id, model.ProcessAgentStart), failures, state)
				}
				if i == 0 && test.forgets && got.Rev <= rev {
					t.Error("nobody is told that the machine is ready")
				}
			}
			if !test.forgets {
				return
			}
			works, err := s.StartBatch(t.Context(), bmdb.StartRequest{Process: string(model.ProcessAgentStart), Pool: pool, Provider: "lab", Candidates: ids, Limit: 2})
			if err != nil || len(works) != 1 || works[0].Machine != ids[0] || works[0].Attempt() != 1 {
				t.Errorf("started %v, %v; want the first attempt on the machine that changed", works, err)
			}
		})
	}
}

// A work that goes on while its machine is accepted or moves keeps its lock, and ends as it would.
func TestChangedMachineKeepsItsWork(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	ids := register(t, l.conn, 1)
	s := l.session()
	if err := l.work(s, model.ProcessAgentStart, ids[0]).Fail(t.Context(), &bmdb.Backoff{Initial: time.Hour}, "no route"); err != nil {
		t.Fatal(err)
	}
	w := l.work(s, model.ProcessAgentStart, ids[0])
	if err := l.conn.AcceptOwner(t.Context(), pool, "m0", "alice"); err != nil {
		t.Fatal(err)
	}
	if err := l.move("m0", "10.9.9.9", nil); err != nil {
		t.Fatal(err)
	}
	if got := snapshotOf(t, l.conn, ids[0]); len(got.Failures) != 0 || len(got.Works) != 1 {
		t.Errorf("failures %+v, works %+v", got.Failures, got.Works)
	}
	if err := w.Check(t.Context()); err != nil {
		t.Errorf("the work was lost: %v", err)
	}
	if err := w.FinishData(t.Context(), bmdb.Outcome{AgentPublicKey: keyOf(w)}); err != nil {
		t.Error(err)
	}
	checkInvariants(t, l.db)
}

// move registers a machine of register with another address.
func (l *lab) move(name, address string, labels map[string]string) error {
	l.t.Helper()
	_, err := l.conn.RegisterMachine(l.t.Context(), view(name), bmdb.MachineSpec{
		Pool: pool, Name: name, Provider: "lab", ProviderID: name[1:], Address: address, Labels: labels,
	})
	return err
}

// rename makes the object of a machine of register again under another name.
func (l *lab) rename(from, to string) error {
	l.t.Helper()
	var id uuid.UUID
	if err := l.db.QueryRow(l.t.Context(), "SELECT machine_id FROM machine_identities WHERE name = $1", from).Scan(&id); err != nil {
		return err
	}
	if err := l.conn.DetachMachine(l.t.Context(), view(from), id); err != nil {
		return err
	}
	_, err := l.conn.RegisterMachine(l.t.Context(), view(to), bmdb.MachineSpec{Pool: pool, Name: to, Provider: "lab", ProviderID: from[1:], Address: "10.0.0." + from[1:]})
	return err
}
