package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
	"github.com/damselfly-io/damselfly/perf/internal/objectserver"
)

// hits is the result of -mode hit: how fast a node's mirror gives out what is
// in its store, compared with a static file server on the same loopback. What
// arrives is counted and not checked, so that the client is not the limit.
type hits struct {
	Mode    string  `json:"mode"`
	Machine machine `json:"machine"`
	Size    int64   `json:"size_bytes"`
	Samples int     `json:"samples"`
	Mirror  speed   `json:"mirror"`
	Static  speed   `json:"static_server"`
	// DaemonCPU is processor time of the dfdaemon per GiB given out.
	DaemonCPU float64 `json:"daemon_cpu_seconds_per_gib"`
	StaticCPU float64 `json:"static_server_cpu_seconds_per_gib"`
}

// speed is the median of several downloads.
type speed struct {
	TTFB    float64 `json:"ttfb_seconds"`
	Seconds float64 `json:"seconds"`
	GBps    float64 `json:"gigabytes_per_second"` // 1e9 bytes
}

// staticAddr is the static server's address on the node.
const staticAddr = "127.0.0.1:5000"

func measureHit(ctx context.Context, o options, log progress) (_ result, err error) {
	s, err := openSite(ctx, o, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	if err := s.checkSpace(4 * int64(o.size)); err != nil {
		return nil, err
	}
	digest, err := objectserver.WriteObject(s.objects(), o.seed, int64(o.size))
	if err != nil {
		return nil, err
	}
	c, err := s.startCluster(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	static, err := s.startServer(ctx, nodeName(1), staticAddr)
	if err != nil {
		return nil, err
	}
	defer static.Kill()
	log("filling the store")
	if _, err := s.through(1, digest).run(ctx); err != nil {
		return nil, err
	}
	return s.hits(ctx, c, static, digest)
}

// hits downloads from mirror and static server in turns.
func (s *site) hits(ctx context.Context, c *cluster, static *fleet.Process, digest string) (*hits, error) {
	client := fleet.Client(s.lab.Host(nodeName(1)))
	defer client.CloseIdleConnections()
	sources := []struct {
		url  string
		p    *fleet.Process
		took []sample
		cpu  float64
	}{
		{url: mirrorURL(digest), p: c.nodes[0].Process},
		{url: "http://" + staticAddr + "/files/" + digest, p: static},
	}
	d := download{size: int64(s.o.size)}
	for i := range s.o.samples + 1 {
		for j := range sources {
			src := &sources[j]
			before := used(src.p).CPUSeconds
			d.url = src.url
			got, err := d.with(ctx, client)
			if err != nil {
				return nil, err
			}
			if i > 0 { // the first opens connections and fills the page cache
				src.took = append(src.took, got)
				src.cpu += used(src.p).CPUSeconds - before
			}
		}
	}
	gib := float64(s.o.samples) * float64(s.o.size) / (1 << 30)
	return &hits{
		Mode: s.o.mode, Machine: thisMachine(), Size: int64(s.o.size), Samples: s.o.samples,
		Mirror: medianSpeed(sources[0].took), Static: medianSpeed(sources[1].took),
		DaemonCPU: sources[0].cpu / gib, StaticCPU: sources[1].cpu / gib,
	}, nil
}

func medianSpeed(took []sample) speed {
	var ttfb, total []float64
	for _, t := range took {
		ttfb, total = append(ttfb, t.TTFB), append(total, t.Seconds)
	}
	v := speed{TTFB: median(ttfb), Seconds: median(total)}
	if len(took) > 0 && v.Seconds > 0 {
		v.GBps = float64(took[0].Bytes) / v.Seconds / 1e9
	}
	return v
}

func (r *hits) verdict() error { return nil }

func (r *hits) table(w *strings.Builder) {
	row := func(name string, v speed, cpu float64) []string {
		return []string{name, millis(v.TTFB), seconds(v.Seconds), ratio(v.GBps), ratio(cpu)}
	}
	printTable(w, []string{"source", "first byte ms", "seconds", "GB/s", "CPU s/GiB"}, [][]string{
		row("mirror", r.Mirror, r.DaemonCPU), row("static server", r.Static, r.StaticCPU),
	})
	fmt.Fprintf(w, "hits of %s MiB on loopback; medians of %d\n", mib(r.Size), r.Samples)
}
