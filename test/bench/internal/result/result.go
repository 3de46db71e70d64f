// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package result is what a run of the benchmarks leaves: figures, what they are held against, and how that is said.
package result

import (
	"time"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/stats"
)

// Figure is one number that a benchmark measured.
type Figure struct {
	// Name begins with the benchmark's: P1.batched/river. Names of ratios have a slash, or say of what they are.
	Name string `json:"name"`
	// Value is the figure, a median where there are several Samples.
	Value float64 `json:"value"`
	// Unit is empty for ratios and counts.
	Unit string `json:"unit,omitempty"`
	// Samples are the rounds that Value was made of; nil for one.
	Samples []float64 `json:"samples,omitempty"`
	// Note says under which conditions, where these differ from those of a full run.
	Note string `json:"note,omitempty"`
	// Noise says why the figure must not be compared with anything; empty: it may be.
	Noise string `json:"noise,omitempty"`
}

// Line is one series of a plot.
type Line struct {
	Name string    `json:"name"`
	X    []float64 `json:"x"`
	Y    []float64 `json:"y"`
}

// Plot is one picture of the report.
type Plot struct {
	Title string `json:"title"`
	XAxis string `json:"xAxis"`
	YAxis string `json:"yAxis"`
	// LogX and LogY draw an axis logarithmically. Values that are not positive are left out there.
	LogX  bool   `json:"logX,omitempty"`
	LogY  bool   `json:"logY,omitempty"`
	Lines []Line `json:"lines"`
}

// Run is everything that a run leaves.
type Run struct {
	Started time.Time     `json:"started"`
	Took    time.Duration `json:"tookNanoseconds"`
	Quick   bool          `json:"quick"`
	// Benchmarks are those that ran to their end.
	Benchmarks []string `json:"benchmarks"`
	// Environment is what the run ran on, in the order of the report.
	Environment []Fact    `json:"environment"`
	Figures     []Figure  `json:"figures"`
	Verdicts    []Verdict `json:"verdicts"`
	Plots       []Plot    `json:"plots"`
	// Remarks are what a reader must know to judge the figures.
	Remarks []string `json:"remarks,omitempty"`
}

// Fact is one property of the environment.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Add adds a figure.
func (r *Run) Add(f Figure) { r.Figures = append(r.Figures, f) }

// Value adds a figure of a single sample.
func (r *Run) Value(name string, value float64, unit string) {
	r.Add(Figure{Name: name, Value: value, Unit: unit})
}

// Median adds a figure of several rounds.
func (r *Run) Median(name string, samples []float64, unit string) {
	r.Add(Figure{Name: name, Value: stats.Median(samples), Unit: unit, Samples: samples})
}

// Ratio adds the ratio of the medians of what was measured in the same rounds. It is 0 where the peer did nothing.
func (r *Run) Ratio(name string, ours, peers []float64, noise string) {
	f := Figure{Name: name, Noise: noise}
	if peer := stats.Median(peers); peer > 0 {
		f.Value = stats.Median(ours) / peer
	}
	for i := range min(len(ours), len(peers)) {
		if peers[i] > 0 {
			f.Samples = append(f.Samples, ours[i]/peers[i])
		}
	}
	r.Add(f)
}

// Find returns a figure by its name; nil: it was not measured.
func (r *Run) Find(name string) *Figure {
	for i := range r.Figures {
		if r.Figures[i].Name == name {
			return &r.Figures[i]
		}
	}
	return nil
}

// Distribution returns the line of a plot of latencies by percentile, in milliseconds.
func Distribution(name string, samples []time.Duration) Line {
	l := Line{Name: name}
	for i, d := range stats.Percentiles(samples) {
		l.X, l.Y = append(l.X, float64(i+1)), append(l.Y, float64(d)/float64(time.Millisecond))
	}
	return l
}
