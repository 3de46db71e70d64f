// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package result_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
)

const atLeastOne = `
thresholds:
- {figure: P1.a/b, comparison: at-least, bound: 1.0, what: a by b}
`

// The file that is committed must be good, and name what it compares.
func TestCommittedThresholds(t *testing.T) {
	text, err := os.ReadFile("../../thresholds.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := result.ParseThresholds(text); err != nil {
		t.Fatal(err)
	}
}

// A quick run fails for what is broken, on whatever machine it runs: it judges what was counted, and nothing that was timed.
func TestQuickRunJudgesCounts(t *testing.T) {
	text, err := os.ReadFile("../../thresholds.yaml")
	if err != nil {
		t.Fatal(err)
	}
	thresholds, err := result.ParseThresholds(text)
	if err != nil {
		t.Fatal(err)
	}
	run := result.Run{Quick: true}
	for _, th := range thresholds {
		worst := th.Bound + 1
		if th.Comparison == result.AtLeast {
			worst = 0
		}
		run.Figures = append(run.Figures, result.Figure{Name: th.Figure, Value: worst})
		if !slices.Contains(run.Benchmarks, th.Benchmark()) {
			run.Benchmarks = append(run.Benchmarks, th.Benchmark())
		}
	}
	if run.Check(thresholds) {
		t.Error("a quick run in which everything is at its worst is good")
	}
	var judged []string
	for _, v := range run.Verdicts {
		if v.Fails() {
			judged = append(judged, v.Figure)
		}
	}
	want := []string{"P3.conflicts", "P3.retries/transactions", "P5.status-writes/claim", "P6.status-writes/machine"}
	if diff := cmp.Diff(want, judged); diff != "" {
		t.Errorf("a quick run judges others (-want +got):\n%s", diff)
	}
	run.Quick = false
	run.Check(thresholds)
	for _, v := range run.Verdicts {
		if !v.Fails() {
			t.Errorf("a full run does not judge %s", v.Figure)
		}
	}
}

func TestParseThresholdsRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"nothing":            {"thresholds: []", "there are none"},
		"no yaml":            {"thresholds: {", "read thresholds"},
		"an unknown field":   {"thresholds: [{figure: P1.a, comparison: at-most, bound: 2, what: nothing, limit: 3}]", "unknown field"},
		"an unknown section": {"bounds: []\n" + atLeastOne, "unknown field"},
		"two for a figure":   {atLeastOne + "- {figure: P1.a/b, comparison: at-most, bound: 2, what: again}", "there are two"},
		"no comparison":      {"thresholds: [{figure: P1.a, bound: 2, what: nothing}]", "comparison"},
		"no figure":          {"thresholds: [{comparison: at-most, bound: 2, what: nothing}]", "figure"},
		"no words":           {"thresholds: [{figure: P1.a, comparison: at-most, bound: 2}]", "what"},
	} {
		if _, err := result.ParseThresholds([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error that says %q", name, err, c.want)
		}
	}
}

func TestCheck(t *testing.T) {
	thresholds := []result.Threshold{
		{Figure: "P1.batched/river", Comparison: result.AtLeast, Bound: 1, What: "x"},
		{Figure: "P2.pool.all", Comparison: result.AtMost, Bound: 1.5, What: "x", FullOnly: "a quick run has too few machines"},
		{Figure: "P3.conflicts", Comparison: result.AtMost, Bound: 0, What: "x"},
	}
	for name, c := range map[string]struct {
		run  result.Run
		want []string
		good bool
	}{
		"all hold": {
			result.Run{Benchmarks: []string{"P1", "P2", "P3"}, Figures: figures(1.24, 1.5, 0)},
			[]string{"P1.batched/river 1.24 (must reach 1.00) ok", "P2.pool.all 1.50 (must not exceed 1.50) ok", "P3.conflicts 0 (must not exceed 0) ok"}, true,
		},
		"all are missed": {
			result.Run{Benchmarks: []string{"P1", "P2", "P3"}, Figures: figures(0.99, 1.51, 1)},
			[]string{"P1.batched/river 0.99 (must reach 1.00) MISSED", "P2.pool.all 1.51 (must not exceed 1.50) MISSED", "P3.conflicts 1.00 (must not exceed 0) MISSED"}, false,
		},
		"a quick run cannot tell one": {
			result.Run{Quick: true, Benchmarks: []string{"P1", "P2", "P3"}, Figures: figures(1, 9, 0)},
			[]string{
				"P1.batched/river 1.00 (must reach 1.00) ok",
				"P2.pool.all 9.00 (must not exceed 1.50) printed only: a quick run has too few machines", "P3.conflicts 0 (must not exceed 0) ok",
			}, true,
		},
		"a benchmark did not run": {
			result.Run{Benchmarks: []string{"P3"}, Figures: figures(0, 9, 0)}, []string{"P3.conflicts 0 (must not exceed 0) ok"}, true,
		},
		"a benchmark ran and left a figure out": {
			result.Run{Benchmarks: []string{"P1", "P3"}, Figures: []result.Figure{{Name: "P3.conflicts"}}},
			[]string{"P1.batched/river - (must reach 1.00) NOT MEASURED", "P3.conflicts 0 (must not exceed 0) ok"}, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			good := c.run.Check(thresholds)
			var lines []string
			for _, v := range c.run.Verdicts {
				lines = append(lines, v.String())
			}
			if diff := cmp.Diff(c.want, lines); diff != "" {
				t.Errorf("lines differ (-want +got):\n%s", diff)
			}
			if good != c.good {
				t.Errorf("Check() = %v, want %v", good, c.good)
			}
		})
	}
}

func figures(river, growth, conflicts float64) []result.Figure {
	return []result.Figure{{Name: "P1.batched/river", Value: river}, {Name: "P2.pool.all", Value: growth}, {Name: "P3.conflicts", Value: conflicts}}
}

// What was measured on a noisy machine is neither good nor bad, whatever it is.
func TestNoisyFiguresAreNotCompared(t *testing.T) {
	thresholds, err := result.ParseThresholds([]byte(atLeastOne))
	if err != nil {
		t.Fatal(err)
	}
	noise := result.Noise("the floor", []float64{100, 130, 70, 100, 100})
	for _, ours := range []float64{50, 500} {
		run := result.Run{Benchmarks: []string{"P1"}}
		run.Ratio("P1.a/b", []float64{ours}, []float64{100}, noise)
		if !run.Check(thresholds) || run.Verdicts[0].Outcome != result.NotComparable {
			t.Errorf("%v: %v", ours, run.Verdicts)
		}
		if got := run.Verdicts[0].String(); !strings.Contains(got, "the floor varied by 21 % over 5 rounds") {
			t.Errorf("the line does not say why: %s", got)
		}
	}
}

func TestNoise(t *testing.T) {
	for _, c := range []struct {
		rounds []float64
		noisy  bool
	}{
		{[]float64{100, 100, 100, 100, 100}, false},
		{[]float64{90, 100, 110, 95, 105}, false}, // 7.9 %
		{[]float64{80, 100, 120, 95, 105}, true},  // 14.6 %
		{[]float64{100, 100, 100, 100}, true},     // too few to tell
		{nil, true},
	} {
		if got := result.Noise("the floor", c.rounds); (got != "") != c.noisy {
			t.Errorf("Noise(%v) = %q, want noisy: %v", c.rounds, got, c.noisy)
		}
	}
}

// A ratio is that of the medians: one bad round of either does not decide it.
func TestRatio(t *testing.T) {
	var run result.Run
	run.Ratio("P1.a/b", []float64{10, 200, 210}, []float64{100, 90, 1000}, "")
	want := &result.Figure{Name: "P1.a/b", Value: 2, Samples: []float64{0.1, 200.0 / 90, 0.21}}
	if diff := cmp.Diff(want, run.Find("P1.a/b")); diff != "" {
		t.Errorf("ratio differs (-want +got):\n%s", diff)
	}
	run.Ratio("P1.a/nothing", []float64{10}, []float64{0}, "")
	if got := run.Find("P1.a/nothing").Value; got != 0 {
		t.Errorf("the ratio to nothing is %v", got)
	}
}
