package lazy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	csnapshots "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// Options of Images. Dir, Devices, Backend, Registry and Policy are required.
type Options struct {
	Dir     string
	Devices *device.Store
	Backend backend.Backend
	// Registry opens repositories by the node's right.
	Registry Registry
	// Policy says whose indexes are used. It is asked for each lookup.
	Policy func(ctx context.Context) (*trust.Policy, error)
	// Off makes every image an ordinary one. What is lazy already stays so.
	Off bool
	// Timeout is how long a pull waits for a lookup; default 1 s. KeepNo is how
	// long it counts that there is no index; default 1 min.
	Timeout, KeepNo time.Duration
	// IdleAfter is how long a mount is kept that nothing uses; default 10 min.
	IdleAfter time.Duration
	// Mounted is told of chains that have been mounted. What it returns is called
	// before their devices are given back; it may be nil.
	Mounted func(Mounted) (ended func())
	// Ready is told how many seconds it took until a chain that was asked for could
	// be used.
	Ready func(seconds float64)
	Log   *slog.Logger
	Now   func() time.Time
}

func (o *Options) setDefaults() {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	if o.KeepNo == 0 {
		o.KeepNo = time.Minute
	}
	if o.IdleAfter == 0 {
		o.IdleAfter = 10 * time.Minute
	}
	if o.Ready == nil {
		o.Ready = func(float64) {}
	}
}

// keepYes is how long the indexes of an image are remembered after a lookup: for
// its other layers, and the same image in another namespace.
const keepYes = 2 * time.Minute

// Images decides about layers and mounts chains. It is a snapshots.Images.
type Images struct {
	o       Options
	lookups *lookups
	mounts  *mounts
	ctx     context.Context //nolint:containedctx // the lifetime of what pulls set off and do not wait for
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu sync.Mutex
	// layers are the lazy layers there are, by chain ID, with their index.
	layers map[digest.Digest]digest.Digest
	// idle is since when chains that are mounted have not been used.
	idle map[digest.Digest]time.Time
	// asked are the images that containerd has asked for, by key.
	asked map[string]Asked
}

// Asked is an image that containerd has asked for.
type Asked struct {
	Reference string
	Manifest  digest.Digest
	At        time.Time
	// Reason is why it is not lazy; zero if it is.
	Reason snapshots.Reason
	// TrustedBy says who vouches for its index.
	TrustedBy string
}

// maxAsked bounds what Asked returns.
const maxAsked = 1000

// New returns images. The caller closes it.
func New(o Options) (*Images, error) {
	o.setDefaults()
	x, err := openIndexes(filepath.Join(o.Dir, "indexes"))
	if err != nil {
		return nil, fmt.Errorf("open the indexes in %s: %w", o.Dir, err)
	}
	dir := filepath.Join(o.Dir, "mounts")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	im := &Images{
		o: o, layers: map[digest.Digest]digest.Digest{}, idle: map[digest.Digest]time.Time{}, asked: map[string]Asked{},
		lookups: &lookups{
			registry: o.Registry, policy: o.Policy, indexes: x, log: o.Log, now: o.Now,
			timeout: o.Timeout, keepYes: keepYes, keepNo: o.KeepNo, kept: map[string]*outcome{},
		},
		mounts: &mounts{
			dir: dir, indexes: x, devices: o.Devices, backend: o.Backend, log: o.Log, mounted: o.Mounted,
			all: map[digest.Digest]*mounting{},
		},
	}
	im.ctx, im.cancel = context.WithCancel(context.Background())
	return im, nil
}

// Close lets go of everything. What is mounted stays mounted.
func (im *Images) Close() {
	im.cancel()
	im.wg.Wait()
	im.mounts.close()
}

// Layer looks for the index of the layer's image.
func (im *Images) Layer(ctx context.Context, r snapshots.Request) snapshots.Decision {
	no := func(code, detail string) snapshots.Decision {
		return snapshots.Decision{Reason: snapshots.Reason{Code: code, Detail: detail}}
	}
	if im.o.Off {
		return no(Off, "the snapshotter's lazy is false")
	}
	req, err := parseRequest(r.ChainID, r.Labels)
	if err != nil {
		return no(NoLabels, err.Error())
	}
	o := im.lookups.find(ctx, req)
	im.note(req, o)
	if o.image == nil {
		return snapshots.Decision{Reason: o.reason}
	}
	i, ok := o.image.byChain[req.chain]
	if !ok {
		return no(OtherLayer, fmt.Sprintf("the index of %s has no layer with chain ID %s", req.ref, req.chain))
	}
	layer := o.image.layers[i]
	im.mu.Lock()
	im.layers[req.chain] = layer.index
	im.mu.Unlock()
	if len(r.Below) == 0 {
		im.mountAhead(o)
	}
	return snapshots.Decision{Lazy: true, Labels: layerLabels(o.image, layer)}
}

// note keeps what became of an image, for people who ask.
func (im *Images) note(r request, o *outcome) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if len(im.asked) >= maxAsked {
		clear(im.asked)
	}
	a := Asked{Reference: r.ref.String(), Manifest: r.manifest, At: im.o.Now(), Reason: o.reason}
	if o.image != nil {
		a.Manifest, a.TrustedBy = o.image.manifest, o.image.trustedBy
	}
	im.asked[r.key()] = a
}

// Mounts calls f for each chain that is mounted, with where. f must not keep the
// devices.
func (im *Images) Mounts(f func(m Mounted, dir string)) {
	im.mounts.list(func(m Mounted) { f(m, im.mounts.root(m.Chain)) })
}

// Asked returns the images that containerd has asked for of late.
func (im *Images) Asked() []Asked {
	im.mu.Lock()
	defer im.mu.Unlock()
	all := make([]Asked, 0, len(im.asked))
	for _, a := range im.asked {
		all = append(all, a)
	}
	return all
}

// mountAhead mounts all layers of an image while containerd goes through them:
// the container will ask for the topmost.
func (im *Images) mountAhead(o *outcome) {
	c := Chain{Manifest: o.image.manifest}
	for _, l := range o.image.layers {
		c.ID = l.chain
		c.Layers = append(c.Layers, Layer{l.index, o.image.repository})
	}
	im.mu.Lock()
	im.idle[c.ID] = im.o.Now()
	im.mu.Unlock()
	im.wg.Go(func() {
		if _, err := im.mounts.ensure(im.ctx, c, o.loaded); err != nil && im.ctx.Err() == nil {
			im.o.Log.Warn("an image could not be mounted ahead of its container", "manifest", c.Manifest, "error", err)
		}
	})
}

// Mounted mounts a chain.
func (im *Images) Mounted(ctx context.Context, layers []snapshots.Layer) (string, error) {
	begin := im.o.Now()
	c := chainOf(layers)
	im.mu.Lock()
	delete(im.idle, c.ID)
	im.mu.Unlock()
	dir, err := im.mounts.ensure(ctx, c, im.loaded(c))
	if err == nil {
		im.o.Ready(im.o.Now().Sub(begin).Seconds())
	}
	return dir, err
}

// loaded returns the indexes of a chain if a lookup has them in memory.
func (im *Images) loaded(c Chain) []*chunkfmt.Index {
	im.lookups.mu.Lock()
	defer im.lookups.mu.Unlock()
	for _, o := range im.lookups.kept {
		if o.image == nil || o.loaded == nil {
			continue
		}
		if i, ok := o.image.byChain[c.ID]; ok && i == len(c.Layers)-1 {
			return o.loaded[:i+1]
		}
	}
	return nil
}

// Idle notes since when a chain is not used.
func (im *Images) Idle(_ context.Context, chainID string) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.idle[digest.Digest(chainID)] = im.o.Now()
}

// Removed takes a chain away.
func (im *Images) Removed(ctx context.Context, chainID string) {
	chain := digest.Digest(chainID)
	im.mu.Lock()
	delete(im.layers, chain)
	delete(im.idle, chain)
	im.mu.Unlock()
	if err := im.mounts.remove(ctx, chain); err != nil {
		im.o.Log.Warn("what a removed layer has left will be removed at the next start", "chain", chain, "error", err)
	}
	if err := im.sweepIndexes(); err != nil {
		im.o.Log.Warn("an index that is not used any more could not be removed", "error", err)
	}
}

// sweepIndexes removes the indexes of layers that are gone.
func (im *Images) sweepIndexes() error {
	im.mu.Lock()
	used := make(map[digest.Digest]bool, len(im.layers))
	for _, index := range im.layers {
		used[index] = true
	}
	im.mu.Unlock()
	return im.lookups.indexes.retain(func(d digest.Digest) bool { return used[d] })
}

// Usage is what the devices of a layer take on disk.
func (im *Images) Usage(_ context.Context, l snapshots.Layer) (csnapshots.Usage, error) {
	var u csnapshots.Usage
	for _, key := range devicesIn(l.Labels[LabelDevices]) {
		if n, ok := im.o.Devices.Bytes(key); ok {
			u.Size += n
			u.Inodes++
		}
	}
	return u, nil
}

// restorers is how many mounts are taken over at a time.
const restorers = 8

// Restore takes over what an earlier process has mounted, and removes what is
// left of layers that are gone.
func (im *Images) Restore(ctx context.Context, layers []snapshots.Restored) error {
	for _, r := range layers {
		c := chainOf(r.Chain)
		im.layers[c.ID] = c.Layers[len(c.Layers)-1].Index
	}
	left, err := im.mounts.onDisk()
	if err != nil {
		return err
	}
	chains := map[digest.Digest]snapshots.Restored{}
	for _, r := range layers {
		chains[digest.Digest(r.Chain[len(r.Chain)-1].ChainID)] = r
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(restorers)
	for _, id := range left {
		r, ok := chains[id]
		group.Go(func() error {
			if ok {
				im.restore(ctx, r)
			} else if err := im.mounts.remove(ctx, id); err != nil {
				im.o.Log.Warn("what is left of a layer that is gone could not be removed", "chain", id, "error", err)
			}
			return ctx.Err()
		})
	}
	return errors.Join(group.Wait(), im.sweepIndexes())
}

// restore takes one chain over that was mounted, or that a container needs.
func (im *Images) restore(ctx context.Context, r snapshots.Restored) {
	c := chainOf(r.Chain)
	rec, err := im.mounts.read(c.ID)
	if !r.Used && (err != nil || !rec.Mounted) {
		return
	}
	if _, err := im.mounts.ensure(ctx, c, nil); err != nil {
		im.o.Log.Error("a lazy image could not be mounted again: its containers get I/O errors until it can",
			"chain", c.ID, "manifest", c.Manifest, "error", err)
		return
	}
	if !r.Used {
		im.Idle(ctx, c.ID.String())
	}
}

// Run takes idle mounts away until ctx ends.
func (im *Images) Run(ctx context.Context) error {
	tick := time.NewTicker(min(im.o.IdleAfter, time.Minute))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			im.lookups.expire()
			im.tidy(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// tidy takes away the mounts that have been idle for long.
func (im *Images) tidy(ctx context.Context) {
	now := im.o.Now()
	im.mu.Lock()
	var over []digest.Digest
	for chain, since := range im.idle {
		if now.Sub(since) >= im.o.IdleAfter {
			over = append(over, chain)
		}
	}
	im.mu.Unlock()
	for _, chain := range over {
		if err := im.mounts.removeIf(ctx, chain, func() bool { return im.takeIdle(chain) }); err != nil {
			im.o.Log.Warn("an idle mount could not be taken away", "chain", chain, "error", err)
		}
	}
}

// takeIdle reports whether a chain is still idle, and forgets that it is.
func (im *Images) takeIdle(chain digest.Digest) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	_, ok := im.idle[chain]
	delete(im.idle, chain)
	return ok
}
