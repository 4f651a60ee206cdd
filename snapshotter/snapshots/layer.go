package snapshots

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// prepareLayer prepares a layer that containerd is about to unpack.
func (s *Snapshotter) prepareLayer(ctx context.Context, key, parent string, labels map[string]string) ([]mount.Mount, error) {
	if parent == "" && labels[labelParent] != "" {
		return s.prepareUnordered(ctx, key, labels)
	}
	var parents []snapshots.Info
	if parent != "" {
		var err error
		if parents, err = s.lineage(ctx, parent); err != nil {
			return nil, err
		}
	}
	if r, ok := possible(parents, labels); !ok {
		return s.ordinary(ctx, key, parent, labels, r)
	}
	r, err := s.commitLayer(ctx, parent, parents, labels)
	if err != nil {
		return nil, err
	}
	return s.ordinary(ctx, key, parent, labels, r)
}

// possible reports whether a layer could be lazy, and why not.
func possible(parents []snapshots.Info, labels map[string]string) (Reason, bool) {
	below := ""
	if len(parents) > 0 {
		if !isLazy(parents[0]) {
			return Reason{ReasonParent, parents[0].Labels[LabelReason]}, false
		}
		below = parents[0].Labels[labelTarget]
	}
	if err := checkChain(labels, below); err != nil {
		return Reason{ReasonLabels, err.Error()}, false
	}
	return Reason{}, true
}

// ordinary prepares a layer that containerd will unpack.
func (s *Snapshotter) ordinary(ctx context.Context, key, parent string, labels map[string]string, r Reason) ([]mount.Mount, error) {
	mounts, err := s.create(ctx, snapshots.KindActive, key, parent, ordinaryLabels(labels, r))
	if err == nil {
		s.report(ctx, Decided{ChainID: labels[labelTarget], Image: labels[labelImage], Reason: r})
	}
	return mounts, err
}

// report tells of a decision. An image that is not lazy gets one line at the
// level that operators see, for its lowest ordinary layer.
func (s *Snapshotter) report(ctx context.Context, d Decided) {
	s.decided(d)
	level, msg := slog.LevelInfo, "layer is pulled"
	attrs := []slog.Attr{slog.String("chain", d.ChainID), slog.String("image", d.Image)}
	switch {
	case d.Lazy:
		level, msg = slog.LevelDebug, "layer is lazy"
		attrs = append(attrs, slog.Bool("shared", d.Shared))
	case d.Reason.Code == ReasonParent:
		level = slog.LevelDebug
		fallthrough
	default:
		attrs = append(attrs, slog.String("reason", d.Reason.Code), slog.String("detail", d.Reason.Detail))
	}
	s.log.LogAttrs(ctx, level, msg, attrs...)
}

// commitLayer commits a layer as a lazy one and returns an error that is
// ErrAlreadyExists, or no error and why the layer is ordinary.
func (s *Snapshotter) commitLayer(ctx context.Context, parent string, parents []snapshots.Info, labels map[string]string) (Reason, error) {
	id := labels[labelTarget]
	unlock, err := s.chainLocks.lock(ctx, id)
	if err != nil {
		return Reason{}, err
	}
	defer unlock()
	done := Decided{ChainID: id, Image: labels[labelImage], Lazy: true}
	exists := fmt.Errorf("lazy layer %s: %w", id, errdefs.ErrAlreadyExists)

	// The answer may have been lost, or another namespace was first.
	old, err := s.inner.Stat(ctx, lazyName(id))
	switch {
	case err == nil && old.Parent == parent:
		done.Shared = true
		s.report(ctx, done)
		return Reason{}, exists
	case err == nil:
		return Reason{ReasonLabels, fmt.Sprintf("there is a lazy layer of that chain ID with the parent %q instead of %q", old.Parent, parent)}, nil
	case !errdefs.IsNotFound(err):
		return Reason{}, err
	}

	stored, r, err := s.decide(ctx, Request{ChainID: id, Labels: labels, Below: layersOf(parents)})
	if err != nil || stored == nil {
		return r, err
	}
	if err := s.insert(ctx, lazyName(id), parent, stored); err != nil {
		s.forget(ctx, id)
		return Reason{}, fmt.Errorf("commit lazy layer %s: %w", id, err)
	}
	s.chains.add(id, lazyName(id))
	s.report(ctx, done)
	return Reason{}, exists
}

// decide asks Images about a layer, and returns the labels of its snapshot or nil
// and why it is ordinary. The chain is locked.
func (s *Snapshotter) decide(ctx context.Context, r Request) (map[string]string, Reason, error) {
	d := s.images.Layer(ctx, r)
	var stored map[string]string
	var err error
	if d.Lazy {
		stored, err = lazyLabels(r.Labels, d)
	}
	switch {
	case ctx.Err() != nil:
		// Whoever pulls has given up: what was answered in haste is not to stay.
		if d.Lazy {
			s.forget(ctx, r.ChainID)
		}
		return nil, Reason{}, ctx.Err()
	case err != nil:
		s.forget(ctx, r.ChainID)
		return nil, Reason{ReasonLabels, err.Error()}, nil
	case !d.Lazy:
		return nil, d.Reason, nil
	}
	return stored, Reason{}, nil
}

// forget takes back a yes of Images.Layer. The chain is locked.
func (s *Snapshotter) forget(ctx context.Context, id string) {
	if !s.chains.has(id) {
		s.images.Removed(context.WithoutCancel(ctx), id)
	}
}

// insert commits a snapshot without content.
func (s *Snapshotter) insert(ctx context.Context, name, parent string, labels map[string]string) (err error) {
	var dir string
	defer func() {
		if err != nil && dir != "" {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	return s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		key := name + "/new"
		sn, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent)
		if err != nil {
			return err
		}
		if _, err := storage.CommitActive(ctx, key, name, snapshots.Usage{}, snapshots.WithLabels(labels)); err != nil {
			return err
		}
		dir = s.dir(sn.ID)
		return makeDir(dir)
	})
}

// dir is the directory of a snapshot.
func (s *Snapshotter) dir(id string) string { return filepath.Join(s.root, "snapshots", id) }

// makeDir makes the directory that overlayfs expects of every snapshot, with its
// mode.
func makeDir(dir string) error {
	return os.MkdirAll(filepath.Join(dir, "fs"), 0o755)
}
