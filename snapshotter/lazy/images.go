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
	// RefuseBound makes ordinary images of those whose index nobody but their
	// author vouches for, by the image's manifest.
	RefuseBound bool
	// Off makes every image an ordinary one. What is lazy already stays so.
	Off bool
	// Usable reports why a mount that is made now could not be kept over a restart.
	// Then images are ordinary. The answer counts for five seconds. May be nil.
	Usable func(ctx context.Context) error
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
	// Now and After are the clock; default that of package time.
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time

	kernel kernel // tests have their own
}

func (o *Options) setDefaults() {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.After == nil {
		o.After = time.After
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
	if o.kernel == nil {
		o.kernel = linux{}
	}
}

// Images decides about layers and mounts chains. It is a snapshots.Images.
type Images struct {
	o       Options
	indexes *indexes
	layers  *layers
	lookups *lookups
	mounts  *mounts
	usable  usable
	asked   asked
	ctx     context.Context //nolint:containedctx // the lifetime of what pulls set off and do not wait for
	cancel  context.CancelFunc
	// ahead bounds the mounts that nobody waits for.
	ahead chan struct{}

	mu     sync.Mutex // taken after that of a mounting
	closed bool
	wg     sync.WaitGroup
	// used are the chains whose mounts are in use, idle is since when others that
	// may be mounted are not.
	used map[digest.Digest]bool
	// lost are the used ones that could not be mounted again yet.
	lost []snapshots.Restored
	idle map[digest.Digest]time.Time
}

// maxAhead bounds the mounts at a time that nobody waits for.
const maxAhead = 2

// New returns images. It starts nothing; the caller closes it.
func New(o Options) (*Images, error) {
	o.setDefaults()
	x, err := openIndexes(filepath.Join(o.Dir, "indexes"))
	if err != nil {
		return nil, fmt.Errorf("open the indexes in %s: %w", o.Dir, err)
	}
	im := &Images{
		o: o, indexes: x, layers: newLayers(x), usable: usable{check: o.Usable, timeout: o.Timeout, now: o.Now},
		ahead: make(chan struct{}, maxAhead), used: map[digest.Digest]bool{}, idle: map[digest.Digest]time.Time{},
	}
	im.ctx, im.cancel = context.WithCancel(context.Background())
	im.lookups = &lookups{
		registry: o.Registry, policy: o.Policy, refuseBound: o.RefuseBound, indexes: x, log: o.Log, now: o.Now, after: o.After,
		timeout: o.Timeout, keepNo: o.KeepNo, ctx: im.ctx, slots: make(chan struct{}, maxLookups),
		flights: map[string]*flight{}, kept: map[string]*outcome{},
	}
	im.mounts = &mounts{
		dir: filepath.Join(o.Dir, "mounts"), indexes: x, devices: o.Devices, backend: o.Backend, log: o.Log, mounted: o.Mounted,
		trouble: trouble{now: o.Now}, builds: make(chan struct{}, maxBuilds), kernel: o.kernel, ctx: im.ctx, all: map[digest.Digest]*mounting{},
	}
	if err := os.MkdirAll(im.mounts.dir, 0o700); err != nil {
		im.cancel()
		return nil, fmt.Errorf("open the mounts in %s: %w", o.Dir, err)
	}
	return im, nil
}

// Stop ends all work under way and waits for it. What is mounted goes on. It may
// be called again.
func (im *Images) Stop() {
	im.cancel()
	im.mu.Lock()
	im.closed = true
	im.mu.Unlock()
	im.lookups.close()
	im.wg.Wait()
}

// Close is Stop, and lets go of all devices, which no backend may use any more.
// What is mounted stays mounted.
func (im *Images) Close() {
	im.Stop()
	im.mounts.close()
}

// Keep reports whether the table of a device is needed: it is that of a lazy
// layer. It takes locks of its own only, and for a moment.
func (im *Images) Keep(key device.Key) bool { return im.layers.need(key) }

// Layer looks for the index of the layer's image.
func (im *Images) Layer(ctx context.Context, r snapshots.Request) snapshots.Decision {
	if im.o.Off {
		return no(Off, "the snapshotter's lazy is false")
	}
	req, err := parseRequest(r.ChainID, r.Labels)
	if err != nil {
		return no(NoLabels, err.Error())
	}
	if err := im.usable.ask(ctx); err != nil {
		return im.asked.note(req, nil, no(NoKeeper, err.Error()), im.o.Now())
	}
	if err := im.mounts.trouble.ask(); err != nil {
		return im.asked.note(req, nil, no(NoBackend, err.Error()), im.o.Now())
	}
	o := im.lookups.find(ctx, req)
	defer im.lookups.done(o)
	d := im.decide(req, o)
	if d.Lazy {
		im.mountAhead(o)
	}
	return im.asked.note(req, o.image, d, im.o.Now())
}

// decide makes a lazy layer of one that an image has.
func (im *Images) decide(req request, o *outcome) snapshots.Decision {
	if o.image == nil {
		return snapshots.Decision{Reason: o.reason}
	}
	i, ok := o.image.byChain[req.chain]
	if !ok {
		return no(OtherLayer, fmt.Sprintf("the index of %s has no layer with chain ID %s", req.ref, req.chain))
	}
	layer := o.image.layers[i]
	im.layers.add(req.chain, layer.index, layer.devices)
	return snapshots.Decision{Lazy: true, Labels: layerLabels(o.image, layer)}
}

// Mounts calls f for each chain that is mounted, with where. f must not keep the
// devices. Chains that are just being mounted are left out.
func (im *Images) Mounts(f func(m Mounted, dir string)) {
	im.mounts.list(func(m Mounted) { f(m, im.mounts.root(m.Chain)) })
}

// Asked returns the images that containerd has asked for of late.
func (im *Images) Asked() []Asked { return im.asked.list() }

// mountAhead mounts all layers of an image while containerd goes through them:
// the container will ask for the topmost.
func (im *Images) mountAhead(o *outcome) {
	if o.mounting.Swap(true) {
		return
	}
	c := o.image.chain()
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.closed {
		return
	}
	if !im.used[c.ID] {
		im.idle[c.ID] = im.o.Now()
	}
	im.lookups.take(o)
	im.wg.Go(func() {
		defer im.lookups.done(o)
		im.mountNow(c)
	})
}

// mountNow mounts a chain that nobody waits for, unless it was removed meanwhile.
func (im *Images) mountNow(c Chain) {
	select {
	case im.ahead <- struct{}{}:
		defer func() { <-im.ahead }()
	case <-im.ctx.Done():
		return
	}
	_, err := im.mounts.ensure(im.ctx, c, func() (wanted, unused bool) {
		im.mu.Lock()
		defer im.mu.Unlock()
		_, idle := im.idle[c.ID]
		return idle, !im.used[c.ID]
	}, func() []*chunkfmt.Index { return im.lookups.inMemory(c) })
	im.lookups.mounted(c)
	if err != nil && im.ctx.Err() == nil && !errors.Is(err, errUnwanted) {
		im.o.Log.Warn("an image could not be mounted ahead of its container", "manifest", c.Manifest, "error", err)
	}
}

// Mounted mounts a chain.
func (im *Images) Mounted(ctx context.Context, layers []snapshots.Layer) (string, error) {
	begin := im.o.Now()
	c := chainOf(layers)
	im.mu.Lock()
	unused := !im.used[c.ID]
	im.used[c.ID] = true
	delete(im.idle, c.ID)
	im.mu.Unlock()
	dir, err := im.mounts.ensure(ctx, c, func() (bool, bool) { return true, unused },
		func() []*chunkfmt.Index { return im.lookups.inMemory(c) })
	if err == nil {
		im.lookups.mounted(c)
		im.o.Ready(im.o.Now().Sub(begin).Seconds())
	}
	return dir, err
}

// Idle notes since when a chain is not used.
func (im *Images) Idle(_ context.Context, chainID string) {
	im.mu.Lock()
	defer im.mu.Unlock()
	delete(im.used, digest.Digest(chainID))
	im.idle[digest.Digest(chainID)] = im.o.Now()
}

// Removed takes a chain away.
func (im *Images) Removed(ctx context.Context, chainID string) {
	chain := digest.Digest(chainID)
	im.mu.Lock()
	delete(im.used, chain)
	delete(im.idle, chain)
	im.mu.Unlock()
	if err := im.mounts.removeIf(ctx, chain, func() bool { return true }); err != nil {
		im.o.Log.Warn("what a removed layer has left will be removed at the next start", "chain", chain, "error", err)
	}
	im.layers.remove(chain)
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

// retryEvery is how often what could not be mounted again is tried anew.
const retryEvery = 5 * time.Second

// Run takes idle mounts away, and makes those again that could not be restored,
// until ctx ends.
func (im *Images) Run(ctx context.Context) error {
	tidy, retry := im.o.After(min(im.o.IdleAfter, time.Minute)), im.o.After(retryEvery)
	for {
		select {
		case <-tidy:
			im.lookups.expire()
			im.tidy(ctx)
			tidy = im.o.After(min(im.o.IdleAfter, time.Minute))
		case <-retry:
			im.retry(ctx)
			retry = im.o.After(retryEvery)
		case <-ctx.Done():
			return nil
		}
	}
}

// retry mounts again what could not be restored: a holder may have come back.
func (im *Images) retry(ctx context.Context) {
	im.mu.Lock()
	lost := im.lost
	im.lost = nil
	im.mu.Unlock()
	for _, r := range lost {
		chain := digest.Digest(r.Chain[len(r.Chain)-1].ChainID)
		im.mu.Lock()
		used := im.used[chain]
		im.mu.Unlock()
		if used {
			im.restore(ctx, r)
		}
	}
}

// tidy takes away the mounts that have been idle for long.
func (im *Images) tidy(ctx context.Context) {
	im.mu.Lock()
	var over []digest.Digest
	for chain := range im.idle {
		if im.isOver(chain) {
			over = append(over, chain)
		}
	}
	im.mu.Unlock()
	for _, chain := range over {
		err := im.mounts.removeIf(ctx, chain, func() bool { return im.takeIdle(chain) })
		if err != nil && ctx.Err() == nil {
			im.o.Log.Warn("an idle mount could not be taken away", "chain", chain, "error", err)
			im.Idle(ctx, chain.String())
		}
	}
}

// isOver reports whether a chain has been idle for long. im.mu is held.
func (im *Images) isOver(chain digest.Digest) bool {
	since, ok := im.idle[chain]
	return ok && !im.used[chain] && im.o.Now().Sub(since) >= im.o.IdleAfter
}

// takeIdle reports whether a chain is still idle, and forgets that it is.
func (im *Images) takeIdle(chain digest.Digest) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	if !im.isOver(chain) {
		return false
	}
	delete(im.idle, chain)
	return true
}
