package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

const (
	plotWidth = 20 * vg.Centimeter
	rowHeight = 0.9 * vg.Centimeter
	frame     = 3 * vg.Centimeter // title and axis
	margin    = vg.Centimeter / 3
)

// drawStarts draws coldstart-IMAGE for each image: a bar per command and
// contender, its pull and its run one after the other.
//
// format is "svg" or another that gonum knows.
func drawStarts(dir, format string, r *result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G703 -- the user names it
		return err
	}
	var names []string
	for _, w := range r.Rows {
		if !slices.Contains(names, w.Image) {
			names = append(names, w.Image)
		}
	}
	for _, name := range names {
		rows := slices.DeleteFunc(r.sorted(), func(w *row) bool { return w.Image != name })
		slices.Reverse(rows) // the vertical axis goes up
		p, err := startPlot(name, r.Rate, rows)
		if err == nil {
			err = save(p, vg.Length(len(rows))*rowHeight+frame, filepath.Join(dir, "coldstart-"+name), format)
		}
		if err != nil {
			return fmt.Errorf("draw the starts of %s: %w", name, err)
		}
	}
	return nil
}

func startPlot(name, rate string, rows []*row) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = fmt.Sprintf("%s, %.0f MB of layers, links of %s: cold start", name, float64(rows[0].LayerBytes)/mb, rate)
	p.X.Label.Text = "seconds until the first output"
	p.Title.Padding, p.X.Label.Padding = vg.Points(6), vg.Points(4)
	var pulls, runs plotter.Values
	var labels []string
	var ends plotter.XYLabels
	for i, w := range rows {
		pulls, runs = append(pulls, w.Median.Pull), append(runs, w.Median.Total-w.Median.Pull)
		labels = append(labels, w.Command+", "+w.With+" ")
		ends.XYs = append(ends.XYs, plotter.XY{X: w.Median.Total, Y: float64(i)})
		ends.Labels = append(ends.Labels, fmt.Sprintf("  %.2f s, %.1f MB", w.Median.Total, float64(w.Median.NodeBytes)/mb))
	}
	if err := addBars(p, pulls, runs); err != nil {
		return nil, err
	}
	text, err := plotter.NewLabels(ends)
	if err != nil {
		return nil, err
	}
	for i := range text.TextStyle {
		text.TextStyle[i].YAlign = draw.YCenter
	}
	p.Add(text)
	p.NominalY(labels...)
	p.Y.Padding, p.Y.Tick.Length, p.Y.Width = rowHeight/2, 0, 0
	p.X.Min, p.X.Max = 0, p.X.Max*1.35 // room for the labels
	p.Legend.Padding, p.Legend.ThumbnailWidth = vg.Points(4), rowHeight/2
	return p, nil
}

// addBars adds a bar of two parts for each value.
func addBars(p *plot.Plot, pulls, runs plotter.Values) error {
	const width = rowHeight / 2
	pull, err := plotter.NewBarChart(pulls, width)
	if err != nil {
		return err
	}
	run, err := plotter.NewBarChart(runs, width)
	if err != nil {
		return err
	}
	for i, bars := range []*plotter.BarChart{pull, run} {
		bars.Horizontal, bars.LineStyle.Width, bars.Color = true, 0, plotutil.SoftColors[2*i]
	}
	run.StackOn(pull)
	p.Add(pull, run)
	p.Legend.Add("pull", pull)
	p.Legend.Add("run", run)
	return nil
}

// save draws a plot with a margin around it.
func save(p *plot.Plot, height vg.Length, name, format string) (err error) {
	canvas, err := draw.NewFormattedCanvas(plotWidth, height, format)
	if err != nil {
		return err
	}
	p.Draw(draw.Crop(draw.New(canvas), margin, -margin, margin, -margin))
	f, err := os.Create(name + "." + format) // #nosec G703 -- in the directory that the user names
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = canvas.WriteTo(f)
	return err
}
