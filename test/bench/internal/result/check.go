// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package result

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/stats"
)

// Comparison is how a figure is held against its bound.
type Comparison string

// Comparisons of a threshold.
const (
	AtLeast Comparison = "at-least"
	AtMost  Comparison = "at-most"
)

// Threshold is what a figure must be.
type Threshold struct {
	// Figure is the name of the figure; its benchmark is what stands before the first dot.
	Figure string `json:"figure"`
	// Comparison and Bound say what it must be.
	Comparison Comparison `json:"comparison"`
	Bound      float64    `json:"bound"`
	// What says in a few words what the figure is.
	What string `json:"what"`
	// FullOnly says why a quick run cannot tell; empty: it can.
	FullOnly string `json:"fullOnly,omitempty"`
}

// Benchmark is the benchmark that measures the threshold's figure.
func (t Threshold) Benchmark() string {
	name, _, _ := strings.Cut(t.Figure, ".")
	return name
}

// ParseThresholds reads the file of thresholds. Unknown fields, two entries for a figure, and entries that compare nothing are errors.
func ParseThresholds(text []byte) ([]Threshold, error) {
	var file struct {
		Thresholds []Threshold `json:"thresholds"`
	}
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		return nil, fmt.Errorf("read thresholds: %w", err)
	}
	if len(file.Thresholds) == 0 {
		return nil, errors.New("read thresholds: there are none")
	}
	seen := map[string]bool{}
	for _, t := range file.Thresholds {
		switch {
		case t.Figure == "" || t.What == "":
			return nil, fmt.Errorf("read threshold %q: figure and what must be given", t.Figure)
		case t.Comparison != AtLeast && t.Comparison != AtMost:
			return nil, fmt.Errorf("read threshold %s: comparison %q is neither %s nor %s", t.Figure, t.Comparison, AtLeast, AtMost)
		case seen[t.Figure]:
			return nil, fmt.Errorf("read threshold %s: there are two", t.Figure)
		}
		seen[t.Figure] = true
	}
	return file.Thresholds, nil
}

// Outcome is what came of a threshold.
type Outcome string

// Outcomes of a threshold.
const (
	OK            Outcome = "ok"
	Missed        Outcome = "MISSED"
	NotMeasured   Outcome = "NOT MEASURED"
	NotComparable Outcome = "not comparable"
	PrintedOnly   Outcome = "printed only"
)

// Verdict is a threshold with its figure.
type Verdict struct {
	Threshold
	Value   float64 `json:"value"`
	Outcome Outcome `json:"outcome"`
	// Why says more about the outcome; may be empty.
	Why string `json:"why,omitempty"`
}

// Fails tells whether the run must not be called a success.
func (v Verdict) Fails() bool { return v.Outcome == Missed || v.Outcome == NotMeasured }

// String is the verdict's line: P1.batched/river 1.24 (must reach 1.00) ok.
func (v Verdict) String() string {
	must := "must reach"
	if v.Comparison == AtMost {
		must = "must not exceed"
	}
	line := fmt.Sprintf("%s %s (%s %s) %s", v.Figure, number(v.Value), must, number(v.Bound), v.Outcome)
	if v.Outcome == NotMeasured {
		line = fmt.Sprintf("%s - (%s %s) %s", v.Figure, must, number(v.Bound), v.Outcome)
	}
	if v.Why != "" {
		line += ": " + v.Why
	}
	return line
}

// number writes whole numbers whole where they are counts, and others with as many digits as tell them apart.
func number(f float64) string {
	switch {
	case f == float64(int64(f)) && (f == 0 || f >= 100):
		return fmt.Sprintf("%d", int64(f))
	case f < 0.1:
		return fmt.Sprintf("%.4f", f)
	default:
		return fmt.Sprintf("%.2f", f)
	}
}

// Check holds the figures of a run against the thresholds of the benchmarks that ran, and keeps the verdicts in it. It tells whether all of
// them hold, as far as the run can tell.
func (r *Run) Check(thresholds []Threshold) bool {
	r.Verdicts = nil
	good := true
	for _, t := range thresholds {
		if !slices.Contains(r.Benchmarks, t.Benchmark()) {
			continue
		}
		v := judge(t, r.Find(t.Figure), r.Quick)
		r.Verdicts = append(r.Verdicts, v)
		good = good && !v.Fails()
	}
	return good
}

func judge(t Threshold, f *Figure, quick bool) Verdict {
	v := Verdict{Threshold: t}
	if f == nil {
		v.Outcome = NotMeasured
		return v
	}
	v.Value, v.Why = f.Value, f.Note
	holds := f.Value >= t.Bound
	if t.Comparison == AtMost {
		holds = f.Value <= t.Bound
	}
	switch {
	case f.Noise != "":
		v.Outcome, v.Why = NotComparable, f.Noise
	case quick && t.FullOnly != "":
		v.Outcome, v.Why = PrintedOnly, t.FullOnly
	case holds:
		v.Outcome = OK
	default:
		v.Outcome = Missed
	}
	return v
}

const (
	// NoiseRounds is over how many rounds the floor is judged.
	NoiseRounds = 5
	// maxVariation is the coefficient of variation of the floor above which a machine is too noisy to compare anything on it.
	maxVariation = 0.10
)

// Noise says why the machine was too noisy, going by the rounds of what should always be the same; empty: it was not. Fewer rounds than
// NoiseRounds say nothing, which is noise too.
func Noise(what string, rounds []float64) string {
	if len(rounds) < NoiseRounds {
		return fmt.Sprintf("%s was measured in %d rounds, %d are needed", what, len(rounds), NoiseRounds)
	}
	if cv := stats.Variation(rounds); cv > maxVariation {
		return fmt.Sprintf("the machine was too noisy: %s varied by %.0f %% over %d rounds, at most %.0f %% can be compared", what, 100*cv, len(rounds), 100*maxVariation)
	}
	return ""
}
