// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Explanation says why a process is not started on a machine, or that it could be.
type Explanation struct {
	// Reason is Ready, NoSuchMachine, ProcessNotAvailable, NotNeeded, Held, LockedBy, BackedOff or AtLimit: the first gate that a start does
	// not pass.
	Reason string
	// Message is a line that a person can act on.
	Message string
	// Until is when it passes by itself, by the database's clock; zero: not known.
	Until time.Time
	// Predicate is the first fact that fails, as in "requires AgentStarted"; empty if none does.
	Predicate string
}

// ExplainReady is the reason of an Explanation where a start passes every gate.
const ExplainReady = classReady

// Explain says why a process is not started on a machine: it evaluates the gates of a start, in their order, on what the database says
// at this moment. It needs no session, locks nothing, and leaves claims out: ReviewClaim explains these.
func (c *Connection) Explain(ctx context.Context, machine uuid.UUID, process string) (Explanation, error) {
	e, err := c.explain(ctx, machine, process)
	return e, wrap(fmt.Sprintf("explain %s on machine %s", process, machine), err)
}

func (c *Connection) explain(ctx context.Context, machine uuid.UUID, process string) (Explanation, error) {
	targets, err := c.MachineTargets(ctx, []uuid.UUID{machine})
	if err != nil {
		return Explanation{}, err
	}
	target, known := targets[machine]
	if !known {
		return Explanation{Reason: OutlookNoSuchMachine, Message: "the database has no such machine"}, nil
	}
	spec := &ClaimSpec{Pool: target.Pool, Process: process}
	found := &census{conn: c}
	if _, _, err := found.add(ctx, "ReviewMachine", sqlReviewMachine, spec, machine); err != nil {
		return Explanation{}, err
	}
	if len(found.tallies) == 0 {
		return Explanation{Reason: OutlookProcessNotAvailable, Message: fmt.Sprintf("process %s is not registered in pool %s", process, target.Pool)}, nil
	}
	t := found.tallies[0]
	e := Explanation{Reason: t.class, Predicate: t.failing}
	switch t.class {
	case classReady:
		e.Message = process + " can be started"
	case classNotNeeded, classFulfilled:
		e.Reason, e.Message = OutlookNotNeeded, fmt.Sprintf("%s %s, and the machine is %s", process, t.failing, failingText(t.failing))
	default:
		o, err := c.obstacle(ctx, machine.String(), spec)
		if err != nil {
			return Explanation{}, err
		}
		e.Message = o.say(t.class, t)
		if t.passes != nil && (t.class == classHeld || t.class == classBackedOff) {
			e.Until = *t.passes
		}
	}
	return e, nil
}
