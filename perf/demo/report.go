package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// report is what the demonstration has shown.
type report struct {
	Image   string  `json:"image"`
	OK      bool    `json:"ok"`
	Verdict string  `json:"verdict"`
	Pulls   []pulls `json:"pulls"`
}

// pulls is one pull through all nodes at once.
type pulls struct {
	Name  string     `json:"name"` // cold or warm
	Nodes []nodePull `json:"nodes"`
	// Origin is what the registry sent, in bytes: as counted by the registry if
	// it is ours, else by the daemons.
	Origin int64 `json:"registry_bytes"`
}

// nodePull is one node's pull. Where the bytes came from is as its daemon says;
// the rest was in its store.
type nodePull struct {
	Node      string  `json:"node"`
	Seconds   float64 `json:"seconds"`
	Bytes     int64   `json:"bytes"`
	Digest    string  `json:"digest"` // of the manifest
	Peer      int64   `json:"peer_bytes"`
	Supernode int64   `json:"supernode_bytes"`
	Origin    int64   `json:"origin_bytes"`
}

// maxCopies is how much of the image the registry may send in all, as a
// multiple of its size: once, and the little that headers and manifests cost.
const maxCopies = 1.02

// judge sets the verdict and returns it as an error unless all is well. Digests
// of blobs were checked by the pulls.
func (r *report) judge() error {
	var size, sent int64
	for _, p := range r.Pulls {
		sent += p.Origin
		for _, n := range p.Nodes {
			size = max(size, n.Bytes)
		}
	}
	copies := float64(sent) / float64(max(size, 1))
	r.Verdict = fmt.Sprintf("%d nodes pulled %s MB twice; the registry sent %s MB (%.2f×); every byte was verified", nodes, mb(size), mb(sent), copies)
	problem := r.problem(size, copies)
	if r.OK = problem == ""; !r.OK {
		r.Verdict = problem
		return fmt.Errorf("the demonstration failed: %s", problem)
	}
	return nil
}

func (r *report) problem(size int64, copies float64) string {
	digests := map[string]bool{}
	for _, p := range r.Pulls {
		for _, n := range p.Nodes {
			digests[n.Digest] = true
			if n.Bytes != size || size == 0 {
				return fmt.Sprintf("%s received %d of %d bytes (%s)", n.Node, n.Bytes, size, p.Name)
			}
		}
	}
	switch {
	case len(digests) != 1:
		return fmt.Sprintf("the nodes received %d different images", len(digests))
	case copies > maxCopies:
		return fmt.Sprintf("the registry sent %.2f copies of the image, at most %.2f are right", copies, maxCopies)
	}
	return ""
}

func mb(n int64) string { return fmt.Sprintf("%.1f", float64(n)/1e6) }

// table prints the pulls and the verdict.
func (r *report) table(w io.Writer) error {
	var cells strings.Builder
	fmt.Fprintln(&cells, strings.Join([]string{"pull", "node", "seconds", "MB", "from peers", "supernode", "registry"}, "\t")+"\t")
	for _, p := range r.Pulls {
		for _, n := range p.Nodes {
			fmt.Fprintf(&cells, "%s\t%s\t%.2f\t%s\t%s\t%s\t%s\t\n", p.Name, n.Node, n.Seconds, mb(n.Bytes), mb(n.Peer), mb(n.Supernode), mb(n.Origin))
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	if _, err := tw.Write([]byte(cells.String())); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	state := "OK"
	if !r.OK {
		state = "FAILED"
	}
	if _, err := fmt.Fprintf(w, "%s: %s\n", state, r.Verdict); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}
