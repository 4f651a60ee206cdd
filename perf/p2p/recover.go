package main

import (
	"context"
	"fmt"
	"time"
)

// recover starts the killed supernode again on its data and waits until it
// knows of every node that the node holds the content.
func (c *cluster) recover(ctx context.Context, digest string) (*recovery, error) {
	c.site.log("starting the supernode again")
	start := time.Now()
	d, err := c.startSupernode(ctx)
	if err != nil {
		return nil, err
	}
	c.supernode = d
	r := &recovery{Ready: time.Since(start).Seconds()}
	const longest = time.Minute
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	missing := map[string]bool{}
	for i := range c.nodes {
		missing[nodeName(i+1)] = true
	}
	// A newcomer is told of some of the holders, of others each time; several
	// newcomers together see them all.
	for probe := 0; len(missing) > 0; probe++ {
		known, err := c.probe(ctx, fmt.Sprintf("probe%d", probe), digest)
		select {
		case <-d.Done():
			err = d.Err()
		default:
		}
		if err != nil {
			return nil, fmt.Errorf("after its restart the supernode does not know what %d nodes hold: %w", len(missing), err)
		}
		for _, name := range known {
			delete(missing, name)
		}
	}
	r.Known = time.Since(start).Seconds()
	return r, nil
}

// probe joins as a new peer that wants one byte and returns the parents that
// the supernode names.
func (c *cluster) probe(ctx context.Context, name, digest string) ([]string, error) {
	s := c.site
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	host := s.lab.Host(originHost)
	p, err := joinPeer(ctx, host, s.at(supernodeHost, grpcPort), c.token, name, s.at(originHost, peerPort))
	if err != nil {
		return nil, err
	}
	defer p.leave()
	if err := p.interest(1, digest, s.originURL(digest), false); err != nil {
		return nil, err
	}
	for {
		m, err := p.stream.Recv()
		if err != nil {
			return nil, err
		}
		if f := m.GetFailure(); f != nil {
			return nil, fmt.Errorf("the supernode refused the task: %s", f.Message)
		}
		if list := m.GetParents(); list != nil {
			var names []string
			for _, parent := range list.Parents {
				if !parent.Seed {
					names = append(names, parent.Name)
				}
			}
			return names, nil
		}
	}
}
