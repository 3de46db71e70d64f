// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package report writes what came of a run, for people and for programs.
package report

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
)

// Names of the files that Write makes.
const (
	ResultsFile = "results.json"
	PageFile    = "report.html"
)

//go:embed page.html
var page string

// Text writes the table for a terminal: the figures first, the verdicts last.
func Text(w io.Writer, run *result.Run) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range run.Figures {
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.Name, Number(f.Value), strings.TrimSpace(f.Unit+" "+f.Note))
	}
	_ = table.Flush()
	fmt.Fprintln(w)
	for _, r := range run.Remarks {
		fmt.Fprintln(w, r)
	}
	if len(run.Remarks) > 0 {
		fmt.Fprintln(w)
	}
	for _, v := range run.Verdicts {
		fmt.Fprintln(w, v)
	}
}

// Number writes a figure with as many digits as say something.
func Number(f float64) string {
	switch {
	case f == float64(int64(f)), f >= 1000 || f <= -1000:
		return fmt.Sprintf("%.0f", f)
	case f < 0.1 && f > -0.1:
		return fmt.Sprintf("%.4f", f)
	default:
		return fmt.Sprintf("%.2f", f)
	}
}

// Write writes results.json and report.html, which needs no other file, into a directory.
func Write(dir string, run *result.Run) error {
	text, err := json.MarshalIndent(run, "", "  ")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, ResultsFile), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	html, err := Page(run)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, PageFile), html, 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// Page is the report as one HTML page.
func Page(run *result.Run) ([]byte, error) {
	t, err := template.New("page").Funcs(template.FuncMap{"number": Number, "slug": slug}).Parse(page)
	if err != nil {
		return nil, fmt.Errorf("make report: %w", err)
	}
	data := struct {
		*result.Run
		Pictures []template.HTML
	}{Run: run}
	for _, p := range run.Plots {
		svg, err := Draw(p)
		if err != nil {
			return nil, err
		}
		data.Pictures = append(data.Pictures, template.HTML(svg)) //nolint:gosec // it was drawn here
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return nil, fmt.Errorf("make report: %w", err)
	}
	return out.Bytes(), nil
}

// slug is a class name for an outcome.
func slug(o result.Outcome) string { return strings.ReplaceAll(strings.ToLower(string(o)), " ", "-") }
