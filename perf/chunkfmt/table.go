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

// rows writes rows whose cells are separated by tabs.
type rows struct{ to *tabwriter.Writer }

func (r rows) add(format string, args ...any) {
	_, _ = fmt.Fprintf(r.to, format+"\n", args...) // to memory
}

// table prints what was measured, for people, to memory.
func (r *result) table(out io.Writer) {
	for _, part := range []func(rows){r.metadataTable, r.convertTable, r.nextTable, r.sweepTable} {
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		part(rows{w})
		_ = w.Flush() // to memory
	}
}

func (r *result) metadataTable(t rows) {
	if len(r.Metadata) == 0 {
		return
	}
	t.add("\nOPEN\tindex MB\tB/file\tof plain\tdecode ms\tmerge ms\tEROFS ms\ttotal ms\tCPU ms\theap MiB\tpeak RSS MiB\timage MB")
	for _, m := range r.Metadata {
		t.add("%d files\t%.2f\t%.0f\t%.2f %%\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f\t%.0f\t%.0f\t%.1f", m.Files, float64(m.IndexBytes)/mb, m.BytesPerFile, m.IndexPercent,
			m.DecodeMS, m.MergeMS, m.EROFSMS, m.TotalMS, m.CPUMS, float64(m.HeapBytes)/mib, float64(m.PeakRSS)/mib, float64(m.ImageBytes)/mb)
	}
}

func (r *result) convertTable(t rows) {
	if len(r.Convert) == 0 {
		return
	}
	t.add("\nCONVERT\tseconds\tCPU s\ttar MB/CPU s\tpeak RSS MiB\tresult MB\tof layers\tindex MB\tindex of plain")
	for _, c := range r.Convert {
		d := c.Damselfly
		t.add("%s: dfctl, gzip layers (tar %.0f MB, gzip %.0f MB)\t%.2f\t%.2f\t%.0f\t%.0f\t%.1f\t%.1f %%\t%.2f\t%.2f %%", c.Image, float64(d.TarBytes)/mb, float64(d.ImageBytes)/mb,
			d.Seconds, d.CPUSeconds, d.MBPerCore, float64(d.PeakRSS)/mib, float64(d.stored())/mb, c.SizePercent, float64(d.IndexBytes)/mb, c.IndexPercent)
		f := c.FromTar
		t.add("%s: dfctl, tar layers\t%.2f\t%.2f\t%.0f\t%.0f\t%.1f\t\t%.2f\t%.2f %%", c.Image, f.Seconds, f.CPUSeconds, f.MBPerCore, float64(f.PeakRSS)/mib,
			float64(f.stored())/mb, float64(f.IndexBytes)/mb, c.IndexPercent)
		if p := c.Peer; p != nil {
			t.add("%s: ctr-remote (client only), eStargz\t%.2f\t%.2f\t%.0f\t%.0f\t%.1f\t%.1f %%\t\t", c.Image, p.Seconds, p.CPUSeconds, mbPerSecond(d.TarBytes, p.CPUSeconds),
				float64(p.PeakRSS)/mib, float64(p.LayerBytes)/mb, percent(p.LayerBytes, d.ImageBytes))
			t.add("%s: dfctl is faster by\t%.1f x", c.Image, c.Speedup)
		}
	}
}

func (r *result) nextTable(t rows) {
	if len(r.Next) == 0 {
		return
	}
	t.add("\nNEXT VERSION\tfiles changed\tfirst MB\tnext MB\tindexes of it MB\tof first\tnext alone MB")
	for _, n := range r.Next {
		t.add("%s\t%d %%\t%.1f\t%.2f\t%.2f\t%.1f %%\t%.1f", n.Image, n.Percent, float64(n.First)/mb, float64(n.Next)/mb, float64(n.NextIndex)/mb, n.ExtraPercent, float64(n.Alone)/mb)
	}
}

func (r *result) sweepTable(t rows) {
	if len(r.Sweep) == 0 {
		return
	}
	t.add("\nSWEEP\tchunk\tgroup\tcodec\tinline B\tseconds\tCPU s\ttar MB/CPU s\tpeak RSS MiB\tof layers\tindex MB\tindex of plain\tcold start MB\t")
	for _, s := range r.Sweep {
		mark := ""
		if s.setting == defaults() {
			mark = "default"
		}
		t.add("%s\t%s\t%s\t%s\t%d\t%.2f\t%.2f\t%.0f\t%.0f\t%.1f %%\t%.2f\t%.2f %%\t%.2f\t%s", s.Image, kib(s.ChunkKiB), kib(s.GroupKiB), s.codec(), s.InlineMax, s.Seconds, s.CPUSeconds,
			s.MBPerCore, float64(s.PeakRSS)/mib, s.SizePercent, float64(s.IndexBytes)/mb, s.IndexPercent, float64(s.ColdBytes)/mb, mark)
	}
}
