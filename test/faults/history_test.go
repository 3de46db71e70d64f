// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/internal/provider/witnessed"
)

// lock is a slot of a machine.
type lock struct{ Machine, Slot string }

// The operations on a lock.
const (
	start    = "start"    // a work takes it: nobody has it, and the fence is higher than all before
	end      = "end"      // it is given back, by whoever: the work has it
	owned    = "owned"    // a driver was told that the work still is its own: it is
	accepted = "accepted" // the machine let a work do something: no higher fence was there
	refused  = "refused"  // the machine did not: one was
)

// operation is one of them. Its outcome is known: it took place.
type operation struct {
	Lock  lock
	Kind  string
	Fence int64
	What  string // for people
}

// lockState is a lock, with what the machine remembers.
type lockState struct{ holder, last, machine int64 }

// lockModel says what may happen to a lock one after another.
var lockModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := map[lock][]porcupine.Operation{}
		for _, op := range history {
			l := op.Input.(operation).Lock
			parts[l] = append(parts[l], op)
		}
		all := make([][]porcupine.Operation, 0, len(parts))
		for _, p := range parts {
			all = append(all, p)
		}
		return all
	},
	Init: func() any { return lockState{} },
	Step: func(state, input, _ any) (bool, any) {
		s, op := state.(lockState), input.(operation)
		switch op.Kind {
		case start:
			return s.holder == 0 && op.Fence > s.last, lockState{op.Fence, op.Fence, s.machine}
		case end:
			return s.holder == op.Fence, lockState{0, s.last, s.machine}
		case owned:
			return s.holder == op.Fence, s
		case accepted:
			return op.Fence >= s.machine, lockState{s.holder, s.last, op.Fence}
		default:
			return op.Fence < s.machine, s
		}
	},
	DescribeOperation: func(input, _ any) string {
		op := input.(operation)
		return fmt.Sprintf("%d %s %s", op.Fence, op.Kind, op.What)
	},
	DescribeState: func(state any) string {
		s := state.(lockState)
		return fmt.Sprintf("held by %d, the machine knows %d", s.holder, s.machine)
	},
}

// recorded is a row of the history, with when its transaction was committed.
type recorded struct {
	Machine, Slot, Event, Pod string
	Fence                     int64
	Phase                     int64
	At                        time.Time
	Committed                 *time.Time
}

// operations are all that happened to the locks: what the database recorded, each between its statement and the moment from which others see
// it; what drivers were told when they asked; and what the machines did.
func (r *rig) operations() []porcupine.Operation {
	r.T.Helper()
	rows, err := r.DB.Query(r.T.Context(), `SELECT h.machine_id::text, p.slot, h.event, COALESCE(s.session_runtime_info, ''), h.fence, h.phase, h.timestamp,
		pg_xact_commit_timestamp(h.xmin) FROM work_history h JOIN processes p ON p.process = h.process AND p.pool IN ('', h.pool)
		LEFT JOIN sessions s ON s.session_id = h.session_id`)
	if err != nil {
		r.T.Fatal(err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[recorded])
	if err != nil {
		r.T.Fatal(err)
	}
	// What is committed is seen once its log is on the disk: not later than the longest that the server took for anything.
	slack := r.longest.Load()
	var ops []porcupine.Operation
	add := func(from, to int64, o operation) {
		ops = append(ops, porcupine.Operation{ClientId: int(o.Fence % math.MaxInt32), Input: o, Call: from, Return: max(from, to)})
	}
	slots := map[string]string{}
	for _, e := range events {
		slots[e.Machine] = e.Slot
		o := operation{Lock: lock{e.Machine, e.Slot}, Kind: start, Fence: e.Fence, What: e.Event + " " + e.Pod}
		if e.Phase == 1 {
			o.Kind = end
		}
		to := e.At
		if e.Committed != nil {
			to = *e.Committed
		}
		add(e.At.UnixNano(), to.UnixNano()+slack, o)
	}
	for _, t := range r.witness.Touches() {
		l := lock{t.Machine.String(), slots[t.Machine.String()]}
		if t.Kind == witnessed.End {
			continue // it needs no leave
		}
		if t.Asked > 0 {
			add(t.Asked, t.Answered, operation{Lock: l, Kind: owned, Fence: t.Fence, What: t.Step})
		}
		o := operation{Lock: l, Kind: accepted, Fence: t.Fence, What: t.Kind + " " + t.Step}
		if t.Refused {
			o.Kind = refused
		}
		add(t.At, t.Done, o)
	}
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(min(max(a.Call-b.Call, -1), 1)) })
	return ops
}

// verifyHistory checks that what happened to each lock could have happened one after another.
func (r *rig) verifyHistory() {
	r.T.Helper()
	ops := r.operations()
	run.tally.add(r.fault, "operations on locks that were checked", int64(len(ops)))
	const patience = 2 * time.Minute
	result, info := porcupine.CheckOperationsVerbose(lockModel, ops, patience)
	if result == porcupine.Ok {
		return
	}
	r.writeJSON("history.json", ops)
	for _, part := range lockModel.Partition(ops) {
		if result, info := porcupine.CheckOperationsVerbose(lockModel, part, patience); result != porcupine.Ok {
			l := part[0].Input.(operation).Lock
			path, err := r.dirOf("lock-" + l.Machine + ".html")
			if err == nil {
				err = porcupine.VisualizePath(lockModel, info, path)
			}
			r.T.Errorf("what happened to slot %s of machine %s does not happen to a lock; see %s (%v)", l.Slot, l.Machine, path, err)
		}
	}
	_ = info
	r.T.Errorf("the history of locks is %s", result)
}
