// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// claimRow is a claim in an owner's term.
type claimRow struct {
	spec                               ClaimSpec
	epoch                              int64
	state, reason, message             string
	active, succeeded, failed, skipped int64
	selected, unneeded, rev            int64
	overdue, runnable                  bool
	obstacle                           string // why the process is not performed for claims; empty: it is
}

// scan reads claimColumns, and what follows them.
func (r *claimRow) scan(row pgx.Rows, more ...any) error {
	var selection, parameters string
	s := &r.spec
	err := row.Scan(append([]any{
		&s.Pool, &s.Key, &r.epoch, &s.Process, &s.Mode, &selection, &parameters, &s.Completions, &s.Parallelism, &s.TimeoutSeconds,
		&s.ActiveDeadlineSeconds, &s.MaxAttempts, &s.MaxFailedMachines, &s.BackoffInitialSeconds, &s.BackoffMaximumSeconds, &s.Suspended,
		&r.state, &r.reason, &r.message, &r.active, &r.succeeded, &r.failed, &r.skipped, &r.selected, &r.unneeded, &r.rev, &r.overdue,
	}, more...)...)
	if err != nil {
		return err
	}
	return s.setColumns(selection, parameters)
}

// doubtful tells that something speaks against the database in a way that holds the claim back.
func (r *claimRow) doubtful() bool {
	return r.obstacle == DatabaseChanged || r.obstacle == DatabaseRewound
}

// show brings what the owner sees of the claim up to date.
func (o *OwnedClaim) show(r *claimRow) {
	o.Epoch, o.Spec, o.Reason = r.epoch, r.spec, r.reason
	o.Active, o.Succeeded, o.Failed, o.Skipped = r.active, r.succeeded, r.failed, r.skipped
}

func claimID(pool, key string) string { return pool + "/" + key }

// OwnClaims takes up at most limit claims of Config.Pools that run, that programs of this session's cluster may carry out, and that nobody
// owns whose session lives. Each is owned by one session at a time, which alone starts work for it. Where there is nothing to take up it is one plain
// read. The result has only claims that no OwnedClaim of this session stands for yet. Keep each until ReleaseClaim, ErrClaimLost or a final
// Outlook; an owner that dies is succeeded once its session has been ended.
func (s *Session) OwnClaims(ctx context.Context, limit int) ([]*OwnedClaim, error) {
	if s.Expired() {
		return nil, ErrSessionExpired
	}
	if limit <= 0 {
		return nil, nil
	}
	seen, err := s.findUnowned(ctx, limit)
	if err != nil || len(seen.keys) == 0 {
		return nil, wrap("find claims without an owner", err)
	}
	var rows []*claimRow
	err = s.conn.autocommit(ctx, "own claims", "TakeClaims", sqlTakeClaims,
		[]any{s.UUID, seen.pools, seen.keys, seen.epochs, seen.taken, seen.events, s.actor(), s.conn.config.Cluster},
		func() { rows = nil }, func(row pgx.Rows) error {
			r := &claimRow{}
			rows = append(rows, r)
			return r.scan(row)
		})
	if err != nil && !errors.Is(err, ErrAmbiguous) { // an ambiguous one that arrived is found by the next call
		return nil, fmt.Errorf("take up claims: %w", err)
	}
	owned := make([]*OwnedClaim, 0, len(rows))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range rows {
		o := &OwnedClaim{}
		o.show(r)
		s.claims[claimID(r.spec.Pool, r.spec.Key)] = o
		owned = append(owned, o)
	}
	return owned, nil
}

// unownedClaims are claims as the arrays of the statement that takes them.
type unownedClaims struct {
	pools, keys []string
	epochs      []int64
	taken       []bool // from a session that is over
	events      []uuid.UUID
}

// ClaimsSeen gets a value when the session has seen, at one of its looks at the database about once a second, that there are claims for OwnClaims to
// take up; it holds one. nil for a session WithoutMaintenance, which does not look: its program calls OwnClaims now and then.
func (s *Session) ClaimsSeen() <-chan struct{} { return s.unowned }

// unownedArgs are the first arguments of statements that look for claims without an owner.
func (s *Session) unownedArgs() []any {
	known := []string{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.claims {
		known = append(known, id)
	}
	return []any{s.UUID, s.conn.config.Cluster, known, s.conn.config.Pools}
}

func (s *Session) findUnowned(ctx context.Context, limit int) (unownedClaims, error) {
	type claim struct {
		Pool, Key string
		Epoch     int64
		Taken     bool
	}
	var found []claim
	err := s.conn.read(ctx, "Unowned", sqlUnowned, append(s.unownedArgs(), limit, s.UUID.String()), func() { found = nil }, func(row pgx.Rows) error {
		r, err := pgx.RowToStructByPos[claim](row)
		found = append(found, r)
		return err
	})
	// In one order for all sessions, so that two that take the same claims do not deadlock.
	slices.SortFunc(found, func(a, b claim) int { return slices.Compare([]string{a.Pool, a.Key}, []string{b.Pool, b.Key}) })
	var u unownedClaims
	for _, f := range found {
		u.pools, u.keys, u.epochs = append(u.pools, f.Pool), append(u.keys, f.Key), append(u.epochs, f.Epoch)
		u.taken, u.events = append(u.taken, f.Taken), append(u.events, uuid.New())
	}
	return u, err
}

// refresh reads the claim in its owner's term. ErrClaimLost: the term is over. A claim that has ended in the term is returned as it ended.
func (s *Session) refresh(ctx context.Context, o *OwnedClaim) (*claimRow, error) {
	if s.Expired() {
		return nil, ErrSessionExpired
	}
	var r *claimRow
	err := s.conn.read(ctx, "OwnedClaim", sqlOwnedClaim, []any{o.Spec.Pool, o.Spec.Key, s.UUID, o.Epoch, s.conn.config.Cluster}, func() { r = nil }, func(row pgx.Rows) error {
		r = &claimRow{}
		return r.scan(row, &r.runnable, &r.obstacle)
	})
	if err != nil {
		return nil, err
	}
	if r == nil {
		s.forget(o)
		return nil, ErrClaimLost
	}
	if r.state != ClaimRunning {
		s.forget(o)
		o.show(r)
		return r, nil
	}
	if !r.runnable {
		// Pods of another cluster may be able to go on.
		if err := s.ReleaseClaim(ctx, o); err != nil {
			return nil, err
		}
		return nil, ErrClaimLost
	}
	o.show(r)
	return r, nil
}

// ReleaseClaim gives a claim up, so that another session may own it. Its works go on and end as they would. It may be called for a claim
// that is lost already.
func (s *Session) ReleaseClaim(ctx context.Context, o *OwnedClaim) error {
	s.forget(o)
	err := s.conn.transact(ctx, "release claim", func(_ context.Context, tx *Tx) error {
		tx.queue("ReleaseClaim", sqlReleaseClaim, o.Spec.Pool, o.Spec.Key, s.UUID, o.Epoch)
		return nil
	})
	return wrap("release claim "+claimID(o.Spec.Pool, o.Spec.Key), err)
}

// forget drops the claim from those that the session stands for.
func (s *Session) forget(o *OwnedClaim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id := claimID(o.Spec.Pool, o.Spec.Key); s.claims[id] == o {
		delete(s.claims, id)
	}
}

// wrap adds what was tried to an error, if there is one.
func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}
