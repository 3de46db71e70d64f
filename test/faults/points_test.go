// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"fmt"
	"hash/fnv"
	"slices"
	"sync"

	"github.com/bmdb-dev/bmdb-operator/internal/provider/witnessed"
	"github.com/bmdb-dev/bmdb-operator/test/faults/bmc"
	"github.com/bmdb-dev/bmdb-operator/test/faults/wire"
)

// stage is a part of the life of claims, works and sessions, known by a statement that only it has.
type stage struct {
	name       string
	statements []string
}

// reaper is the stage in which a pod ends the sessions of others.
const reaper = "reaper"

// stages are those that every strike must have hit, on each side of their round trips.
func stages() []stage {
	return []stage{
		{"own a claim", []string{"TakeClaims"}},
		{"retrieval", []string{"StartBatch"}},
		{"check before a step", []string{"Check"}},
		{"commit", []string{"End"}},
		{"counts of an end", []string{"CountEnds"}},
		{"review of a claim", []string{"LockForReview", "WriteOutlook", "CountSkipped"}},
		{"end of a claim", []string{"EndClaim"}},
		{"start of a session", []string{"StartSession"}},
		{"beat", []string{"Beat"}},
		{reaper, []string{"KillSession", "WorksOfSession"}},
		{"hand-over", []string{"ExpireLease", "EndSession"}},
	}
}

// stageOf is the stage of a round trip; empty for none of those above.
func stageOf(t *wire.Trip) string {
	for _, s := range stages() {
		if slices.ContainsFunc(s.statements, t.Has) {
			return s.name
		}
	}
	return ""
}

// witnessStage is that of points at the machines.
const witnessStage = "side effect"

// points finds the points that there are while operators work, and says which of them are to be struck now: each once, when it is first
// passed. It is safe for concurrent use.
type points struct {
	all bool // every tear

	mu     sync.Mutex
	wide   bool              // also round trips of no stage
	known  map[string]string // points, with their stage
	struck map[string]bool
}

func newPoints(all bool) *points {
	return &points{all: all, known: map[string]string{}, struck: map[string]bool{}}
}

// pass learns of a point that is passed, and tells whether it is to be struck. Whoever is told so must strike, or give it back.
func (q *points) pass(stage, point string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if stage == "" && !q.wide {
		return false
	}
	q.known[point] = stage
	if q.struck[point] {
		return false
	}
	q.struck[point] = true
	return true
}

// widen says whether round trips of no stage are to be struck, too. At first they are not.
func (q *points) widen(wide bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wide = wide
}

// giveBack says that a point was not struck after all.
func (q *points) giveBack(point string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.struck, point)
}

// tears are the places at which a round trip is to be torn: all of them, or one that the seed and its name choose.
func (q *points) tears(t *wire.Trip) []int {
	n := len(t.Statements)
	if n < 2 {
		return nil
	}
	if !q.all {
		sum := fnv.New64a()
		fmt.Fprint(sum, run.seed, t.Name())
		return []int{1 + int(sum.Sum64()%uint64(n-1))}
	}
	all := make([]int, n-1)
	for i := range all {
		all[i] = i + 1
	}
	return all
}

// next says at which point a round trip that is about to be sent is to be struck. It lets a stage through that was struck before its round trips and not
// yet after one: some come in so many forms that there would always be another to be struck first.
func (q *points) next(t *wire.Trip) (wire.Point, bool) {
	stage := stageOf(t)
	if stage != "" && q.half(stage) {
		return wire.Point{}, false
	}
	at := wire.Point{Trip: t.Name(), Side: wire.Before}
	if q.pass(stage, at.String()) {
		return at, true
	}
	for _, i := range q.tears(t) {
		at = wire.Point{Trip: t.Name(), Side: wire.Torn, Index: i}
		if q.pass(stage, at.String()) {
			return at, true
		}
	}
	return wire.Point{}, false
}

// half tells whether a stage was struck before a round trip, and not yet after one.
func (q *points) half(stage string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.has(stage, wire.Before) && !q.has(stage, wire.After)
}

// has tells whether a stage was struck on a side. The caller holds the mutex.
func (q *points) has(stage string, side wire.Side) bool {
	for point := range q.struck {
		if q.known[point] == stage && sideOf(point) == side.String() {
			return true
		}
	}
	return false
}

// missing are the stages and sides of which nothing was struck yet.
func (q *points) missing() (list []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range stages() {
		for _, side := range []wire.Side{wire.Before, wire.After} {
			if !q.has(s.name, side) {
				list = append(list, s.name+": "+side.String())
			}
		}
	}
	for _, kind := range []string{witnessed.Begin, witnessed.Step + " Connect", witnessed.Step + " Start", witnessed.End} {
		for _, side := range []string{"asked", "done"} {
			if !q.struck[kind+": "+side] {
				list = append(list, kind+": "+side)
			}
		}
	}
	return list
}

func sideOf(point string) string {
	for _, side := range []wire.Side{wire.Before, wire.After} {
		if len(point) > len(side.String()) && point[len(point)-len(side.String()):] == side.String() {
			return side.String()
		}
	}
	return ""
}

// count says how many points were struck, by stage.
func (q *points) count() map[string]int {
	q.mu.Lock()
	defer q.mu.Unlock()
	counts := map[string]int{}
	for point := range q.struck {
		counts[q.known[point]]++
	}
	return counts
}

// witnessPoint is a point at the machines.
func witnessPoint(at bmc.Point) string { return at.String() }
