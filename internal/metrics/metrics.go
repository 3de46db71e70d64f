// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package metrics tells Prometheus what happens: it observes the library and the workers. It and cmd are the only packages that know
// of Prometheus.
package metrics

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// Metrics holds the operator's own metrics. It implements bmdb.Observer and what package worker wants to be told. Its methods are safe
// for concurrent use and never block.
type Metrics struct {
	worksStarted   *prometheus.CounterVec
	worksEnded     *prometheus.CounterVec
	worksTakenOver *prometheus.CounterVec
	workDuration   *prometheus.HistogramVec
	workersStuck   *prometheus.CounterVec
	retries        *prometheus.CounterVec
	sessionUp      prometheus.Gauge
	sessionsEnded  *prometheus.CounterVec
	beats          *prometheus.CounterVec
	lastBeat       prometheus.Gauge
	poolInUse      prometheus.Gauge
	poolSize       prometheus.Gauge
	claimsOwned    prometheus.Gauge
	transactions   *prometheus.HistogramVec

	session  atomic.Int64 // when it began, in nanoseconds since the epoch; 0: there is none
	beat     atomic.Int64 // when the last good beat was
	snapshot atomic.Pointer[snapshot]
}

var _ bmdb.TransactionObserver = (*Metrics)(nil)

// New makes the metrics and registers them. It fails where a name is registered already.
func New(registerer prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		worksStarted:   counter("works_started_total", "Works started by this pod.", "process"),
		worksEnded:     counter("works_ended_total", "Works of this pod that ended, by how they ended.", "process", "result"),
		worksTakenOver: counter("works_taken_over_total", "Works of dead sessions that this pod ended.", "process"),
		workersStuck:   counter("workers_stuck_total", "Workers that went on after their context was cancelled.", "process"),
		retries:        counter("transaction_retries_total", "Attempts of database transactions that failed and were tried again.", "operation", "code"),
		sessionsEnded:  counter("sessions_ended_total", "Sessions of this pod that ended.", "reason"),
		beats:          counter("session_beats_total", "Attempts to keep this pod's session alive.", "result"),
		workDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "work_duration_seconds", Help: "How long works of this pod took from start to end.",
			Buckets: []float64{0.01, 0.05, 0.2, 1, 5, 15, 60, 300, 900, 3600, 14400},
		}, []string{"process", "result"}),
		sessionUp:   gauge("session_up", "1 while this pod has a session in the database, else 0."),
		lastBeat:    gauge("session_last_beat_timestamp_seconds", "When this pod last extended its session, in seconds since the epoch."),
		poolInUse:   gauge("worker_pool_in_use", "Workers of this pod's pool that are in use."),
		poolSize:    gauge("worker_pool_size", "Workers that this pod's pool has."),
		claimsOwned: gauge("claims_owned", "Claims that this pod owns."),
		transactions: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "transaction_duration_seconds",
			Help:    "How long database transactions of this pod took, with all attempts: start and own claims begin work, end and finish end it.",
			Buckets: []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10},
		}, []string{"operation", "result"}),
	}
	for _, c := range []prometheus.Collector{
		m.transactions, ages{m}, counts{m},
		m.worksStarted, m.worksEnded, m.worksTakenOver, m.workDuration, m.workersStuck, m.retries, m.sessionUp, m.sessionsEnded, m.beats,
		m.lastBeat, m.poolInUse, m.poolSize, m.claimsOwned,
	} {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

const namespace = "bmdb"

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help})
}

// SessionStarted implements bmdb.Observer.
func (m *Metrics) SessionStarted() {
	m.sessionUp.Set(1)
	m.lastBeat.SetToCurrentTime()
	now := time.Now().UnixNano()
	m.session.Store(now)
	m.beat.Store(now)
}

// SessionEnded implements bmdb.Observer.
func (m *Metrics) SessionEnded(reason string) {
	m.sessionUp.Set(0)
	m.session.Store(0)
	m.sessionsEnded.WithLabelValues(reason).Inc()
}

// Beat implements bmdb.Observer.
func (m *Metrics) Beat(ok bool, _ time.Duration) {
	if !ok {
		m.beats.WithLabelValues("failed").Inc()
		return
	}
	m.beats.WithLabelValues("ok").Inc()
	m.lastBeat.SetToCurrentTime()
	m.beat.Store(time.Now().UnixNano())
}

// WorkStarted implements bmdb.Observer.
func (m *Metrics) WorkStarted(process string) { m.worksStarted.WithLabelValues(process).Inc() }

// WorkEnded implements bmdb.Observer.
func (m *Metrics) WorkEnded(process, event string, took time.Duration) {
	m.worksEnded.WithLabelValues(process, event).Inc()
	m.workDuration.WithLabelValues(process, event).Observe(took.Seconds())
}

// WorkTakenOver implements bmdb.Observer.
func (m *Metrics) WorkTakenOver(process string) { m.worksTakenOver.WithLabelValues(process).Inc() }

// TransactionRetried implements bmdb.Observer.
func (m *Metrics) TransactionRetried(operation, code string) {
	m.retries.WithLabelValues(operation, code).Inc()
}

// TransactionEnded implements bmdb.TransactionObserver.
func (m *Metrics) TransactionEnded(operation string, committed bool, took time.Duration) {
	result := "committed"
	if !committed {
		result = "failed"
	}
	m.transactions.WithLabelValues(operation, result).Observe(took.Seconds())
}

// Pool is told the size of the pool of workers and how many are in use.
func (m *Metrics) Pool(inUse, size int) {
	m.poolInUse.Set(float64(inUse))
	m.poolSize.Set(float64(size))
}

// Claims is told how many claims this pod owns.
func (m *Metrics) Claims(owned int) { m.claimsOwned.Set(float64(owned)) }

// WorkerStuck is told of each worker that went on after its context was cancelled.
func (m *Metrics) WorkerStuck(process string) { m.workersStuck.WithLabelValues(process).Inc() }
