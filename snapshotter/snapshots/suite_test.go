package snapshots_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	cdsnapshots "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

func TestSuiteWithOrdinaryLayers(t *testing.T) {
	needMounts(t)
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (cdsnapshots.Snapshotter, func() error, error) {
		sn, err := snapshots.New(ctx, snapshots.Options{Root: root, AsyncRemove: true})
		if err != nil {
			return nil, nil, err
		}
		return sn, sn.Close, nil
	})
}

// TestSuiteWithLazyLayers runs the suite with a snapshotter all of whose committed
// snapshots are lazy.
func TestSuiteWithLazyLayers(t *testing.T) {
	needMounts(t)
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (cdsnapshots.Snapshotter, func() error, error) {
		im := newImages(root)
		im.all = true
		sn, err := snapshots.New(ctx, snapshots.Options{Root: filepath.Join(root, "root"), Images: im})
		if err != nil {
			return nil, nil, err
		}
		l := &lazyOnly{Snapshotter: sn, images: im, lazy: map[string]string{}, names: map[string]string{}}
		return l, func() error {
			im.unmount(t)
			return sn.Close()
		}, nil
	})
}

// lazyOnly turns each snapshot that is committed into a lazy layer, whose content
// the images keep.
type lazyOnly struct {
	*snapshots.Snapshotter
	images *images

	mu    sync.Mutex
	lazy  map[string]string // names of the lazy snapshots by the suite's names
	names map[string]string // and back
}

func (l *lazyOnly) in(name string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n, ok := l.lazy[name]; ok {
		return n
	}
	return name
}

// out is what the suite knows of a snapshot.
func (l *lazyOnly) out(info cdsnapshots.Info) cdsnapshots.Info {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range []*string{&info.Name, &info.Parent} {
		if n, ok := l.names[*s]; ok {
			*s = n
		}
	}
	info.Labels = maps.Clone(info.Labels)
	maps.DeleteFunc(info.Labels, func(k, _ string) bool { return strings.HasPrefix(k, "containerd.io/snapshot") })
	return info
}

func (l *lazyOnly) Commit(ctx context.Context, name, key string, opts ...cdsnapshots.Opt) error {
	if l.in(name) != name {
		return fmt.Errorf("snapshot %q: %w", name, errdefs.ErrAlreadyExists)
	}
	if err := l.Snapshotter.Commit(ctx, name, key, opts...); err != nil {
		return err
	}
	info, err := l.Snapshotter.Stat(ctx, name)
	if err != nil {
		return err
	}
	diff := digest.FromString(name)
	labels := map[string]string{"containerd.io/snapshot/diff-id": diff.String()}
	id := diff
	if info.Parent != "" {
		parent := strings.TrimPrefix(info.Parent, "lazy:")
		labels["containerd.io/snapshot/parent-chain-id"] = parent
		id = identity.ChainID([]digest.Digest{digest.Digest(parent), diff})
	}
	labels["containerd.io/snapshot.ref"] = id.String()
	maps.Copy(labels, info.Labels)
	if err := l.move(ctx, name, l.images.layerDir(id.String())); err != nil {
		return err
	}
	_, err = l.Snapshotter.Prepare(ctx, "extract "+name, info.Parent, cdsnapshots.WithLabels(labels))
	if !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("prepare of a lazy layer: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lazy[name], l.names["lazy:"+id.String()] = "lazy:"+id.String(), name
	return nil
}

// move takes the content of a committed snapshot away and removes it.
func (l *lazyOnly) move(ctx context.Context, name, to string) error {
	view := "view " + name
	mounts, err := l.Snapshotter.View(ctx, view, name)
	if err != nil {
		return err
	}
	from := mounts[0].Source
	for _, o := range mounts[0].Options {
		if lower, ok := strings.CutPrefix(o, "lowerdir="); ok {
			from, _, _ = strings.Cut(lower, ":")
		}
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := l.Snapshotter.Remove(ctx, view); err != nil {
		return err
	}
	return l.Snapshotter.Remove(ctx, name)
}

func (l *lazyOnly) Prepare(ctx context.Context, key, parent string, opts ...cdsnapshots.Opt) ([]mount.Mount, error) {
	if l.in(key) != key {
		return nil, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrAlreadyExists)
	}
	return l.Snapshotter.Prepare(ctx, key, l.in(parent), opts...)
}

func (l *lazyOnly) View(ctx context.Context, key, parent string, opts ...cdsnapshots.Opt) ([]mount.Mount, error) {
	if l.in(key) != key {
		return nil, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrAlreadyExists)
	}
	return l.Snapshotter.View(ctx, key, l.in(parent), opts...)
}

func (l *lazyOnly) Stat(ctx context.Context, key string) (cdsnapshots.Info, error) {
	info, err := l.Snapshotter.Stat(ctx, l.in(key))
	return l.out(info), err
}

func (l *lazyOnly) Update(ctx context.Context, info cdsnapshots.Info, fieldpaths ...string) (cdsnapshots.Info, error) {
	info.Name = l.in(info.Name)
	info, err := l.Snapshotter.Update(ctx, info, fieldpaths...)
	return l.out(info), err
}

func (l *lazyOnly) Remove(ctx context.Context, key string) error {
	inner := l.in(key)
	if err := l.Snapshotter.Remove(ctx, inner); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.lazy, key)
	delete(l.names, inner)
	if id, ok := strings.CutPrefix(inner, "lazy:"); ok {
		return os.RemoveAll(l.images.layerDir(id))
	}
	return nil
}

func (l *lazyOnly) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return l.Snapshotter.Mounts(ctx, l.in(key))
}

func (l *lazyOnly) Usage(ctx context.Context, key string) (cdsnapshots.Usage, error) {
	return l.Snapshotter.Usage(ctx, l.in(key))
}

func (l *lazyOnly) Walk(ctx context.Context, fn cdsnapshots.WalkFunc, filters ...string) error {
	for i, f := range filters {
		l.mu.Lock()
		for name, inner := range l.lazy {
			for _, field := range []string{"name", "parent"} {
				if f == field+"=="+name {
					filters[i] = fmt.Sprintf("%s==%q", field, inner)
				}
			}
		}
		l.mu.Unlock()
	}
	return l.Snapshotter.Walk(ctx, func(ctx context.Context, info cdsnapshots.Info) error {
		return fn(ctx, l.out(info))
	}, filters...)
}
