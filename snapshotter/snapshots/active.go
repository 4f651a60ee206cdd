package snapshots

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// create makes an active snapshot or a view with the labels given.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, labels map[string]string) ([]mount.Mount, error) {
	unlock, err := s.keys.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	prepare := s.inner.Prepare
	if kind == snapshots.KindView {
		prepare = s.inner.View
	}
	// Once there is a child, nobody can remove the layers below it.
	mounts, err := prepare(ctx, key, parent, snapshots.WithLabels(labels))
	if err != nil {
		return nil, err
	}
	mounts, err = s.onLazy(ctx, key, mounts, true)
	if err != nil {
		return nil, errors.Join(err, s.inner.Remove(context.WithoutCancel(ctx), key))
	}
	return mounts, nil
}

// Mounts returns the mounts of an active snapshot or a view, and mounts the lazy
// layers below it if they are not mounted.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	unlock, err := s.keys.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	mounts, err := s.inner.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	return s.onLazy(ctx, key, mounts, false)
}

// onLazy changes the mounts that overlayfs returned for a snapshot as the lazy
// layers below it need it. The key is locked. fresh says that the snapshot has
// just been made.
func (s *Snapshotter) onLazy(ctx context.Context, key string, mounts []mount.Mount, fresh bool) ([]mount.Mount, error) {
	all, err := s.lineage(ctx, key)
	if err != nil {
		return nil, err
	}
	if isLazy(all[0]) {
		return readOnly(mounts), nil
	}
	parents := all[1:]
	top := topLazy(parents)
	if top < 0 {
		return mounts, nil
	}
	dir, err := s.mounted(ctx, key, layersOf(parents[top:]))
	if err != nil {
		return nil, err
	}
	if fresh && top == 0 {
		if err := ownAs(upperDir(mounts), dir, all[0].Labels); err != nil {
			s.unuse(context.WithoutCancel(ctx), parents[top].Labels[labelTarget], key)
			return nil, err
		}
	}
	mounts, err = rewrite(mounts, len(parents), top, dir)
	if err != nil {
		s.unuse(context.WithoutCancel(ctx), parents[top].Labels[labelTarget], key)
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, err)
	}
	return mounts, nil
}

// mounted returns where a chain is mounted and takes note that key uses it.
func (s *Snapshotter) mounted(ctx context.Context, key string, layers []Layer) (string, error) {
	id := layers[len(layers)-1].ChainID
	if s.images == nil {
		return "", fmt.Errorf("snapshot %q is on lazy layers, and lazy layers are off: %w", key, errdefs.ErrUnavailable)
	}
	unlock, err := s.chainLocks.lock(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	added := s.chains.use(id, key)
	dir, err := s.images.Mounted(ctx, layers)
	if err == nil {
		return dir, nil
	}
	if added && s.chains.unuse(id, key) {
		s.images.Idle(context.WithoutCancel(ctx), id)
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	//nolint:errorlint // the cause must not be one of errdefs' errors to containerd
	return "", fmt.Errorf("mount the lazy layers of snapshot %q up to %s: %v: %w", key, id, err, errdefs.ErrUnavailable)
}

// unuse takes note that key does not use the mount of a chain any more. It does
// not wait for a mount that is being made: that one has a user.
func (s *Snapshotter) unuse(ctx context.Context, id, key string) {
	if !s.chains.unuse(id, key) || s.images == nil {
		return
	}
	unlock, err := s.chainLocks.lock(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	if s.chains.has(id) && !s.chains.used(id) {
		s.images.Idle(ctx, id)
	}
}

// ownAs gives the owner of dir to upper, which will be seen as the root in its
// place. Overlayfs has taken the owner of the lazy layer's own directory, which
// stands for nothing. If IDs are mapped it has taken the mapping's root.
func ownAs(upper, dir string, labels map[string]string) error {
	if upper == "" || labels[snapshots.LabelSnapshotUIDMapping] != "" || labels[snapshots.LabelSnapshotGIDMapping] != "" {
		return nil
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("root of the lazy layers: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 && st.Gid == 0 {
		return nil
	}
	return os.Lchown(upper, int(st.Uid), int(st.Gid))
}

// Commit makes a committed snapshot of an active one.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	info, err := infoOf(opts)
	if err != nil {
		return err
	}
	if err := checkKey(name); err != nil {
		return err
	}
	unlock, err := s.keys.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := s.lineage(ctx, key)
	if err != nil {
		return err
	}
	active := all[0]
	out := []snapshots.Opt{snapshots.WithLabels(inherit(info.Labels, active.Labels)), snapshots.WithParent(info.Parent)}
	if isLazy(active) {
		return s.commitStaged(ctx, name, active, info, out)
	}
	if err := s.inner.Commit(ctx, name, key, out...); err != nil {
		return err
	}
	s.left(ctx, key, all[1:])
	return nil
}

// Remove removes a snapshot.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	unlock, err := s.keys.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := s.lineage(ctx, key)
	if err != nil {
		return err
	}
	if isLazy(all[0]) {
		return s.removeLazy(ctx, key, all[0].Labels[labelTarget])
	}
	if err := s.inner.Remove(ctx, key); err != nil {
		return err
	}
	if all[0].Kind != snapshots.KindCommitted {
		s.left(ctx, key, all[1:])
	}
	return nil
}

// left takes note that an active snapshot or a view with these parents is gone.
func (s *Snapshotter) left(ctx context.Context, key string, parents []snapshots.Info) {
	if top := topLazy(parents); top >= 0 {
		s.unuse(context.WithoutCancel(ctx), parents[top].Labels[labelTarget], key)
	}
}

func (s *Snapshotter) removeLazy(ctx context.Context, name, id string) error {
	unlock, err := s.chainLocks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.inner.Remove(ctx, name); err != nil {
		return err
	}
	if s.chains.drop(id, name) && s.images != nil {
		s.images.Removed(context.WithoutCancel(ctx), id)
	}
	return nil
}
