// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
)

// Only writes count that the API server has carried out.
func TestWritesOf(t *testing.T) {
	const metrics = `# HELP apiserver_request_total requests
apiserver_request_total{code="200",component="apiserver",group="bmdb.dev",resource="workclaims",subresource="status",verb="APPLY",version="v1alpha1"} 7
apiserver_request_total{code="200",component="apiserver",group="bmdb.dev",resource="workclaims",subresource="status",verb="PUT",version="v1alpha1"} 5
apiserver_request_total{code="409",component="apiserver",group="bmdb.dev",resource="workclaims",subresource="status",verb="PUT",version="v1alpha1"} 100
apiserver_request_total{code="200",component="apiserver",group="bmdb.dev",resource="workclaims",subresource="status",verb="GET",version="v1alpha1"} 100
apiserver_request_total{code="200",component="apiserver",group="bmdb.dev",resource="workclaims",subresource="",verb="APPLY",version="v1alpha1"} 100
apiserver_request_total{code="200",component="apiserver",group="bmdb.dev",resource="machines",subresource="status",verb="APPLY",version="v1alpha1"} 1000
`
	requests, err := readRequests(strings.NewReader(metrics))
	if err != nil {
		t.Fatal(err)
	}
	if n := writesOf(requests, "workclaims/status"); n != 12 {
		t.Errorf("%d writes of statuses of claims, want 12", n)
	}
	if n := writesOf(requests, ""); n != 1112 {
		t.Errorf("%d writes, want 1112", n)
	}
}

// Every threshold is of a benchmark that there is, and every benchmark has one.
func TestThresholdsAndBenchmarks(t *testing.T) {
	thresholds, err := result.ParseThresholds(thresholdsFile)
	if err != nil {
		t.Fatal(err)
	}
	held := map[string]bool{}
	for _, threshold := range thresholds {
		held[threshold.Benchmark()] = true
	}
	var names []string
	for _, b := range benchmarks() {
		names = append(names, b.name)
		if !held[b.name] {
			t.Errorf("nothing is held against a bound of %s", b.name)
		}
	}
	for name := range held {
		if !slices.Contains(names, name) {
			t.Errorf("there is a threshold of %s, which there is not", name)
		}
	}
}

func TestSelected(t *testing.T) {
	chosen, err := options{benchmarks: []string{"P4", "P1"}}.selected()
	if err != nil || len(chosen) != 2 || chosen[0].name != "P1" || chosen[1].name != "P4" {
		t.Errorf("selected P1 and P4: %v, %v", chosen, err)
	}
	if chosen, err := (options{}).selected(); err != nil || len(chosen) != len(benchmarks()) {
		t.Errorf("selected all: %v, %v", chosen, err)
	}
	if _, err := (options{benchmarks: []string{"P10"}}).selected(); err == nil || !strings.Contains(err.Error(), "P10") {
		t.Errorf("selected P10: %v", err)
	}
}
