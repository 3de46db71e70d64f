// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package report_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/report"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
)

func sample() *result.Run {
	run := &result.Run{
		Started: time.Date(2026, 11, 22, 23, 0, 0, 0, time.UTC), Took: 90 * time.Second, Quick: true, Benchmarks: []string{"P1", "P4"},
		Environment: []result.Fact{{Name: "processor", Value: "a <fast> one"}},
		Remarks:     []string{"P1: the machine was too noisy."},
		Plots: []result.Plot{
			{
				Title: "throughput", XAxis: "workers", YAxis: "cycles/s", LogX: true, LogY: true,
				Lines: []result.Line{{Name: "ours", X: []float64{1, 16, 64}, Y: []float64{100, 900, 0}}, {Name: "nobody"}},
			},
			{Title: "nothing was measured", LogY: true},
		},
	}
	run.Median("P1.batched.workers-64", []float64{900, 1100}, "cycles/s")
	run.Value("P1.batched/river", 1.24, "")
	run.Value("P4.kill/lease", 2.1, "")
	run.Check([]result.Threshold{
		{Figure: "P1.batched/river", Comparison: result.AtLeast, Bound: 1, What: "beside River"},
		{Figure: "P4.kill/lease", Comparison: result.AtMost, Bound: 2, What: "takeover"},
	})
	return run
}

func TestText(t *testing.T) {
	var out strings.Builder
	report.Text(&out, sample())
	want := `P1.batched.workers-64  1000  cycles/s
P1.batched/river       1.24  
P4.kill/lease          2.10  

P1: the machine was too noisy.

P1.batched/river 1.24 (must reach 1.00) ok
P4.kill/lease 2.10 (must not exceed 2.00) MISSED
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("text differs (-want +got):\n%s", diff)
	}
}

// The page must stand alone: nothing is loaded from anywhere.
func TestPageStandsAlone(t *testing.T) {
	page, err := report.Page(sample())
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	for _, want := range []string{"a &lt;fast&gt; one", `class="missed"`, `class="ok"`, "a quick run of P1, P4, 1m30s", "<svg", "≤ 2", "beside River"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, never := range []string{"<script", "<link", "src=", "@import", "url(http", "<?xml", "<!DOCTYPE svg"} {
		if strings.Contains(text, never) {
			t.Errorf("the page has %q", never)
		}
	}
}

func TestDrawIsXML(t *testing.T) {
	for _, p := range sample().Plots {
		svg, err := report.Draw(p)
		if err != nil {
			t.Fatal(err)
		}
		decoder := xml.NewDecoder(strings.NewReader(string(svg)))
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", p.Title, err)
			}
		}
	}
}

func TestWrite(t *testing.T) {
	dir, run := t.TempDir(), sample()
	if err := report.Write(dir, run); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, report.ResultsFile))
	if err != nil {
		t.Fatal(err)
	}
	var got result.Run
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(*run, got); diff != "" {
		t.Errorf("what is written is not what was measured (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(dir, report.PageFile)); err != nil {
		t.Error(err)
	}
}
