// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// A work whose end could not be committed does not keep its machine for as long as its session lives: a beat releases it.
func TestAbandonedWorkIsReleased(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, func(c *bmdb.Config) { c.Lease = 2 * time.Second })
	s := start(t, conn, bmdb.WithoutMaintenance())
	machine := provided(t, s, "1")
	work, err := s.Work(t.Context(), model.ProcessUnitTest1, constantly(machine))
	if err != nil {
		t.Fatal(err)
	}
	work.Abandon()
	if work.Context().Err() == nil {
		t.Error("the context of an abandoned work goes on")
	}
	deadline := time.After(30 * time.Second)
	for {
		history, err := conn.ListHistoryOf(t.Context(), machine)
		if err != nil {
			t.Fatal(err)
		}
		if len(history) == 2 {
			if history[1].Event != model.WorkHistoryEventReleased {
				t.Errorf("the work ended as %s, want Released", history[1].Event)
			}
			return
		}
		select {
		case <-deadline:
			t.Fatal("nobody released the work")
		case <-time.After(50 * time.Millisecond):
		}
	}
}
