package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// Options are settings of a Backend.
type Options struct {
	// Filler brings what readers miss. It must be set.
	Filler backend.Filler
	// Keeper holds the connections for the next process. Default none: mounts
	// end with the process.
	Keeper Keeper
	// ReadAhead is how many bytes the kernel may read ahead of a sequential
	// reader. Default 128 KiB, Linux's own.
	ReadAhead int
	// Log. Default none.
	Log *slog.Logger
}

// Backend mounts images through FUSE. Its methods may be called by several
// goroutines, those about one directory by one at a time.
type Backend struct {
	o       Options
	buffers buffers

	mu     sync.Mutex
	views  map[string]*sharedView // by Image.ID
	mounts map[*Mount]struct{}    // whose connection is served
	closed bool
}

// sharedView is the view of an image for its mounts.
type sharedView struct {
	uses  int           // guarded by Backend.mu
	ready chan struct{} // holds a token when nobody loads
	view  *view         // guarded by the token
}

// New returns a backend. It starts nothing.
func New(o Options) (*Backend, error) {
	if o.Filler == nil {
		return nil, errors.New("the FUSE backend needs a filler")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Backend{o: o, views: map[string]*sharedView{}, mounts: map[*Mount]struct{}{}}, nil
}

// Name is "fuse".
func (b *Backend) Name() string { return "fuse" }

// Mount implements backend.Backend. The devices of the image must stay open
// until the mount is Gone.
func (b *Backend) Mount(ctx context.Context, im *backend.Image, dir string) (backend.Mount, error) {
	m, err := b.prepare(ctx, im, dir)
	if err != nil {
		return nil, fmt.Errorf("mount image %s: %w", im.ID, err)
	}
	if err := m.mount(); err != nil {
		b.release(m.image)
		return nil, fmt.Errorf("mount image %s: %w", im.ID, err)
	}
	return m, nil
}

// Adopt implements backend.Backend.
func (b *Backend) Adopt(ctx context.Context, im *backend.Image, dir string) (backend.Mount, error) {
	m, err := b.prepare(ctx, im, dir)
	if err == nil {
		if err = m.adopt(); err == nil {
			return m, nil
		}
		b.release(m.image)
	} else if ctx.Err() != nil {
		return nil, fmt.Errorf("adopt the mount of image %s: %w", im.ID, err) // the mount stays
	}
	return nil, fmt.Errorf("adopt the mount of image %s: %w: %w", im.ID, backend.ErrLost, errors.Join(err, b.discard(dir)))
}

// Close implements backend.Backend. Requests that wait for a fill are not
// answered: Adopt has the kernel repeat them.
func (b *Backend) Close() error {
	b.mu.Lock()
	b.closed = true
	open := make([]*Mount, 0, len(b.mounts))
	for m := range b.mounts {
		open = append(open, m)
	}
	b.mu.Unlock()
	for _, m := range open {
		m.conn.stop()
	}
	for _, m := range open {
		<-m.ended
	}
	return nil
}

// prepare makes everything that a mount needs before the kernel is told.
func (b *Backend) prepare(ctx context.Context, im *backend.Image, dir string) (*Mount, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the directory: %w", err)
	}
	v, err := b.acquire(ctx, im)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		b.release(im.ID)
		return nil, err
	}
	m := &Mount{
		b: b, image: im.ID, dir: dir, view: v, log: b.o.Log.With("image", im.ID, "mount", dir),
		gone: make(chan struct{}), ended: make(chan struct{}),
	}
	m.devices = make([]*device.Device, len(v.devices))
	for i, key := range v.devices {
		if m.devices[i] = im.Device(key); m.devices[i] == nil {
			b.release(im.ID)
			return nil, fmt.Errorf("the image has no device %s", key)
		}
	}
	return m, nil
}

// acquire returns the view of an image, which it makes when no other mount has
// it. Each call needs one of release.
func (b *Backend) acquire(ctx context.Context, im *backend.Image) (*view, error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil, errors.New("the FUSE backend is closed")
	}
	s := b.views[im.ID]
	if s == nil {
		s = &sharedView{ready: make(chan struct{}, 1)}
		s.ready <- struct{}{}
		b.views[im.ID] = s
	}
	s.uses++
	b.mu.Unlock()
	v, err := s.load(ctx, im)
	if err != nil {
		b.release(im.ID)
		return nil, err
	}
	return v, nil
}

func (s *sharedView) load(ctx context.Context, im *backend.Image) (*view, error) {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { s.ready <- struct{}{} }()
	if s.view != nil {
		return s.view, nil
	}
	t, err := im.Tree(ctx)
	if err != nil {
		return nil, fmt.Errorf("load the tree: %w", err)
	}
	s.view, err = newView(t)
	return s.view, err
}

func (b *Backend) release(image string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.views[image]
	if s.uses--; s.uses == 0 {
		delete(b.views, image)
	}
}

// register notes a mount that is about to be served.
func (b *Backend) register(m *Mount) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errors.New("the FUSE backend is closed")
	}
	b.mounts[m] = struct{}{}
	return nil
}

// finish is called when a mount is served no more.
func (b *Backend) finish(m *Mount) {
	b.mu.Lock()
	delete(b.mounts, m)
	b.mu.Unlock()
	b.release(m.image)
}

// discard ends whatever is mounted at dir and kept for it.
func (b *Backend) discard(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	var errs []error
	at, ok, err := findMount(dir)
	errs = append(errs, err)
	if ok && at.fuse {
		errs = append(errs, abort(at), detach(dir))
	}
	return errors.Join(append(errs, b.drop(dir))...)
}

func (b *Backend) drop(dir string) error {
	if b.o.Keeper == nil {
		return nil
	}
	if err := b.o.Keeper.Drop(keepName(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give the connection of %s up: %w", dir, err)
	}
	return nil
}

// keep hands the connection to the keeper.
func (b *Backend) keep(r *record, fd int) error {
	if b.o.Keeper == nil {
		return nil
	}
	meta, err := r.encode()
	if err != nil {
		return err
	}
	// A duplicate, so that it can be closed: the file is only a way to pass it.
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) // #nosec G115 -- a file descriptor
	if err != nil {
		return fmt.Errorf("duplicate /dev/fuse: %w", err)
	}
	f := os.NewFile(uintptr(dup), "/dev/fuse") // #nosec G115 -- a file descriptor
	defer func() { _ = f.Close() }()
	if err := b.o.Keeper.Put(keepName(r.Dir), meta, f); err != nil {
		return fmt.Errorf("have the connection of %s kept: %w", r.Dir, err)
	}
	return nil
}
