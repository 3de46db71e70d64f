// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker_test

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/worker"
)

// Places that are given to somebody who leaves at that moment are not lost.
func TestPlacesOfWhoLeavesComeBack(t *testing.T) {
	p := worker.NewPool(2)
	first := p.Share(func() int64 { return 0 })
	for range 100 {
		if n, err := first.Take(t.Context(), 2); n != 2 || err != nil {
			t.Fatalf("took %d: %v", n, err)
		}
		ctx, leave := context.WithCancel(t.Context())
		left := make(chan struct{})
		var given atomic.Bool
		go func() {
			defer close(left)
			s := p.Share(func() int64 {
				if given.Load() {
					leave()
				}
				return 0
			})
			defer s.Forget()
			n, err := s.Take(ctx, 2)
			if err == nil {
				p.Give(n)
			}
		}()
		for p.Waiting() == 0 {
			runtime.Gosched()
		}
		given.Store(true)
		p.Give(2)
		<-left
		if n := p.Used(); n != 0 {
			t.Fatalf("%d places are taken, and nobody has them", n)
		}
	}
}

// holder is somebody who has places.
type holder struct {
	worker.Share

	has atomic.Int64
}

func newHolder(p worker.Pool) *holder {
	h := &holder{}
	h.Share = p.Share(h.has.Load)
	return h
}

// take takes places, and must get that many.
func (h *holder) take(t *testing.T, want, get int) {
	t.Helper()
	n, err := h.Take(t.Context(), want)
	if err != nil || n != get {
		t.Fatalf("got %d places of %d, want %d (%v)", n, want, get, err)
	}
	h.has.Add(int64(n))
}

// give gives places back.
func (h *holder) give(p worker.Pool, n int) {
	h.has.Add(-int64(n))
	p.Give(n)
}

// await is take in a goroutine, once it waits. The test is in a bubble.
func (h *holder) await(t *testing.T, want int) (got chan int) {
	t.Helper()
	got = make(chan int, 1)
	go func() {
		n, err := h.Take(t.Context(), want)
		if err == nil {
			h.has.Add(int64(n))
		}
		got <- n
	}()
	synctest.Wait()
	return got
}

// Who keeps its places gets no further one of those that others wanted a moment ago, although none of them waits when it is free. Once they want none, it does.
func TestPlacesAreLeftToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := worker.NewPool(12)
		slow, a, b := newHolder(p), newHolder(p), newHolder(p)
		a.take(t, 12, 12)
		later := b.await(t, 12)
		a.give(p, 12)
		if n := <-later; n != 6 {
			t.Fatalf("the second got %d places, want 6", n)
		}
		a.take(t, 12, 6)
		slows := slow.await(t, 12)
		a.give(p, 6)
		if n := <-slows; n != 4 {
			t.Fatalf("the third got %d places, want 4", n)
		}
		more := slow.await(t, 8)
		b.give(p, 3) // has 3, and 5 are free
		a.take(t, 12, 4)
		select {
		case n := <-more:
			t.Fatalf("who has its part got %d more places", n)
		case <-time.After(300 * time.Millisecond):
		}
		a.give(p, 4)
		a.Forget()
		b.give(p, 3)
		b.Forget()
		if n := <-more; n != 8 {
			t.Errorf("got %d places when nobody else wanted any, want 8", n)
		}
	})
}

// Who asked once and is silent since has no places left to it for long.
func TestPlacesAreNotLeftToWhoIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := worker.NewPool(12)
		slow, silent := newHolder(p), newHolder(p)
		silent.take(t, 12, 12)
		got := slow.await(t, 12)
		silent.give(p, 12)
		if n := <-got; n != 6 {
			t.Fatalf("got %d places, want 6", n)
		}
		began := time.Now()
		slow.take(t, 6, 6)
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("places were left to nobody for %s", took)
		}
	})
}

// Who could not use what it got has no places left to it.
func TestPlacesAreNotLeftToWhoCannotUseThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := worker.NewPool(12)
		few, many := newHolder(p), newHolder(p)
		few.take(t, 12, 12)
		few.has.Store(0) // not begun yet
		few.Back(10, 2)
		few.has.Store(2)
		many.take(t, 12, 10)
		if n := p.Used(); n != 12 {
			t.Errorf("%d places are taken, want 12", n)
		}
	})
}
