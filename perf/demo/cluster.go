package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// nodes is how many dfdaemons there are.
const nodes = 3

// cluster is a supernode and its nodes, on loopback addresses.
type cluster struct {
	supernode *fleet.Daemon
	nodes     [nodes]*fleet.Daemon
	mirrors   [nodes]string
}

// startCluster builds the daemons and starts them; allow names the registry.
func startCluster(ctx context.Context, dir, allow string) (_ *cluster, err error) {
	bin := filepath.Join(dir, "bin")
	if err := fleet.Build(ctx, bin, fleet.Supernode, fleet.Dfdaemon); err != nil {
		return nil, err
	}
	token, err := fleet.WriteToken(dir)
	if err != nil {
		return nil, err
	}
	const ports = 3 // per daemon
	free, err := fleet.FreeAddresses(ctx, ports*(1+nodes))
	if err != nil {
		return nil, err
	}
	c := &cluster{}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	if c.supernode, err = fleet.StartSupernode(ctx, fleet.SupernodeOptions{
		Host: fleet.Local{}, Program: filepath.Join(bin, fleet.Supernode),
		HTTP: free[0], GRPC: free[1], Peer: free[2], Dir: filepath.Join(dir, "supernode"), TokenFile: token,
	}); err != nil {
		return nil, err
	}
	var group errgroup.Group // the daemons outlive it
	for i := range c.nodes {
		name, own := "node"+strconv.Itoa(i+1), free[ports*(i+1):]
		c.mirrors[i] = own[1]
		group.Go(func() (err error) {
			c.nodes[i], err = fleet.StartDfdaemon(ctx, fleet.DfdaemonOptions{
				Host: fleet.Local{}, Program: filepath.Join(bin, fleet.Dfdaemon), Name: name, Supernode: free[1],
				HTTP: own[0], Mirror: own[1], Peer: own[2], Dir: filepath.Join(dir, name), TokenFile: token,
				Registries: []string{allow},
			})
			return err
		})
	}
	return c, group.Wait()
}

// stop ends all daemons.
func (c *cluster) stop() {
	for _, d := range append(c.nodes[:], c.supernode) {
		if d != nil {
			d.Stop()
		}
	}
}

// counters are what the metrics of all daemons say at one time.
type counters struct {
	from   [nodes]map[string]int64
	origin int64
}

func (c *cluster) counters(ctx context.Context) (n counters, err error) {
	const from, origin = "damselfly_piece_download_bytes_total", "damselfly_origin_bytes_total"
	m, err := c.supernode.Metrics(ctx)
	if err != nil {
		return n, err
	}
	n.origin = m.Sum(origin)
	for i, d := range c.nodes {
		if m, err = d.Metrics(ctx); err != nil {
			return n, err
		}
		n.from[i] = m.By(from, "from")
		n.origin += m.Sum(origin)
	}
	return n, nil
}

// pull pulls the image through all nodes at once.
func (c *cluster) pull(ctx context.Context, src *source, name string) (p pulls, err error) {
	before, err := c.counters(ctx)
	if err != nil {
		return p, err
	}
	sent := src.sent.Load()
	p = pulls{Name: name, Nodes: make([]nodePull, nodes)}
	errs := make([]error, nodes)
	var group errgroup.Group // all go on when one fails: the report says which
	for i := range c.nodes {
		group.Go(func() error {
			n := &p.Nodes[i]
			n.Node = c.nodes[i].Name()
			start := time.Now()
			var err error
			n.Digest, n.Bytes, err = newClient(src, c.mirrors[i]).pull(ctx)
			n.Seconds = time.Since(start).Seconds()
			if err != nil {
				errs[i] = fmt.Errorf("%s: %w", n.Node, err)
			}
			return nil
		})
	}
	_ = group.Wait() // never fails
	if err := errors.Join(errs...); err != nil {
		return p, fmt.Errorf("%s pull: %w", name, err)
	}
	after, err := c.counters(ctx)
	if err != nil {
		return p, err
	}
	p.add(before, after)
	if src.srv != nil {
		p.Origin = src.sent.Load() - sent
	}
	return p, nil
}

// add fills in where the bytes came from.
func (p *pulls) add(before, after counters) {
	p.Origin = after.origin - before.origin
	for i := range p.Nodes {
		n := &p.Nodes[i]
		n.Peer = after.from[i]["peer"] - before.from[i]["peer"]
		n.Supernode = after.from[i]["supernode"] - before.from[i]["supernode"]
		n.Origin = after.from[i]["origin"] - before.from[i]["origin"]
	}
}
