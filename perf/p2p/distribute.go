package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
	"github.com/damselfly-io/damselfly/perf/internal/objectserver"
)

// measureDistribution downloads one object on all nodes at once.
func measureDistribution(ctx context.Context, o options, log progress) (_ result, err error) {
	s, err := openSite(ctx, o, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	if err := s.checkSpace(int64(o.nodes+2) * int64(o.size)); err != nil {
		return nil, err
	}
	digest, err := objectserver.WriteObject(s.objects(), o.seed, int64(o.size))
	if err != nil {
		return nil, err
	}
	d := &distribution{
		Mode: o.mode, Machine: thisMachine(), Nodes: o.nodes, Zones: o.zones, Rate: o.rate.String(), Size: int64(o.size),
		Content: "blob", Verified: o.verify, Killed: o.kill, Liar: o.liar, LowerBound: o.rate.Seconds(int64(o.size)),
	}
	if o.file {
		d.Content = "file"
	}
	if err := s.references(ctx, d, digest); err != nil {
		return nil, err
	}
	for i := range o.repeat {
		log("run %d of %d: %d nodes", i+1, o.repeat, o.nodes)
		r, err := s.distribute(ctx, d, digest)
		if err != nil {
			return nil, fmt.Errorf("run %d: %w", i+1, err)
		}
		d.Runs = append(d.Runs, r)
	}
	d.Median = medianRun(d.Runs).Summary
	return d, nil
}

// references measures the plain downloads that the figures are compared with.
func (s *site) references(ctx context.Context, d *distribution, digest string) error {
	if s.o.baseline {
		s.log("plain download by one node")
		dl := s.plain(1, digest)
		got, err := dl.run(ctx)
		if err != nil {
			return fmt.Errorf("plain download: %w", err)
		}
		d.Plain = &got
	}
	if s.o.direct {
		s.log("direct download by all nodes")
		m := meter{site: s}
		r, err := m.round(ctx, s.downloads(func(i int) *download { return s.plain(i, digest) }))
		if err != nil {
			return fmt.Errorf("direct download: %w", err)
		}
		r.summarize(d.Size, d.LowerBound, d.Plain)
		d.Direct = &r
	}
	return nil
}

func (s *site) downloads(of func(i int) *download) []*download {
	all := make([]*download, s.o.nodes)
	for i := range all {
		all[i] = of(i + 1)
	}
	return all
}

// plain is node i's download straight from the origin.
func (s *site) plain(i int, digest string) *download {
	d := &download{host: s.lab.Host(nodeName(i)), url: s.originURL(digest), size: int64(s.o.size)}
	if s.o.file {
		d.url = s.fileURL(digest)
	}
	if s.o.verify {
		d.digest = digest
	}
	return d
}

// through is node i's download through its daemon.
func (s *site) through(i int, digest string) *download {
	d := s.plain(i, digest)
	if s.o.file {
		d.proxy = proxyAddr
	} else {
		d.url = mirrorURL(digest)
	}
	return d
}

// distribute is one run: fresh daemons, everybody downloads at once.
func (s *site) distribute(ctx context.Context, d *distribution, digest string) (r trial, err error) {
	c, err := s.startCluster(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if s.o.liar {
		l, err := startLiar(ctx, c, digest)
		if err != nil {
			return r, err
		}
		defer func() { r.Lies, err = l.sent.Load(), errors.Join(err, l.close()) }()
	}
	m := meter{site: s, cluster: c}
	all := s.downloads(func(i int) *download { return s.through(i, digest) })
	if s.o.kill != "" {
		m.atHalf(all)
	}
	profiled := c.profile(ctx)
	r.round, err = m.round(ctx, all)
	if err = errors.Join(err, profiled()); err != nil {
		return r, err
	}
	r.summarize(d.Size, d.LowerBound, d.Plain)
	if s.o.kill == killSupernode {
		if r.Recovery, err = c.recover(ctx, digest); err != nil {
			return r, err
		}
	}
	if s.o.warm {
		warm, err := m.round(ctx, s.downloads(func(i int) *download { return s.through(i, digest) }))
		if err != nil {
			return r, err
		}
		warm.summarize(d.Size, d.LowerBound, d.Plain)
		r.Warm = &warm
	}
	return r, nil
}

// atHalf makes the first client that has half of the content kill what -kill
// names.
func (m *meter) atHalf(all []*download) {
	var once sync.Once
	for _, d := range all {
		d.half = func() { once.Do(m.kill) }
	}
}

func (m *meter) kill() {
	victim := m.cluster.supernode
	if m.site.o.kill == killNode {
		victim = m.cluster.nodes[len(m.cluster.nodes)-1]
	}
	// What it has used cannot be read once it is gone.
	m.last = map[string]process{victim.Name(): used(victim.Process)}
	victim.Kill()
}

// used reads what a process has used; nothing of one that has ended.
func used(p *fleet.Process) process {
	st, err := p.Use()
	if err != nil {
		return process{Name: p.Name()}
	}
	return process{Name: p.Name(), CPUSeconds: st.CPUSeconds, System: st.SystemSeconds, PeakRSS: st.PeakRSS}
}
