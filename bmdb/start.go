// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// Work starts work in the general form: fn finds the machines, in the same transaction, and the first of them that nobody holds, nobody
// works on in the slot of the process, and whose provider is not at its limit, is locked for process. Backoff and predicate are fn's
// business. fn may run more than once and must not have effects outside of the database.
//
// ErrNothingToDo: fn named no machine, or none that may be started on (NotStartedError says why). ErrWorkConflict: a machine that fn named is
// worked on in the slot. ErrSessionExpired: the session is over. ErrClaimsOnly: Config.ClaimsOnly is set. The caller must end the work.
func (s *Session) Work(ctx context.Context, process model.Process, fn func(q *model.Queries) ([]uuid.UUID, error)) (*Work, error) {
	if s.conn.config.ClaimsOnly {
		return nil, ErrClaimsOnly
	}
	if s.Expired() {
		return nil, ErrSessionExpired
	}
	id, made := uuid.New(), s.conn.newMadeMachines()
	var got started
	var pool, provider string
	begun := now()
	err := s.conn.transactAt(ctx, "start", repeatableRead, func(ctx context.Context, tx *Tx) error {
		got = started{}
		s.queueGate(tx)
		machines, err := fn(model.New(newRecorder(tx, made)))
		if err != nil {
			return fmt.Errorf("retrieve machines: %w", err)
		}
		if len(machines) == 0 {
			return ErrNothingToDo
		}
		if err := tx.flush(ctx); err != nil {
			return err
		}
		begun = now()
		got, pool, provider, err = s.startFirst(ctx, tx, id, string(process), machines)
		if err == nil {
			tx.recomputeTouched()
		}
		return err
	})
	if errors.Is(err, ErrAmbiguous) {
		got, err = s.readBackStart(ctx, id, err)
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", process, err)
	}
	return s.newWork(got, string(process), pool, provider, "", begun, 0), nil
}

// startFirst tries the machines in their order.
func (s *Session) startFirst(ctx context.Context, tx *Tx, id uuid.UUID, process string, machines []uuid.UUID) (got started, pool, provider string, err error) {
	conflict, reason := false, ""
	for _, machine := range machines {
		found := false
		tx.queueRows("StartOne", sqlStartOne, []any{machine, process, id, s.UUID, int64(0), s.actor()}, func(row pgx.Rows) error {
			found = true
			got = started{Machine: machine, ID: id}
			return row.Scan(&pool, &provider, &got.Fence, &got.Attempt, &got.BackoffSeconds, &got.Checkpoint)
		})
		if err := tx.flush(ctx); err != nil {
			return got, "", "", err
		}
		if found {
			return got, pool, provider, nil
		}
		tx.queueRows("WhyNotStarted", sqlWhyNotStarted, []any{machine, process}, func(row pgx.Rows) error { return row.Scan(&reason) })
		if err := tx.flush(ctx); err != nil {
			return got, "", "", err
		}
		switch reason {
		case "NoSuchProcess":
			return got, "", "", fmt.Errorf("process %q is not registered in the pool of machine %s: register it first", process, machine)
		case "Locked":
			conflict = true
		}
	}
	if conflict {
		return got, "", "", ErrWorkConflict
	}
	return got, "", "", &NotStartedError{Machine: machines[len(machines)-1], Reason: reason}
}

func (s *Session) readBackStart(ctx context.Context, id uuid.UUID, cause error) (started, error) {
	rows, err := s.worksStarted(ctx, []uuid.UUID{id})
	switch {
	case err != nil:
		return started{}, errors.Join(cause, err)
	case len(rows) == 0:
		// A start that arrives later still is found by a beat, and released.
		return started{}, cause
	}
	return rows[0], nil
}

func (s *Session) worksStarted(ctx context.Context, ids []uuid.UUID) (rows []started, err error) {
	err = s.conn.read(ctx, "WorksStarted", sqlWorksStarted, []any{s.UUID, ids}, func() { rows = nil }, func(row pgx.Rows) error {
		r, err := pgx.RowToStructByPos[started](row)
		rows = append(rows, r)
		return err
	})
	return rows, err
}

// StartRequest asks for works on several machines at once.
type StartRequest struct {
	// Process is what is to be performed.
	Process string
	// Pool and Provider are those of all candidates; others are passed over.
	Pool, Provider string
	// Candidates are machines that are worth a try, at most a thousand. They are looked at again when they are locked; those that
	// somebody else has locked at the moment are passed over.
	Candidates []uuid.UUID
	// Limit bounds how many are started. 0 starts none.
	Limit int
	// Claim is for whom the work is done; nil for nobody.
	Claim *ClaimRef
	// Timeout ends the work's context, and lets a sweep end the work some time later. 0: none.
	Timeout time.Duration
}

// ClaimRef names a claim in its pool, and the term in which this session owns it.
type ClaimRef struct {
	Key   string
	Epoch int64
}

var (
	sqlStartBatchFree  = fmt.Sprintf(sqlStartBatch, roomOfNobody, "")
	sqlStartBatchClaim = fmt.Sprintf(sqlStartBatch, roomOfClaim, countInClaim)
)

// StartBatch starts works on up to Limit of the candidates, in one statement: those that nobody holds or works on, whose predicate is
// true at that moment, that are not backed off, and as far as the limits of the provider and of the claim go. An empty result is no
// proof that there is nothing to do. ErrClaimsOnly: Config.ClaimsOnly is set, and Claim is not. The caller must end each work.
func (s *Session) StartBatch(ctx context.Context, r StartRequest) ([]*Work, error) {
	if r.Claim == nil && s.conn.config.ClaimsOnly {
		return nil, ErrClaimsOnly
	}
	if s.Expired() {
		return nil, ErrSessionExpired
	}
	if r.Limit <= 0 || len(r.Candidates) == 0 {
		return nil, nil
	}
	ids := make([]uuid.UUID, len(r.Candidates))
	for i := range ids {
		ids[i] = uuid.New()
	}
	sql, key := sqlStartBatchFree, ""
	args := []any{s.UUID, r.Process, r.Candidates, ids, r.Pool, r.Provider, int64(r.Limit), s.deadline(r.Timeout).Milliseconds(), key, s.actor()}
	if r.Claim != nil {
		sql, key = sqlStartBatchClaim, r.Claim.Key
		args[8] = key
		args = append(args, r.Claim.Epoch)
	}
	var rows []started
	begun := now()
	err := s.conn.autocommit(ctx, "start", "StartBatch", sql, args, func() { rows, begun = nil, now() }, func(row pgx.Rows) error {
		r, err := pgx.RowToStructByPos[started](row)
		rows = append(rows, r)
		return err
	})
	if errors.Is(err, ErrAmbiguous) {
		var readErr error
		if rows, readErr = s.worksStarted(ctx, ids); readErr == nil {
			err = nil // what arrives later still is found by a beat, and released
		}
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", r.Process, err)
	}
	works := make([]*Work, len(rows))
	for i, row := range rows {
		works[i] = s.newWork(row, r.Process, r.Pool, r.Provider, key, begun, r.Timeout)
	}
	return works, nil
}

// deadline is when a sweep may end a work that a living program forgot: its timeout, and time to end it in the regular way. 0: never.
func (s *Session) deadline(timeout time.Duration) time.Duration {
	if timeout <= 0 {
		return 0
	}
	return timeout + 2*s.conn.lease.length
}
