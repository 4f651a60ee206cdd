package main

import (
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// point has a label.
type point struct {
	x, y  float64
	label string
}

func xys(points []point) plotter.XYs {
	var all plotter.XYs
	for _, p := range points {
		all = append(all, plotter.XY{X: p.x, Y: p.y})
	}
	return all
}

// labels is a plotter that writes each label beside its point, on the first
// side on which it covers neither a label that was written before nor a point.
type labels struct{ points []point }

// distance is how far labels are from their points.
const distance = vg.Length(6)

// side is where a label lies, and how far from its point in distances.
type side struct {
	dx, dy vg.Length
	x      text.XAlignment
	y      text.YAlignment
}

var sides = []side{
	{1, 0, text.XLeft, text.YCenter},
	{-1, 0, text.XRight, text.YCenter},
	{0, 1, text.XCenter, text.YBottom},
	{0, -1, text.XCenter, text.YTop},
	{1, 1.5, text.XLeft, text.YCenter},
	{1, -1.5, text.XLeft, text.YCenter},
	{-1, 1.5, text.XRight, text.YCenter},
	{-1, -1.5, text.XRight, text.YCenter},
}

// Plot implements plot.Plotter.
func (l *labels) Plot(c draw.Canvas, p *plot.Plot) {
	tx, ty := p.Transforms(&c)
	style := text.Style{Color: p.X.Tick.Label.Color, Font: p.X.Tick.Label.Font, Handler: p.TextHandler}
	style.Font.Size = vg.Points(8)
	var taken []vg.Rectangle
	for _, q := range l.points {
		at := vg.Point{X: tx(q.x), Y: ty(q.y)}
		dot := vg.Point{X: 4, Y: 4}
		taken = append(taken, vg.Rectangle{Min: at.Sub(dot), Max: at.Add(dot)})
	}
	for _, q := range l.points {
		at := vg.Point{X: tx(q.x), Y: ty(q.y)}
		s, where := place(c.Rectangle, style, at, q.label, taken)
		style.XAlign, style.YAlign = s.x, s.y
		c.FillText(style, at.Add(s.offset()), q.label)
		taken = append(taken, where)
	}
}

func (s side) offset() vg.Point { return vg.Point{X: s.dx * distance, Y: s.dy * distance} }

// place returns the best side of a point, and what the label then covers.
func place(within vg.Rectangle, style text.Style, at vg.Point, label string, taken []vg.Rectangle) (side, vg.Rectangle) {
	var first vg.Rectangle
	for i, s := range sides {
		style.XAlign, style.YAlign = s.x, s.y
		r := style.Rectangle(label).Add(at.Add(s.offset()))
		if i == 0 {
			first = r
		}
		if inside(r, within) && !overlapsAny(r, taken) {
			return s, r
		}
	}
	return sides[0], first
}

func inside(r, within vg.Rectangle) bool {
	return r.Min.X >= within.Min.X && r.Max.X <= within.Max.X && r.Min.Y >= within.Min.Y && r.Max.Y <= within.Max.Y
}

func overlapsAny(r vg.Rectangle, taken []vg.Rectangle) bool {
	for _, t := range taken {
		if r.Min.X < t.Max.X && t.Min.X < r.Max.X && r.Min.Y < t.Max.Y && t.Min.Y < r.Max.Y {
			return true
		}
	}
	return false
}
