// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// world is what a sequence of operations has made of a few machines, as a model in memory believes it.
type world struct {
	l        *lab
	ctx      context.Context
	t        *rapid.T
	sessions []*bmdb.Session // nil: closed, and not started again yet
	dead     []bool          // ended in the database, and does not know it
	machines []uuid.UUID
	tags     []map[string]bool
	held     []map[string]bool
	backoff  []map[string]bool         // process: is backed off
	slots    []map[string]*modelWork   // who works on a machine in a slot
	works    map[*bmdb.Work]*modelWork // all that were ever started
	order    []*bmdb.Work
	fences   []int64
}

type modelWork struct {
	machine, session int
	process          string
	event            string // how it ended
}

// modelProcess is a process as the model knows it.
type modelProcess struct {
	slot, requires, forbids, sets, clears string
}

var modelProcesses = map[string]modelProcess{
	"Make":   {slot: "x", requires: "a", forbids: "b", sets: "b", clears: ""},
	"Unmake": {slot: "x", requires: "b", forbids: "", sets: "", clears: "b"},
	"Watch":  {slot: "y", requires: "", forbids: "c", sets: "", clears: "a"},
}

var modelTags = []string{"a", "b", "c"}

// Random sequences of everything that sessions do, one after another, against a model that knows what must come of each.
func TestPropertyOfSequences(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *bmdb.Config) { c.Logger = nil })
	for name, p := range modelProcesses {
		some := func(s string) []string {
			if s == "" {
				return nil
			}
			return []string{s}
		}
		l.process(name, p.slot, append(some(p.requires), "Provided"), some(p.forbids), some(p.sets), some(p.clears))
	}
	l.limit("Equinix", 100)
	helper := l.session()
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{l: l, ctx: t.Context(), t: rt, works: map[*bmdb.Work]*modelWork{}, fences: make([]int64, 2)}
		for range 2 {
			w.machines = append(w.machines, provided(t, helper, uuid.NewString()))
			w.tags, w.held = append(w.tags, map[string]bool{}), append(w.held, map[string]bool{})
			w.backoff, w.slots = append(w.backoff, map[string]bool{}), append(w.slots, map[string]*modelWork{})
		}
		w.sessions, w.dead = make([]*bmdb.Session, 3), make([]bool, 3)
		for i := range w.sessions {
			w.open(i)
		}
		defer func() {
			for i := range w.sessions {
				w.shut(i)
			}
			w.compare()
		}()
		rt.Repeat(map[string]func(*rapid.T){
			"start":   w.start,
			"batch":   w.batch,
			"end":     w.end,
			"end 2":   w.end, // as often as starts
			"tag":     w.tag,
			"hold":    w.hold,
			"reap":    func(rt *rapid.T) { w.reap(w.someone(rt)) },
			"close":   func(rt *rapid.T) { i := w.someone(rt); w.shut(i); w.open(i) },
			"beat":    w.beat,
			"due":     w.due,
			"sweep":   func(rt *rapid.T) { w.ok(rt, bmdb.NewChores(l.conn).Sweep(w.ctx)) },
			"promote": func(rt *rapid.T) { w.ok(rt, bmdb.NewChores(l.conn).Promote(w.ctx)) },
			"":        func(*rapid.T) { w.compare() },
		})
	})
}

func (w *world) ok(rt *rapid.T, err error) {
	if err != nil {
		rt.Fatalf("%v", err)
	}
}

func (w *world) someone(rt *rapid.T) int {
	return rapid.IntRange(0, len(w.sessions)-1).Draw(rt, "session")
}
func (w *world) machine(rt *rapid.T) int {
	return rapid.IntRange(0, len(w.machines)-1).Draw(rt, "machine")
}

func (w *world) process(rt *rapid.T) string {
	return rapid.SampledFrom([]string{"Make", "Unmake", "Watch"}).Draw(rt, "process")
}

func (w *world) open(i int) {
	s, err := w.l.conn.StartSession(context.WithoutCancel(w.ctx), bmdb.WithoutMaintenance(), bmdb.WithoutBeat())
	w.ok(w.t, err)
	w.sessions[i], w.dead[i] = s, false
}

func (w *world) shut(i int) {
	w.ok(w.t, w.sessions[i].Close(context.WithoutCancel(w.ctx)))
	w.endAllOf(i, bmdb.EventReleased)
	w.dead[i] = true
	for _, work := range w.order { // sessions have no numbers in the works that are over
		if m := w.works[work]; m.session == i {
			m.session = -1
		}
	}
}

// reap ends a session as another program does when its lease has run out. The session does not know.
func (w *world) reap(i int) {
	if w.dead[i] {
		return
	}
	w.l.exec("UPDATE session_leases SET deadline = clock_timestamp() - interval '1 hour' WHERE session_id = $1", w.sessions[i].UUID)
	chores := bmdb.NewChores(w.l.conn)
	for range 2 {
		w.ok(w.t, chores.Reap(w.ctx))
		chores.Watch()
	}
	w.dead[i] = true
	w.endAllOf(i, bmdb.EventLost)
}

func (w *world) endAllOf(i int, event string) {
	for _, m := range w.works {
		if m.session == i && m.event == "" {
			m.event = event
			delete(w.slots[m.machine], modelProcesses[m.process].slot)
		}
	}
}

// eligible is the predicate.
func (w *world) eligible(machine int, process string) bool {
	p := modelProcesses[process]
	return (p.requires == "" || w.tags[machine][p.requires]) && !w.tags[machine][p.forbids] && !w.backoff[machine][process]
}

func (w *world) started(rt *rapid.T, work *bmdb.Work, session, machine int, process string) {
	m := &modelWork{machine: machine, session: session, process: process}
	w.works[work], w.slots[machine][modelProcesses[process].slot] = m, m
	w.order = append(w.order, work)
	if work.Fence() <= w.fences[machine] {
		rt.Fatalf("fence %d after %d", work.Fence(), w.fences[machine])
	}
	w.fences[machine] = work.Fence()
}

func (w *world) start(rt *rapid.T) {
	i, machine, process := w.someone(rt), w.machine(rt), w.process(rt)
	work, err := w.sessions[i].Work(w.ctx, model.Process(process), constantly(w.machines[machine]))
	var want error
	switch {
	case w.dead[i]:
		want = bmdb.ErrSessionExpired
	case len(w.held[machine]) > 0:
		want = bmdb.ErrNothingToDo
	case w.slots[machine][modelProcesses[process].slot] != nil:
		want = bmdb.ErrWorkConflict
	}
	if !errors.Is(err, want) {
		rt.Fatalf("start: %v, want %v", err, want)
	}
	if want == nil {
		w.started(rt, work, i, machine, process)
	}
}

func (w *world) batch(rt *rapid.T) {
	i, process := w.someone(rt), w.process(rt)
	limit := rapid.IntRange(1, 2).Draw(rt, "limit")
	works, err := batch(w.ctx, w.sessions[i], model.Process(process), limit, w.machines...)
	w.ok(rt, err)
	possible := 0
	for machine := range w.machines {
		if !w.dead[i] && len(w.held[machine]) == 0 && w.slots[machine][modelProcesses[process].slot] == nil && w.eligible(machine, process) {
			possible++
		}
	}
	if len(works) != min(possible, limit) {
		rt.Fatalf("batch: %d works, want %d of %d", len(works), min(possible, limit), possible)
	}
	for _, work := range works {
		machine := slices.Index(w.machines, work.Machine)
		if len(w.held[machine]) > 0 || w.slots[machine][modelProcesses[process].slot] != nil || !w.eligible(machine, process) {
			rt.Fatalf("batch started %s on machine %d", process, machine)
		}
		w.started(rt, work, i, machine, process)
	}
}

func (w *world) end(rt *rapid.T) {
	if len(w.order) == 0 {
		rt.Skip("nothing was started")
	}
	work := rapid.SampledFrom(w.order).Draw(rt, "work")
	event := rapid.SampledFrom([]string{bmdb.EventFinished, bmdb.EventFinished + " data", bmdb.EventFailed, bmdb.EventCanceled}).Draw(rt, "end")
	var err error
	switch event {
	case bmdb.EventFinished:
		err = work.Finish(w.ctx, tag(w.ctx, work.Machine, "c"))
	case bmdb.EventFinished + " data":
		err = work.FinishData(w.ctx, bmdb.Outcome{})
	case bmdb.EventFailed:
		err = work.Fail(w.ctx, &bmdb.Backoff{Initial: time.Hour}, "test")
	case bmdb.EventCanceled:
		work.Cancel(w.ctx)
	}
	m := w.works[work]
	if m.event != "" {
		if event != bmdb.EventCanceled && !errors.Is(err, bmdb.ErrWorkLost) {
			rt.Fatalf("%s of a work that ended as %s: %v", event, m.event, err)
		}
		return
	}
	w.ok(rt, err)
	m.event = eventOf(event)
	p := modelProcesses[m.process]
	delete(w.slots[m.machine], p.slot)
	switch event {
	case bmdb.EventFinished, bmdb.EventFinished + " data":
		delete(w.backoff[m.machine], m.process)
		if event == bmdb.EventFinished {
			w.tags[m.machine]["c"] = true
		}
		if p.sets != "" {
			w.tags[m.machine][p.sets] = true
		}
		delete(w.tags[m.machine], p.clears)
	case bmdb.EventFailed:
		w.backoff[m.machine][m.process] = true
	}
}

func (w *world) tag(rt *rapid.T) {
	i, machine, name := w.someone(rt), w.machine(rt), rapid.SampledFrom(modelTags).Draw(rt, "tag")
	set := rapid.Bool().Draw(rt, "set")
	err := w.sessions[i].Transact(w.ctx, func(q *model.Queries) error {
		if set {
			return tag(w.ctx, w.machines[machine], name)(q)
		}
		return q.MachineDeleteTag(w.ctx, model.MachineDeleteTagParams{MachineID: w.machines[machine], Tag: name})
	})
	if w.dead[i] {
		if !errors.Is(err, bmdb.ErrSessionExpired) {
			rt.Fatalf("transact under a dead session: %v", err)
		}
		return
	}
	w.ok(rt, err)
	delete(w.tags[machine], name)
	if set {
		w.tags[machine][name] = true
	}
}

func (w *world) hold(rt *rapid.T) {
	machine := w.machine(rt)
	name := fmt.Sprintf("%s %d", w.machines[machine], rapid.IntRange(0, 1).Draw(rt, "hold"))
	if w.held[machine][name] {
		w.ok(rt, w.l.conn.ReleaseHold(w.ctx, "default", name, "test"))
		delete(w.held[machine], name)
		return
	}
	w.ok(rt, hold(w.ctx, w.l.conn, name, w.machines[machine]))
	w.held[machine][name] = true
}

func (w *world) beat(rt *rapid.T) {
	i := w.someone(rt)
	err := w.sessions[i].Beat(w.ctx)
	if w.dead[i] != errors.Is(err, bmdb.ErrSessionExpired) || !w.dead[i] && err != nil {
		rt.Fatalf("beat, dead %v: %v", w.dead[i], err)
	}
}

// due lets the time of a backoff come.
func (w *world) due(rt *rapid.T) {
	machine, process := w.machine(rt), w.process(rt)
	w.l.exec("UPDATE work SET backoff_until = clock_timestamp() - interval '1 second' WHERE machine_id = $1 AND process = $2 AND backoff_until IS NOT NULL", w.machines[machine], process)
	w.ok(rt, w.l.conn.Reevaluate(w.ctx, w.machines[machine]))
	delete(w.backoff[machine], process)
}

// compare looks whether the database is as the model believes.
func (w *world) compare() {
	for _, v := range findViolations(w.l.t, w.l.db, w.machines...) {
		w.t.Errorf("%s", v)
	}
	for machine, id := range w.machines {
		var held []string
		for _, m := range w.slots[machine] {
			held = append(held, m.process)
		}
		slices.Sort(held)
		var got []string
		if err := w.l.db.QueryRow(w.ctx, "SELECT COALESCE(array_agg(process ORDER BY process), ARRAY[]::text[]) FROM work WHERE work_id IS NOT NULL AND machine_id = $1", id).Scan(&got); err != nil {
			w.t.Fatal(err)
		}
		if !slices.Equal(held, got) {
			w.t.Errorf("machine %d: works %v, want %v", machine, got, held)
		}
	}
	rows, err := w.l.db.Query(w.ctx, "SELECT work_id, event FROM work_history WHERE phase = 1 AND machine_id = ANY($1)", w.machines)
	if err != nil {
		w.t.Fatal(err)
	}
	ended := map[uuid.UUID]string{}
	var work uuid.UUID
	var event string
	if _, err := pgx.ForEachRow(rows, []any{&work, &event}, func() error { ended[work] = event; return nil }); err != nil {
		w.t.Fatal(err)
	}
	for work, m := range w.works {
		if got := ended[work.ID()]; got != m.event {
			w.t.Errorf("%s on machine %d ended as %q, want %q", m.process, m.machine, got, m.event)
		}
	}
}
