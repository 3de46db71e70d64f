// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// ledger is what the database knows of all that was done.
type ledger struct {
	histories map[string][]model.WorkHistory // by the machine's name
	shown     string                         // a machine whose work was lost, or the first
	lost      bool                           // a work was: else all had ended when their operator was killed
}

func (e *environment) openDatabase() (*bmdb.Connection, error) {
	return (&bmdb.BMDB{Config: bmdb.Config{DatabaseURL: e.databaseURL, ComponentName: "demo", MaxConnections: 2}}).Open(false)
}

// readLedger reads the history of the first n machines, and fails unless each has exactly one Finished.
func readLedger(ctx context.Context, db *bmdb.Connection, n int) (*ledger, error) {
	l := &ledger{histories: map[string][]model.WorkHistory{}}
	for i := range n {
		name := machineName(i)
		machine, err := db.MachineByName(ctx, pool, name)
		if err != nil {
			return nil, err
		}
		history, err := db.ListHistoryOf(ctx, machine)
		if err != nil {
			return nil, err
		}
		l.histories[name] = history
		events := map[model.WorkHistoryEvent]int{}
		for _, h := range history {
			events[h.Event]++
		}
		if events[model.WorkHistoryEventFinished] != 1 {
			return nil, fmt.Errorf("machine %s has %d Finished in its history, want exactly 1", name, events[model.WorkHistoryEventFinished])
		}
		if lost := events[model.WorkHistoryEventLost] > 0; l.shown == "" || lost {
			l.shown, l.lost = name, l.lost || lost
		}
	}
	return l, nil
}

func machineName(i int) string { return fmt.Sprintf("m%d", i+1) }

// print prints the history of a machine whose work was taken over.
func (l *ledger) print(killed, by string) {
	note := fmt.Sprintf("(%s; a Lost work was taken over by %s)", killed, by)
	if !l.lost {
		note = fmt.Sprintf("(%s, between two steps: no work was lost)", killed)
	}
	fmt.Printf("The history of machine %s, from the database %s:\n\n", l.shown, note)
	fmt.Printf("  %-12s %-12s %-10s %-9s %s\n", "TIME", "PROCESS", "EVENT", "FENCE", "BY")
	for _, h := range l.histories[l.shown] {
		fmt.Printf("  %-12s %-12s %-10s %-9d %s\n", h.Timestamp.Format("15:04:05.000"), h.Process, h.Event, h.Fence, h.Actor)
	}
}

// atOnce returns how many works went on at once at most. A work gives its place back before another takes it, so that the database's times tell.
func (l *ledger) atOnce() int {
	var all []model.WorkHistory
	for _, history := range l.histories {
		all = append(all, history...)
	}
	started := func(h model.WorkHistory) bool { return h.Event == model.WorkHistoryEventStarted }
	slices.SortFunc(all, func(a, b model.WorkHistory) int {
		if c := a.Timestamp.Compare(b.Timestamp); c != 0 || started(a) == started(b) {
			return c
		}
		if started(a) {
			return 1
		}
		return -1
	})
	n, most := 0, 0
	for _, h := range all {
		if started(h) {
			n++
		} else {
			n--
		}
		most = max(most, n)
	}
	return most
}

// startsBy counts the works that operators have started.
func (l *ledger) startsBy(operators []*operator) (n int) {
	for _, history := range l.histories {
		for _, h := range history {
			if h.Event == model.WorkHistoryEventStarted && slices.ContainsFunc(operators, func(o *operator) bool { return o.name == h.Actor }) {
				n++
			}
		}
	}
	return n
}
