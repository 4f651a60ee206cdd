package erofs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// Keeper holds files for processes to come. Names are those of devices.
type Keeper interface {
	// Put replaces what is kept under a name.
	Put(name string, meta []byte, files ...*os.File) error
	// Get returns copies of the files. The error is fs.ErrNotExist if there are
	// none.
	Get(name string) (meta []byte, files []*os.File, err error)
	// Drop forgets a name. One that is not there is no error. After an error the
	// name is forgotten later.
	Drop(name string) error
}

// Options of a Backend. All but Log are required.
type Options struct {
	Filler backend.Filler
	Keeper Keeper
	Log    *slog.Logger
}

// Backend mounts with EROFS. It is a backend.Backend.
type Backend struct {
	o      Options
	ctx    context.Context //nolint:containedctx // the lifetime of what answers the kernel, which outlives the calls that start it
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	guarded map[device.Key]*guard
	// settled says that Reclaim has seen what the keeper has: nothing is there of
	// devices that are not guarded, but for those in unsettled.
	settled   bool
	unsettled map[device.Key]bool
	endings   *endings // nil before the first mount
	trimmer   trimmer
}

// New returns a backend, and starts what gives the pages of devices back. The
// caller closes it.
func New(o Options) *Backend {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Backend{
		o: o, ctx: ctx, cancel: cancel, guarded: map[device.Key]*guard{}, unsettled: map[device.Key]bool{},
		trimmer: trimmer{map[*device.Device]int{}},
	}
	b.wg.Go(b.trim)
	return b
}

// Name is "erofs".
func (b *Backend) Name() string { return "erofs" }

// errClosed is what a backend returns that is closed.
var errClosed = errors.New("the backend is closed")

// Close ends what answers the kernel, after what it is answering. What is
// mounted stays, and its readers wait.
func (b *Backend) Close() error {
	b.mu.Lock()
	b.closed = true
	e := b.endings
	b.mu.Unlock()
	b.cancel()
	var errs []error
	if e != nil {
		errs = append(errs, e.events.Close())
	}
	b.wg.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, g := range b.guarded {
		errs = append(errs, g.watch.Close())
	}
	clear(b.guarded)
	return errors.Join(errs...)
}

// mounted is an image at a directory. It is a backend.Mount. It has its guards
// and devices until its file system has no user left.
type mounted struct {
	b       *Backend
	dir     string
	id      string
	devices []*device.Device
	gone    chan struct{}

	// Guarded by Backend.mu.
	guards    []*guard
	over      bool // end was called
	lingering bool // the keeper knows that there are users without a mount
}

// newMounted is called with devices that are open.
func (b *Backend) newMounted(im *backend.Image, dir string) (*mounted, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errClosed
	}
	for _, d := range im.Devices {
		d.Retain()
	}
	b.trimmer.add(im.Devices)
	return &mounted{b: b, dir: dir, id: im.ID, devices: im.Devices, gone: make(chan struct{})}, nil
}

// Mount guards the devices that are not complete, and mounts.
func (b *Backend) Mount(ctx context.Context, im *backend.Image, dir string) (backend.Mount, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := detach(dir); err != nil {
		return nil, err
	}
	m, err := b.newMounted(im, dir)
	if err != nil {
		return nil, err
	}
	for _, d := range im.Devices {
		if err := m.guard(d, b.begin); err != nil {
			m.end()
			return nil, err
		}
	}
	root, err := create(im)
	if err != nil {
		m.end()
		return nil, err
	}
	defer unix.Close(root) //nolint:errcheck // the mount stays where it was moved to
	followed := m.follow(root)
	if err := attach(root, dir); err != nil {
		if !followed {
			m.end()
		}
		return nil, err // the file system ends with root, and m with it
	}
	m.whenComplete(root)
	return m, nil
}

// Adopt takes over the guards of the devices from the keeper. When one of them
// is lost the others are not let go of: what is open in the mount goes on.
func (b *Backend) Adopt(_ context.Context, im *backend.Image, dir string) (backend.Mount, error) {
	root, err := openMount(dir, im.Meta)
	if errors.Is(err, backend.ErrLost) {
		return nil, errors.Join(err, detach(dir))
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(root) //nolint:errcheck // it was only looked at
	m, err := b.newMounted(im, dir)
	if err != nil {
		return nil, err
	}
	var lost []error
	for _, d := range im.Devices {
		err := m.guard(d, b.resume)
		if errors.Is(err, errNoGuard) {
			lost = append(lost, fmt.Errorf("device %s of %s: %w: %w", d.Key(), dir, backend.ErrLost, err))
			// What was read meanwhile may be wrong; what will be read is not.
			err = m.guard(d, b.restart)
		}
		if err != nil && len(lost) == 0 {
			m.leave()
			return nil, err
		}
		if err != nil {
			lost = append(lost, err)
		}
	}
	m.follow(root)
	if len(lost) > 0 {
		return nil, errors.Join(append(lost, detach(dir))...)
	}
	m.whenComplete(root)
	return m, nil
}

// follow has m.end called when the file system has no user left, and reports
// whether that will be known.
func (m *mounted) follow(root int) bool {
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	err := errClosed
	if !m.b.closed {
		err = m.b.follow(m, root)
	}
	if err != nil {
		m.b.o.Log.Warn("it will not be known when a file system ends: its devices stay guarded", "image", m.id, "error", err)
	}
	return err == nil
}

// guard adds the guard of a device, which begin makes if there is none.
func (m *mounted) guard(d *device.Device, begin func(*device.Device) (*guard, error)) error {
	if d.Complete() {
		// What is not on the disk may still be lost.
		if err := d.Sync(); err != nil {
			return err
		}
	}
	b := m.b
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.guarded[d.Key()]
	if g == nil {
		if d.Complete() {
			return nil
		}
		if b.closed {
			return errClosed
		}
		var err error
		if g, err = begin(d); err != nil {
			return fmt.Errorf("guard %s: %w", d.Path(), err)
		}
		b.guarded[d.Key()] = g
	}
	g.users++
	m.guards = append(m.guards, g)
	return nil
}

// leave gives up what could not be adopted now. Its guards go on: the file system
// has users.
func (m *mounted) leave() {
	m.b.mu.Lock()
	for _, g := range m.guards {
		g.pin()
	}
	m.b.mu.Unlock()
	m.end()
}

// end gives back what no file system needs any more.
func (m *mounted) end() {
	b := m.b
	b.mu.Lock()
	if m.over {
		b.mu.Unlock()
		return
	}
	m.over = true
	b.trimmer.remove(m.devices)
	var errs []error
	for _, g := range m.guards {
		if b.guarded[g.device.Key()] != g {
			continue // it was complete
		}
		if m.lingering {
			g.lingering-- // that the keeper still says so does no harm
		}
		if g.users--; g.users == 0 {
			delete(b.guarded, g.device.Key())
			errs = append(errs, g.end())
		}
	}
	m.guards = nil
	b.mu.Unlock()
	for _, d := range m.devices {
		d.Release()
	}
	close(m.gone)
	if err := errors.Join(errs...); err != nil {
		b.o.Log.Warn("a guard could not be taken away as it should", "image", m.id, "error", err)
	}
}

// Gone is closed when the file system has no user left.
func (m *mounted) Gone() <-chan struct{} { return m.gone }

// lingerAfter is how long users of a file system without a mount may take to end
// before the keeper is told of them, and after which it is told again if it could
// not be.
const lingerAfter = time.Second

// Unmount takes the mount away. The guards stay until the file system has no
// user left.
func (m *mounted) Unmount(context.Context) error {
	if err := detach(m.dir); err != nil {
		return err
	}
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	if len(m.guards) == 0 || m.b.closed {
		return nil
	}
	m.b.wg.Go(m.watchLinger)
	return nil
}

// watchLinger tells the keeper of users that outlive the mount.
func (m *mounted) watchLinger() {
	tick := time.NewTicker(lingerAfter)
	defer tick.Stop()
	for over := false; !over; {
		select {
		case <-m.gone:
			return
		case <-tick.C:
		case <-m.b.ctx.Done():
			over = true
		}
		err := m.linger()
		if err == nil {
			return
		}
		// Nobody holds the groups any more, until somebody takes them.
		m.b.o.Log.Error("no keeper takes what an unmounted image that is in use needs", "image", m.id, "error", err)
	}
}

// linger tells the keeper that the devices have users that no mount tells of.
func (m *mounted) linger() error {
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	if m.over {
		return nil
	}
	var errs []error
	for _, g := range m.guards {
		if m.b.guarded[g.device.Key()] != g {
			continue
		}
		if !m.lingering {
			g.lingering++
		}
		errs = append(errs, g.put())
	}
	m.lingering = true
	return errors.Join(errs...)
}
