package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// printTable prints rows under a header, columns aligned to the right.
func printTable(w *strings.Builder, header []string, rows [][]string) {
	var cells strings.Builder
	for _, row := range append([][]string{header}, rows...) {
		cells.WriteString(strings.Join(row, "\t") + "\t\n")
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = tw.Write([]byte(cells.String())) // a builder never fails
	_ = tw.Flush()
}

func mib(n int64) string       { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) }
func seconds(s float64) string { return fmt.Sprintf("%.3f", s) }
func percent(x float64) string { return fmt.Sprintf("%.0f%%", 100*x) }
func ratio(x float64) string   { return fmt.Sprintf("%.2f", x) }
func millis(s float64) string  { return fmt.Sprintf("%.2f", 1000*s) }

// table prints the median run node by node and then the figures that count.
func (d *distribution) table(w *strings.Builder) {
	r := medianRun(d.Runs)
	r.table(w)
	fmt.Fprintf(w, "\n%d nodes, links of %s, %s of %s MiB; median of %d\n", d.Nodes, d.Rate, d.Content, mib(d.Size), len(d.Runs))
	if d.LowerBound > 0 {
		fmt.Fprintf(w, "lower bound        %8s s (size ÷ rate)\n", seconds(d.LowerBound))
	}
	if d.Plain != nil {
		fmt.Fprintf(w, "plain download     %8s s (one node, alone)\n", seconds(d.Plain.Seconds))
	}
	if d.Direct != nil {
		fmt.Fprintf(w, "all from origin    %8s s\n", seconds(d.Direct.Summary.Last))
	}
	d.Median.table(w, "cold")
	if r.Warm != nil {
		r.Warm.Summary.table(w, "warm")
	}
	if d.Liar {
		fmt.Fprintf(w, "wrong pieces sent by the lying peer: %d\n", r.Lies)
	}
	if r.Recovery != nil {
		fmt.Fprintf(w, "supernode restart: ready after %s s, all held pieces known after %s s\n", seconds(r.Recovery.Ready), seconds(r.Recovery.Known))
	}
}

func (s summary) table(w *strings.Builder, name string) {
	fmt.Fprintf(w, "%s: first byte      %8s s (slowest %s)\n", name, seconds(s.TTFBMedian), seconds(s.TTFBMax))
	fmt.Fprintf(w, "%s: first complete  %8s s\n", name, seconds(s.First))
	fmt.Fprintf(w, "%s: last complete   %8s s = %s × lower bound, %s × plain download\n", name, seconds(s.Last), ratio(s.ToBound), ratio(s.ToPlain))
	fmt.Fprintf(w, "%s: from the origin %8s × the content in %d requests\n", name, ratio(s.OriginCopies), s.OriginRequests)
	fmt.Fprintf(w, "%s: daemons' CPU    %8s s per GiB delivered; machine %.0f%% idle\n", name, seconds(s.CPUPerGiB), s.IdleCPU)
	fmt.Fprintf(w, "%s: peak RSS        %8s MiB (largest dfdaemon), supernode %s MiB\n", name, mib(s.MaxNodeRSS), mib(s.SupernodeRSS))
	if s.FailedNodes > 0 || s.RejectedPieces > 0 {
		fmt.Fprintf(w, "%s: failed nodes %d, rejected pieces %d\n", name, s.FailedNodes, s.RejectedPieces)
	}
}

// table prints the nodes of a round.
func (r *round) table(w *strings.Builder) {
	rows := make([][]string, 0, len(r.Nodes)+len(r.Others))
	for _, n := range r.Nodes {
		l := r.link(n.Name)
		row := []string{
			n.Name, seconds(n.TTFB), seconds(n.Seconds), mib(n.From["peer"]), mib(n.From["supernode"]), mib(n.From["origin"]),
			mib(n.Uploaded), percent(l.SentUse), percent(l.ReceivedUse), ratio(n.CPUSeconds), ratio(n.System), mib(n.PeakRSS),
		}
		if n.Error != "" {
			row[2] = "failed"
		}
		rows = append(rows, row)
	}
	for _, p := range r.Others {
		l := r.link(p.Name)
		rows = append(rows, []string{p.Name, "", "", "", "", "", "", percent(l.SentUse), percent(l.ReceivedUse), ratio(p.CPUSeconds), ratio(p.System), mib(p.PeakRSS)})
	}
	printTable(w, []string{"host", "ttfb s", "done s", "peer MiB", "supern. MiB", "origin MiB", "sent MiB", "up", "down", "CPU s", "kernel s", "RSS MiB"}, rows)
}

func (r *round) link(host string) link {
	if i := slices.IndexFunc(r.Links, func(l link) bool { return l.Host == host }); i >= 0 {
		return r.Links[i]
	}
	return link{}
}
