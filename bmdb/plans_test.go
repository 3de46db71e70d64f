// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"strconv"
	"testing"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// A cycle of work is carried out by statements that were planned before. To plan them takes several times as long.
func TestPlansAreMadeOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *bmdb.Config) { c.MaxConnections = 1 })
	s := l.session(bmdb.WithoutMaintenance())
	for i := range 10 {
		provided(t, s, strconv.Itoa(i))
	}
	for range 10 {
		work, err := s.Work(t.Context(), model.ProcessAgentStart, func(q *model.Queries) ([]uuid.UUID, error) {
			machines, err := q.GetMachinesForAgentStart(t.Context(), 1)
			if err != nil || len(machines) == 0 {
				return nil, err
			}
			return []uuid.UUID{machines[0].MachineID}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := work.FinishData(t.Context(), bmdb.Outcome{AgentPublicKey: []byte("key")}); err != nil {
			t.Fatal(err)
		}
	}
	generic, custom, err := l.conn.PlansMade(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if generic == 0 || custom > 0 {
		t.Errorf("%d plans were made for any call, and %d for one call; want some, and none", generic, custom)
	}
}
