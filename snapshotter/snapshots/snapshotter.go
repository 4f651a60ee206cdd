package snapshots

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	errbolt "go.etcd.io/bbolt/errors"
)

// Options are the options of New. Root has no default.
type Options struct {
	// Root is the directory of the snapshots, an absolute path without ':', ',' and
	// '\'. It is made if it is not there.
	Root string
	// Images decides about lazy layers. The default is that there are none.
	Images Images
	// Log gets one line for each layer's decision, among others. The default is
	// nowhere.
	Log *slog.Logger
	// Decided is told of each decision about a layer. The default is nobody.
	Decided func(Decided)
	// AsyncRemove lets Remove leave directories to Cleanup, which containerd calls
	// at the end of a garbage collection.
	AsyncRemove bool
	// RemapIDs passes ID mappings on to containerd's mounts. The plugin's entry in
	// containerd's configuration then has the capability remap-ids.
	RemapIDs bool
	// Staged lets layers be lazy where containerd unpacks in parallel: for containerd
	// 2.4 and later with the capability rebase only. Older ones would fail the pull.
	Staged bool
	// MountOptions are added to overlay mounts. The default is none.
	MountOptions []string
	// LockTimeout is how long New waits for another process to let go of Root. The
	// default is 2 seconds.
	LockTimeout time.Duration
}

const defaultLockTimeout = 2 * time.Second

// Decided is a decision about a layer.
type Decided struct {
	// ChainID and Image are what containerd calls the layer and its image.
	ChainID, Image string
	// Lazy is whether it is mounted instead of pulled.
	Lazy bool
	// Shared is whether that is because it was lazy already.
	Shared bool
	// Reason says why it is not lazy.
	Reason Reason
}

// Snapshotter implements containerd's Snapshotter and Cleaner.
//
// Lock order: a key's lock, a chain's lock, a transaction of store.
type Snapshotter struct {
	// Set once.
	root    string
	inner   overlaySnapshotter
	store   *storage.MetaStore
	images  Images
	log     *slog.Logger
	decided func(Decided)
	staged  bool

	keys       locks // of snapshots
	chainLocks locks // of chain IDs: held in all calls of Images but Usage
	chains     chains
}

type overlaySnapshotter interface {
	snapshots.Snapshotter
	snapshots.Cleaner
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshots below a directory, removes what a crash has left there,
// and restores the lazy layers.
func New(ctx context.Context, o Options) (*Snapshotter, error) {
	if !usableDir(o.Root) {
		return nil, fmt.Errorf("snapshots: the root %q is not an absolute path free of ':', ',' and '\\'", o.Root)
	}
	if o.Staged && o.Images == nil {
		return nil, errors.New("snapshots: staged layers without images that could be lazy")
	}
	s := &Snapshotter{
		root: filepath.Clean(o.Root), images: o.Images, log: o.Log, decided: o.Decided, staged: o.Staged,
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.decided == nil {
		s.decided = func(Decided) {}
	}
	if err := s.open(ctx, o); err != nil {
		return nil, fmt.Errorf("open snapshots in %s: %w", s.root, err)
	}
	if err := s.restore(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("restore snapshots in %s: %w", s.root, err), s.Close())
	}
	return s, nil
}

func (s *Snapshotter) open(ctx context.Context, o Options) error {
	timeout := o.LockTimeout
	if timeout <= 0 {
		timeout = defaultLockTimeout
	}
	store, err := storage.NewMetaStore(filepath.Join(s.root, "metadata.db"), func(b *bolt.Options) error {
		b.Timeout = timeout
		return nil
	})
	if err != nil {
		return err
	}
	opts := []overlay.Opt{overlay.WithMetaStore(store), overlay.WithMountOptions(o.MountOptions)}
	if o.AsyncRemove {
		opts = append(opts, overlay.AsynchronousRemove)
	}
	if o.RemapIDs {
		opts = append(opts, overlay.WithRemapIDs)
	}
	sn, err := overlay.NewSnapshotter(s.root, opts...)
	if err != nil {
		return err
	}
	inner, ok := sn.(overlaySnapshotter)
	if !ok {
		return errors.Join(errors.New("this overlayfs snapshotter cannot clean up"), sn.Close())
	}
	s.inner, s.store = inner, store
	if err := s.lockStore(ctx); err != nil {
		return errors.Join(err, sn.Close())
	}
	return nil
}

// lockStore opens the database, which has a lock, and makes its tables, without
// which it answers to everything that it does not exist.
func (s *Snapshotter) lockStore(ctx context.Context) error {
	const key = lazyPrefix + "init"
	err := s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindView, key, ""); err != nil {
			return err
		}
		_, _, err := storage.Remove(ctx, key)
		return err
	})
	if errors.Is(err, errbolt.ErrTimeout) {
		return fmt.Errorf("another process uses them: %w", err)
	}
	return err
}

// Close lets go of the database. Snapshots and mounts stay. It may be called
// again.
func (s *Snapshotter) Close() error { return s.inner.Close() }

// Cleanup removes the directories of removed snapshots.
func (s *Snapshotter) Cleanup(ctx context.Context) error { return s.inner.Cleanup(ctx) }

// Stat returns what is known of a snapshot.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	return s.inner.Stat(ctx, key)
}

// Update changes labels, but none of ours.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	unlock, err := s.keys.lock(ctx, info.Name)
	if err != nil {
		return snapshots.Info{}, err
	}
	defer unlock()
	old, err := s.inner.Stat(ctx, info.Name)
	if err != nil {
		return snapshots.Info{}, err
	}
	info.Labels, err = updated(old, info.Labels, fieldpaths)
	if err != nil {
		return snapshots.Info{}, err
	}
	return s.inner.Update(ctx, info)
}

// Usage returns what a snapshot takes, without its parents.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	info, err := s.inner.Stat(ctx, key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if !isLazy(info) || s.images == nil {
		return s.inner.Usage(ctx, key)
	}
	u, err := s.images.Usage(ctx, layerOf(info))
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of lazy snapshot %q: %w", key, err)
	}
	return u, nil
}

// Walk calls fn for the snapshots that match the filters, as they were at one
// moment. fn may use the snapshotter, and take its time.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	var all []snapshots.Info
	err := s.inner.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		all = append(all, info)
		return nil
	}, filters...)
	if err != nil {
		return err
	}
	for _, info := range all {
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// lineage returns a snapshot and its parents, topmost first.
func (s *Snapshotter) lineage(ctx context.Context, key string) (all []snapshots.Info, err error) {
	err = s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		all, err = lineage(ctx, key)
		return err
	})
	return all, err
}

// lineage is that in a transaction.
func lineage(ctx context.Context, key string) ([]snapshots.Info, error) {
	var all []snapshots.Info
	for key != "" {
		_, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("snapshot %q: %w", key, err)
		}
		all = append(all, info)
		key = info.Parent
	}
	return all, nil
}

// topLazy returns the index of the first lazy snapshot, or -1. What follows it is
// lazy too.
func topLazy(lineage []snapshots.Info) int {
	for i, info := range lineage {
		if isLazy(info) {
			return i
		}
	}
	return -1
}

func layerOf(info snapshots.Info) Layer {
	return Layer{ChainID: info.Labels[labelTarget], Labels: info.Labels}
}

// layersOf returns the layers of lazy snapshots, topmost first, as lowest first.
func layersOf(lineage []snapshots.Info) []Layer {
	out := make([]Layer, len(lineage))
	for i, info := range lineage {
		out[len(out)-1-i] = layerOf(info)
	}
	return out
}

// infoOf is what options say of a new snapshot.
func infoOf(opts []snapshots.Opt) (snapshots.Info, error) {
	var info snapshots.Info
	for _, o := range opts {
		if err := o(&info); err != nil {
			return info, err
		}
	}
	return info, nil
}

// checkKey refuses names that are ours.
func checkKey(key string) error {
	if len(key) >= len(lazyPrefix) && key[:len(lazyPrefix)] == lazyPrefix {
		return fmt.Errorf("snapshot %q: names with the prefix %q are taken: %w", key, lazyPrefix, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Prepare makes an active snapshot, or commits a lazy layer and returns
// ErrAlreadyExists.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	info, err := infoOf(opts)
	if err != nil {
		return nil, err
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if s.images != nil && info.Labels[labelTarget] != "" {
		return s.prepareLayer(ctx, key, parent, info.Labels)
	}
	return s.create(ctx, snapshots.KindActive, key, parent, foreign(info.Labels))
}

// View makes a read-only snapshot.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	info, err := infoOf(opts)
	if err != nil {
		return nil, err
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	return s.create(ctx, snapshots.KindView, key, parent, foreign(info.Labels))
}
