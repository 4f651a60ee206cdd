package lazymount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/backend/fuse"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/fill"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

const (
	// stall is longer than a part takes on a slow link.
	stall = 60 * time.Second
	// patience is how long a reader waits while fetching fails.
	patience = 2 * time.Minute
	// unmounting is how long Close waits for those who use the mount.
	unmounting = 3 * time.Second
	// fallback is what a file of a local image is said to be from.
	fallback = "localhost/image"
)

// ErrBusy says that somebody still used the mount when it was closed. What they
// have open fails from then on.
var ErrBusy = errors.New("the mount was still in use")

// Options says what to mount. All but Node, CacheDir, Recorder and Log are
// required.
type Options struct {
	// ID names the image: the hexadecimal digits of its manifest's digest.
	ID string
	// Tree is the merged tree. It is not changed.
	Tree *chunkfmt.Tree
	// Source is where the image is; it must stay open until Close.
	Source *image.Source
	// Node is asked for content first; nil for nobody.
	Node *node.Client
	// CacheDir keeps content for another time. Empty: a directory that Close
	// removes.
	CacheDir string
	// Recorder notes what is read; nil for nobody.
	Recorder *Recorder
	// Log gets why reads fail. Default: nobody.
	Log *slog.Logger
}

// Mount is an image that is mounted. The caller closes it.
type Mount struct {
	o       Options
	temp    string // removed by Close
	store   *device.Store
	devices []*device.Device
	filler  *fill.Filler
	backend *fuse.Backend
	mount   *fuse.Mount

	fromNode, fromSource atomic.Int64
}

// Open mounts an image at dir, an empty directory. It fails at once, and says
// what to do, where this process cannot mount.
func Open(ctx context.Context, o Options, dir string) (_ *Mount, err error) {
	if err := check(dir); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	m := &Mount{o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release())
		}
	}()
	if err := m.openDevices(); err != nil {
		return nil, err
	}
	if err := m.openFiller(); err != nil {
		return nil, err
	}
	var filler backend.Filler = m.filler
	if o.Recorder != nil {
		filler = o.Recorder.filler(filler)
	}
	if m.backend, err = fuse.New(fuse.Options{Filler: filler, Log: o.Log}); err != nil {
		return nil, err
	}
	mounted, err := m.backend.Mount(ctx, m.image(), dir)
	if err != nil {
		return nil, explain(err)
	}
	m.mount = mounted.(*fuse.Mount) //nolint:errcheck // Mount returns no other kind
	return m, nil
}

// check says what is wrong with a directory, or with who wants to mount there.
func check(dir string) error {
	if os.Geteuid() != 0 {
		return exit.With(exit.Refused, fmt.Errorf("mount at %s: only root can mount: run it with sudo, or where you are root (unshare --user --map-root-user --mount)", dir))
	}
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("mount at %s: there is no such directory: make it with mkdir", dir)
	case errors.Is(err, unix.ENOTCONN):
		return fmt.Errorf("mount at %s: a mount whose process has died is in the way: take it away with umount %[1]s", dir)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("mount at %s: it is not a directory", dir)
	case err != nil:
		return fmt.Errorf("mount at %s: %w", dir, err)
	case len(entries) > 0:
		return fmt.Errorf("mount at %s: the directory is not empty: name an empty one", dir)
	}
	return nil
}

// explain says what to do about an error of the backend.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: the kernel has no FUSE, or this container no /dev/fuse: try modprobe fuse, or give the container the device", err)
	case errors.Is(err, unix.EACCES):
		return exit.With(exit.Refused, fmt.Errorf("%w: this user may not use /dev/fuse, whose mode usually is 0666", err))
	case errors.Is(err, unix.EPERM):
		return exit.With(exit.Refused, fmt.Errorf("%w: this process may not mount: a container needs CAP_SYS_ADMIN and /dev/fuse", err))
	}
	return err
}

// openDevices makes the devices of all blobs that the tree's content lies in.
func (m *Mount) openDevices() (err error) {
	dir := m.o.CacheDir
	if dir == "" {
		if m.temp, err = os.MkdirTemp(TempDir(), "dfctl-mount-"); err != nil {
			return fmt.Errorf("make a directory for content: %w", err)
		}
		dir = m.temp
	}
	m.store, err = device.Open(device.Options{Dir: filepath.Join(dir, "devices"), Log: m.o.Log})
	if errors.Is(err, device.ErrLocked) {
		return fmt.Errorf("open the cache %s: %w by another process: name another --cache-dir", dir, err)
	}
	if err != nil {
		return fmt.Errorf("open the cache %s: %w", dir, err)
	}
	origin := fallback
	if ref := m.o.Source.Ref(); ref.Kind == image.KindRegistry {
		origin = registry(ref.Registry) + "/" + ref.Repository
	}
	used := map[uint32]bool{}
	for ref := range m.o.Tree.UsedGroups() {
		if used[ref.Blob] {
			continue
		}
		used[ref.Blob] = true
		table, err := device.NewTable(m.o.Tree, ref.Blob)
		if err != nil {
			return err
		}
		d, err := m.store.Get(table)
		if err != nil {
			return fmt.Errorf("open a device in %s: %w", dir, err)
		}
		m.devices = append(m.devices, d)
		if err := d.AddOrigin(origin); err != nil {
			return fmt.Errorf("open a device in %s: %w", dir, err)
		}
	}
	return nil
}

// TempDir is where content goes that is not kept: TMPDIR, else /var/tmp, for
// /tmp may be in memory.
func TempDir() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	if fi, err := os.Stat("/var/tmp"); err == nil && fi.IsDir() {
		return "/var/tmp"
	}
	return os.TempDir()
}

// registry is the name of a registry as users write it, and dfdaemon knows it.
func registry(host string) string {
	if host == "index.docker.io" {
		return "docker.io"
	}
	return host
}

func (m *Mount) openFiller() (err error) {
	sizes := map[chunkfmt.Digest]int64{}
	for i := range m.o.Tree.Blobs {
		sizes[m.o.Tree.Blobs[i].Digest] = m.o.Tree.Blobs[i].Size
	}
	var fetch fill.Fetcher = &straight{source: m.o.Source, sizes: sizes, bytes: &m.fromSource}
	if m.o.Node != nil {
		fetch = &preferring{first: m.o.Node, second: fetch, bytes: &m.fromNode, log: m.o.Log}
	}
	m.filler, err = fill.New(fill.Options{Fetch: fetch, Log: m.o.Log, Deadline: patience, Stall: stall})
	return err
}

// image is what the backend gets to know.
func (m *Mount) image() *backend.Image {
	byKey := map[device.Key]*device.Device{}
	for _, d := range m.devices {
		byKey[d.Key()] = d
	}
	return &backend.Image{
		ID: m.o.ID, Devices: m.devices,
		Tree:   func(context.Context) (*chunkfmt.Tree, error) { return m.o.Tree, nil },
		Device: func(key device.Key) *device.Device { return byKey[key] },
	}
}

// Gone is closed when somebody has taken the mount away, or when Close has.
func (m *Mount) Gone() <-chan struct{} { return m.mount.Gone() }

// Fetched returns how many stored bytes came through dfdaemon, and straight from
// where the image is.
func (m *Mount) Fetched() (node, source int64) { return m.fromNode.Load(), m.fromSource.Load() }

// Close takes the mount away and gives back all that it used, also when ctx has
// ended. The error is ErrBusy if somebody used it to the end.
func (m *Mount) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmounting)
	defer cancel()
	err := m.mount.Unmount(ctx)
	if err == nil {
		select {
		case <-m.mount.Gone():
		case <-ctx.Done():
			err = ErrBusy
		}
	}
	return errors.Join(err, m.release())
}

// release gives back what there is.
func (m *Mount) release() error {
	var errs []error
	if m.backend != nil {
		errs = append(errs, m.backend.Close())
	}
	if m.filler != nil {
		errs = append(errs, m.filler.Close())
	}
	for _, d := range m.devices {
		d.Release()
	}
	if m.store != nil {
		errs = append(errs, m.store.Close())
	}
	if m.temp != "" {
		errs = append(errs, os.RemoveAll(m.temp))
	}
	return errors.Join(errs...)
}
