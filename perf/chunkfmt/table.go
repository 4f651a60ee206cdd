package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

const (
	mb  = 1e6
	mib = 1 << 20
)

// table prints what was measured, for people.
func (r *result) table(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(format string, args ...any) {
		_, _ = fmt.Fprintf(w, format+"\n", args...) // to memory
	}
	if len(r.Convert) > 0 {
		row("\nCONVERT\ttar MB\tseconds\tCPU s\tMB/CPU s\tpeak MiB\tlayers MB\tindex MB\tblobs MB\tof layers\tindex of plain\tpeer s\tspeed-up")
	}
	for _, c := range r.Convert {
		d := c.Damselfly
		peer, speedup := "-", "-"
		if c.Peer != nil {
			peer, speedup = fmt.Sprintf("%.1f", c.Peer.Seconds), fmt.Sprintf("%.1f x", c.Speedup)
		}
		row("%s\t%.0f\t%.2f\t%.2f\t%.0f\t%.0f\t%.1f\t%.2f\t%.1f\t%.1f %%\t%.2f %%\t%s\t%s", c.Image, float64(d.TarBytes)/mb, d.Seconds, d.CPUSeconds,
			c.MBPerCore, float64(d.PeakRSS)/mib, float64(d.ImageBytes)/mb, float64(d.IndexBytes)/mb, float64(d.BlobBytes)/mb, c.SizePercent, c.IndexPercent, peer, speedup)
	}
	if len(r.Next) > 0 {
		row("\nNEXT VERSION\tfiles changed\tfirst MB\tnext MB\tof first\tnext alone MB")
	}
	for _, n := range r.Next {
		row("%s\t%d %%\t%.1f\t%.2f\t%.1f %%\t%.1f", n.Image, n.Percent, float64(n.First)/mb, float64(n.Next)/mb, n.ExtraPercent, float64(n.Alone)/mb)
	}
	if len(r.Metadata) > 0 {
		row("\nOPEN\tindex MB\tbytes/file\tof plain\tdecode ms\tmerge ms\tEROFS ms\ttotal ms\theap MiB\timage MB")
	}
	for _, m := range r.Metadata {
		row("%d files\t%.2f\t%.0f\t%.2f %%\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f\t%.1f", m.Files, float64(m.IndexBytes)/mb, m.BytesPerOne, m.IndexShare,
			m.DecodeMS, m.MergeMS, m.EROFSMS, m.TotalMS, float64(m.HeapBytes)/mib, float64(m.ImageBytes)/mb)
	}
	if len(r.Sweep) > 0 {
		row("\nSWEEP\tchunk KiB\tgroup KiB\tcodec\tinline\tMB/CPU s\tof layers\tindex of plain\tcold start MB")
	}
	for _, s := range r.Sweep {
		codec := s.Codec
		if codec == "zstd" {
			codec = fmt.Sprintf("zstd %d", s.Level)
		}
		row("%s\t%d\t%d\t%s\t%d\t%.0f\t%.1f %%\t%.2f %%\t%.2f", s.Image, s.ChunkKiB, s.GroupKiB, codec, s.InlineMax, s.MBPerCore, s.SizePercent, s.IndexPercent, float64(s.ColdBytes)/mb)
	}
	_ = w.Flush() // to memory
}
