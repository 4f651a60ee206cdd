package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

const mb = 1e6

// allowance is what a lazy start may take beside a warm run and the transfer, in
// seconds: the project's goal.
const allowance = 0.3

// result is the document that is printed.
type result struct {
	CPUs       int    `json:"cpus"`
	Kernel     string `json:"kernel"`
	Containerd string `json:"containerd"`
	Rate       string `json:"rate"`
	Repeat     int    `json:"repeat"`

	Rows []*row `json:"results"`

	linkSeconds func(bytes int64) float64
}

// row is the starts of one kind.
type row struct {
	Image      string `json:"image"`
	LayerBytes int64  `json:"image_layer_bytes"`
	Command    string `json:"command"`
	With       string `json:"with"`
	// Median of each figure by itself.
	Median start `json:"median"`
	// Fastest and Slowest are of the total.
	Fastest float64 `json:"fastest_seconds"`
	Slowest float64 `json:"slowest_seconds"`
	// Bound is what the bytes that the node received take on its link, beside a
	// warm run of the command on overlayfs and 0.3 s; 0 without overlayfs.
	Bound  float64 `json:"bound_seconds,omitempty"`
	Starts []start `json:"starts"`
}

func newResult(s *site) *result {
	r := &result{
		CPUs: runtime.NumCPU(), Kernel: "unknown", Containerd: string(s.o.containerd),
		Rate: s.o.rate.String(), Repeat: s.o.repeat, linkSeconds: s.o.rate.Seconds,
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		r.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	return r
}

// add adds a start to its row.
func (r *result) add(img *image, c command, with string, st start) {
	w := r.find(img.name, c.name, with)
	if w == nil {
		w = &row{Image: img.name, LayerBytes: img.layers, Command: c.name, With: with}
		r.Rows = append(r.Rows, w)
	}
	w.Starts = append(w.Starts, st)
	w.Median = start{
		Pull:          median(w.Starts, func(s start) float64 { return s.Pull }),
		Run:           median(w.Starts, func(s start) float64 { return s.Run }),
		Total:         median(w.Starts, func(s start) float64 { return s.Total }),
		Warm:          median(w.Starts, func(s start) float64 { return s.Warm }),
		RegistryBytes: median(w.Starts, func(s start) int64 { return s.RegistryBytes }),
		NodeBytes:     median(w.Starts, func(s start) int64 { return s.NodeBytes }),
		Waits:         median(w.Starts, func(s start) int64 { return s.Waits }),
		WaitSeconds:   median(w.Starts, func(s start) float64 { return s.WaitSeconds }),
	}
	w.Fastest, w.Slowest = w.Starts[0].Total, w.Starts[0].Total
	for _, s := range w.Starts {
		w.Fastest, w.Slowest = min(w.Fastest, s.Total), max(w.Slowest, s.Total)
	}
	r.bound()
}

func (r *result) find(image, command, with string) *row {
	i := slices.IndexFunc(r.Rows, func(w *row) bool { return w.Image == image && w.Command == command && w.With == with })
	if i < 0 {
		return nil
	}
	return r.Rows[i]
}

// bound fills in the bounds.
func (r *result) bound() {
	for _, w := range r.Rows {
		if local := r.find(w.Image, w.Command, overlayfs); local != nil && w != local {
			w.Bound = local.Median.Warm + r.linkSeconds(w.Median.NodeBytes) + allowance
		}
	}
}

// median returns the middle of a figure, the lower of two middles.
func median[T int64 | float64](starts []start, figure func(start) T) T {
	all := make([]T, len(starts))
	for i, s := range starts {
		all[i] = figure(s)
	}
	slices.Sort(all)
	return all[(len(all)-1)/2]
}

// sorted returns the rows by image and command, in the order in which these came.
func (r *result) sorted() []*row {
	var all []*row
	for _, w := range r.Rows {
		if slices.Contains(all, w) {
			continue
		}
		for _, v := range r.Rows {
			if v.Image == w.Image && v.Command == w.Command {
				all = append(all, v)
			}
		}
	}
	return all
}

// table prints the medians, to memory.
func (r *result) table(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	print := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	print("\nIMAGE\tCOMMAND\tWITH\tpull s\trun s\ttotal s\tfrom–to s\tbound s\twarm run s\tregistry MB\tnode MB\twaits\tof s")
	for _, x := range r.sorted() {
		bound := ""
		if x.Bound > 0 {
			bound = fmt.Sprintf("%.3f", x.Bound)
		}
		m := x.Median
		print("%s (%.0f MB)\t%s\t%s\t%.3f\t%.3f\t%.3f\t%.3f–%.3f\t%s\t%.3f\t%.1f\t%.1f\t%d\t%.3f", x.Image, float64(x.LayerBytes)/mb, x.Command, x.With,
			m.Pull, m.Run, m.Total, x.Fastest, x.Slowest, bound, m.Warm, float64(m.RegistryBytes)/mb, float64(m.NodeBytes)/mb, m.Waits, m.WaitSeconds)
	}
	print("medians of %d; containerd %s, links of %s, %d processors, Linux %s", r.Repeat, r.Containerd, r.Rate, r.CPUs, r.Kernel)
	_ = w.Flush()
}
