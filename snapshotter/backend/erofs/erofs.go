package erofs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

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
	// Drop forgets a name. One that is not there is no error.
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
	guarded map[device.Key]*guard
	trimmer trimmer
}

// New returns a backend, and starts what gives the pages of devices back. The
// caller closes it.
func New(o Options) *Backend {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Backend{
		o: o, ctx: ctx, cancel: cancel, guarded: map[device.Key]*guard{},
		trimmer: trimmer{map[*device.Device]int{}},
	}
	b.wg.Go(b.trim)
	return b
}

// Name is "erofs".
func (b *Backend) Name() string { return "erofs" }

// Close ends what answers the kernel, after what it is answering. What is
// mounted stays, and its readers wait.
func (b *Backend) Close() error {
	b.cancel()
	b.wg.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, g := range b.guarded {
		errs = append(errs, g.close())
	}
	clear(b.guarded)
	return errors.Join(errs...)
}

// mounted is an image at a directory. It is a backend.Mount.
type mounted struct {
	b       *Backend
	dir     string
	id      string
	devices []*device.Device
	guards  []*guard
}

// Mount guards the devices that are not complete, and mounts.
func (b *Backend) Mount(ctx context.Context, im *backend.Image, dir string) (backend.Mount, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := detach(dir); err != nil {
		return nil, err
	}
	m := &mounted{b: b, dir: dir, id: im.ID}
	for _, d := range im.Devices {
		if err := m.guard(d, b.start); err != nil {
			return nil, errors.Join(err, m.release())
		}
	}
	if err := attach(im, dir); err != nil {
		return nil, errors.Join(err, m.release())
	}
	m.use(im.Devices)
	return m, nil
}

// use has the pages of devices given back while they are mounted.
func (m *mounted) use(devices []*device.Device) {
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	m.devices = devices
	m.b.trimmer.add(devices)
}

// Adopt takes over the guards of the devices from the keeper.
func (b *Backend) Adopt(_ context.Context, im *backend.Image, dir string) (backend.Mount, error) {
	kind, source, err := at(dir)
	if err != nil {
		return nil, err
	}
	if kind != "erofs" || source != im.Meta {
		return nil, errors.Join(fmt.Errorf("%s: what is mounted is %q of type %q, not %s: %w", dir, source, kind, im.Meta, backend.ErrLost), detach(dir))
	}
	m := &mounted{b: b, dir: dir, id: im.ID}
	for _, d := range im.Devices {
		if d.Complete() {
			// The process before may have ended before it could do this.
			if err := b.forget(d); err != nil {
				return nil, errors.Join(err, m.release())
			}
			continue
		}
		if err := m.guard(d, b.resume); err != nil {
			err = fmt.Errorf("device %s of %s: %w: %w", d.Key(), dir, backend.ErrLost, err)
			return nil, errors.Join(err, detach(dir), m.release())
		}
	}
	m.use(im.Devices)
	return m, nil
}

// guard adds the guard of a device, which begin makes if there is none.
func (m *mounted) guard(d *device.Device, begin func(*device.Device) (*guard, error)) error {
	if d.Complete() {
		return nil
	}
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	g := m.b.guarded[d.Key()]
	if g == nil {
		var err error
		if g, err = begin(d); err != nil {
			return fmt.Errorf("guard %s: %w", d.Path(), err)
		}
		m.b.guarded[d.Key()] = g
	}
	g.users++
	m.guards = append(m.guards, g)
	return nil
}

// forget drops what the keeper has of a complete device.
func (b *Backend) forget(d *device.Device) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.guarded[d.Key()] != nil {
		return nil
	}
	return b.o.Keeper.Drop(keeperName(d.Key()))
}

// release gives guards back that no file system needs any more.
func (m *mounted) release() error {
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	var errs []error
	for _, g := range m.guards {
		if g.users--; g.users > 0 || m.b.guarded[g.device.Key()] != g {
			continue
		}
		delete(m.b.guarded, g.device.Key())
		errs = append(errs, g.end())
	}
	m.guards = nil
	return errors.Join(errs...)
}

// Unmount takes the mount away. The guards stay until the file system has no
// user left.
func (m *mounted) Unmount(context.Context) error {
	m.b.mu.Lock()
	m.b.trimmer.remove(m.devices)
	m.devices = nil
	m.b.mu.Unlock()
	if len(m.guards) == 0 {
		return detach(m.dir)
	}
	end, err := watchEnd(m.dir)
	if err != nil {
		return err
	}
	if err := detach(m.dir); err != nil {
		return errors.Join(err, end.events.Close())
	}
	m.b.wg.Go(func() {
		if err := end.wait(m.b.ctx); err != nil {
			if !errors.Is(err, context.Canceled) {
				m.b.o.Log.Error("it is not known when a file system ends: its devices stay guarded", "image", m.id, "error", err)
			}
			return
		}
		if err := m.release(); err != nil {
			m.b.o.Log.Error("a guard could not be taken away", "image", m.id, "error", err)
		}
	})
	return nil
}
