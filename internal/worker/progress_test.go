// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// shows is an owner that counts writes of progress, and fails for a time once works are uploading.
type shows struct {
	*bmdb.Session

	mu             sync.Mutex
	writes, failed int
}

func (o *shows) ShowProgress(ctx context.Context, list []bmdb.Progress) ([]*bmdb.Work, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.writes++
	if o.failed < 3 && slices.ContainsFunc(list, func(p bmdb.Progress) bool { return p.Step == "Upload" }) {
		o.failed++
		return nil, errors.New("try again")
	}
	return o.Session.ShowProgress(ctx, list)
}

// How far works are is written for all of them at once, tried again, and not written for those that are over before.
func TestProgressIsShownTogether(t *testing.T) {
	long, short := ids(20, "long"), ids(20, "short")
	l := newLab(t, 64, append(long, short...)...)
	release := make(chan struct{})
	for _, m := range long {
		l.on(m, func(ctx context.Context, m provider.Machine, s provider.Steps) (provider.Agent, error) {
			if err := s.Step(ctx, "Upload", 30); err != nil {
				return provider.Agent{}, err
			}
			<-release
			return agentOf(m), nil
		})
	}
	o := &shows{}
	l.serveWith(l.engine, func(s *bmdb.Session) owner { o.Session = s; return o })
	l.claim("short", func(c *bmdb.ClaimSpec) { c.Parallelism = 20 }, short...)
	l.claim("long", func(c *bmdb.ClaimSpec) { c.Parallelism = 20 }, long...)
	l.await("short", bmdb.ClaimComplete, "Complete")
	l.eventually("all that goes on is shown", func() error {
		s, err := l.conn.ClaimSnapshot(t.Context(), pool, "long", bmdb.ClaimLimits{Works: len(long)})
		if err != nil {
			return err
		}
		for _, w := range s.Works {
			if w.Step != "Upload" || w.Percent != 30 {
				return fmt.Errorf("%s is shown at %q, %d %%", w.Name, w.Step, w.Percent)
			}
		}
		if len(s.Works) != len(long) || l.count(l.changed, "long") == 0 {
			return fmt.Errorf("%d works are shown, and the claim %d times", len(s.Works), l.count(l.changed, "long"))
		}
		return nil
	})
	close(release)
	l.await("long", bmdb.ClaimComplete, "Complete")
	l.settled()
	o.mu.Lock()
	defer o.mu.Unlock()
	// Works of the short claim may be caught by a write; not each of them is one.
	if o.failed < 3 || o.writes > 10 {
		t.Errorf("there were %d writes for %d works, of which %d failed", o.writes, len(long)+len(short), o.failed)
	}
}
