// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// Ends of different works gather while one group commits, and one that is not ours any more costs the others nothing.
func TestStaleMemberCostsTheGroupNothing(t *testing.T) {
	t.Parallel()
	testGroup(t, func(l *lab, w *bmdb.Work) {
		l.exec("UPDATE machine_state SET rev = rev + 1 WHERE machine_id = $1", w.Machine)
		l.exec(`INSERT INTO work_history SELECT machine_id, work_id, 1, process, 'Lost', clock_timestamp(), NULL, session_id, pool, claim_key, fence, attempt, 0, ''
			FROM work WHERE work_id = $1`, w.ID())
		l.exec("UPDATE work SET work_id = NULL, state = 0 WHERE work_id = $1", w.ID())
	}, bmdb.ErrWorkLost)
}

// What the database cannot store splits the group, and costs only its own member the commit.
func TestDataErrorSplitsOnlyTheGroup(t *testing.T) {
	t.Parallel()
	testGroup(t, func(l *lab, w *bmdb.Work) {
		l.exec("ALTER TABLE machine_agent_started ADD CHECK (agent_public_key <> '" + string(keyOf(w)) + "')")
	}, nil)
}

func testGroup(t *testing.T, spoil func(l *lab, w *bmdb.Work), want error) {
	const members = 7
	g := &gates{}
	l := newLab(t, g.config)
	ctx := t.Context()
	s := l.session(bmdb.WithoutBeat())
	var works []*bmdb.Work
	for i := range members + 2 {
		works = append(works, l.work(s, model.ProcessAgentStart, provided(t, s, fmt.Sprint(i))))
	}
	errs := make([]error, len(works))
	var wg sync.WaitGroup
	finish := func(i int) {
		wg.Go(func() { errs[i] = works[i].FinishData(ctx, bmdb.Outcome{AgentPublicKey: keyOf(works[i])}) })
	}
	// Both committers are kept busy, so that the others gather.
	var stops []*gate
	for i := range 2 {
		stop := g.at("end", "LockMachines")
		stops = append(stops, stop)
		finish(i)
		done(t, "a committer", stop.reached)
	}
	spoil(l, works[4])
	for i := 2; i < len(works); i++ {
		finish(i)
	}
	g.mu.Lock()
	g.seen = nil
	g.mu.Unlock()
	for _, stop := range stops {
		stop.open <- nil
	}
	wg.Wait()
	for i, err := range errs {
		switch {
		case i == 4 && (err == nil || want != nil && !errors.Is(err, want)):
			t.Errorf("the bad member: %v, want %v", err, want)
		case i != 4 && err != nil:
			t.Errorf("member %d: %v", i, err)
		case i != 4 && l.end(works[i].ID()) != bmdb.EventFinished:
			t.Errorf("member %d ended as %q", i, l.end(works[i].ID()))
		}
	}
	if n := l.int("SELECT count(*) FROM machine_agent_started"); n != members+1 {
		t.Errorf("%d agents, want %d", n, members+1)
	}
	commits := 0
	for _, at := range g.seen {
		if at.Statement == "COMMIT" {
			commits++
		}
	}
	if want != nil && commits >= members {
		t.Errorf("%d commits for %d ends: they were not grouped", commits, members+2)
	}
	checkInvariants(t, l.db)
}

// A cause is what a device said, whatever bytes that is. It must not keep the end from being written.
func TestCauseOfAnyBytes(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.session()
	for i, cause := range []string{"nul \x00 byte", "no \xff\xfe UTF-8", strings.Repeat("é", 2000), "cut \xf0\x9f\x98" + strings.Repeat("x", 3000)} {
		w := l.work(s, model.ProcessAgentStart, provided(t, s, fmt.Sprint(i)))
		if err := w.Fail(t.Context(), nil, cause); err != nil {
			t.Errorf("cause %d: %v", i, err)
		}
	}
}

// Periods are whole seconds, rounded up, and grow per machine and process.
func TestBackoffArithmetic(t *testing.T) {
	t.Parallel()
	const s = time.Second
	for name, c := range map[string]struct {
		backoff *bmdb.Backoff
		last    int64
		want    int64
	}{
		"nil begins with a second":         {nil, 0, 1},
		"nil goes on":                      {nil, 7, 7},
		"zero":                             {&bmdb.Backoff{}, 0, 1},
		"rounded up":                       {&bmdb.Backoff{Initial: 1100 * time.Millisecond}, 0, 2},
		"a nanosecond more":                {&bmdb.Backoff{Initial: 3*s + 1}, 0, 4},
		"whole":                            {&bmdb.Backoff{Initial: 3 * s}, 0, 3},
		"first":                            {&bmdb.Backoff{Initial: 2 * s, Maximum: 60 * s, Exponent: 2}, 0, 2},
		"second":                           {&bmdb.Backoff{Initial: 2 * s, Maximum: 60 * s, Exponent: 2}, 2, 4},
		"factor rounded up":                {&bmdb.Backoff{Initial: s, Maximum: 60 * s, Exponent: 1.1}, 5, 6},
		"a factor that would stand still":  {&bmdb.Backoff{Initial: s, Maximum: 60 * s, Exponent: 1.01}, 1, 2},
		"bounded":                          {&bmdb.Backoff{Initial: s, Maximum: 60 * s, Exponent: 10}, 59, 60},
		"bound rounded up":                 {&bmdb.Backoff{Initial: s, Maximum: 2500 * time.Millisecond, Exponent: 10}, 1, 3},
		"the bound under the first counts": {&bmdb.Backoff{Initial: 10 * s, Maximum: s, Exponent: 2}, 10, 10},
		"all the same":                     {&bmdb.Backoff{Initial: 5 * s, Maximum: 60 * s, Exponent: 1}, 40, 5},
		"overflow":                         {&bmdb.Backoff{Initial: s, Maximum: 1<<63 - 1, Exponent: 1e300}, 1 << 40, 9223372037},
		"longest":                          {&bmdb.Backoff{Initial: 1<<63 - 1}, 0, 9223372037},
	} {
		if got := c.backoff.Next(c.last); got != c.want {
			t.Errorf("%s: %d s, want %d s", name, got, c.want)
		}
	}
	jitter := &bmdb.Backoff{Initial: 100 * s, Jitter: true}
	seen := map[int64]bool{}
	for range 1000 {
		d := jitter.Delay(100)
		if d < 1 || d > 100 {
			t.Fatalf("a delay of %d s in a period of 100 s", d)
		}
		seen[d] = true
	}
	if len(seen) < 50 {
		t.Errorf("only %d different delays of 1000", len(seen))
	}
	if d := (&bmdb.Backoff{}).Delay(100); d != 100 {
		t.Errorf("a delay of %d s without jitter", d)
	}
}
