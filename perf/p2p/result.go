package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/damselfly-io/damselfly/perf/internal/netlab"
	"github.com/damselfly-io/damselfly/perf/internal/objectserver"
)

// distribution is the result of -mode distribute.
type distribution struct {
	Mode     string  `json:"mode"`
	Machine  machine `json:"machine"`
	Nodes    int     `json:"nodes"`
	Zones    int     `json:"zones,omitempty"`
	Rate     string  `json:"rate"`
	Size     int64   `json:"size_bytes"`
	Content  string  `json:"content"` // "blob" or "file"
	Verified bool    `json:"verified"`
	Killed   string  `json:"killed,omitempty"`
	Liar     bool    `json:"liar,omitempty"`
	// LowerBound is size ÷ rate, 0 if the links are not shaped. Frames and
	// headers make it unreachable: the best is LowerBound ÷ 0.956.
	LowerBound float64 `json:"lower_bound_seconds"`
	// Plain is one node downloading straight from the origin, alone.
	Plain *sample `json:"plain,omitempty"`
	// Direct is all nodes downloading straight from the origin at once.
	Direct *round `json:"direct,omitempty"`
	// Median is the summary of the median run by last completion.
	Median summary `json:"median"`
	Runs   []trial `json:"runs"`
}

// trial is one cold distribution with fresh daemons.
type trial struct {
	round
	Warm *round `json:"warm,omitempty"`
	// Lies are the wrong pieces that the lying peer sent.
	Lies int64 `json:"lies,omitempty"`
	// Recovery is set when the supernode was killed.
	Recovery *recovery `json:"recovery,omitempty"`
}

// round is all nodes downloading once.
type round struct {
	Summary summary            `json:"summary"`
	Nodes   []node             `json:"nodes"`
	Others  []process          `json:"others,omitempty"`
	Links   []link             `json:"links,omitempty"`
	Zones   map[int]int64      `json:"zone_ingress_bytes,omitempty"`
	Origin  objectserver.Stats `json:"origin"`
}

// summary is a round in a few figures.
type summary struct {
	First          float64 `json:"first_seconds"` // first node complete
	Last           float64 `json:"last_seconds"`  // last node complete
	TTFBMedian     float64 `json:"ttfb_median_seconds"`
	TTFBMax        float64 `json:"ttfb_max_seconds"`
	ToBound        float64 `json:"last_to_lower_bound,omitempty"`
	ToPlain        float64 `json:"last_to_plain,omitempty"`
	OriginRequests int64   `json:"origin_requests"`
	OriginBytes    int64   `json:"origin_bytes"`
	OriginCopies   float64 `json:"origin_copies"` // origin bytes ÷ size
	// CPUPerGiB is processor time of all daemons per GiB given to clients.
	CPUPerGiB      float64 `json:"daemon_cpu_seconds_per_gib"`
	MaxNodeRSS     int64   `json:"max_node_peak_rss_bytes"`
	SupernodeRSS   int64   `json:"supernode_peak_rss_bytes"`
	IdleCPU        float64 `json:"idle_cpu_percent"` // of the machine
	FailedNodes    int     `json:"failed_nodes"`
	RejectedPieces int64   `json:"rejected_pieces"`
}

// process is what a process has used: processor time in the round, memory at
// its peak since it was started.
type process struct {
	Name       string  `json:"name"`
	CPUSeconds float64 `json:"cpu_seconds"`
	System     float64 `json:"system_cpu_seconds"` // the kernel's part of it
	PeakRSS    int64   `json:"peak_rss_bytes"`
}

// node is one node's round: its client, its daemon and where bytes came from.
type node struct {
	process
	sample
	Error string `json:"error,omitempty"`
	// Expected tells that the node was killed on purpose.
	Expected bool             `json:"killed,omitempty"`
	From     map[string]int64 `json:"from_bytes,omitempty"`
	Uploaded int64            `json:"uploaded_bytes"`
	Rejected map[string]int64 `json:"rejected_pieces,omitempty"`
}

// link is what a host's link carried in the round, and how much of what it
// could have carried until the last completion.
type link struct {
	Host string `json:"host"`
	netlab.Counters
	SentUse     float64 `json:"sent_use,omitempty"`
	ReceivedUse float64 `json:"received_use,omitempty"`
}

// recovery is how a supernode came back after kill -9.
type recovery struct {
	// Ready is the time from its start until it is ready; Known until it knows
	// of every node that held the content what it holds.
	Ready float64 `json:"ready_seconds"`
	Known float64 `json:"known_seconds"`
}

// median returns the middle of values, the lower of two middles; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)/2]
}

// medianRun returns the run whose last completion is the median.
func medianRun(runs []trial) trial {
	last := make([]float64, len(runs))
	for i, r := range runs {
		last[i] = r.Summary.Last
	}
	m := median(last)
	return runs[slices.Index(last, m)]
}

// summarize fills in the summary from the rest of the round.
func (r *round) summarize(size int64, lowerBound float64, plain *sample) {
	s := &r.Summary
	var ttfb []float64
	var delivered int64
	var cpu float64
	for _, n := range r.Nodes {
		cpu += n.CPUSeconds
		delivered += n.Bytes
		s.MaxNodeRSS = max(s.MaxNodeRSS, n.PeakRSS)
		for _, count := range n.Rejected {
			s.RejectedPieces += count
		}
		if n.Error != "" {
			s.FailedNodes++
			continue
		}
		ttfb = append(ttfb, n.TTFB)
		s.Last = max(s.Last, n.Seconds)
		if s.First == 0 || n.Seconds < s.First {
			s.First = n.Seconds
		}
	}
	for _, p := range r.Others {
		if p.Name == supernodeHost {
			cpu += p.CPUSeconds
			s.SupernodeRSS = p.PeakRSS
		}
	}
	if len(ttfb) > 0 {
		s.TTFBMedian, s.TTFBMax = median(ttfb), slices.Max(ttfb)
	}
	if lowerBound > 0 {
		s.ToBound = s.Last / lowerBound
	}
	if plain != nil {
		s.ToPlain = s.Last / plain.Seconds
	}
	s.OriginRequests, s.OriginBytes = r.Origin.TotalRequests(), r.Origin.TotalBytes()
	s.OriginCopies = float64(s.OriginBytes) / float64(size)
	if delivered > 0 {
		s.CPUPerGiB = cpu / (float64(delivered) / (1 << 30))
	}
}

// verdict fails for nodes that did not get the content although they lived.
func (d *distribution) verdict() error {
	var errs []error
	for i, r := range d.Runs {
		for _, rd := range []*round{&r.round, r.Warm} {
			if rd == nil {
				continue
			}
			for _, n := range rd.Nodes {
				if n.Error != "" && !n.Expected {
					errs = append(errs, fmt.Errorf("run %d: %s: %s", i+1, n.Name, n.Error))
				}
			}
		}
	}
	return errors.Join(errs...)
}
