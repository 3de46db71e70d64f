// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Progress is how far a work is, for people.
type Progress struct {
	Work *Work
	// Step is what is being done, Percent how much of the work is done with it.
	Step    string
	Percent int
}

// maxProgress bounds how many works one write shows: their rows are locked until it is over.
const maxProgress = 1000

// ShowProgress records how far works of this session are, a thousand in a write, and returns those that it was recorded of. The others do not
// hold their machines any more, or are being written by somebody else at the moment; only Work.Check tells which. It asks nobody whether a work may
// go on, and to lose it does no harm: call it now and then for all works, and not before each of their steps.
func (s *Session) ShowProgress(ctx context.Context, list []Progress) (shown []*Work, err error) {
	for page := range slices.Chunk(list, maxProgress) {
		n := len(page)
		machines, works := make([]uuid.UUID, n), make([]uuid.UUID, n)
		processes, steps, percents := make([]string, n), make([]string, n), make([]int64, n)
		byID := make(map[uuid.UUID]*Work, n)
		for i, p := range page {
			machines[i], works[i], processes[i], steps[i], percents[i] = p.Work.Machine, p.Work.id, p.Work.process, bounded(p.Step), int64(p.Percent)
			byID[p.Work.id] = p.Work
		}
		var ids []uuid.UUID
		err := s.conn.read(ctx, "Progress", sqlProgress, []any{machines, processes, works, steps, percents}, func() { ids = nil }, func(row pgx.Rows) error {
			var id uuid.UUID
			err := row.Scan(&id)
			ids = append(ids, id)
			return err
		})
		if err != nil {
			return shown, fmt.Errorf("show how far %d works are: %w", n, err)
		}
		for _, id := range ids {
			shown = append(shown, byID[id])
		}
	}
	return shown, nil
}
