package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/damselfly-io/damselfly/internal/config"
	"github.com/damselfly-io/damselfly/perf/internal/fleet"
	"github.com/damselfly-io/damselfly/perf/internal/objectserver"
)

// latencySizes are the objects' sizes, in bytes.
var latencySizes = []int64{1, 1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20}

// maxLatencySamples keeps the objects of one byte distinct.
const maxLatencySamples = 127

// latencies is the result of -mode latency: how long one node waits for an
// object that nobody in the cluster has, through its mirror and straight from
// the origin. Connections to mirror and origin exist already. Objects of both
// ways alternate and none is asked for twice.
type latencies struct {
	Mode    string        `json:"mode"`
	Machine machine       `json:"machine"`
	Rate    string        `json:"rate"`
	Samples int           `json:"samples"`
	Sizes   []sizeLatency `json:"sizes"`
}

type sizeLatency struct {
	Size int64 `json:"size_bytes"`
	// Medians.
	Through     float64 `json:"through_seconds"`
	ThroughTTFB float64 `json:"through_ttfb_seconds"`
	Direct      float64 `json:"direct_seconds"`
	// Added is Through - Direct.
	Added float64 `json:"added_seconds"`
	Max   float64 `json:"through_max_seconds"`
}

func measureLatency(ctx context.Context, o options, log progress) (_ result, err error) {
	s, err := openSite(ctx, o, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	c, err := s.startCluster(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	r := &latencies{Mode: o.mode, Machine: thisMachine(), Rate: o.rate.String(), Samples: o.samples}
	for i, size := range latencySizes {
		log("objects of %s", config.Size(size))
		if o.ballast {
			if err := touch(latencyBallast); err != nil {
				return nil, err
			}
		}
		one, err := s.latency(ctx, size, o.seed+uint64(i*2*(o.samples+1))) // #nosec G115 -- small counts
		if err != nil {
			return nil, err
		}
		r.Sizes = append(r.Sizes, one)
	}
	return r, nil
}

// latency measures one size. The first object of each way opens the
// connections and is not counted.
func (s *site) latency(ctx context.Context, size int64, seed uint64) (sizeLatency, error) {
	client := fleet.Client(s.lab.Host(nodeName(1)))
	defer client.CloseIdleConnections()
	var through, ttfb, direct []float64
	for i := range 2 * (s.o.samples + 1) {
		digest, err := s.smallObject(seed+uint64(i), size, i) // #nosec G115 -- small counts
		if err != nil {
			return sizeLatency{}, err
		}
		d := download{url: s.originURL(digest), size: size, digest: digest}
		if i%2 == 0 {
			d.url = mirrorURL(digest)
		}
		got, err := d.with(ctx, client)
		switch {
		case err != nil:
			return sizeLatency{}, err
		case i < 2:
		case i%2 == 0:
			through, ttfb = append(through, got.Seconds), append(ttfb, got.TTFB)
		default:
			direct = append(direct, got.Seconds)
		}
	}
	l := sizeLatency{Size: size, Through: median(through), ThroughTTFB: median(ttfb), Direct: median(direct)}
	for _, t := range through {
		l.Max = max(l.Max, t)
	}
	l.Added = l.Through - l.Direct
	return l, nil
}

// smallObject writes an object that was not asked for before. There are only
// 256 objects of one byte, too few for chance to keep them apart.
func (s *site) smallObject(seed uint64, size int64, i int) (string, error) {
	if size == 1 {
		return objectserver.WriteBytes(s.objects(), []byte{byte(i)}) // #nosec G115 -- see maxLatencySamples
	}
	return objectserver.WriteObject(s.objects(), seed, size)
}

func (r *latencies) verdict() error { return nil }

func (r *latencies) table(w *strings.Builder) {
	rows := make([][]string, 0, len(r.Sizes))
	for _, l := range r.Sizes {
		rows = append(rows, []string{config.Size(l.Size).String(), millis(l.Through), millis(l.ThroughTTFB), millis(l.Direct), millis(l.Added), millis(l.Max)})
	}
	printTable(w, []string{"size", "through ms", "first byte ms", "direct ms", "added ms", "slowest ms"}, rows)
	fmt.Fprintf(w, "one node, cold, links of %s; medians of %d objects each\n", r.Rate, r.Samples)
}
