package main

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

const mb = 1e6

// result is the document that is printed.
type result struct {
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	Image  string `json:"image"`
	Rate   string `json:"rate"`
	Repeat int    `json:"repeat"`

	Figures []*figure `json:"figures"`

	log func(string, ...any)
}

// figure is something that was measured.
type figure struct {
	Mode string `json:"mode"`
	// With is the backend, or empty.
	With string `json:"with,omitempty"`
	Name string `json:"name"`
	Unit string `json:"unit"`
	// Value is the median of Values.
	Value  float64   `json:"value"`
	Values []float64 `json:"values"`
	// Against names what the figure is compared with; Reference is its median.
	Against    string    `json:"against,omitempty"`
	Reference  float64   `json:"reference,omitempty"`
	References []float64 `json:"references,omitempty"`
	// Ratio is the median of the ratios of values to references that were
	// measured one after the other.
	Ratio float64 `json:"ratio,omitempty"`
	// Goal is for Ratio where there is a reference, else for Value.
	Goal *goal `json:"goal,omitempty"`
	// Reached tells whether the goal is.
	Reached *bool `json:"reached,omitempty"`
}

// goal is a bound: exactly one of its fields is set.
type goal struct {
	Least *float64 `json:"at_least,omitempty"`
	Most  *float64 `json:"at_most,omitempty"`
}

func atLeast(v float64) *goal { return &goal{Least: &v} }
func atMost(v float64) *goal  { return &goal{Most: &v} }

func (g *goal) reached(v float64) bool {
	if g.Least != nil {
		return v >= *g.Least
	}
	return v <= *g.Most
}

func (g *goal) String() string {
	if g.Least != nil {
		return fmt.Sprintf(">= %g", *g.Least)
	}
	return fmt.Sprintf("<= %g", *g.Most)
}

func newResult(o *options) *result {
	r := &result{CPUs: runtime.NumCPU(), Kernel: "unknown", Image: o.image, Rate: o.rate.String(), Repeat: o.repeat, log: o.log}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		r.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	return r
}

// add finishes a figure, of which Values and perhaps References are set, and adds it.
func (r *result) add(f figure) {
	f.Value = median(f.Values)
	judged := f.Value
	if len(f.References) > 0 {
		f.Reference = median(f.References)
		ratios := make([]float64, min(len(f.Values), len(f.References)))
		for i := range ratios {
			ratios[i] = f.Values[i] / f.References[i]
		}
		f.Ratio = median(ratios)
		judged = f.Ratio
	}
	if f.Goal != nil {
		reached := f.Goal.reached(judged)
		f.Reached = &reached
	}
	r.Figures = append(r.Figures, &f)
	r.log("%s", f.describe())
}

func (f *figure) describe() string {
	text := fmt.Sprintf("%s %s, %s: %.4g %s", f.Mode, f.With, f.Name, f.Value, f.Unit)
	if f.Against != "" {
		text += fmt.Sprintf("; %s %.4g, ratio %.3f", f.Against, f.Reference, f.Ratio)
	}
	if f.Goal != nil {
		text += fmt.Sprintf("; goal %s, reached: %v", f.Goal, *f.Reached)
	}
	return text
}

// median returns the middle of some values, the lower of two middles; NaN of none.
func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile returns the smallest value that at least the part q of all do not
// exceed; NaN of none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[max(0, min(i, len(sorted)-1))]
}

// table prints the figures, to memory.
func (r *result) table(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	print := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	print("\nMODE\tWITH\tFIGURE\tmedian\tunit\tagainst\tits median\tratio\tgoal\t")
	for _, f := range r.Figures {
		reference, ratio, bound, verdict := "", "", "", ""
		if f.Against != "" {
			reference, ratio = fmt.Sprintf("%.4g", f.Reference), fmt.Sprintf("%.3f", f.Ratio)
		}
		if f.Goal != nil {
			bound, verdict = f.Goal.String(), "missed"
			if *f.Reached {
				verdict = "reached"
			}
		}
		print("%s\t%s\t%s\t%.4g\t%s\t%s\t%s\t%s\t%s\t%s", f.Mode, f.With, f.Name, f.Value, f.Unit, f.Against, reference, ratio, bound, verdict)
	}
	print("medians of %d; image %s, shaped links of %s, %d processors, Linux %s", r.Repeat, r.Image, r.Rate, r.CPUs, r.Kernel)
	_ = w.Flush()
}
