package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
	"github.com/damselfly-io/damselfly/perf/internal/netlab"
	"github.com/damselfly-io/damselfly/perf/internal/objectserver"
)

// meter measures rounds of downloads. Without a cluster it measures clients,
// origin and links only.
type meter struct {
	site    *site
	cluster *cluster
	last    map[string]process // of daemons that were killed in the round
}

// reading is the state of all counters at one time.
type reading struct {
	cpu       cpuTimes
	origin    objectserver.Stats
	processes map[string]process
	metrics   map[string]fleet.Metrics
	links     map[string]netlab.Counters
	zones     map[int]int64
}

// round lets all downloads begin at once and waits for their end. Failed
// downloads are in the round; an error means that there is none.
func (m *meter) round(ctx context.Context, all []*download) (round, error) {
	before, err := m.read(ctx)
	if err != nil {
		return round{}, err
	}
	samples, errs, err := m.withBallast(ctx, all)
	if err != nil {
		return round{}, err
	}
	if ctx.Err() != nil {
		return round{}, ctx.Err()
	}
	after, err := m.read(ctx)
	if err != nil {
		return round{}, err
	}
	return m.compare(before, after, samples, errs), nil
}

// withBallast is start, with memory made ready for what daemons will write.
func (m *meter) withBallast(ctx context.Context, all []*download) (samples []sample, errs []error, err error) {
	if !m.site.o.ballast || m.cluster == nil {
		samples, errs = m.start(ctx, all)
		return samples, errs, nil
	}
	copies := int64(len(all) + 1) // the supernode's too
	b, err := newBallast(copies * int64(m.site.o.size))
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- b.follow(ctx, func() (n int64) {
			for _, d := range all {
				n += d.got.Load()
			}
			return n * copies / int64(len(all))
		})
	}()
	samples, errs = m.start(ctx, all)
	cancel()
	return samples, errs, <-ended
}

func (m *meter) start(ctx context.Context, all []*download) ([]sample, []error) {
	ctx, cancel := context.WithTimeout(ctx, m.site.o.timeout)
	defer cancel()
	samples, errs := make([]sample, len(all)), make([]error, len(all))
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i, d := range all {
		d.buf = make([]byte, clientBuffer)
		wg.Go(func() {
			<-begin
			samples[i], errs[i] = d.run(ctx)
		})
	}
	close(begin)
	wg.Wait()
	return samples, errs
}

// read takes a reading. Daemons that were killed have none.
func (m *meter) read(ctx context.Context) (r reading, err error) {
	r = reading{processes: map[string]process{}, metrics: map[string]fleet.Metrics{}, links: map[string]netlab.Counters{}}
	if r.cpu, err = readCPUTimes(); err != nil {
		return r, err
	}
	if r.origin, err = m.site.originStats(ctx); err != nil {
		return r, err
	}
	for _, h := range m.site.o.hosts() {
		if r.links[h.Name], err = m.site.lab.Host(h.Name).Counters(ctx); err != nil {
			return r, err
		}
	}
	if r.zones, err = m.site.lab.ZoneBytes(ctx); err != nil {
		return r, err
	}
	r.processes[originHost] = used(m.site.origin)
	if m.cluster == nil {
		return r, nil
	}
	for _, d := range append(m.cluster.nodes[:len(m.cluster.nodes):len(m.cluster.nodes)], m.cluster.supernode) {
		if p, killed := m.last[d.Name()]; killed {
			r.processes[d.Name()] = p
			continue
		}
		select {
		case <-d.Done():
			return r, fmt.Errorf("during the downloads: %w", d.Err())
		default:
		}
		r.processes[d.Name()] = used(d.Process)
		if r.metrics[d.Name()], err = d.Metrics(ctx); err != nil {
			return r, err
		}
	}
	return r, nil
}

// compare turns two readings and the clients' results into a round.
func (m *meter) compare(before, after reading, samples []sample, errs []error) round {
	r := round{Origin: after.origin.Sub(before.origin)}
	r.Summary.IdleCPU = after.cpu.idlePercent(before.cpu)
	for i, s := range samples {
		n := node{sample: s, process: after.spent(before, nodeName(i+1))}
		n.add(before.metrics[n.Name], after.metrics[n.Name])
		if errs[i] != nil {
			_, n.Expected = m.last[n.Name]
			n.Error = errs[i].Error()
		}
		r.Nodes = append(r.Nodes, n)
	}
	for _, name := range []string{supernodeHost, originHost} {
		if _, ok := after.processes[name]; ok {
			p := after.spent(before, name)
			r.Others = append(r.Others, p)
		}
	}
	r.links(m.site.o, before, after)
	for z, n := range after.zones {
		if r.Zones == nil {
			r.Zones = map[int]int64{}
		}
		r.Zones[z] = n - before.zones[z]
	}
	return r
}

// links fills in what the links carried.
func (r *round) links(o options, before, after reading) {
	var last time.Duration
	for _, n := range r.Nodes {
		last = max(last, time.Duration(n.Seconds*float64(time.Second)))
	}
	room := float64(o.rate) / 8 * last.Seconds()
	for _, h := range o.hosts() {
		l := link{Host: h.Name, Counters: after.links[h.Name].Sub(before.links[h.Name])}
		if room > 0 {
			l.SentUse, l.ReceivedUse = float64(l.SentBytes)/room, float64(l.ReceivedBytes)/room
		}
		r.Links = append(r.Links, l)
	}
}

func (r reading) spent(before reading, name string) process {
	p := r.processes[name]
	p.Name = name
	p.CPUSeconds -= before.processes[name].CPUSeconds
	p.System -= before.processes[name].System
	return p
}

// add fills in what the daemon's metrics say of the round.
func (n *node) add(before, after fleet.Metrics) {
	const from, rejected, uploaded = "damselfly_piece_download_bytes_total", "damselfly_piece_rejected_total", "damselfly_piece_upload_bytes_total"
	if after == nil {
		return
	}
	n.From = difference(before.By(from, "from"), after.By(from, "from"))
	n.Rejected = difference(before.By(rejected, "reason"), after.By(rejected, "reason"))
	n.Uploaded = after.Sum(uploaded) - before.Sum(uploaded)
}

func difference(before, after map[string]int64) map[string]int64 {
	d := map[string]int64{}
	for key, n := range after {
		if n != before[key] {
			d[key] = n - before[key]
		}
	}
	return d
}
