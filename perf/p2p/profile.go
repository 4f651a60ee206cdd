package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// profile begins to take CPU profiles, if they were asked for, over about the
// time that the downloads need at best. The function it returns waits for them.
func (c *cluster) profile(ctx context.Context) (wait func() error) {
	o := c.site.o
	if o.profile == "" {
		return func() error { return nil }
	}
	period := math.Ceil(o.rate.Seconds(int64(o.size))) + 1
	var group errgroup.Group
	for _, d := range []*fleet.Daemon{c.supernode, c.nodes[0]} {
		group.Go(func() error {
			raw, err := d.Get(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%.0f", period))
			if err != nil {
				return fmt.Errorf("profile of %s: %w", d.Name(), err)
			}
			return os.WriteFile(filepath.Join(o.profile, d.Name()+".pprof"), raw, 0o644) // #nosec G703 -- the user names the directory
		})
	}
	return group.Wait
}
