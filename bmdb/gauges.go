// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// ProcessGauge is how many machines need a process, by what keeps it from being started there: each counts once, where the first of the gates
// of a start is that it does not pass.
type ProcessGauge struct {
	// Eligible machines could be worked on now: they wait for a claim, or for the turn of one.
	Eligible int64
	// Held machines have a hold.
	Held int64
	// Locked machines are worked on, in the slot of the process.
	Locked int64
	// BackedOff machines are left alone after a failure.
	BackedOff int64
	// Unmanaged machines have lost their last object in Kubernetes, and nothing is started there.
	Unmanaged int64
	// OldestEligible is for how long the eligible machine that has waited longest can have waited at most: since it was last worked on for the
	// process, since the end of its backoff or hold, or since it is known, whichever came last. What facts it had meanwhile is not known.
	OldestEligible time.Duration
}

// FleetGauges are counts over a whole fleet.
type FleetGauges struct {
	// Machines are all that were looked at, Pages in how many statements.
	Machines, Pages int64
	// Processes are those that claims can ask for, in all pools; those of one name in several pools are one.
	Processes map[string]ProcessGauge
}

// fleetPage is how many machines a statement counts.
const fleetPage = 5000

// FleetGauges counts the machines of the whole fleet, by the predicate that starts are decided by. It reads every machine: by pages, each of which
// costs the database some tens of milliseconds, with a pause after each. One program that asks now and then is enough. It needs no session and locks
// nothing; what changes meanwhile is counted as it was or as it is.
func (c *Connection) FleetGauges(ctx context.Context, pause time.Duration) (FleetGauges, error) {
	return c.fleetGauges(ctx, fleetPage, pause)
}

func (c *Connection) fleetGauges(ctx context.Context, page int64, pause time.Duration) (FleetGauges, error) {
	all := FleetGauges{Processes: map[string]ProcessGauge{}}
	for after := firstMachineText; ; {
		counts, err := c.fleetPage(ctx, after, page)
		if err != nil {
			return FleetGauges{}, fmt.Errorf("count machines by process: %w", err)
		}
		all.Pages++
		var machines int64
		for _, n := range counts {
			if n.process == "" {
				machines, after = n.count, n.last
				continue
			}
			g := all.Processes[n.process]
			g.add(n)
			all.Processes[n.process] = g
		}
		all.Machines += machines
		if machines < page {
			return all, nil
		}
		if !sleep(ctx, pause) {
			return FleetGauges{}, fmt.Errorf("count machines by process: %w", ctx.Err())
		}
	}
}

// fleetCount is a row of sqlFleetGauges.
type fleetCount struct {
	process, gate string
	count         int64
	age           float64
	last          string
}

func (c *Connection) fleetPage(ctx context.Context, after string, limit int64) (counts []fleetCount, err error) {
	err = c.read(ctx, "FleetGauges", sqlFleetGauges, []any{after, limit}, func() { counts = nil }, func(row pgx.Rows) error {
		var n fleetCount
		err := row.Scan(&n.process, &n.gate, &n.count, &n.age, &n.last)
		counts = append(counts, n)
		return err
	})
	return counts, err
}

func (g *ProcessGauge) add(n fleetCount) {
	switch n.gate {
	case "Eligible":
		g.Eligible += n.count
		g.OldestEligible = max(g.OldestEligible, ofSeconds(n.age))
	case "Held":
		g.Held += n.count
	case "Locked":
		g.Locked += n.count
	case "BackedOff":
		g.BackedOff += n.count
	case "Unmanaged":
		g.Unmanaged += n.count
	}
}

// WorkGauge is the work of a process that is under way, whoever does it.
type WorkGauge struct {
	// Open works hold their machines; Overdue are those of them that are past their timeout.
	Open, Overdue int64
	// Oldest is for how long the oldest of them has held its machine.
	Oldest time.Duration
}

// WorkGauges counts the works under way, by process; a process without any is left out. It is one statement that reads these works alone.
func (c *Connection) WorkGauges(ctx context.Context) (map[string]WorkGauge, error) {
	works := map[string]WorkGauge{}
	err := c.read(ctx, "WorkGauges", sqlWorkGauges, nil, func() { clear(works) }, func(row pgx.Rows) error {
		var process string
		var g WorkGauge
		var oldest float64
		err := row.Scan(&process, &g.Open, &g.Overdue, &oldest)
		g.Oldest = ofSeconds(oldest)
		works[process] = g
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("count works by process: %w", err)
	}
	return works, nil
}

// OldestSession is the session of this program's cluster that has lived the longest, or the zero UUID if none lives: for what one of a cluster's
// programs should do and several may. It says nothing of the moment after.
func (c *Connection) OldestSession(ctx context.Context) (id uuid.UUID, err error) {
	err = c.read(ctx, "OldestSession", sqlOldestSession, []any{c.config.Cluster}, func() { id = uuid.Nil }, func(row pgx.Rows) error { return row.Scan(&id) })
	return id, wrap("find the oldest session", err)
}

// ConnectionsInUse tells how many of the connections that work goes over are in use, and how many there may be.
func (c *Connection) ConnectionsInUse() (inUse, most int) {
	stat := c.pool.Stat()
	return int(stat.AcquiredConns()), int(stat.MaxConns())
}

func ofSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
