package lazy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

const (
	fileMeta   = "meta.erofs"
	fileRecord = "mount.json"
	dirRoot    = "root"
)

// record is what mount.json says: all that it takes to mount again what
// meta.erofs is the metadata of. Neither is synced, because a container waits:
// what a power cut has left of them is recognised, and made anew.
type record struct {
	Version  int           `json:"version"`
	Backend  string        `json:"backend"`
	Manifest digest.Digest `json:"manifest,omitempty"`
	Layers   []Layer       `json:"layers"`
	// Devices are the keys of the devices, in the order of meta.erofs.
	Devices []string `json:"devices"`
	// MetaSize and MetaSum are the size in bytes and the CRC-32C of meta.erofs.
	MetaSize int64  `json:"metaSize"`
	MetaSum  uint32 `json:"metaSum"`
	// Mounted says that a process was about to mount, or had mounted.
	Mounted bool `json:"mounted"`

	// built says that this process has just written meta.erofs.
	built bool
}

const recordVersion = 1

func newSum() hash.Hash32 { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

// checkMeta reports whether the metadata is what was written.
func (r *record) checkMeta(name string) error {
	if r.built {
		return nil
	}
	f, err := os.Open(name) // #nosec G304 -- below the data directory
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	sum := newSum()
	n, err := io.Copy(sum, f)
	if err == nil && (n != r.MetaSize || sum.Sum32() != r.MetaSum) {
		err = errors.New("it is damaged")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// read returns what was written of a chain; anything but a whole record is an
// error, which is fs.ErrNotExist only if nothing was mounted.
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
	return local("keep a mount", writeFile(filepath.Join(m.path(chain), fileRecord), data, false))
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

// roomForMount is how much of the devices' content is evicted when there is no
// space for the metadata of a mount.
const roomForMount = 64 << 20

// buildWithRoom is build, which makes room if there is none.
func (m *mounts) buildWithRoom(ctx context.Context, c Chain, loaded func() []*chunkfmt.Index) (*record, error) {
	select {
	case m.builds <- struct{}{}:
		defer func() { <-m.builds }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r, err := m.build(c, loaded())
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return r, err
	}
	u, more := m.devices.Usage()
	if more == nil {
		_, more = m.devices.Prune(max(u.Bytes-roomForMount, 0))
	}
	if more != nil {
		return nil, errors.Join(err, more)
	}
	return m.build(c, loaded())
}

// build writes the metadata of a chain and makes its devices.
func (m *mounts) build(c Chain, loaded []*chunkfmt.Index) (*record, error) {
	tree, err := m.tree(c.Layers, loaded)
	if err != nil {
		return nil, err
	}
	dir := m.path(c.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, local("make the directory of a mount", err)
	}
	if err := removeTemporary(dir); err != nil {
		return nil, local("remove what an earlier process has left", err)
	}
	r := &record{Version: recordVersion, Backend: m.backend.Name(), Manifest: c.Manifest, Layers: c.Layers, built: true}
	blobs, err := r.writeMeta(filepath.Join(dir, fileMeta), tree)
	if err != nil {
		return nil, err
	}
	for _, blob := range blobs {
		key, err := m.makeDevice(tree, blob, c.Layers)
		if err != nil {
			return nil, err
		}
		r.Devices = append(r.Devices, key.String())
	}
	return r, nil
}

// makeDevice makes sure that the device of a blob is there, with its table and
// where the blob can be had.
func (m *mounts) makeDevice(tree *chunkfmt.Tree, blob uint32, layers []Layer) (device.Key, error) {
	table, err := device.NewTable(tree, blob)
	if err != nil {
		return device.Key{}, err
	}
	d, err := m.devices.Get(table)
	if err != nil {
		return device.Key{}, local("open a device", err)
	}
	defer d.Release() // it is opened again to be mounted
	repositories := map[string]bool{}
	for i := len(layers) - 1; i >= 0; i-- {
		repo := layers[i].Repository
		if repositories[repo] {
			continue
		}
		repositories[repo] = true
		if err := d.AddOrigin(repo); err != nil {
			return device.Key{}, local("keep where a device is from", err)
		}
	}
	return d.Key(), nil
}

// writeMeta writes the EROFS image with the metadata of a tree, and returns the
// blobs whose devices it needs.
func (r *record) writeMeta(name string, tree *chunkfmt.Tree) (blobs []uint32, err error) {
	f, err := os.CreateTemp(filepath.Dir(name), tempPattern)
	if err != nil {
		return nil, local("write metadata", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	sum := newSum()
	w := bufio.NewWriterSize(io.MultiWriter(f, sum), 1<<20)
	im, err := erofs.Write(w, tree, erofs.Options{})
	if err == nil {
		err = w.Flush()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, local("write metadata", err)
	}
	r.MetaSize, r.MetaSum = im.Size, sum.Sum32()
	return im.Devices, local("write metadata", os.Rename(f.Name(), name))
}
