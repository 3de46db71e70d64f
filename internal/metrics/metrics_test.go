// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bmdb-dev/bmdb-operator/internal/metrics"
)

// observed returns a registry in which each metric has a value.
func observed(t *testing.T) *prometheus.Registry {
	t.Helper()
	registry := prometheus.NewRegistry()
	m, err := metrics.New(registry)
	if err != nil {
		t.Fatal(err)
	}
	m.SessionStarted()
	m.SessionEnded("closed")
	m.Beat(true, time.Millisecond)
	m.Beat(false, time.Second)
	m.WorkStarted("AgentStart")
	m.WorkEnded("AgentStart", "Finished", 2*time.Second)
	m.WorkTakenOver("AgentStart")
	m.TransactionRetried("start", "40001")
	m.Pool(3, 64)
	m.Claims(2)
	m.WorkerStuck("AgentStart")
	return registry
}

func TestNamesAreGolden(t *testing.T) {
	registry := observed(t)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	slices.Sort(names)
	want := []string{
		"bmdb_claims_owned", "bmdb_session_beats_total", "bmdb_session_last_beat_timestamp_seconds", "bmdb_session_up",
		"bmdb_sessions_ended_total", "bmdb_transaction_retries_total", "bmdb_work_duration_seconds", "bmdb_worker_pool_in_use",
		"bmdb_worker_pool_size", "bmdb_workers_stuck_total", "bmdb_works_ended_total", "bmdb_works_started_total",
		"bmdb_works_taken_over_total",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("names of metrics (-want +got):\n%s", diff)
	}
}

func TestMetricsAreLinted(t *testing.T) {
	problems, err := testutil.GatherAndLint(observed(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestNewRefusesTwice(t *testing.T) {
	registry := prometheus.NewRegistry()
	if _, err := metrics.New(registry); err != nil {
		t.Fatal(err)
	}
	if _, err := metrics.New(registry); err == nil {
		t.Error("registered twice without an error")
	}
}
