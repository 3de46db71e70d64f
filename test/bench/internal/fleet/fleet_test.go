// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package fleet_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/fleet"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := postgres.CloseShared(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "close the test server:", err)
		code = 1
	}
	os.Exit(code)
}

const machines = 3

// What is filled in past the library must be what the library writes, or the benchmarks measure something else.
func TestFillWritesWhatTheLibraryDoes(t *testing.T) {
	for name, done := range map[string]bool{"ready": false, "done": true} {
		t.Run(name, func(t *testing.T) {
			url := bmdbtest.NewURL(t)
			if err := fleet.Fill(t.Context(), url, fleet.Fleet{Pool: "filled", Provider: "lab", Machines: machines, Done: done}); err != nil {
				t.Fatal(err)
			}
			make3(t, url, done)
			for table, columns := range map[string]string{
				"machine_state":         "m.provider, m.facts::text, m.held_until IS NULL, m.unresponsive_at > clock_timestamp() + interval '29 minutes'",
				"machine_provided":      "x.provider, x.pool = m.pool, x.provider_ip_address IS NULL, x.provider_status IS NULL",
				"machine_agent_started": "x.agent_started_at > clock_timestamp() - interval '1 minute'",
				"work": "x.process, x.slot, x.provider, x.pool = m.pool, x.state, x.not_before > clock_timestamp() + interval '29 minutes', x.work_id IS NULL, " +
					"x.backoff_seconds, x.backoff_until IS NULL, x.deadline IS NULL",
			} {
				if diff := cmp.Diff(rows(t, url, table, columns, "made"), rows(t, url, table, columns, "filled")); diff != "" {
					t.Errorf("%s differs (-library +filled):\n%s", table, diff)
				}
			}
		})
	}
}

// What is named and labelled can be found by names and labels.
func TestFillNamesAndLabels(t *testing.T) {
	url := bmdbtest.NewURL(t)
	f := fleet.Fleet{Pool: "filled", Provider: "lab", Machines: 2 * fleet.MachinesPerRack, Named: true, Labelled: true}
	if err := fleet.Fill(t.Context(), url, f); err != nil {
		t.Fatal(err)
	}
	conn := bmdbtest.Open(t, url)
	session, err := conn.StartSession(t.Context(), bmdb.WithoutMaintenance())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := session.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	in := func(key, value string) *bmdb.Selector {
		return &bmdb.Selector{MatchLabels: map[string]string{key: value}}
	}
	for name, c := range map[string]struct {
		spec bmdb.ClaimSpec
		want int
	}{
		"names": {bmdb.ClaimSpec{Names: []string{fleet.Name(0), fleet.Name(79), fleet.Name(80)}}, 2},
		"rack":  {bmdb.ClaimSpec{Selector: in("rack", "r40")}, fleet.MachinesPerRack},
		"zone":  {bmdb.ClaimSpec{Selector: in("zone", "a")}, fleet.MachinesPerRack},
	} {
		spec := c.spec
		spec.Pool, spec.Key, spec.Process, spec.Mode, spec.Parallelism = "filled", name, string(model.ProcessAgentStart), bmdb.ModeDrain, 1000
		if _, err := conn.AttachClaim(t.Context(), bmdb.View{Name: name}, spec, true); err != nil {
			t.Fatal(err)
		}
		owned, err := session.OwnClaims(t.Context(), 1)
		if err != nil || len(owned) != 1 {
			t.Fatalf("own claim: %v, %v", owned, err)
		}
		var works []*bmdb.Work
		for err == nil {
			var more []*bmdb.Work
			more, err = session.ClaimRound(t.Context(), owned[0], 1000)
			works = append(works, more...)
		}
		if !errors.Is(err, bmdb.ErrNothingToDo) || len(works) != c.want {
			t.Errorf("%s: %d works, %v, want %d", name, len(works), err, c.want)
		}
		for _, w := range works {
			w.Cancel(t.Context())
		}
	}
}

// make3 makes machines with the library, and finishes work on them if they are to be done.
func make3(t *testing.T, url string, done bool) {
	t.Helper()
	conn := bmdbtest.Open(t, url, func(c *bmdb.Config) { c.Pool = "made" })
	session, err := conn.StartSession(t.Context(), bmdb.WithoutMaintenance())
	if err != nil {
		t.Fatal(err)
	}
	var ids []uuid.UUID
	err = session.Transact(t.Context(), func(q *model.Queries) error {
		ids = nil
		for i := range machines {
			m, err := q.NewMachine(t.Context())
			if err != nil {
				return err
			}
			ids = append(ids, m.MachineID)
			if err := q.MachineAddProvided(t.Context(), model.MachineAddProvidedParams{MachineID: m.MachineID, Provider: "lab", ProviderID: fmt.Sprint(i)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if !done {
			break
		}
		work, err := session.Work(t.Context(), model.ProcessAgentStart, func(*model.Queries) ([]uuid.UUID, error) { return []uuid.UUID{id}, nil })
		if err != nil {
			t.Fatal(err)
		}
		if err := work.FinishData(t.Context(), bmdb.Outcome{AgentPublicKey: []byte("key")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := session.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// rows are those of a table that belong to machines of a pool, as text, sorted.
func rows(t *testing.T, url, table, columns, pool string) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	found, err := conn.Query(t.Context(), "SELECT concat_ws(', ', "+columns+") AS line FROM machine_state m JOIN "+table+" x ON x.machine_id = m.machine_id WHERE m.pool = $1 ORDER BY line", pool)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return lines
}
