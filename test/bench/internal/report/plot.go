// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"fmt"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
)

const (
	pictureWidth  = 22 * vg.Centimeter
	pictureHeight = 11 * vg.Centimeter
)

// Draw makes an SVG element of a plot. Lines without points are left out.
func Draw(p result.Plot) ([]byte, error) {
	picture := plot.New()
	picture.Title.Text, picture.X.Label.Text, picture.Y.Label.Text = p.Title, p.XAxis, p.YAxis
	picture.Legend.Top, picture.Legend.Left = true, true
	picture.Add(plotter.NewGrid())
	drawn := false
	for i, l := range p.Lines {
		points := pointsOf(p, l)
		if len(points) == 0 {
			continue
		}
		drawn = true
		line, marks, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, fmt.Errorf("draw %s: %s: %w", p.Title, l.Name, err)
		}
		line.Color, line.Width = plotutil.Color(i), vg.Points(1.5)
		line.Dashes = plotutil.Dashes(i / 7)
		marks.Color, marks.Shape, marks.Radius = plotutil.Color(i), draw.CircleGlyph{}, vg.Points(2)
		picture.Add(line)
		if len(points) < 20 {
			picture.Add(marks)
		}
		picture.Legend.Add(l.Name, line)
	}
	if drawn {
		if p.LogX {
			picture.X.Scale, picture.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		}
		if p.LogY {
			picture.Y.Scale, picture.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		}
	}
	canvas := vgsvg.New(pictureWidth, pictureHeight)
	picture.Draw(draw.New(canvas))
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return nil, fmt.Errorf("draw %s: %w", p.Title, err)
	}
	// The element alone: what stands before it is for a file of its own.
	text := out.Bytes()
	return text[max(bytes.Index(text, []byte("<svg")), 0):], nil
}

// pointsOf are the points of a line that its plot can show.
func pointsOf(p result.Plot, l result.Line) plotter.XYs {
	var points plotter.XYs
	for i := range min(len(l.X), len(l.Y)) {
		if p.LogX && l.X[i] <= 0 || p.LogY && l.Y[i] <= 0 {
			continue
		}
		points = append(points, plotter.XY{X: l.X[i], Y: l.Y[i]})
	}
	return points
}
