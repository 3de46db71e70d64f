// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
)

var (
	// ErrSessionExpired is returned by everything that needs a live session once the session is over: it was closed, another
	// pod ended it, or it can no longer prove that it lives. No later call succeeds; start another session.
	ErrSessionExpired = errors.New("session expired")

	// ErrWorkConflict is returned by Session.Work when a machine that the retriever named is already worked on in the same slot.
	ErrWorkConflict = errors.New("conflicting work on machine")

	// ErrNothingToDo is returned when there is no machine to work on now. It is an answer, not a failure: try again later.
	ErrNothingToDo = errors.New("nothing to do")

	// ErrWorkLost is returned by every use of a Work that somebody else ended: its session was ended by another pod, it was over
	// its deadline, or it was released by hand. Nothing of the refused call was written. Stop touching the machine.
	ErrWorkLost = errors.New("work lost")

	// ErrAmbiguous is returned when a connection broke while its COMMIT was under way and the outcome could not be read back in
	// time. The caller must assume neither; the sweep ends what is left over.
	ErrAmbiguous = errors.New("outcome of the transaction is not known")

	// ErrClaimLost is returned to an owner of a claim that another session took over, or whose claim is over.
	ErrClaimLost = errors.New("claim is not owned by this session any more")

	// ErrClaimsOnly is returned by starts without a claim in programs whose Config.ClaimsOnly is set.
	ErrClaimsOnly = errors.New("this program has said that it starts work for claims only")

	// ErrSchemaTooOld is returned by Open when the database's schema is older than this version of the library works with.
	ErrSchemaTooOld = errors.New("database schema is too old for this version: run the migration first")
	// ErrSchemaTooNew is returned by Open and by StartSession when the database's schema is newer than this version of the library works with.
	ErrSchemaTooNew = errors.New("database schema is too new for this version: run a newer version of this program")
)

// ambiguousError marks the loss of a connection during COMMIT. It is resolved inside the library, by reading back.
type ambiguousError struct{ err error }

func (e *ambiguousError) Error() string        { return fmt.Sprintf("%v: %v", ErrAmbiguous, e.err) }
func (e *ambiguousError) Unwrap() error        { return e.err }
func (e *ambiguousError) Is(target error) bool { return target == ErrAmbiguous }

// callersError is an error of a caller's closure that looks like the loss of a connection and is not: trying again does not cure it.
type callersError struct{ err error }

func (e *callersError) Error() string { return e.err.Error() }
func (e *callersError) Unwrap() error { return e.err }

// NotStartedError says why none of the machines that a retriever named was started, where no other work was in the way. It wraps
// ErrNothingToDo.
type NotStartedError struct {
	// Machine is the last machine that was tried.
	Machine uuid.UUID
	// Reason is why: Held, AtLimit, NoSuchMachine, DatabaseNotAcknowledged.
	Reason string
}

func (e *NotStartedError) Error() string {
	return fmt.Sprintf("machine %s cannot be started on: %s", e.Machine, e.Reason)
}

// Unwrap makes errors.Is(err, ErrNothingToDo) true.
func (e *NotStartedError) Unwrap() error { return ErrNothingToDo }

// sqlState returns the SQLSTATE of a database error, or "" for any other error.
func sqlState(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code
	}
	return ""
}

// constraint returns the name of the constraint that a database error speaks of, or "".
func constraint(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.ConstraintName
	}
	return ""
}
