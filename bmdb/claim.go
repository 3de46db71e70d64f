// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Modes of a claim.
const (
	ModeOnce       = "Once"       // until Completions machines are done
	ModeDrain      = "Drain"      // until no selected machine needs the process
	ModeContinuous = "Continuous" // for ever
)

// States of a claim. Complete and Failed are final.
const (
	ClaimRunning  = "Running"
	ClaimDetached = "Detached" // its last view is gone; it goes on when one comes back
	ClaimComplete = "Complete"
	ClaimFailed   = "Failed"
)

// ClaimSpec orders a process for machines of a pool. Everything up to Completions is what the key stands for, and cannot be changed.
type ClaimSpec struct {
	// Pool and Key are the claim's identity, for ever.
	Pool, Key string
	// Process is what is to be performed.
	Process string
	// Mode is Once, Drain or Continuous.
	Mode string
	// Names, Provider and Selector select machines: those that every one of them selects which is not empty. At least one must be there;
	// a Selector without terms is, and selects the whole pool. At most a thousand names.
	Names    []string
	Provider string
	Selector *Selector
	// Parameters are for whoever performs the process.
	Parameters map[string]string
	// Completions is how many machines must be done, for Once only. nil: the number of names, or 1 without names.
	Completions *int64

	// Parallelism is on how many machines work may go on at once, over all programs. 0 means 1.
	Parallelism int64
	// TimeoutSeconds bounds the work on one machine. 0 means 600.
	TimeoutSeconds int64
	// MaxAttempts is how often a machine is tried before it is quarantined for this claim. 0 means 5. Raising it tries again.
	MaxAttempts int64
	// BackoffInitialSeconds and BackoffMaximumSeconds bound the time that a machine is left alone after a failure; the period doubles
	// from the one to the other. 0 means 30 and 3600.
	BackoffInitialSeconds, BackoffMaximumSeconds int64
	// ActiveDeadlineSeconds bounds the claim, from when it was first taken up. nil: nothing does.
	ActiveDeadlineSeconds *int64
	// MaxFailedMachines is how many machines may be quarantined before the claim fails. nil: any number.
	MaxFailedMachines *int64
	// Suspended stops new starts while it is true in any view.
	Suspended bool
}

// Timeout is how long the work on one machine may take.
func (s *ClaimSpec) Timeout() time.Duration { return time.Duration(s.TimeoutSeconds) * time.Second }

// Backoff is what a failure of the claim's work is ended with.
func (s *ClaimSpec) Backoff() *Backoff {
	return &Backoff{
		Initial:  time.Duration(s.BackoffInitialSeconds) * time.Second,
		Maximum:  time.Duration(s.BackoffMaximumSeconds) * time.Second,
		Exponent: 2,
		Jitter:   true,
	}
}

// Attachment is a claim's row as AttachClaim left it.
type Attachment struct {
	// Manages tells whether this view manages. If not, Manager is the cluster of the one that does.
	Manages bool
	Manager string
	// State is one of the Claim constants.
	State string
	// Rev is the revision of the claim's row.
	Rev int64
}

// KeyConflictError says that a key stands for another spec already. Nothing was changed.
type KeyConflictError struct {
	Pool, Key string
	// Cluster and Name are those of the managing view; empty if no view is left.
	Cluster, Name string
}

func (e *KeyConflictError) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("key %s of pool %s stands for another spec, whose object is gone", e.Key, e.Pool)
	}
	return fmt.Sprintf("key %s of pool %s stands for another spec, that of object %s in cluster %q", e.Key, e.Pool, e.Name, e.Cluster)
}

// ErrNoSuchClaim is returned where a claim is named that the database does not have.
var ErrNoSuchClaim = fmt.Errorf("no such claim")

// ClaimSnapshot is everything that the status of a claim shows, as of one moment. Times are by the database's clock.
type ClaimSnapshot struct {
	Pool, Key     string
	Process, Mode string
	Rev           int64
	Standing      Standing // as objects show it
	State         string
	// Reason and Message are the last outlook, or how the claim ended.
	Reason, Message string
	// Completions is nil unless the mode is Once.
	Completions *int64
	// Active is how many works go on; Succeeded how many machines, or works in Continuous, are done; Failed how many machines are quarantined;
	// Skipped how many named machines did not need the process, which count as done; Selected how many machines the last count of them
	// found selected, 0 before the first, and Unneeded how many of these needed nothing that the claim had not done itself.
	Active, Succeeded, Failed, Skipped, Selected, Unneeded int64
	Suspended                                              bool
	CreatedAt                                              time.Time
	StartedAt, DeadlineAt, CompletedAt                     *time.Time
	// Owner and OwnerCluster say whose session owns the claim, for people; empty: nobody's that lives.
	Owner, OwnerCluster string
	// Manager is the managing view; nil: none.
	Manager         *View
	Works           []ClaimWork    // the oldest first, at most as many as asked for
	Failures        []ClaimFailure // machines that failed and are not done, the latest first, at most as many as asked for
	SkippedMachines []string       // at most as many as asked for
}

// ClaimWork is a work that is being done for a claim.
type ClaimWork struct {
	Machine uuid.UUID
	Name    string // of the machine; its ID if it has none
	WorkID  uuid.UUID
	Attempt int64
	Holder  string
	Cluster string
	Start   time.Time
	Step    string
	Percent int
}

// ClaimFailure is a machine on which work for a claim failed.
type ClaimFailure struct {
	Machine     uuid.UUID
	Name        string // of the machine; its ID if it has none
	Attempts    int64
	Losses      int64
	Cause       string
	Quarantined bool
	At          time.Time
}

// OwnedClaim is a claim that a session owns in one term. One goroutine uses it at a time; it keeps the place where the owner's walk over the
// machines goes on.
type OwnedClaim struct {
	// Epoch is the term: it changes with each owner.
	Epoch int64
	// Providers are those whose machines may be worked on now; nil: all of them. The owner sets it before a round: nothing is locked that
	// could not be reached.
	Providers []string
	// Spec is the claim's spec as of the last round or review.
	Spec ClaimSpec
	// Active, Succeeded, Failed and Skipped are its counts as of then.
	Active, Succeeded, Failed, Skipped int64
	// Reason is the reason in the claim's row as of then.
	Reason string

	walk    walk
	counted boottime      // when a census began; zero: none in this term
	costs   time.Duration // of the last census
}

// Reasons of an Outlook, and of a claim's row: why nothing more can be started now, or how the claim ended. They are spelled like the
// reasons of conditions.
const (
	OutlookPending                = "Pending" // nothing was looked at yet
	OutlookWorking                = "Working"
	OutlookIdle                   = "Idle" // Continuous only: no selected machine needs the process
	OutlookSuspended              = "Suspended"
	OutlookNoMachineSelected      = "NoMachineSelected"
	OutlookNotNeeded              = "NotNeeded"
	OutlookBackedOff              = "BackedOff"
	OutlookAtLimit                = "AtLimit"
	OutlookHeld                   = "Held"
	OutlookLockedBy               = "LockedBy"
	OutlookProviderNotReady       = "ProviderNotReady"
	OutlookNoSuchMachine          = "NoSuchMachine"
	OutlookQuarantined            = "Quarantined"
	OutlookProcessNotAvailable    = "ProcessNotAvailable"
	OutlookProcessNotConvergent   = "ProcessNotConvergent"
	OutlookComplete               = "Complete"
	OutlookDeadlineExceeded       = "DeadlineExceeded"
	OutlookTooManyFailedMachines  = "TooManyFailedMachines"
	OutlookCompletionsUnreachable = "CompletionsUnreachable"
	OutlookDatabaseChanged        = DatabaseChanged
	OutlookDatabaseRewound        = DatabaseRewound
)

// Outlook is what a review of a claim found: whether it goes on, and if nothing can be started now, why.
type Outlook struct {
	// State is one of the Claim constants; Complete and Failed are final.
	State string
	// Reason is one of the Outlook constants, Message a line that a person can act on.
	Reason, Message string
	// RetryAfter is when it is worth to look again, if nothing wakes the owner before. 0: the claim is over.
	RetryAfter time.Duration
}

// ClaimLimits bound the lists of a ClaimSnapshot. Zero means 20.
type ClaimLimits struct{ Works, Failures, Skipped int }
