// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"slices"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

var (
	labelKeys   = []string{"rack", "model", "row"}
	labelValues = []string{"", "a", "b", "a,b"}
)

// matches is what a selector means, written once more.
func matches(s *bmdb.Selector, labels map[string]string) bool {
	for k, want := range s.MatchLabels {
		if v, ok := labels[k]; !ok || v != want {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		v, ok := labels[e.Key]
		var match bool
		switch e.Operator {
		case bmdb.SelectorIn:
			match = ok && slices.Contains(e.Values, v)
		case bmdb.SelectorNotIn:
			match = !ok || !slices.Contains(e.Values, v)
		case bmdb.SelectorExists:
			match = ok
		case bmdb.SelectorDoesNotExist:
			match = !ok
		}
		if !match {
			return false
		}
	}
	return true
}

func selectors() *rapid.Generator[*bmdb.Selector] {
	return rapid.Custom(func(t *rapid.T) *bmdb.Selector {
		s := &bmdb.Selector{MatchLabels: rapid.MapOfN(rapid.SampledFrom(labelKeys), rapid.SampledFrom(labelValues), 0, 2).Draw(t, "labels")}
		for range rapid.IntRange(0, 2).Draw(t, "expressions") {
			e := bmdb.SelectorTerm{
				Key:      rapid.SampledFrom(labelKeys).Draw(t, "key"),
				Operator: rapid.SampledFrom([]bmdb.SelectorOperator{bmdb.SelectorIn, bmdb.SelectorNotIn, bmdb.SelectorExists, bmdb.SelectorDoesNotExist}).Draw(t, "operator"),
			}
			if e.Operator == bmdb.SelectorIn || e.Operator == bmdb.SelectorNotIn {
				e.Values = rapid.SliceOfN(rapid.SampledFrom(labelValues), 1, 3).Draw(t, "values")
			}
			s.MatchExpressions = append(s.MatchExpressions, e)
		}
		return s
	})
}

// Every shape in which candidates are found finds the same machines: those that are ready, selected, and not done.
func TestShapesFindTheSame(t *testing.T) {
	t.Parallel()
	const fleet = 60
	l := newLab(t)
	ids := register(t, l.conn, fleet)
	s := l.session()
	spec := agentStart("c", bmdb.ModeDrain)
	spec.Selector, spec.Parallelism = &bmdb.Selector{}, 5
	attachOnly(t, l.conn, spec)
	for i, id := range ids {
		switch i % 10 {
		case 7:
			l.exec("INSERT INTO claim_machines (pool, claim_key, machine_id, skipped, changed_at) VALUES ('metal', 'c', $1, true, now())", id)
		case 8:
			w := l.work(s, "AgentStart", id)
			defer w.Cancel(t.Context())
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		fleetLabels := rapid.SliceOfN(rapid.MapOfN(rapid.SampledFrom(labelKeys), rapid.SampledFrom(labelValues), 0, 3), fleet, fleet).Draw(rt, "fleet")
		machines, keys, values := []uuid.UUID{}, []string{}, []string{}
		for i, labels := range fleetLabels {
			for k, v := range labels {
				machines, keys, values = append(machines, ids[i]), append(keys, k), append(values, v)
			}
		}
		l.exec("DELETE FROM machine_labels")
		l.exec("INSERT INTO machine_labels (machine_id, key, value, pool) SELECT unnest($1::uuid[]), unnest($2::text[]), unnest($3::text[]), 'metal'", machines, keys, values)
		selector := selectors().Draw(rt, "selector")
		want := []uuid.UUID{}
		for i, id := range ids {
			if i%10 != 7 && i%10 != 8 && matches(selector, fleetLabels[i]) {
				want = append(want, id)
			}
		}
		sortIDs(want)
		spec := bmdb.ClaimSpec{Pool: pool, Key: "c", Process: "AgentStart", Mode: bmdb.ModeDrain, Provider: "lab", Selector: selector}
		shapes, err := l.conn.Shapes(t.Context(), spec)
		if err != nil {
			rt.Fatal(err)
		}
		for name, got := range shapes {
			sortIDs(got)
			if !slices.Equal(got, want) {
				rt.Errorf("shape %s finds %d machines of selector %+v, want %d", name, len(got), selector, len(want))
			}
		}
	})
}

// A walk over more machines than a page has: the owner goes around once, whatever the room, and every machine is started on.
func TestWalkOverManyReadyMachines(t *testing.T) {
	t.Parallel()
	const fleet, room = 2500, 400
	l := newLab(t, inClusterA)
	l.exec("INSERT INTO machines SELECT gen_random_uuid(), now() FROM generate_series(1, $1::bigint)", fleet)
	l.exec("INSERT INTO machine_state (machine_id, pool, provider) SELECT machine_id, 'metal', 'lab' FROM machines")
	l.exec("INSERT INTO machine_provided (machine_id, provider, provider_id, pool) SELECT machine_id, 'lab', machine_id::text, 'metal' FROM machines")
	l.exec("INSERT INTO machine_labels (machine_id, key, value, pool) SELECT machine_id, 'rack', 'r' || (row_number() OVER () % 2), 'metal' FROM machines")
	for chunk := range slices.Chunk(machinesOf(t, l, pool), 500) {
		l.exec("UPDATE machine_state SET facts = ARRAY['Provided'] WHERE machine_id = ANY($1)", chunk)
		if err := l.conn.Reevaluate(t.Context(), chunk...); err != nil {
			t.Fatal(err)
		}
	}
	s := l.session()
	spec := agentStart("all", bmdb.ModeDrain)
	spec.Selector = &bmdb.Selector{MatchExpressions: []bmdb.SelectorTerm{{Key: "rack", Operator: bmdb.SelectorIn, Values: []string{"r0", "r2"}}}}
	spec.Parallelism = fleet
	o := attach(t, l.conn, s, spec)
	started := map[uuid.UUID]bool{}
	for range 100 {
		works, err := s.ClaimRound(t.Context(), o, room)
		if err != nil {
			break
		}
		for _, w := range works {
			started[w.Machine] = true
		}
	}
	if len(started) != fleet/2 {
		t.Errorf("started on %d machines, want %d", len(started), fleet/2)
	}
	if n := l.int("SELECT active FROM claims"); n != fleet/2 {
		t.Errorf("%d works are counted, want %d", n, fleet/2)
	}
}
