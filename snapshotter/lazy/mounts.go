package lazy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// Layer is one layer of a chain, from the labels of its snapshot.
type Layer struct {
	Index      digest.Digest
	Repository string
}

// Chain is a chain of lazy layers, lowest first.
type Chain struct {
	// ID is the chain ID of the topmost layer.
	ID digest.Digest
	// Manifest is that of the image the topmost layer was pulled for.
	Manifest digest.Digest
	Layers   []Layer
}

// sameIndexes reports whether layers are mounted by the same indexes.
func sameIndexes(a, b []Layer) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Index != b[i].Index {
			return false
		}
	}
	return true
}

// mounts mounts chains, each at most once.
type mounts struct {
	dir     string
	indexes *indexes
	devices *device.Store
	backend backend.Backend
	log     *slog.Logger
	// mounted is told of each chain that has been mounted. What it returns is called
	// before the devices are given back.
	mounted func(Mounted) (ended func())
	trouble trouble
	// builds bounds the trees that are merged at a time.
	builds chan struct{}
	kernel kernel

	ctx context.Context //nolint:containedctx // devices stay open until the last user of a mount is gone
	wg  sync.WaitGroup

	mu     sync.Mutex // taken after that of a mounting
	closed bool
	all    map[digest.Digest]*mounting
}

// maxBuilds of trees at a time: one of a large image takes some 100 MB.
const maxBuilds = 4

// Mounted describes a chain that is mounted.
type Mounted struct {
	Chain    digest.Digest
	Manifest digest.Digest
	Devices  []*device.Device
	// Layers is the number of the chain's layers.
	Layers int
	// Adopted says that an earlier process has mounted it.
	Adopted bool
}

// mounting is a chain that is mounted or being mounted.
type mounting struct {
	mu      sync.Mutex // held while it is mounted or taken away
	removed bool       // not in mounts.all any more
	mount   backend.Mount
	devices []*device.Device
	layers  []Layer // whose indexes are held
	image   digest.Digest
	adopted bool
	ended   func()
}

var errClosed = errors.New("the snapshotter is ending")

func (m *mounts) path(chain digest.Digest) string { return filepath.Join(m.dir, chain.Encoded()) }

// root is the directory at which a chain is mounted.
func (m *mounts) root(chain digest.Digest) string { return filepath.Join(m.path(chain), dirRoot) }

// lock returns the mounting of a chain, locked.
func (m *mounts) lock(chain digest.Digest) (*mounting, error) {
	for {
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return nil, errClosed
		}
		e := m.all[chain]
		if e == nil {
			e = &mounting{}
			m.all[chain] = e
		}
		m.mu.Unlock()
		e.mu.Lock()
		if !e.removed {
			return e, nil
		}
		e.mu.Unlock()
	}
}

// forget takes a mounting, which is locked, out of those that there are.
func (m *mounts) forget(chain digest.Digest, e *mounting) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.removed = true
	delete(m.all, chain)
}

// errUnwanted says that a mount was not wanted any more when its turn came.
var errUnwanted = errors.New("the mount is not wanted any more")

// ensure mounts a chain unless it is mounted. state is asked while nobody else
// can change the mount: whether it is wanted, and whether nobody uses one that is
// there. Indexes of the layers are read from disk unless loaded has them.
func (m *mounts) ensure(ctx context.Context, c Chain, state func() (wanted, unused bool), loaded func() []*chunkfmt.Index) (string, error) {
	if err := c.ID.Validate(); err != nil {
		return "", fmt.Errorf("chain %q: %w", c.ID, err)
	}
	e, err := m.lock(c.ID)
	if err != nil {
		return "", err
	}
	defer e.mu.Unlock()
	wanted, unused := state()
	switch {
	case ctx.Err() != nil: // it may have ended while others had the lock
		err = ctx.Err()
	case !wanted:
		err = errUnwanted
	}
	if err != nil {
		if e.mount == nil {
			m.forget(c.ID, e)
		}
		return "", err
	}
	if e.mount != nil && !m.kernel.attached(m.root(c.ID)) {
		m.log.Warn("somebody has taken a mount away: it is made again", "chain", c.ID)
		if err := e.mount.Unmount(ctx); err != nil {
			return "", fmt.Errorf("unmount chain %s: %w", c.ID, err)
		}
		m.giveBack(e)
	}
	if e.mount != nil && (!unused || sameIndexes(e.layers, c.Layers)) {
		return m.root(c.ID), nil
	}
	err = m.replace(ctx, c, e, unused)
	if err == nil {
		err = m.bring(ctx, c, e, loaded)
	}
	m.trouble.note(c.ID, err)
	if err != nil {
		if e.mount == nil {
			m.forget(c.ID, e)
		}
		return "", fmt.Errorf("mount chain %s: %w", c.ID, err)
	}
	return m.root(c.ID), nil
}

// replace takes away what was mounted, or written, by other indexes and is not
// used: it was made by one image's indexes, and may be wanted for another image
// that trusts only its own.
func (m *mounts) replace(ctx context.Context, c Chain, e *mounting, unused bool) error {
	if e.mount == nil {
		r, err := m.read(c.ID)
		if err != nil || !unused || sameIndexes(r.Layers, c.Layers) {
			return nil
		}
	}
	return m.wipe(ctx, c.ID, e)
}

// bring mounts a chain from what is on disk, or else anew. e is locked.
func (m *mounts) bring(ctx context.Context, c Chain, e *mounting, loaded func() []*chunkfmt.Index) error {
	r, err := m.read(c.ID)
	// Of a record that cannot be read it is not known what it was of.
	adopt := err == nil && r.Mounted || err != nil && !errors.Is(err, fs.ErrNotExist)
	if err == nil {
		var kept errKept
		if err = m.mount(ctx, c.ID, e, r, adopt); err == nil || ctx.Err() != nil || errors.As(err, &kept) {
			return err
		}
	}
	if adopt || r != nil {
		m.log.Warn("a chain could not be mounted from what is on disk: its metadata is made anew", "chain", c.ID, "error", err)
	}
	if r, err = m.buildWithRoom(ctx, c, loaded); err != nil {
		return err
	}
	return m.mount(ctx, c.ID, e, r, adopt)
}

// image is what the backend gets to know of a chain.
func (m *mounts) image(chain digest.Digest, e *mounting, r *record) (*backend.Image, error) {
	layers := r.Layers
	im := &backend.Image{
		ID: chain.Encoded(), Meta: filepath.Join(m.path(chain), fileMeta),
		Tree: func(context.Context) (*chunkfmt.Tree, error) { return m.tree(layers, nil) },
	}
	byKey := map[device.Key]*device.Device{}
	for _, k := range r.Devices {
		key, err := chunkfmt.ParseDigest(k)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", fileRecord, err)
		}
		d, err := m.devices.Load(key)
		if err != nil {
			return nil, err
		}
		e.devices = append(e.devices, d)
		byKey[key] = d
	}
	im.Devices = e.devices
	im.Device = func(key device.Key) *device.Device { return byKey[key] }
	return im, nil
}

// errKept says that an earlier mount is there and could not be taken over now:
// it must be left alone.
type errKept struct{ error }

// Unwrap returns the error.
func (e errKept) Unwrap() error { return e.error }

// mount mounts a chain whose metadata is written, or adopts a mount of it that
// may be there. e is locked.
func (m *mounts) mount(ctx context.Context, chain digest.Digest, e *mounting, r *record, adopt bool) (err error) {
	defer func() {
		if err != nil {
			m.giveBack(e)
		}
	}()
	im, err := m.image(chain, e, r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.path(chain), 0o700); err != nil {
		return local("make the directory of a mount", err)
	}
	if e.adopted, err = m.attach(ctx, chain, e, im, r, adopt); err != nil {
		return err
	}
	e.layers, e.image = r.Layers, r.Manifest
	for _, l := range e.layers {
		m.indexes.hold(l.Index)
	}
	if m.mounted != nil {
		e.ended = m.mounted(e.describe(chain))
	}
	return nil
}

// attach has the backend adopt or mount, and reports which. e is locked.
func (m *mounts) attach(ctx context.Context, chain digest.Digest, e *mounting, im *backend.Image, r *record, adopt bool) (adopted bool, err error) {
	root := m.root(chain)
	if adopt && r.Backend == m.backend.Name() {
		mount, err := m.backend.Adopt(ctx, im, root)
		if err == nil {
			if err := m.record(chain, r); err != nil {
				m.log.Warn("the record of a mount could not be written: it is made anew at the next start", "chain", chain, "error", err)
			}
			e.mount = mount
			return true, nil
		}
		if !errors.Is(err, backend.ErrLost) {
			return false, errKept{err}
		}
		m.log.Warn("a mount of an earlier process could not be taken over: it was taken away", "chain", chain, "error", err)
	}
	if adopt {
		if err := m.detach(root); err != nil {
			return false, err
		}
	}
	if err := local("make the directory to mount at", os.MkdirAll(root, 0o700)); err != nil {
		return false, err
	}
	if err := r.checkMeta(im.Meta); err != nil {
		return false, err
	}
	if err := m.record(chain, r); err != nil {
		return false, err
	}
	mount, err := m.backend.Mount(ctx, im, root)
	if err == nil {
		e.mount = mount
	}
	return false, err
}

// record says on disk that a chain is mounted, or is about to be.
func (m *mounts) record(chain digest.Digest, r *record) error {
	if r.Mounted && r.Backend == m.backend.Name() {
		return nil
	}
	r.Mounted, r.Backend = true, m.backend.Name()
	return m.write(chain, r)
}

// detach takes away whatever is mounted at a directory.
func (m *mounts) detach(dir string) error {
	for m.kernel.attached(dir) {
		if err := m.kernel.detach(dir); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return nil
}

// kernel knows what is mounted.
type kernel interface {
	// attached reports whether something is mounted at a directory, detach takes
	// the topmost of it away.
	attached(dir string) bool
	detach(dir string) error
}

type linux struct{}

func (linux) detach(dir string) error {
	return unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

func (linux) attached(dir string) bool {
	var at, above unix.Stat_t
	if err := unix.Lstat(dir, &at); err != nil {
		return !errors.Is(err, unix.ENOENT) // a FUSE mount that nobody serves
	}
	return unix.Lstat(filepath.Dir(dir), &above) == nil && at.Dev != above.Dev
}

func (e *mounting) describe(chain digest.Digest) Mounted {
	return Mounted{Chain: chain, Manifest: e.image, Devices: e.devices, Layers: len(e.layers), Adopted: e.adopted}
}

// lasting is a mount that may be used after it was taken away.
type lasting interface {
	// Gone is closed when the last user is gone.
	Gone() <-chan struct{}
}

// giveBack gives back what a mounting has that is not mounted any more. Its
// devices stay open, and so keep their content, while somebody still reads it.
func (m *mounts) giveBack(e *mounting) {
	if e.ended != nil {
		e.ended()
	}
	for _, l := range e.layers {
		m.indexes.release(l.Index)
	}
	devices := e.devices
	gone, ok := e.mount.(lasting)
	e.devices, e.layers, e.mount, e.ended = nil, nil, nil, nil
	if !ok {
		releaseAll(devices)
		return
	}
	m.wg.Go(func() {
		select {
		case <-gone.Gone():
		case <-m.ctx.Done():
		}
		releaseAll(devices)
	})
}

func releaseAll(devices []*device.Device) {
	for _, d := range devices {
		d.Release()
	}
}

// list calls f for each chain that is mounted, but for those that are just being
// mounted or taken away. f must not keep the devices.
func (m *mounts) list(f func(Mounted)) {
	m.mu.Lock()
	all := maps.Clone(m.all)
	m.mu.Unlock()
	for chain, e := range all {
		if !e.mu.TryLock() {
			continue
		}
		if e.mount != nil {
			f(e.describe(chain))
		}
		e.mu.Unlock()
	}
}

// removeIf takes a chain's mount away, and all that is on disk for it, if
// condition says so while nobody else can mount the chain.
func (m *mounts) removeIf(ctx context.Context, chain digest.Digest, condition func() bool) error {
	e, err := m.lock(chain)
	if err != nil {
		return err
	}
	defer e.mu.Unlock()
	if !condition() {
		return nil
	}
	if err := m.wipe(ctx, chain, e); err != nil {
		return err
	}
	m.forget(chain, e)
	return nil
}

// wipe takes away what is mounted of a chain, and what is on disk. e is locked.
func (m *mounts) wipe(ctx context.Context, chain digest.Digest, e *mounting) error {
	if e.mount == nil {
		m.reclaim(ctx, chain, e)
	}
	if e.mount != nil {
		if err := e.mount.Unmount(ctx); err != nil {
			return fmt.Errorf("unmount chain %s: %w", chain, err)
		}
		m.giveBack(e)
	}
	if err := m.detach(m.root(chain)); err != nil {
		return err
	}
	return local("remove a mount", os.RemoveAll(m.path(chain)))
}

// reclaim takes over what an earlier process has left mounted, since only its
// backend knows how to let go of it.
func (m *mounts) reclaim(ctx context.Context, chain digest.Digest, e *mounting) {
	r, err := m.read(chain)
	if err != nil || !r.Mounted || r.Backend != m.backend.Name() {
		return
	}
	im, err := m.image(chain, e, r)
	if err == nil {
		var mount backend.Mount
		if mount, err = m.backend.Adopt(ctx, im, m.root(chain)); err == nil {
			e.mount = mount
			return
		}
	}
	m.giveBack(e)
	if !errors.Is(err, backend.ErrLost) {
		m.log.Warn("what is left of a chain cannot be taken over: it is taken away", "chain", chain, "error", err)
	}
}

// onDisk lists the chains that something is on disk for.
func (m *mounts) onDisk() ([]digest.Digest, error) {
	entries, err := os.ReadDir(m.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []digest.Digest
	for _, e := range entries {
		for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
			if d := digest.NewDigestFromEncoded(algorithm, e.Name()); d.Validate() == nil {
				all = append(all, d)
			}
		}
	}
	return all, nil
}

// close lets go of all devices, whose context has ended; what is mounted stays
// so.
func (m *mounts) close() {
	m.mu.Lock()
	m.closed = true
	all := maps.Clone(m.all)
	m.mu.Unlock()
	for _, e := range all {
		e.mu.Lock()
		e.mount = nil
		m.giveBack(e)
		e.mu.Unlock()
	}
	m.wg.Wait()
}
