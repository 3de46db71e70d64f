// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// SettleWithin bounds how long a statement of any program is believed to run, so that a test need not wait for it.
func (c *Connection) SettleWithin(d time.Duration) { c.settle = d }

// ArrangeLimits settles and opens what is due.
func (c *Connection) ArrangeLimits(ctx context.Context) error { return c.arrangeLimits(ctx) }

// FillPage fills in a page.
func (c *Connection) FillPage(ctx context.Context) (bool, error) { return c.fillPage(ctx) }

// Retain forgets what is old.
func (c *Connection) Retain(ctx context.Context) error { return c.retain(ctx) }

// Shapes are the candidates of a selection at one provider, by each shape that can find them. It wants a label term with one value for the
// shape of that name.
func (c *Connection) Shapes(ctx context.Context, spec ClaimSpec) (map[string][]uuid.UUID, error) {
	shapes := map[string][]uuid.UUID{}
	keep := func(name string, found []candidate, err error) error {
		ids := []uuid.UUID{}
		for _, f := range found {
			ids = append(ids, f.machine)
		}
		shapes[name] = ids
		return err
	}
	found, err := c.candidates(ctx, "CandidatesReady", sqlCandidatesReady, append(spec.selectionArgs(), narrow+1))
	if err := keep("ready", found, err); err != nil {
		return nil, err
	}
	for _, t := range spec.Selector.canonical() {
		if t.Operator == SelectorIn && len(t.Values) == 1 {
			found, err := c.candidates(ctx, "CandidatesByLabel", sqlCandidatesByLabel, append(spec.selectionArgs(), t.Key, t.Values[0], narrow+1))
			if err := keep("label", found, err); err != nil {
				return nil, err
			}
		}
	}
	var all []candidate
	l := newLap()
	for more := true; more; {
		var hits []candidate
		if hits, more, err = c.page(ctx, &spec, l, pageSize); err != nil {
			return nil, err
		}
		all = append(all, hits...)
	}
	return shapes, keep("pages", all, nil)
}

// TakeClaim is the second half of OwnClaims: the compare-and-set on an epoch that was read before.
func (s *Session) TakeClaim(ctx context.Context, pool, key string, epoch int64) (bool, error) {
	taken := false
	err := s.conn.autocommit(ctx, "own claims", "TakeClaims", sqlTakeClaims,
		[]any{s.UUID, []string{pool}, []string{key}, []int64{epoch}, []bool{true}, []uuid.UUID{uuid.New()}, "", ""},
		func() { taken = false }, func(pgx.Rows) error { taken = true; return nil })
	return taken, err
}
