// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const defaultListed = 20

// ClaimSnapshot reads what the status of a claim shows, as of one moment. It needs no session. ErrNoSuchClaim: the database does not have it.
func (c *Connection) ClaimSnapshot(ctx context.Context, pool, key string, limits ClaimLimits) (*ClaimSnapshot, error) {
	for _, n := range []*int{&limits.Works, &limits.Failures, &limits.Skipped} {
		if *n == 0 {
			*n = defaultListed
		}
	}
	var s *ClaimSnapshot
	err := c.snapshot(ctx, "claim snapshot", func(ctx context.Context, tx *Tx) error {
		s = nil
		snapshot := &ClaimSnapshot{Pool: pool, Key: key}
		tx.queueRows("ClaimSnapshot", sqlClaimSnapshot, []any{pool, key}, func(row pgx.Rows) error {
			s = snapshot
			return row.Scan(&s.Rev, &s.Process, &s.Mode, &s.State, &s.Reason, &s.Message, &s.Completions, &s.Active, &s.Succeeded, &s.Failed, &s.Skipped,
				&s.Selected, &s.Unneeded, &s.Suspended, &s.CreatedAt, &s.StartedAt, &s.DeadlineAt, &s.CompletedAt, &s.Owner, &s.OwnerCluster)
		})
		tx.queueIdentity(func(id uuid.UUID, incarnation int64) {
			snapshot.Standing = Standing{id, revisionIn(incarnation, snapshot.Rev)}
		})
		tx.queueRows("ClaimViews", sqlClaimViews, []any{pool, key}, func(row pgx.Rows) error {
			var v claimView
			err := row.Scan(&v.Cluster, &v.Name, &v.UID, &v.manages, &v.suspended, &v.runnable)
			if v.manages {
				snapshot.Manager = &v.View
			}
			return err
		})
		tx.queueRows("ClaimWorks", sqlClaimWorks, []any{pool, key, limits.Works}, func(row pgx.Rows) error {
			w, err := pgx.RowToStructByPos[ClaimWork](row)
			snapshot.Works = append(snapshot.Works, w)
			return err
		})
		tx.queueRows("ClaimFailures", sqlClaimFailures, []any{pool, key, limits.Failures}, func(row pgx.Rows) error {
			f, err := pgx.RowToStructByPos[ClaimFailure](row)
			snapshot.Failures = append(snapshot.Failures, f)
			return err
		})
		tx.queueRows("ClaimSkipped", sqlClaimSkipped, []any{pool, key, limits.Skipped}, func(row pgx.Rows) error {
			var name string
			err := row.Scan(&name)
			snapshot.SkippedMachines = append(snapshot.SkippedMachines, name)
			return err
		})
		return nil
	})
	if err == nil && s == nil {
		err = ErrNoSuchClaim
	}
	if err != nil {
		return nil, fmt.Errorf("read claim %s/%s: %w", pool, key, err)
	}
	return s, nil
}
