// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package peer_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/peer"
)

// What ended while the workers warmed up is in the total, and does not count.
func TestDriveCountsAfterItIsWarm(t *testing.T) {
	const cycles = 40
	var done atomic.Int64
	timing := peer.Timing{Warm: 50 * time.Millisecond, During: time.Hour}
	r, err := peer.Drive(t.Context(), 2, timing, func(ctx context.Context, _ int) error {
		if done.Add(1) > cycles {
			return peer.ErrDry
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Total != cycles {
		t.Errorf("total is %d, want %d", r.Total, cycles)
	}
	if r.Cycles >= r.Total || r.Cycles < 1 || int(r.Cycles) != len(r.Latencies) {
		t.Errorf("%d of %d cycles count, with %d latencies", r.Cycles, r.Total, len(r.Latencies))
	}
	if r.Took >= timing.During || r.Took <= 0 {
		t.Errorf("took %s, although there was nothing to do any more", r.Took)
	}
	if rate := r.Rate(); rate != float64(r.Cycles)/r.Took.Seconds() {
		t.Errorf("rate is %v", rate)
	}
}

// The first error ends all workers.
func TestDriveEndsWithTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	_, err := peer.Drive(t.Context(), 3, peer.Timing{During: time.Hour}, func(ctx context.Context, worker int) error {
		if worker == 0 {
			return broken
		}
		<-ctx.Done()
		return context.Cause(ctx)
	})
	if !errors.Is(err, broken) {
		t.Errorf("Drive() = %v, want %v", err, broken)
	}
}

func TestRateOfNothing(t *testing.T) {
	if rate := (peer.Result{}).Rate(); rate != 0 {
		t.Errorf("rate is %v", rate)
	}
}
