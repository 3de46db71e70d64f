// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"errors"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// A session that was ended by another pod has its works ended as Lost. The stale worker's closure must write nothing of what it brings,
// although the history has an end of that very work.
func TestFinishOfTakenOverWorkWritesNothing(t *testing.T) {
	t.Parallel()
	url := bmdbtest.NewURL(t)
	conn := bmdbtest.Open(t, url)
	ctx := t.Context()
	s := start(t, conn, bmdb.WithoutMaintenance())
	machine := provided(t, s, "1")
	work, err := s.Work(ctx, model.ProcessAgentStart, constantly(machine))
	if err != nil {
		t.Fatal(err)
	}
	db := connect(t, url)
	// What a reaper leaves behind.
	for _, sql := range []string{
		"UPDATE machine_state SET rev = rev + 1",
		`INSERT INTO work_history SELECT machine_id, work_id, 1, process, 'Lost', clock_timestamp(), NULL, session_id, pool, claim_key, fence, attempt, 0, ''
		 FROM work WHERE work_id IS NOT NULL`,
		"UPDATE work SET work_id = NULL, state = 2 WHERE work_id IS NOT NULL",
	} {
		if _, err := db.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	err = work.Finish(ctx, func(q *model.Queries) error {
		return q.MachineSetAgentStarted(ctx, model.MachineSetAgentStartedParams{MachineID: machine, AgentStartedAt: time.Now(), AgentPublicKey: []byte("stale")})
	})
	if !errors.Is(err, bmdb.ErrWorkLost) {
		t.Errorf("finish of a work that was taken over: %v, want ErrWorkLost", err)
	}
	var agents int
	if err := db.QueryRow(ctx, "SELECT count(*) FROM machine_agent_started").Scan(&agents); err != nil {
		t.Fatal(err)
	}
	if agents != 0 {
		t.Error("a refused finish left its tag behind")
	}
	if work.Context().Err() == nil {
		t.Error("the context of a lost work goes on")
	}
}
