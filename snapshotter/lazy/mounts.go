package lazy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
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

// record is what mount.json says: all that it takes to mount again what
// meta.erofs is the metadata of.
type record struct {
	Version  int           `json:"version"`
	Backend  string        `json:"backend"`
	Manifest digest.Digest `json:"manifest,omitempty"`
	Layers   []Layer       `json:"layers"`
	// Devices are the keys of the devices, in the order of meta.erofs.
	Devices []string `json:"devices"`
	// Mounted says that a process was about to mount, or had mounted.
	Mounted bool `json:"mounted"`
}

const recordVersion = 1

const (
	fileMeta   = "meta.erofs"
	fileRecord = "mount.json"
	dirRoot    = "root"
)

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

	mu  sync.Mutex
	all map[digest.Digest]*mounting
}

// Mounted describes a chain that is mounted.
type Mounted struct {
	Chain    digest.Digest
	Manifest digest.Digest
	Devices  []*device.Device
	// Layers is the number of the chain's layers.
	Layers int
}

// mounting is a chain that is mounted or being mounted.
type mounting struct {
	mu      sync.Mutex // held while it is mounted or taken away
	removed bool       // not in mounts.all any more
	mount   backend.Mount
	devices []*device.Device
	layers  int
	image   digest.Digest
	ended   func()
}

func (m *mounts) path(chain digest.Digest) string { return filepath.Join(m.dir, chain.Encoded()) }

// root is the directory at which a chain is mounted.
func (m *mounts) root(chain digest.Digest) string { return filepath.Join(m.path(chain), dirRoot) }

// lock returns the mounting of a chain, locked.
func (m *mounts) lock(chain digest.Digest) *mounting {
	for {
		m.mu.Lock()
		e := m.all[chain]
		if e == nil {
			e = &mounting{}
			m.all[chain] = e
		}
		m.mu.Unlock()
		e.mu.Lock()
		if !e.removed {
			return e
		}
		e.mu.Unlock()
	}
}

// ensure mounts a chain unless it is mounted. indexes of its layers are read
// from disk unless the caller has them.
func (m *mounts) ensure(ctx context.Context, c Chain, loaded []*chunkfmt.Index) (dir string, err error) {
	if err := c.ID.Validate(); err != nil {
		return "", fmt.Errorf("chain %q: %w", c.ID, err)
	}
	e := m.lock(c.ID)
	defer e.mu.Unlock()
	if e.mount != nil {
		return m.root(c.ID), nil
	}
	if rec, err := m.read(c.ID); err == nil {
		if err = m.mount(ctx, c.ID, e, rec); err == nil {
			return m.root(c.ID), nil
		}
		m.log.Warn("a chain could not be mounted from what is on disk: its metadata is made anew", "chain", c.ID, "error", err)
	}
	rec, err := m.build(ctx, c, loaded)
	if err == nil {
		err = m.mount(ctx, c.ID, e, rec)
	}
	if err != nil {
		return "", fmt.Errorf("mount chain %s: %w", c.ID, err)
	}
	return m.root(c.ID), nil
}

// read returns what was written of a chain; anything but a whole record is an
// error.
func (m *mounts) read(chain digest.Digest) (*record, error) {
	data, err := os.ReadFile(filepath.Join(m.path(chain), fileRecord))
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", fileRecord, err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%s: version %d is not known here", fileRecord, r.Version)
	}
	return &r, nil
}

func (m *mounts) write(chain digest.Digest, r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return local("keep a mount", writeFile(filepath.Join(m.path(chain), fileRecord), data))
}

// tree merges the layers of a chain.
func (m *mounts) tree(layers []Layer, loaded []*chunkfmt.Index) (*chunkfmt.Tree, error) {
	trees := make([]*chunkfmt.Tree, len(layers))
	for i, l := range layers {
		if i < len(loaded) {
			trees[i] = &loaded[i].Tree
			continue
		}
		x, err := m.indexes.get(l.Index)
		if err != nil {
			return nil, fmt.Errorf("index of layer %d: %w", i, err)
		}
		trees[i] = &x.Tree
	}
	return chunkfmt.Merge(trees...)
}

// build writes the metadata of a chain and opens its devices.
func (m *mounts) build(_ context.Context, c Chain, loaded []*chunkfmt.Index) (*record, error) {
	tree, err := m.tree(c.Layers, loaded)
	if err != nil {
		return nil, err
	}
	dir := m.path(c.ID)
	if err := os.MkdirAll(filepath.Join(dir, dirRoot), 0o700); err != nil {
		return nil, local("make the directory", err)
	}
	im, err := writeMeta(filepath.Join(dir, fileMeta), tree)
	if err != nil {
		return nil, err
	}
	r := &record{Version: recordVersion, Manifest: c.Manifest, Layers: c.Layers, Backend: m.backend.Name()}
	for _, blob := range im.Devices {
		d, err := m.device(tree, blob, c.Layers)
		if err != nil {
			return nil, err
		}
		r.Devices = append(r.Devices, d.Key().String())
		d.Release() // mount opens it again
	}
	return r, nil
}

// device makes sure that the device of a blob is there, with its table.
func (m *mounts) device(tree *chunkfmt.Tree, blob uint32, layers []Layer) (*device.Device, error) {
	table, err := device.NewTable(tree, blob)
	if err != nil {
		return nil, err
	}
	d, err := m.devices.Get(table)
	if err != nil {
		return nil, local("open a device", err)
	}
	repositories := map[string]bool{}
	for i := len(layers) - 1; i >= 0; i-- {
		if repo := layers[i].Repository; !repositories[repo] {
			repositories[repo] = true
			if err := d.AddOrigin(repo); err != nil {
				d.Release()
				return nil, local("keep where a device is from", err)
			}
		}
	}
	return d, nil
}

// writeMeta writes the EROFS image with the metadata of a tree.
func writeMeta(name string, tree *chunkfmt.Tree) (_ *erofs.Image, err error) {
	f, err := os.CreateTemp(filepath.Dir(name), tempPattern)
	if err != nil {
		return nil, local("write metadata", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	im, err := erofs.Write(w, tree, erofs.Options{})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := errors.Join(w.Flush(), f.Sync(), f.Close()); err != nil {
		return nil, local("write metadata", err)
	}
	return im, local("write metadata", os.Rename(f.Name(), name))
}

// image is what the backend gets to know of a chain.
func (m *mounts) image(chain digest.Digest, e *mounting, r *record) (*backend.Image, error) {
	im := &backend.Image{
		ID: chain.Encoded(), Meta: filepath.Join(m.path(chain), fileMeta),
		Tree: func(context.Context) (*chunkfmt.Tree, error) { return m.tree(r.Layers, nil) },
	}
	byKey := map[device.Key]*device.Device{}
	for _, k := range r.Devices {
		key, err := chunkfmt.ParseDigest(k)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", fileRecord, err)
		}
		d, err := m.devices.Load(key)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", key, err)
		}
		e.devices = append(e.devices, d)
		byKey[key] = d
	}
	im.Devices = e.devices
	im.Device = func(key device.Key) *device.Device { return byKey[key] }
	return im, nil
}

// mount mounts a chain whose metadata is written. e is locked.
func (m *mounts) mount(ctx context.Context, chain digest.Digest, e *mounting, r *record) (err error) {
	adopt := r.Mounted
	defer func() {
		if err != nil {
			e.release()
		}
	}()
	im, err := m.image(chain, e, r)
	if err != nil {
		return err
	}
	if !r.Mounted || r.Backend != m.backend.Name() {
		r.Mounted, r.Backend = true, m.backend.Name()
		if err := m.write(chain, r); err != nil {
			return err
		}
	}
	if adopt {
		e.mount, err = m.backend.Adopt(ctx, im, m.root(chain))
		if errors.Is(err, backend.ErrLost) {
			m.log.Warn("a mount of an earlier process could not be taken over: it was taken away", "chain", chain, "error", err)
			e.mount, err = m.backend.Mount(ctx, im, m.root(chain))
		}
	} else {
		e.mount, err = m.backend.Mount(ctx, im, m.root(chain))
	}
	if err != nil {
		return err
	}
	e.layers, e.image = len(r.Layers), r.Manifest
	if m.mounted != nil {
		e.ended = m.mounted(e.describe(chain))
	}
	return nil
}

func (e *mounting) describe(chain digest.Digest) Mounted {
	return Mounted{Chain: chain, Manifest: e.image, Devices: e.devices, Layers: e.layers}
}

// release gives devices back.
func (e *mounting) release() {
	if e.ended != nil {
		e.ended()
	}
	for _, d := range e.devices {
		d.Release()
	}
	e.devices, e.mount, e.ended = nil, nil, nil
}

// list calls f for each chain that is mounted. f must not keep the devices.
func (m *mounts) list(f func(Mounted)) {
	m.mu.Lock()
	all := maps.Clone(m.all)
	m.mu.Unlock()
	for chain, e := range all {
		e.mu.Lock()
		if e.mount != nil {
			f(e.describe(chain))
		}
		e.mu.Unlock()
	}
}

// remove takes a chain's mount away, and all that is on disk for it.
func (m *mounts) remove(ctx context.Context, chain digest.Digest) error {
	return m.removeIf(ctx, chain, func() bool { return true })
}

// removeIf is remove if condition says so while nobody else can mount the chain.
func (m *mounts) removeIf(ctx context.Context, chain digest.Digest, condition func() bool) error {
	e := m.lock(chain)
	defer e.mu.Unlock()
	if !condition() {
		return nil
	}
	if e.mount == nil {
		// What an earlier process has left mounted is taken over first: only its
		// backend knows how to let go of it.
		if r, err := m.read(chain); err == nil && r.Mounted {
			if err := m.mount(ctx, chain, e, r); err != nil {
				m.log.Warn("what is left of a chain cannot be mounted any more", "chain", chain, "error", err)
			}
		}
	}
	if e.mount != nil {
		if err := e.mount.Unmount(ctx); err != nil {
			return fmt.Errorf("unmount chain %s: %w", chain, err)
		}
		e.release()
	}
	m.mu.Lock()
	delete(m.all, chain)
	m.mu.Unlock()
	e.removed = true
	return local("remove a mount", os.RemoveAll(m.path(chain)))
}

// onDisk lists the chains that something is on disk for.
func (m *mounts) onDisk() ([]digest.Digest, error) {
	entries, err := os.ReadDir(m.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []digest.Digest
	for _, e := range entries {
		if d := digest.NewDigestFromEncoded(digest.SHA256, e.Name()); d.Validate() == nil {
			all = append(all, d)
		}
	}
	return all, nil
}

// close lets go of all devices; what is mounted stays so.
func (m *mounts) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.all {
		e.mu.Lock()
		e.release()
		e.mu.Unlock()
	}
	clear(m.all)
}
