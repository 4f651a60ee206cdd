// Package ahead brings the content of mounted images before it is asked for.
//
// When a chain has been mounted, a Manager asks which groups other nodes' mounts
// of the same image have read first, and has them fetched in that order. It
// notes which groups the mount here reads in its first seconds, from the first
// read on, and reports them, present or not: the next node starts with them. Then
// it has the devices completed in the background.
//
// All of this is only for speed. What fails is logged, and not tried again.
package ahead

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

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

// Manager looks after the mounts that it is told of.
type Manager struct {
	o      Options
	ctx    context.Context //nolint:containedctx // the lifetime of work that outlives the calls that start it
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu sync.Mutex
	// recording are the mounts whose reads are noted, by device.
	recording map[*device.Device][]*recording
}

// maxAccesses bounds what is noted of a mount: what a report may have.
const maxAccesses = 4096

// recording is what one mount reads first.
type recording struct {
	mu    sync.Mutex
	seen  map[node.Access]bool
	order []node.Access
	began chan struct{} // closed at the first read
}

// New returns a manager. The caller closes it.
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
	m := &Manager{o: o, recording: map[*device.Device][]*recording{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Close ends all work and waits for it.
func (m *Manager) Close() {
	m.cancel()
	m.wg.Wait()
}

// Mount is a mount to look after.
type Mount struct {
	// Image is the digest of the image's manifest; "" if it is not known.
	Image   digest.Digest
	Devices []*device.Device
}

// Mounted looks after a mount until ended is called, which waits: the devices
// are not used any more when it returns.
func (m *Manager) Mounted(x Mount) (ended func()) {
	ctx, cancel := context.WithCancel(m.ctx)
	var wg sync.WaitGroup
	start := func(f func(context.Context, Mount)) {
		wg.Add(1)
		m.wg.Go(func() {
			defer wg.Done()
			f(ctx, x)
		})
	}
	if m.o.Learn && x.Image != "" {
		r := m.record(x)
		start(func(ctx context.Context, x Mount) { m.report(ctx, x, r) })
		start(m.prefetch)
	}
	if m.o.Background {
		start(m.complete)
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// record begins to note the reads of a mount.
func (m *Manager) record(x Mount) *recording {
	r := &recording{seen: map[node.Access]bool{}, began: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range x.Devices {
		m.recording[d] = append(m.recording[d], r)
	}
	return r
}

// unrecord ends that.
func (m *Manager) unrecord(x Mount, r *recording) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range x.Devices {
		var rest []*recording
		for _, other := range m.recording[d] {
			if other != r {
				rest = append(rest, other)
			}
		}
		if m.recording[d] = rest; len(rest) == 0 {
			delete(m.recording, d)
		}
	}
}

// Accessed notes that a group is read. It does not block.
func (m *Manager) Accessed(d *device.Device, group int) {
	m.mu.Lock()
	list := m.recording[d]
	m.mu.Unlock()
	for _, r := range list {
		r.add(node.Access{Blob: digest.Digest(d.Table().Blob.Digest.String()), Group: group})
	}
}

func (r *recording) add(a node.Access) {
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

// report sends what a mount has read first.
func (m *Manager) report(ctx context.Context, x Mount, r *recording) {
	defer m.unrecord(x, r)
	select {
	case <-r.began:
	case <-ctx.Done():
		return
	}
	select {
	case <-m.o.After(m.o.Window):
	case <-ctx.Done(): // a short life is worth reporting, too
	}
	m.unrecord(x, r)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.o.Patience)
	defer cancel()
	r.mu.Lock()
	order := r.order
	r.mu.Unlock()
	if err := m.o.Profiles.ReportAccess(ctx, x.Image, order); err != nil {
		m.o.Log.Info("what a mount has read first is not reported", "image", x.Image, "error", err)
	}
}

// prefetch fetches what other mounts of the image have read first.
func (m *Manager) prefetch(ctx context.Context, x Mount) {
	asking, cancel := context.WithTimeout(ctx, m.o.Patience)
	accesses, err := m.o.Profiles.Profile(asking, x.Image)
	cancel()
	if err != nil {
		m.o.Log.Info("an image starts without prefetching", "image", x.Image, "error", err)
		return
	}
	for _, run := range runs(accesses, x.Devices) {
		if err := m.o.Filler.Prefetch(ctx, run.device, run.groups); err != nil {
			if ctx.Err() == nil {
				m.o.Log.Info("prefetching has ended early", "image", x.Image, "error", err)
			}
			return
		}
	}
}

// run is a part of a profile that is on one device.
type run struct {
	device *device.Device
	groups []int
}

// runs divides a profile by devices, in its order. What is not on any, or of no
// group, is left out: profiles are what other nodes say.
func runs(accesses []node.Access, devices []*device.Device) []run {
	byBlob := map[digest.Digest]*device.Device{}
	for _, d := range devices {
		byBlob[digest.Digest(d.Table().Blob.Digest.String())] = d
	}
	var all []run
	for _, a := range accesses {
		d := byBlob[a.Blob]
		if d == nil || a.Group < 0 || a.Group >= len(d.Table().Blob.Groups) {
			continue
		}
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
func (m *Manager) complete(ctx context.Context, x Mount) {
	select {
	case <-m.o.After(m.o.Settle):
	case <-ctx.Done():
		return
	}
	for i := len(x.Devices) - 1; i >= 0; i-- {
		if err := m.o.Filler.Complete(ctx, x.Devices[i]); err != nil {
			if ctx.Err() == nil {
				m.o.Log.Info("a device was not completed in the background", "device", x.Devices[i].Key(), "error", err)
			}
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// Refill brings groups again that a device has lost.
func (m *Manager) Refill(d *device.Device, groups []int) {
	m.wg.Go(func() {
		if err := m.o.Filler.Prefetch(m.ctx, d, groups); err != nil && m.ctx.Err() == nil {
			m.o.Log.Error("what a device has lost could not be brought again", "device", d.Key(), "groups", groups, "error", err)
		}
	})
}
