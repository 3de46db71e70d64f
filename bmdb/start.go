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
	var got []started
	begun := now()
	// Usually the first machine can be had: then its start and COMMIT are one round trip, and who must not start it finds that nothing was.
	// Where that is so, or where fn writes, a transaction tries all machines and sees each verdict.
	first := true
	start := func(ctx context.Context, tx *Tx) error {
		got = nil
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
		if first && len(tx.touched) == 0 {
			s.queueStart(tx, id, string(process), machines[0], &got)
			return nil
		}
		if err := s.startFirst(ctx, tx, id, string(process), machines, &got); err != nil {
			return err
		}
		tx.recomputeTouched()
		return nil
	}
	err := s.conn.transactAt(ctx, "start", repeatableRead, start)
	if err == nil && len(got) == 0 {
		first = false
		err = s.conn.transactAt(ctx, "start", repeatableRead, start)
	}
	if errors.Is(err, ErrAmbiguous) {
		got, err = s.readBackStart(ctx, id, err)
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", process, err)
	}
	return s.newWork(got[0], string(process), "", begun, 0), nil
}

// queueStart queues the start of work on a machine, which is appended to got if it may be.
func (s *Session) queueStart(tx *Tx, id uuid.UUID, process string, machine uuid.UUID, got *[]started) {
	tx.queueRows("StartOne", sqlStartOne, []any{machine, process, id, s.UUID, int64(0), s.actor()}, scanStarted(got))
}

func scanStarted(got *[]started) func(row pgx.Rows) error {
	return func(row pgx.Rows) error {
		r, err := pgx.RowToStructByPos[started](row)
		*got = append(*got, r)
		return err
	}
}

// startFirst tries the machines in their order.
func (s *Session) startFirst(ctx context.Context, tx *Tx, id uuid.UUID, process string, machines []uuid.UUID, got *[]started) error {
	conflict, reason := false, ""
	for _, machine := range machines {
		s.queueStart(tx, id, process, machine, got)
		tx.queueRows("WhyNotStarted", sqlWhyNotStarted, []any{machine, process}, func(row pgx.Rows) error { return row.Scan(&reason) })
		if err := tx.flush(ctx); err != nil || len(*got) > 0 {
			return err
		}
		switch reason {
		case "NoSuchProcess":
			return fmt.Errorf("process %q is not registered in the pool of machine %s: register it first", process, machine)
		case "Locked":
			conflict = true
		}
	}
	if conflict {
		return ErrWorkConflict
	}
	return &NotStartedError{Machine: machines[len(machines)-1], Reason: reason}
}

func (s *Session) readBackStart(ctx context.Context, id uuid.UUID, cause error) ([]started, error) {
	rows, err := s.worksStarted(ctx, []uuid.UUID{id})
	switch {
	case err != nil:
		return nil, errors.Join(cause, err)
	case len(rows) == 0:
		// A start that arrives later still is found by a beat, and released.
		return nil, cause
	}
	return rows, nil
}

func (s *Session) worksStarted(ctx context.Context, ids []uuid.UUID) (rows []started, err error) {
	err = s.conn.read(ctx, "WorksStarted", sqlWorksStarted, []any{s.UUID, ids}, func() { rows = nil }, scanStarted(&rows))
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
	err := s.conn.autocommit(ctx, "start", "StartBatch", sql, args, func() { rows, begun = nil, now() }, scanStarted(&rows))
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
		works[i] = s.newWork(row, r.Process, key, begun, r.Timeout)
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
