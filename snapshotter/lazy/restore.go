package lazy

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// restorers is how many mounts are taken over at a time.
const restorers = 8

// Restore takes over what an earlier process has mounted, and removes what is
// left of layers that are gone.
func (im *Images) Restore(ctx context.Context, restored []snapshots.Restored) error {
	chains := map[digest.Digest]snapshots.Restored{}
	for _, r := range restored {
		if len(r.Chain) == 0 {
			continue
		}
		top := r.Chain[len(r.Chain)-1]
		c := chainOf(r.Chain)
		im.layers.add(c.ID, c.Layers[len(c.Layers)-1].Index, devicesIn(top.Labels[LabelDevices]))
		if old, ok := chains[c.ID]; !ok || !old.Used {
			chains[c.ID] = r
		}
	}
	left, err := im.mounts.onDisk()
	if err != nil {
		return fmt.Errorf("list what is mounted: %w", err)
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(restorers)
	for _, r := range chains {
		group.Go(func() error {
			im.restore(groupCtx, r)
			return groupCtx.Err()
		})
	}
	for _, id := range left {
		if _, ok := chains[id]; ok {
			continue
		}
		group.Go(func() error {
			im.Removed(groupCtx, id.String())
			return groupCtx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return im.indexes.sweep()
}

// restore takes one chain over that was mounted, or that a container needs.
func (im *Images) restore(ctx context.Context, r snapshots.Restored) {
	c := chainOf(r.Chain)
	if !r.Used {
		rec, err := im.mounts.read(c.ID)
		if err != nil || !rec.Mounted || !im.mounts.kernel.attached(im.mounts.root(c.ID)) {
			return
		}
	}
	im.mu.Lock()
	if r.Used {
		im.used[c.ID] = true
	} else {
		im.idle[c.ID] = im.o.Now()
	}
	im.mu.Unlock()
	// What is there may have been made by other indexes of the same chain. It is in
	// use, or was wanted.
	_, err := im.mounts.ensure(ctx, c, func() (bool, bool) { return true, false }, func() []*chunkfmt.Index { return nil })
	if err != nil && ctx.Err() == nil {
		im.o.Log.Error("a lazy image could not be mounted again: its containers wait or get I/O errors until it can",
			"chain", c.ID, "manifest", c.Manifest, "error", err)
		im.mu.Lock()
		im.lost = append(im.lost, r)
		im.mu.Unlock()
	}
}
