// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// How long an owner may wait before it looks again.
const (
	retrySoon   = time.Second      // something may be started
	retryLater  = 5 * time.Second  // it depends on others
	retryRarely = 15 * time.Second // it depends on people, or on machines that are not there yet
	// reviewPage is how many machines are classified in one statement.
	reviewPage = 5000
)

// Classes of a machine for a claim: the first gate that a start on it does not pass. They are the words of the statement.
const (
	classDone        = "Done"
	classActive      = "Active"
	classFulfilled   = "Fulfilled"
	classNotNeeded   = "NotNeeded"
	classQuarantined = "Quarantined"
	classHeld        = "Held"
	classLockedBy    = "LockedBy"
	classBackedOff   = "BackedOff"
	classAtLimit     = "AtLimit"
	classReady       = "Ready"
	// classProviderNotReady are those that would be Ready, were it not for their provider: only the owner knows.
	classProviderNotReady = "ProviderNotReady"
)

// ReviewClaim finds out whether a claim that its owner owns is over, and if not, why nothing more can be started for it now; and writes that to
// the claim's row where it differs. Call it when ClaimRound returns ErrNothingToDo, and again after Outlook.RetryAfter. It locks nothing
// that work is done under, and reads every selected machine, in pages, if no work of the claim goes on or the claim has names.
//
// Named machines that do not need the process are marked as skipped, in mode Once. The outlook of a claim that is over is returned without an
// error, as often as it is asked for. ErrClaimLost: the claim is not this session's any more.
func (s *Session) ReviewClaim(ctx context.Context, claim *OwnedClaim) (Outlook, error) {
	out, err := s.reviewClaim(ctx, claim)
	if err != nil {
		return Outlook{}, fmt.Errorf("review claim %s/%s: %w", claim.Spec.Pool, claim.Spec.Key, err)
	}
	return out, nil
}

func (s *Session) reviewClaim(ctx context.Context, claim *OwnedClaim) (Outlook, error) {
	r, err := s.refresh(ctx, claim)
	if err != nil {
		return Outlook{}, err
	}
	if r.state != ClaimRunning {
		return Outlook{State: r.state, Reason: r.reason, Message: r.message}, nil
	}
	// A machine that was quarantined while attempts were added.
	if r.failed > 0 && !r.doubtful() {
		released := false
		err := s.conn.transact(ctx, "review claim", func(_ context.Context, tx *Tx) error {
			released = false
			tx.queueRows("ReleaseQuarantined", sqlReleaseQuarantined, []any{r.spec.Pool, r.spec.Key, false}, func(pgx.Rows) error { released = true; return nil })
			return nil
		})
		if err != nil {
			return Outlook{}, err
		}
		if released {
			return s.reviewClaim(ctx, claim)
		}
	}
	began := now()
	c := &census{row: r, conn: s.conn, claim: claim}
	if claim.censusDue(r) {
		if err := c.take(ctx); err != nil {
			return Outlook{}, err
		}
		claim.counted, claim.costs = began, now().sub(began)
		if r.doubtful() {
			// What it knows of the machines may be out of date.
		} else if n, err := s.skipNames(ctx, claim, c); err != nil {
			return Outlook{}, err
		} else if n > 0 {
			return s.reviewClaim(ctx, claim)
		}
	}
	out, err := c.outlook(ctx)
	if err != nil {
		return Outlook{}, err
	}
	if c.taken {
		r.selected, r.unneeded = c.selected, c.count(classNotNeeded, classFulfilled)
	}
	if out.State != ClaimRunning {
		return s.endClaim(ctx, claim, r, out)
	}
	// Looking at a large selection again costs as much as it did now.
	out.RetryAfter = max(out.RetryAfter, 10*now().sub(began))
	return out, s.writeOutlook(ctx, claim, r, out)
}

// censusDue tells whether the selected machines are to be looked at. While work goes on the verdict does not need it; but a Drain shows how far
// it is among all of them, which takes a look now and then.
func (o *OwnedClaim) censusDue(r *claimRow) bool {
	if r.active == 0 || len(r.spec.Names) > 0 {
		return true
	}
	return r.spec.Mode == ModeDrain && (o.counted == 0 || now().sub(o.counted) >= max(retryRarely, 50*o.costs))
}

// skipNames marks the named machines that do not need the process as skipped, as far as the claim has room for them, and returns how many
// were.
func (s *Session) skipNames(ctx context.Context, claim *OwnedClaim, c *census) (int64, error) {
	if claim.Spec.Mode != ModeOnce || len(claim.Spec.Names) == 0 || c.count(classFulfilled) == 0 || c.row.room() == 0 && c.row.active == 0 {
		return 0, nil
	}
	key := []any{claim.Spec.Pool, claim.Spec.Key, s.UUID, claim.Epoch}
	var skipped int64
	err := s.conn.transact(ctx, "skip machines", func(ctx context.Context, tx *Tx) error {
		var room int64
		var fulfilled []uuid.UUID
		tx.queueRows("RoomToSkip", sqlRoomToSkip, key, func(row pgx.Rows) error { return row.Scan(&room) })
		tx.queueRows("FulfilledOfNames", sqlFulfilledOfNames, append(claim.Spec.selectionArgs(), claim.Spec.Names), scanIDs(&fulfilled))
		if err := tx.flush(ctx); err != nil {
			return err
		}
		skipped = 0
		if room <= 0 || len(fulfilled) == 0 {
			return nil
		}
		quarantined := int64(0)
		args := []any{claim.Spec.Pool, claim.Spec.Key, fulfilled[:min(int64(len(fulfilled)), room)]}
		tx.queueRows("QuarantinedOf", sqlQuarantinedOf, args, func(row pgx.Rows) error { return row.Scan(&quarantined) })
		tx.queueRows("Skip", sqlSkip, args, func(pgx.Rows) error { skipped++; return nil })
		if err := tx.flush(ctx); err != nil || skipped == 0 {
			return err
		}
		tx.queue("CountSkipped", sqlCountSkipped, append(append([]any{}, key...), skipped, quarantined)...)
		return nil
	})
	return skipped, err
}

func scanIDs(ids *[]uuid.UUID) func(row pgx.Rows) error {
	return func(row pgx.Rows) error {
		var id uuid.UUID
		err := row.Scan(&id)
		*ids = append(*ids, id)
		return err
	}
}

// writeOutlook shows what the owner found. It changes nothing where that is known already.
func (s *Session) writeOutlook(ctx context.Context, claim *OwnedClaim, r *claimRow, out Outlook) error {
	return s.conn.transact(ctx, "write outlook", func(_ context.Context, tx *Tx) error {
		tx.queue("WriteOutlook", sqlWriteOutlook, claim.Spec.Pool, claim.Spec.Key, s.UUID, claim.Epoch, out.Reason, bounded(out.Message), r.selected, r.unneeded)
		return nil
	})
}

// endClaim ends the claim for ever, unless its row is another by now than the one that the verdict was made from.
func (s *Session) endClaim(ctx context.Context, claim *OwnedClaim, r *claimRow, out Outlook) (Outlook, error) {
	ended := false
	args := []any{claim.Spec.Pool, claim.Spec.Key, s.UUID, claim.Epoch, out.State, out.Reason, bounded(out.Message), r.selected, r.unneeded, r.rev}
	err := s.conn.transact(ctx, "end claim", func(_ context.Context, tx *Tx) error {
		ended = false
		tx.queueRows("EndClaim", sqlEndClaim, args, func(pgx.Rows) error { ended = true; return nil })
		return nil
	})
	if err != nil {
		return Outlook{}, err
	}
	if !ended {
		return Outlook{State: ClaimRunning, Reason: OutlookWorking, RetryAfter: retrySoon}, nil
	}
	s.forget(claim)
	return out, nil
}

// tally is how many machines are in one class for one reason, when the first of them passes, and one of them.
type tally struct {
	class, failing string
	machines       int64
	passes         *time.Time
	example        string
}

// census is how many of the selected machines are in which class.
type census struct {
	conn     *Connection
	row      *claimRow
	claim    *OwnedClaim
	taken    bool
	tallies  []tally
	missing  []string // names that no machine has
	selected int64
}

func (c *census) take(ctx context.Context) error {
	c.taken = true
	spec := &c.row.spec
	if len(spec.Names) > 0 {
		err := c.conn.read(ctx, "MissingNames", sqlMissingNames, []any{spec.Pool, spec.Names}, func() { c.missing = nil }, func(row pgx.Rows) error {
			var name string
			err := row.Scan(&name)
			c.missing = append(c.missing, name)
			return err
		})
		if err != nil {
			return err
		}
		if c.claim == nil || c.claim.Providers == nil {
			_, _, err = c.add(ctx, "ReviewNames", sqlReviewNames, spec, spec.Names)
			return err
		}
	}
	providers, err := c.providers(ctx)
	if err != nil {
		return err
	}
	for _, p := range providers {
		of := *spec
		of.Provider = p
		if len(spec.Names) > 0 {
			if _, _, err := c.add(ctx, "ReviewNames", sqlReviewNames, &of, spec.Names); err != nil {
				return err
			}
			continue
		}
		for last, more := uuid.Nil, true; more; {
			n, end, err := c.add(ctx, "ReviewPage", sqlReviewPage, &of, last, reviewPage)
			if err != nil {
				return err
			}
			last, more = end, n == reviewPage
		}
	}
	return nil
}

// providers are those that the selected machines may have.
func (c *census) providers(ctx context.Context) (providers []string, err error) {
	if p := c.row.spec.Provider; p != "" {
		return []string{p}, nil
	}
	err = c.conn.read(ctx, "ProvidersOfPool", sqlProvidersOfPool, []any{c.row.spec.Pool}, func() { providers = nil }, func(row pgx.Rows) error {
		var p string
		err := row.Scan(&p)
		providers = append(providers, p)
		return err
	})
	return providers, err
}

// add classifies a page of machines, of the provider of a spec if it has one, and returns how many it had and the last of them.
func (c *census) add(ctx context.Context, name, sql string, of *ClaimSpec, args ...any) (machines int64, last uuid.UUID, err error) {
	var page []tally
	unready := of.Provider != "" && !c.claim.mayUse(of.Provider)
	err = c.conn.read(ctx, name, sql, append(of.selectionArgs(), args...), func() { page, machines, last = nil, 0, uuid.Nil }, func(row pgx.Rows) error {
		var t tally
		var example *string
		if err := row.Scan(&t.class, &t.failing, &t.machines, &t.passes, &example); err != nil {
			return err
		}
		if example != nil {
			t.example = *example
		}
		if t.class == classReady && unready {
			t.class, t.failing = classProviderNotReady, of.Provider
		}
		if t.class != "" {
			page = append(page, t)
			return nil
		}
		machines = t.machines
		if t.example == "" {
			return nil
		}
		var err error
		last, err = uuid.Parse(t.example)
		return err
	})
	for _, t := range page {
		c.selected += t.machines
		c.merge(t)
	}
	return machines, last, err
}

func (c *census) merge(t tally) {
	for i := range c.tallies {
		o := &c.tallies[i]
		if o.class != t.class || o.failing != t.failing {
			continue
		}
		o.machines += t.machines
		if o.passes == nil || t.passes != nil && t.passes.Before(*o.passes) {
			o.passes = t.passes
		}
		return
	}
	c.tallies = append(c.tallies, t)
}

// count is how many machines are in any of the classes.
func (c *census) count(classes ...string) (n int64) {
	for _, t := range c.tallies {
		for _, class := range classes {
			if t.class == class {
				n += t.machines
			}
		}
	}
	return n
}

// largest is the most frequent reason of a class.
func (c *census) largest(class string) (largest tally) {
	for _, t := range c.tallies {
		if t.class == class && t.machines > largest.machines {
			largest = t
		}
	}
	return largest
}

// jitter spreads owners that wait for the same.
func jitter(d time.Duration) time.Duration { return d + rand.N(d/5+1) }
