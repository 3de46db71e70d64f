// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package stats_test

import (
	"math"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/stats"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		want    float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := stats.Median(c.samples); got != c.want {
			t.Errorf("Median(%v) = %v, want %v", c.samples, got, c.want)
		}
	}
}

func TestVariation(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		want    float64
	}{{nil, 0}, {[]float64{7}, 0}, {[]float64{0, 0}, 0}, {[]float64{5, 5, 5}, 0}, {[]float64{9, 11}, math.Sqrt2 / 10}} {
		if got := stats.Variation(c.samples); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("Variation(%v) = %v, want %v", c.samples, got, c.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	var samples []time.Duration
	for i := 200; i > 0; i-- {
		samples = append(samples, time.Duration(i))
	}
	for p, want := range map[float64]time.Duration{0: 1, 50: 100, 99: 198, 100: 200} {
		if got := stats.Percentile(samples, p); got != want {
			t.Errorf("Percentile(1..200, %v) = %v, want %v", p, got, want)
		}
	}
	if got := stats.Percentile(nil, 50); got != 0 {
		t.Errorf("Percentile(none) = %v", got)
	}
	all := stats.Percentiles(samples)
	if len(all) != 100 || all[49] != 100 || all[99] != 200 || stats.Percentiles(nil) != nil {
		t.Errorf("Percentiles(1..200) = %v", all)
	}
}
