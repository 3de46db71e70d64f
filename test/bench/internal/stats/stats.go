// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package stats has the few figures that the benchmarks make of their samples.
package stats

import (
	"math"
	"slices"
	"time"
)

// Median is the middle of the samples, or the mean of the two middle ones; 0 of none.
func Median(samples []float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// Variation is the coefficient of variation of the samples: their standard deviation as a part of their mean. 0 of fewer than two.
func Variation(samples []float64) float64 {
	if len(samples) < 2 {
		return 0
	}
	var sum, squares float64
	for _, s := range samples {
		sum += s
	}
	mean := sum / float64(len(samples))
	if mean == 0 {
		return 0
	}
	for _, s := range samples {
		squares += (s - mean) * (s - mean)
	}
	return math.Sqrt(squares/float64(len(samples)-1)) / math.Abs(mean)
}

// Percentile is the smallest sample that p percent of the samples do not exceed; 0 of none.
func Percentile(samples []time.Duration, p float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Percentiles are the samples' percentiles 1 to 100, for a plot of their distribution; nil of none.
func Percentiles(samples []time.Duration) []time.Duration {
	if len(samples) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(samples))
	out := make([]time.Duration, 100)
	for i := range out {
		rank := int(math.Ceil(float64(i+1) / 100 * float64(len(sorted))))
		out[i] = sorted[max(rank, 1)-1]
	}
	return out
}
