// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/google/uuid"
)

// ClaimRound is one retrieval for a claim by its owner: it starts works on machines that the claim selects and that the database says need
// its process, as far as free, the claim's parallelism and completions, and the limits of the providers go. The caller must end each
// work, with Claim.Spec.Backoff where it fails.
//
// ErrNothingToDo: it looked everywhere; ReviewClaim says why there is nothing. No works and no error: it has not looked everywhere yet, or
// others were faster; call again. ErrClaimLost: the claim is not this session's any more, or it is over; ReviewClaim
// of one that is over says how it ended.
func (s *Session) ClaimRound(ctx context.Context, claim *OwnedClaim, free int) ([]*Work, error) {
	works, err := s.claimRound(ctx, claim, free)
	if err != nil {
		return nil, fmt.Errorf("retrieve machines for claim %s/%s: %w", claim.Spec.Pool, claim.Spec.Key, err)
	}
	return works, nil
}

func (s *Session) claimRound(ctx context.Context, claim *OwnedClaim, free int) ([]*Work, error) {
	r, err := s.refresh(ctx, claim)
	if err != nil {
		return nil, err
	}
	if r.state != ClaimRunning {
		return nil, ErrClaimLost
	}
	room := min(int64(free), r.room())
	if room <= 0 {
		return nil, ErrNothingToDo
	}
	// What is left of the last look comes first; what else there is need not be looked at for as long as it lasts.
	works, _, err := s.startFromAll(ctx, claim, claim.walk.fresh(), room)
	room -= int64(len(works))
	if err != nil || room <= 0 {
		return works, errUnless(works, err)
	}
	sources, err := s.conn.sources(ctx, &r.spec, &claim.walk, r.left())
	if err != nil {
		return works, errUnless(works, err)
	}
	more, everywhere, err := s.startFromAll(ctx, claim, sources, room)
	works = append(works, more...)
	if err == nil && len(works) == 0 && everywhere {
		return nil, ErrNothingToDo
	}
	return works, errUnless(works, err)
}

// errUnless is an error unless works were started: these count, and the next round meets the error again.
func errUnless(works []*Work, err error) error {
	if len(works) > 0 {
		return nil
	}
	return err
}

// startFromAll starts up to room works from sources, one after the other. everywhere tells that none of them has more.
func (s *Session) startFromAll(ctx context.Context, claim *OwnedClaim, sources []source, room int64) (works []*Work, everywhere bool, err error) {
	everywhere = true
	for _, src := range sources {
		if room <= 0 {
			return works, false, nil
		}
		if !claim.mayUse(src.provider) {
			continue
		}
		got, all, err := s.startFrom(ctx, claim, src, room)
		works, room = append(works, got...), room-int64(len(got))
		if err != nil {
			return works, false, err
		}
		everywhere = everywhere && all
	}
	return works, everywhere, nil
}

func (c *OwnedClaim) mayUse(provider string) bool {
	return c == nil || c.Providers == nil || slices.Contains(c.Providers, provider)
}

// room is how many more works the claim may start, as far as its row says. The start itself decides.
func (r *claimRow) room() int64 {
	if r.spec.Suspended || r.overdue || r.obstacle != "" || r.tooManyFailed() {
		return 0
	}
	return min(r.spec.Parallelism-r.active, r.left())
}

// left is how many machines the claim has still to begin with.
func (r *claimRow) left() int64 {
	if r.spec.Completions == nil {
		return math.MaxInt64
	}
	return *r.spec.Completions - r.succeeded - r.skipped - r.active
}

func (r *claimRow) tooManyFailed() bool {
	return r.spec.MaxFailedMachines != nil && r.failed > *r.spec.MaxFailedMachines
}

// startFrom starts up to room works from one source. all tells that the source had no more.
func (s *Session) startFrom(ctx context.Context, claim *OwnedClaim, src source, room int64) (works []*Work, all bool, err error) {
	for range pagesPerRound {
		found, more, err := src.next(ctx)
		if err != nil {
			return works, false, err
		}
		// Some more than there is room for: one or the other will be locked, or not eligible any more. Each is locked for the others.
		size := room + room/8 + 1
		for len(found) > 0 && room > 0 {
			batch := found[:min(int64(len(found)), size, pageSize)]
			found = found[len(batch):]
			got, err := s.startBatchFor(ctx, claim, src.provider, batch, room)
			works, room = append(works, got...), room-int64(len(got))
			if err != nil || len(got) == 0 && src.stocked {
				src.putBack(found)
				return works, false, err
			}
			if size *= 4; len(got) > 0 {
				size = room + room/8 + 1
			}
		}
		src.putBack(found)
		if !more || room <= 0 {
			return works, !more && len(found) == 0, nil
		}
	}
	return works, false, nil
}

func (s *Session) startBatchFor(ctx context.Context, claim *OwnedClaim, provider string, batch []candidate, room int64) ([]*Work, error) {
	ids := make([]uuid.UUID, len(batch))
	for i, c := range batch {
		ids[i] = c.machine
	}
	return s.StartBatch(ctx, StartRequest{
		Process: claim.Spec.Process, Pool: claim.Spec.Pool, Provider: provider, Candidates: ids, Limit: int(room),
		Claim: &ClaimRef{Key: claim.Spec.Key, Epoch: claim.Epoch}, Timeout: claim.Spec.Timeout(),
	})
}
