// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"sync"
	"time"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// showEvery is between two writes of how far works are.
const showEvery = time.Second

// progress is what is to be shown of works: the latest of each, written for all of them together, and not at all for those that are over before.
// A commit for each step would cost more than the work of a machine that answers at once. It is safe for concurrent use.
type progress struct {
	some chan struct{} // holds a value while there may be something to show

	mu sync.Mutex
	of map[*bmdb.Work]shown
}

// shown is how far a work is, and for which claim it is done.
type shown struct {
	claim   claimID
	step    string
	percent int
}

func newProgress() *progress {
	return &progress{some: make(chan struct{}, 1), of: map[*bmdb.Work]shown{}}
}

// note remembers how far a work is. It does not block.
func (p *progress) note(w *bmdb.Work, s shown) {
	p.mu.Lock()
	p.of[w] = s
	p.mu.Unlock()
	p.wake()
}

func (p *progress) wake() {
	select {
	case p.some <- struct{}{}:
	default:
	}
}

// list is what there is to show, of works that are not over.
func (p *progress) list() (list []bmdb.Progress, of map[*bmdb.Work]shown) {
	p.mu.Lock()
	defer p.mu.Unlock()
	of = make(map[*bmdb.Work]shown, len(p.of))
	for w, s := range p.of {
		if w.Context().Err() != nil {
			delete(p.of, w)
			continue
		}
		list, of[w] = append(list, bmdb.Progress{Work: w, Step: s.step, Percent: s.percent}), s
	}
	return list, of
}

// done forgets what was shown, unless there is something newer, and tells whether something is left.
func (p *progress) done(works []*bmdb.Work, of map[*bmdb.Work]shown) (left bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range works {
		if p.of[w] == of[w] {
			delete(p.of, w)
		}
	}
	return len(p.of) > 0
}

// showProgress writes how far the works under a session are, until ctx is done.
func (e *Engine) showProgress(ctx context.Context, owner Owner) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.progress.some:
		}
		pause := time.NewTimer(showEvery)
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
		list, of := e.progress.list()
		if len(list) == 0 {
			continue
		}
		works, err := owner.ShowProgress(ctx, list)
		if err != nil {
			e.log.Info("cannot show how far works are; it is tried again", "error", err.Error())
		}
		if e.progress.done(works, of) {
			e.progress.wake()
		}
		changed := map[claimID]bool{}
		for _, w := range works {
			if id := of[w].claim; !changed[id] {
				changed[id] = true
				e.objects.ClaimChanged(id.pool, id.key)
			}
		}
	}
}
