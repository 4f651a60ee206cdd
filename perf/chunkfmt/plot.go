package main

import (
	"fmt"
	"image/color"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// drawSweep draws, for each image, what a cold start fetches against the size
// of the whole: the trade between small groups, which fetch little in vain, and
// large ones, which compress better.
func (o *options) drawSweep(all []sweepResult) error {
	if err := os.MkdirAll(o.plots, 0o755); err != nil {
		return err
	}
	byImage := map[string][]sweepResult{}
	for _, s := range all {
		if s.Codec == "zstd" && s.Level == 1 && s.InlineMax == 128 {
			byImage[s.Image] = append(byImage[s.Image], s)
		}
	}
	for name, points := range byImage {
		if err := drawTrade(name, points, filepath.Join(o.plots, "sweep-"+filepath.Base(name)+".svg")); err != nil {
			return fmt.Errorf("plot %s: %w", name, err)
		}
	}
	return nil
}

func drawTrade(name string, points []sweepResult, file string) error {
	p := plot.New()
	p.Title.Text = fmt.Sprintf("%s: sizes of chunks / groups in KiB", filepath.Base(name))
	p.X.Label.Text = "index and blobs, % of the gzip layers"
	p.Y.Label.Text = "fetched by a cold start of the image's command, MB"
	var xy plotter.XYs
	var labels []string
	for _, s := range points {
		xy = append(xy, plotter.XY{X: s.SizePercent, Y: float64(s.ColdBytes) / 1e6})
		labels = append(labels, fmt.Sprintf(" %d / %d", s.ChunkKiB, s.GroupKiB))
	}
	dots, err := plotter.NewScatter(xy)
	if err != nil {
		return err
	}
	dots.Color, dots.Radius = plotutil.Color(1), vg.Points(3)
	names, err := plotter.NewLabels(plotter.XYLabels{XYs: xy, Labels: labels})
	if err != nil {
		return err
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{0xdd}, color.Gray{0xdd}
	p.Add(grid, dots, names)
	// Room for the labels.
	p.X.Max += (p.X.Max - p.X.Min) / 5
	p.Y.Min = 0
	return p.Save(18*vg.Centimeter, 12*vg.Centimeter, file)
}
