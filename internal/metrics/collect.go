// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

// descriptions are the metrics that are made when they are asked for.
var (
	sessionAge = desc("session_age_seconds", "For how long this pod has had its session. Absent while it has none.")
	leaseAge   = desc("session_lease_age_seconds", "How long ago this pod last extended its session; others take its machines over when that is more than the lease.")
)

// ages are measured when they are asked for.
type ages struct{ m *Metrics }

// Describe implements prometheus.Collector.
func (a ages) Describe(ch chan<- *prometheus.Desc) { ch <- sessionAge; ch <- leaseAge }

// Collect implements prometheus.Collector.
func (a ages) Collect(ch chan<- prometheus.Metric) {
	for d, at := range map[*prometheus.Desc]int64{sessionAge: a.m.session.Load(), leaseAge: a.m.beat.Load()} {
		if at != 0 {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, max(time.Since(time.Unix(0, at)).Seconds(), 0))
		}
	}
}

// snapshot is what a Reader found out. It is not changed once it is shown.
type snapshot struct {
	databaseUp         bool
	inUse, connections int
	pending            int
	oldestPending      time.Duration
	claims             map[claimKind]int
	works              map[string]bmdb.WorkGauge // nil: another pod counts
	fleet              *bmdb.FleetGauges         // nil: another pod counts, or nothing is known
	fleetAt            time.Time
}

type claimKind struct{ state, reason string }

const onePod = " One pod of each cluster has it; with several clusters on one database, each has all of it."

var (
	databaseUp      = desc("database_up", "1 if the database answered when this pod last asked it, else 0.")
	connectionsUsed = desc("database_connections_in_use", "Connections of this pod to the database that are in use.")
	connectionsMost = desc("database_connections_limit", "Connections to the database that this pod may have (--database-connections).")
	pendingCount    = desc("projections_pending", "Changes of machines, claims and providers that this cluster's objects do not show yet, up to some thousands.")
	pendingAge      = desc("projections_oldest_seconds", "For how long the oldest of the changes that are not shown yet has waited, since this pod has known of it.")
	claimsByState   = desc("claims", "WorkClaims of this cluster, by their state and the reason of their condition Ready. All pods have the same.", "state", "reason")
	worksOpen       = desc("works_open", "Works under way, whoever does them."+onePod, "process")
	worksOverdue    = desc("works_overdue", "Works under way that are past their timeout."+onePod, "process")
	worksOldest     = desc("works_oldest_seconds", "For how long the oldest work under way has held its machine."+onePod, "process")
	machines        = desc("machines", "Machines that need the process, by the first thing that keeps it from being started there: Held, Locked, BackedOff, "+
		"Unmanaged, or nothing (Eligible)."+onePod, "process", "state")
	machinesOldest = desc("machines_oldest_eligible_seconds", "For how long, at most, the eligible machine has waited that has waited longest: since it was last "+
		"worked on for the process, its backoff or hold ended, or it was recorded."+onePod, "process")
	machinesKnown   = desc("machines_known", "Machines that the database knows."+onePod)
	machinesCounted = desc("machines_counted_timestamp_seconds", "When machines were last counted, in seconds since the epoch. Counting goes on all the time, by pages."+onePod)
)

// counts show the last snapshot.
type counts struct{ m *Metrics }

// Describe implements prometheus.Collector.
func (c counts) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		databaseUp, connectionsUsed, connectionsMost, pendingCount, pendingAge, claimsByState, worksOpen, worksOverdue, worksOldest, machines, machinesOldest,
		machinesKnown, machinesCounted,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c counts) Collect(ch chan<- prometheus.Metric) {
	s := c.m.snapshot.Load()
	if s == nil {
		return
	}
	show := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	up := 0.0
	if s.databaseUp {
		up = 1
	}
	show(databaseUp, up)
	show(connectionsUsed, float64(s.inUse))
	show(connectionsMost, float64(s.connections))
	show(pendingCount, float64(s.pending))
	show(pendingAge, s.oldestPending.Seconds())
	for kind, n := range s.claims {
		show(claimsByState, float64(n), kind.state, kind.reason)
	}
	for process, g := range s.works {
		show(worksOpen, float64(g.Open), process)
		show(worksOverdue, float64(g.Overdue), process)
		show(worksOldest, g.Oldest.Seconds(), process)
	}
	if s.fleet == nil {
		return
	}
	show(machinesKnown, float64(s.fleet.Machines))
	show(machinesCounted, float64(s.fleetAt.UnixNano())/float64(time.Second))
	for process, g := range s.fleet.Processes {
		for state, n := range map[string]int64{"Eligible": g.Eligible, "Held": g.Held, "Locked": g.Locked, "BackedOff": g.BackedOff, "Unmanaged": g.Unmanaged} {
			show(machines, float64(n), process, state)
		}
		show(machinesOldest, g.OldestEligible.Seconds(), process)
	}
}
