// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

func hear(t *testing.T, conn *bmdb.Connection, testimonies ...bmdb.Testimony) []bmdb.Alarm {
	t.Helper()
	alarms, err := conn.Hear(t.Context(), testimonies)
	if err != nil {
		t.Fatal(err)
	}
	return alarms
}

func acknowledge(t *testing.T, conn *bmdb.Connection) int {
	t.Helper()
	n, err := conn.AcknowledgeDatabase(t.Context(), "somebody", "restored on purpose")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What objects were shown is held against what the database has; a person's word ends that.
func TestObjectsWitnessAgainstTheDatabase(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	m := register(t, l.conn, 1)[0]
	spec := agentStart("c", bmdb.ModeOnce)
	spec.Names = names(1)
	attachOnly(t, l.conn, spec)
	attachProvider(t, l.conn, view("lab"), limited(1))
	here, other := l.conn.Identity().ID, uuid.New()
	standing := func() (machine, claim, provider int64) {
		t.Helper()
		list, err := l.conn.MachineSnapshots(t.Context(), []uuid.UUID{m})
		if err != nil || len(list) != 1 || list[0].Standing.Database != here {
			t.Fatalf("%+v, %v", list, err)
		}
		p, err := l.conn.ProviderSnapshot(t.Context(), "a", pool, "lab")
		if err != nil || p.Standing.Database != here {
			t.Fatalf("%+v, %v", p, err)
		}
		c := snapshot(t, l.conn, "c")
		return list[0].Standing.Revision, c.Standing.Revision, p.Standing.Revision
	}
	machine, claim, provider := standing()
	of := func(kind, id string, database uuid.UUID, revision int64) bmdb.Testimony {
		return bmdb.Testimony{Kind: kind, Pool: pool, ID: id, Cluster: "a", Database: database, Revision: revision}
	}
	scenes := []struct {
		name string
		bmdb.Testimony
		want string
	}{
		{"machine without a status", of(bmdb.KindMachine, "", uuid.Nil, 0), ""},
		{"machine as it is", of(bmdb.KindMachine, m.String(), here, machine), ""},
		{"machine of the future", of(bmdb.KindMachine, m.String(), here, machine+1), bmdb.DatabaseRewound},
		{"machine that is not there", of(bmdb.KindMachine, uuid.NewString(), here, 1), bmdb.DatabaseRewound},
		{"claim whose end was shown", func() bmdb.Testimony { c := of(bmdb.KindClaim, "c", here, claim); c.Final = true; return c }(), bmdb.DatabaseRewound},
		{"machine of another database", of(bmdb.KindMachine, uuid.NewString(), other, 7), bmdb.DatabaseChanged},
		{"claim as it is", of(bmdb.KindClaim, "c", here, claim), ""},
		{"claim of the past", of(bmdb.KindClaim, "c", here, claim-1), ""},
		{"claim of the future", of(bmdb.KindClaim, "c", here, claim+1), bmdb.DatabaseRewound},
		{"claim that is not there", of(bmdb.KindClaim, "d", here, 1), bmdb.DatabaseRewound},
		{"claim of another database", of(bmdb.KindClaim, "c", other, claim), bmdb.DatabaseChanged},
		{"provider as it is", of(bmdb.KindProvider, "lab", here, provider), ""},
		{"provider of the future", of(bmdb.KindProvider, "lab", here, provider+1), bmdb.DatabaseRewound},
	}
	raised := 0
	for _, s := range scenes {
		got := ""
		if alarms := hear(t, l.conn, s.Testimony); len(alarms) > 0 {
			got = alarms[0].Reason
			raised++
		}
		if got != s.want {
			t.Errorf("%s: %q, want %q", s.name, got, s.want)
		}
	}
	list, err := l.conn.Alarms(t.Context(), 100)
	if err != nil || len(list) == 0 || list[0].At.IsZero() {
		t.Errorf("alarms: %+v, %v", list, err)
	}
	// One object has one alarm, however often it is heard.
	if len(list) != raised-2 {
		t.Errorf("%d alarms are recorded of %d that were raised, three of them of one object", len(list), raised)
	}
	if n := acknowledge(t, l.conn); n != len(list) {
		t.Errorf("%d alarms ended of %d", n, len(list))
	}
	for _, s := range scenes {
		if alarms := hear(t, l.conn, s.Testimony); len(alarms) > 0 {
			t.Errorf("%s: %s after it was acknowledged", s.name, alarms[0].Reason)
		}
	}
	// The other database went on meanwhile: somebody acknowledged it in its turn.
	if alarms := hear(t, l.conn, of(bmdb.KindClaim, "c", other, 1<<40+1)); len(alarms) != 1 {
		t.Errorf("alarms of an incarnation that was not acknowledged: %+v", alarms)
	}
	if n, err := l.conn.WithdrawAlarms(t.Context(), "b", "somebody", "wrong URL"); n != 0 || err != nil {
		t.Errorf("%d alarms of a cluster that has none were withdrawn, %v", n, err)
	}
	if n, err := l.conn.WithdrawAlarms(t.Context(), "a", "somebody", "wrong URL"); n != 1 || err != nil {
		t.Errorf("%d alarms were withdrawn, %v", n, err)
	}
	if alarms := hear(t, l.conn, of(bmdb.KindClaim, "c", other, 1<<40+1)); len(alarms) != 1 {
		t.Errorf("alarms after they were withdrawn: %+v", alarms)
	}
	after, _, _ := standing()
	if after <= machine+1 {
		t.Errorf("a machine's revision is %d after a rewind from above %d was acknowledged", after, machine)
	}
	if alarms := hear(t, l.conn, of(bmdb.KindMachine, m.String(), here, after+1), of(bmdb.KindMachine, m.String(), uuid.New(), 1)); len(alarms) != 2 {
		t.Errorf("alarms of what was not acknowledged: %+v", alarms)
	}
	events, err := l.conn.AuditOf(t.Context(), "", bmdb.KindDatabase, here.String(), 10)
	if err != nil || len(events) != 2 || events[1].Actor != "somebody" || events[1].Cause != "restored on purpose" || events[0].Event != bmdb.AuditWithdrawn {
		t.Errorf("audit: %+v, %v", events, err)
	}
}

// Where something speaks against the database, nothing starts that may lose data, and nothing for the claim that speaks.
func TestDoubtfulDatabaseStartsNothingDestructive(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	m := register(t, l.conn, 2)
	wipe := bmdb.ProcessDefinition{Pool: pool, Name: "wipe", Requires: []string{bmdb.FactProvided}, Destructive: true}
	if err := l.conn.RegisterProcess(t.Context(), wipe); err != nil {
		t.Fatal(err)
	}
	s := l.session(bmdb.WithoutMaintenance())
	if err := l.conn.Reevaluate(t.Context(), m...); err != nil {
		t.Fatal(err)
	}
	claims := map[string]*bmdb.OwnedClaim{}
	for key, process := range map[string]string{"wipe": "wipe", "harmless": "AgentStart", "witness": "AgentStart"} {
		spec := agentStart(key, bmdb.ModeOnce)
		spec.Process, spec.Names = process, names(2)
		claims[key] = attach(t, l.conn, s, spec)
	}
	starts := func(key string) int {
		t.Helper()
		works := round(t, s, claims[key], 1)
		for _, w := range works {
			w.Cancel(t.Context())
		}
		return len(works)
	}
	general := func() error {
		t.Helper()
		w, err := s.Work(t.Context(), "wipe", func(*model.Queries) ([]uuid.UUID, error) { return m, nil })
		w.Cancel(t.Context())
		return err
	}
	for key := range claims {
		if starts(key) != 1 {
			t.Errorf("claim %s starts nothing while all is well", key)
		}
	}
	if err := general(); err != nil {
		t.Errorf("general start while all is well: %v", err)
	}
	claim := snapshot(t, l.conn, "witness").Standing
	if n := len(hear(t, l.conn, bmdb.Testimony{Kind: bmdb.KindClaim, Pool: pool, ID: "witness", Cluster: "a", Database: claim.Database, Revision: claim.Revision + 100})); n != 1 {
		t.Fatalf("%d alarms", n)
	}
	var refused *bmdb.NotStartedError
	if err := general(); !errors.As(err, &refused) || refused.Reason != "DatabaseNotAcknowledged" {
		t.Errorf("general start of a destructive process: %v", err)
	}
	for key, want := range map[string]int{"wipe": 0, "harmless": 1, "witness": 0} {
		if got := starts(key); got != want {
			t.Errorf("claim %s starts %d works on a doubtful database, want %d", key, got, want)
		}
	}
	// The gates of the start itself, without the owner's own look.
	for key, process := range map[string]model.Process{"wipe": "wipe", "witness": "AgentStart"} {
		works, err := s.StartBatch(t.Context(), bmdb.StartRequest{
			Process: string(process), Pool: pool, Provider: "lab", Limit: 1, Candidates: m, Claim: &bmdb.ClaimRef{Key: key, Epoch: claims[key].Epoch},
		})
		if err != nil || len(works) != 0 {
			t.Errorf("batch start of %s for claim %s: %d works, %v", process, key, len(works), err)
		}
	}
	l.exec("UPDATE claims SET deadline_at = clock_timestamp() - interval '1 second', active_deadline_seconds = 1 WHERE claim_key = 'witness'")
	for _, key := range []string{"wipe", "witness"} {
		if out := review(t, s, claims[key]); out.State != bmdb.ClaimRunning || out.Reason != bmdb.OutlookDatabaseRewound || !strings.Contains(out.Message, "acknowledge") {
			t.Errorf("outlook of claim %s: %+v", key, out)
		}
	}
	acknowledge(t, l.conn)
	if starts("wipe") != 1 {
		t.Error("a destructive process does not start on a database that was acknowledged")
	}
	if err := general(); err != nil {
		t.Errorf("general start on a database that was acknowledged: %v", err)
	}
	if out := review(t, s, claims["witness"]); out.Reason != bmdb.OutlookDeadlineExceeded {
		t.Errorf("outlook of a claim whose deadline is over: %+v", out)
	}
}

// An alarm that was found before a person acknowledged the database is not recorded after that.
func TestAlarmLosesToAcknowledgement(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	m := register(t, l.conn, 1)[0]
	var stops gates
	slow := l.another(stops.config)
	stop := stops.at("raise alarms", "RaiseAlarms")
	heard := make(chan error, 1)
	go func() {
		_, err := slow.Hear(context.Background(), []bmdb.Testimony{{Kind: bmdb.KindMachine, Pool: pool, ID: m.String(), Cluster: "a", Database: l.conn.Identity().ID, Revision: 1000}})
		heard <- err
	}()
	done(t, "an alarm is about to be recorded", stop.reached)
	acknowledge(t, l.conn)
	stop.open <- nil
	if err := done(t, "it was heard", heard); err != nil {
		t.Fatal(err)
	}
	if list, err := l.conn.Alarms(t.Context(), 10); err != nil || len(list) != 0 {
		t.Errorf("alarms after the acknowledgement: %+v, %v", list, err)
	}
}

// A program whose connection string leads to another database than at first starts no session there.
func TestNoSessionInAnotherDatabase(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.exec("UPDATE database_identity SET database_id = $1", uuid.New())
	if _, err := l.conn.StartSession(t.Context()); !errors.Is(err, bmdb.ErrDatabaseChanged) {
		t.Errorf("session in another database: %v", err)
	}
}
