package main

import (
	"cmp"
	"errors"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Sizes of plots.
const (
	plotWidth  = 20 * vg.Centimeter
	plotHeight = 13 * vg.Centimeter
	margin     = vg.Centimeter / 3
)

// drawSweep draws, for each image, what a cold start fetches against the size
// of the whole, for sizes of chunks and groups; and, for all images, the speed
// against the size, for levels of zstd. Without compression, the size is so much
// larger that it would leave no room for the levels.
//
// format is "svg" or another that gonum knows.
func drawSweep(dir, format string, all []sweepResult) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G703 -- the user names it
		return err
	}
	names, byImage := group(all)
	for _, name := range names {
		p, err := sizePlot(name, byImage[name])
		if err != nil {
			return fmt.Errorf("draw the sizes of %s: %w", name, err)
		}
		if err := save(p, filepath.Join(dir, "sizes-"+name), format); err != nil {
			return err
		}
	}
	p, err := levelPlot(names, byImage)
	if err != nil {
		return fmt.Errorf("draw the levels: %w", err)
	}
	return save(p, filepath.Join(dir, "levels"), format)
}

// save draws a plot with a margin around it.
func save(p *plot.Plot, name, format string) (err error) {
	canvas, err := draw.NewFormattedCanvas(plotWidth, plotHeight, format)
	if err != nil {
		return err
	}
	whole := draw.New(canvas)
	p.Draw(draw.Crop(whole, margin, -margin, margin, -margin))
	f, err := os.Create(name + "." + format) // #nosec G703 -- in the directory that the user names
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = canvas.WriteTo(f)
	return err
}

// group returns the images in order and their results.
func group(all []sweepResult) (names []string, byImage map[string][]sweepResult) {
	byImage = map[string][]sweepResult{}
	for _, s := range all {
		if !slices.Contains(names, s.Image) {
			names = append(names, s.Image)
		}
		byImage[s.Image] = append(byImage[s.Image], s)
	}
	return names, byImage
}

// sizePlot shows the trade between small groups, of which a start fetches few
// bytes in vain, and large ones, which compress better.
func sizePlot(name string, results []sweepResult) (*plot.Plot, error) {
	p := newPlot(name+": chunk size / group size, "+defaults().codec(),
		"indexes and blobs, % of the size of the gzip layers", "fetched by a cold start, MB")
	var usual, others []point
	for _, s := range results {
		same := s.setting
		same.ChunkKiB, same.GroupKiB = defaults().ChunkKiB, defaults().GroupKiB
		at := point{s.SizePercent, float64(s.ColdBytes) / mb, s.sizes()}
		switch {
		case s.setting == defaults():
			at.label += " (default)"
			usual = append(usual, at)
		case same == defaults():
			others = append(others, at)
		}
	}
	for i, points := range [][]point{others, usual} {
		dots, err := plotter.NewScatter(xys(points))
		if err != nil {
			return nil, err
		}
		dots.Color, dots.Radius, dots.Shape = plotutil.Color(1-i), vg.Points(3), draw.CircleGlyph{}
		p.Add(dots)
	}
	p.Add(&labels{points: append(usual, others...)})
	p.Y.Min = 0
	widen(p)
	return p, nil
}

// levelPlot has a line for each image.
func levelPlot(names []string, byImage map[string][]sweepResult) (*plot.Plot, error) {
	p := newPlot("levels of zstd: speed and size", "indexes and blobs, % of the size of the gzip layers", "tar converted per second of a processor, MB/s")
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.Padding = vg.Points(3)
	var all []point
	for i, name := range names {
		var points []point
		for _, s := range byImage[name] {
			same := s.setting
			same.Level = defaults().Level
			if same != defaults() {
				continue
			}
			label := s.codec()
			if s.setting == defaults() {
				label += " (default)"
			}
			points = append(points, point{s.SizePercent, s.MBPerCore, label})
		}
		slices.SortFunc(points, func(a, b point) int { return cmp.Compare(a.x, b.x) })
		line, dots, err := plotter.NewLinePoints(xys(points))
		if err != nil {
			return nil, err
		}
		line.Color, dots.Color, dots.Shape = plotutil.Color(i), plotutil.Color(i), draw.CircleGlyph{}
		p.Add(line, dots)
		p.Legend.Add(name, line, dots)
		all = append(all, points...)
	}
	p.Add(&labels{points: all})
	p.Y.Min = 0
	widen(p)
	return p, nil
}

func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.Padding, p.X.Label.Padding, p.Y.Label.Padding = vg.Points(6), vg.Points(4), vg.Points(4)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{0xdd}, color.Gray{0xdd}
	p.Add(grid)
	return p
}

// widen leaves room around the points for their labels.
func widen(p *plot.Plot) {
	room := max(p.X.Max-p.X.Min, 1) / 8
	p.X.Min, p.X.Max = p.X.Min-room, p.X.Max+room
	p.Y.Max *= 1.1
}
