// Package ahead brings the content of mounted images before it is asked for.
//
// When a chain has been mounted, a Manager asks which groups other nodes' mounts
// of the same image have read first, and has them fetched in that order. It
// notes which groups the mount here reads in its first seconds, from the first
// read on, and reports them, present or not: the next node starts with them. Then
// it has the devices completed in the background. Of a mount that an earlier
// process has made, nothing is noted and nothing fetched first: it started before.
//
// All of this is only for speed. What fails is logged, and not tried again, but
// for Refill.
package ahead

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

// Filler brings groups to devices.
type Filler interface {
	// Prefetch brings groups of a device, in their order.
	Prefetch(ctx context.Context, d *device.Device, groups []int) error
	// Complete brings all groups of a device when nobody waits for others.
	Complete(ctx context.Context, d *device.Device) error
}

// Profiles knows what is read of images. *node.Client does.
type Profiles interface {
	Profile(ctx context.Context, image digest.Digest) ([]node.Access, error)
	ReportAccess(ctx context.Context, image digest.Digest, accesses []node.Access) error
}

// Options of a Manager. Filler and Profiles are required.
type Options struct {
	Filler   Filler
	Profiles Profiles
	// Learn is whether profiles are asked for and reported, Background whether
	// devices are completed.
	Learn, Background bool
	// Window is how long the reads of a mount are noted after its first; default
	// 10 s. Settle is how long after the mount its devices are completed; default
	// 5 s.
	Window, Settle time.Duration
	// Patience bounds each question to the daemon; default 2 s.
	Patience time.Duration
	Log      *slog.Logger
	// After is the clock's timer; default time.After.
	After func(time.Duration) <-chan time.Time
}

// Manager looks after the mounts that it is told of. Its methods may be called by
// several goroutines.
type Manager struct {
	o      Options
	ctx    context.Context //nolint:containedctx // the lifetime of work that outlives the calls that start it
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	mounts []*mount
}

const (
	// maxAccesses bounds what is noted of a mount, and used of a profile: what a
	// report may have.
	maxAccesses = 4096
	// fetchers is how many parts of a profile are fetched at a time. Starts go back
	// and forth between layers, so that parts are short.
	fetchers = 4
	// Refill waits between firstRest and lastRest after a failure.
	firstRest = 500 * time.Millisecond
	lastRest  = 30 * time.Second
)

// New returns a manager. It starts nothing; the caller closes it.
func New(o Options) *Manager {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.After == nil {
		o.After = time.After
	}
	for _, d := range []struct {
		to  *time.Duration
		def time.Duration
	}{{&o.Window, 10 * time.Second}, {&o.Settle, 5 * time.Second}, {&o.Patience, 2 * time.Second}} {
		if *d.to == 0 {
			*d.to = d.def
		}
	}
	m := &Manager{o: o}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Close ends all work and waits for it. Later calls of the other methods do
// nothing.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.wg.Wait()
}

// Mount is a mount to look after.
type Mount struct {
	// Image is the digest of the image's manifest; "" if it is not known.
	Image   digest.Digest
	Devices []*device.Device
	// Adopted says that it was mounted by an earlier process.
	Adopted bool
}

// mount is a Mount that is looked after.
type mount struct {
	Mount
	ctx context.Context //nolint:containedctx // ends with the mount
	wg  sync.WaitGroup
	r   *recording // nil when reads are not noted any more; guarded by Manager.mu
}

// recording is what one mount reads first.
type recording struct {
	mu    sync.Mutex
	seen  map[place]bool
	order []place
	began chan struct{} // closed at the first read
}

// place is a group of a device.
type place struct {
	device *device.Device
	group  int
}

// Mounted looks after a mount until ended is called, which waits: the devices
// are not used any more when it returns.
func (m *Manager) Mounted(of Mount) (ended func()) {
	ctx, cancel := context.WithCancel(m.ctx)
	x := &mount{Mount: of, ctx: ctx}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		cancel()
		return func() {}
	}
	m.mounts = append(m.mounts, x)
	if !allComplete(of.Devices) {
		if m.o.Learn && of.Image != "" && !of.Adopted {
			x.r = &recording{seen: map[place]bool{}, began: make(chan struct{})}
			r := x.r
			m.start(x, func() { m.report(x, r) })
			m.start(x, func() { m.prefetch(x) })
		}
		if m.o.Background {
			m.start(x, func() { m.complete(x) })
		}
	}
	return func() {
		m.mu.Lock()
		m.mounts = slices.DeleteFunc(m.mounts, func(other *mount) bool { return other == x })
		m.mu.Unlock()
		cancel()
		x.wg.Wait()
	}
}

func allComplete(devices []*device.Device) bool {
	return !slices.ContainsFunc(devices, func(d *device.Device) bool { return !d.Complete() })
}

// start has work done for a mount. m.mu is held.
func (m *Manager) start(x *mount, work func()) {
	x.wg.Add(1)
	m.wg.Go(func() {
		defer x.wg.Done()
		work()
	})
}

// Accessed notes that a group is read. It does not block.
func (m *Manager) Accessed(d *device.Device, group int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range m.mounts {
		if x.r != nil && slices.Contains(x.Devices, d) {
			x.r.add(place{d, group})
		}
	}
}

func (r *recording) add(a place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[a] || len(r.order) == maxAccesses {
		return
	}
	if len(r.order) == 0 {
		close(r.began)
	}
	r.seen[a] = true
	r.order = append(r.order, a)
}

func (r *recording) accesses() []node.Access {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]node.Access, len(r.order))
	for i, a := range r.order {
		all[i] = node.Access{Blob: blobOf(a.device), Group: a.group}
	}
	return all
}

func blobOf(d *device.Device) digest.Digest { return digest.Digest(d.Table().Blob.Digest.String()) }

// report sends what a mount has read first.
func (m *Manager) report(x *mount, r *recording) {
	began := false
	select {
	case <-r.began:
		began = true
		select {
		case <-m.o.After(m.o.Window):
		case <-x.ctx.Done(): // a short life is worth reporting, too
		}
	case <-x.ctx.Done():
	}
	m.mu.Lock()
	x.r = nil
	m.mu.Unlock()
	if !began {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.ctx), m.o.Patience)
	defer cancel()
	if err := m.o.Profiles.ReportAccess(ctx, x.Image, r.accesses()); err != nil {
		m.o.Log.Info("what a mount has read first is not reported", "image", x.Image, "error", err)
	}
}

// prefetch fetches what other mounts of the image have read first.
func (m *Manager) prefetch(x *mount) {
	asking, cancel := context.WithTimeout(x.ctx, m.o.Patience)
	accesses, err := m.o.Profiles.Profile(asking, x.Image)
	cancel()
	if err != nil {
		if x.ctx.Err() == nil {
			m.o.Log.Info("an image starts without prefetching", "image", x.Image, "error", err)
		}
		return
	}
	f := &fetch{m: m, x: x, failed: map[*device.Device]bool{}}
	var work errgroup.Group
	work.SetLimit(fetchers)
	for _, run := range runs(accesses, x.Devices) {
		if x.ctx.Err() != nil {
			break
		}
		work.Go(func() error {
			f.run(run)
			return nil
		})
	}
	_ = work.Wait() // always nil
}

// fetch is a profile being fetched.
type fetch struct {
	m *Manager
	x *mount

	mu     sync.Mutex
	failed map[*device.Device]bool
}

// run fetches a part, unless its device has failed before.
func (f *fetch) run(r run) {
	f.mu.Lock()
	failed := f.failed[r.device]
	f.mu.Unlock()
	if failed || f.x.ctx.Err() != nil {
		return
	}
	err := f.m.o.Filler.Prefetch(f.x.ctx, r.device, r.groups)
	if err == nil || f.x.ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	first := !f.failed[r.device]
	f.failed[r.device] = true
	f.mu.Unlock()
	if first {
		f.m.o.Log.Info("prefetching has ended early", "image", f.x.Image, "device", r.device.Key(), "error", err)
	}
}

// run is a part of a profile that is on one device.
type run struct {
	device *device.Device
	groups []int
}

// runs divides a profile by devices, in its order. What is not on any, or of no
// group, or there twice, is left out: profiles are what other nodes say.
func runs(accesses []node.Access, devices []*device.Device) []run {
	byBlob := map[digest.Digest]*device.Device{}
	for _, d := range devices {
		byBlob[blobOf(d)] = d
	}
	var all []run
	seen := map[place]bool{}
	for _, a := range accesses[:min(len(accesses), maxAccesses)] {
		d := byBlob[a.Blob]
		if d == nil || a.Group < 0 || a.Group >= len(d.Table().Blob.Groups) || seen[place{d, a.Group}] {
			continue
		}
		seen[place{d, a.Group}] = true
		if len(all) == 0 || all[len(all)-1].device != d {
			all = append(all, run{device: d})
		}
		last := &all[len(all)-1]
		last.groups = append(last.groups, a.Group)
	}
	return all
}

// complete has the devices completed, the topmost first: what was changed last
// is used first.
func (m *Manager) complete(x *mount) {
	select {
	case <-m.o.After(m.o.Settle):
	case <-x.ctx.Done():
		return
	}
	for _, d := range slices.Backward(x.Devices) {
		err := m.o.Filler.Complete(x.ctx, d)
		if x.ctx.Err() != nil {
			return
		}
		if err != nil {
			m.o.Log.Info("a device was not completed in the background", "device", d.Key(), "error", err)
		}
	}
}

// Refill brings groups again that a device has lost, for as long as it is mounted
// and they are missing: nobody may ask for them any more. It does not block.
func (m *Manager) Refill(d *device.Device, groups []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	for _, x := range m.mounts {
		if slices.Contains(x.Devices, d) {
			lost := slices.Clone(groups)
			m.start(x, func() { m.refill(x, d, lost) })
		}
	}
}

func (m *Manager) refill(x *mount, d *device.Device, groups []int) {
	for rest := firstRest; ; rest = min(2*rest, lastRest) {
		err := m.o.Filler.Prefetch(x.ctx, d, groups)
		groups = slices.DeleteFunc(groups, d.Has)
		if len(groups) == 0 || x.ctx.Err() != nil {
			return
		}
		m.o.Log.Error("what a device has lost could not be brought again: it is tried again", "device", d.Key(), "groups", groups, "error", err)
		select {
		case <-m.o.After(rest):
		case <-x.ctx.Done():
			return
		}
	}
}
