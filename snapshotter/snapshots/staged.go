package snapshots

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// prepareUnordered prepares a layer whose parent containerd will tell at Commit.
func (s *Snapshotter) prepareUnordered(ctx context.Context, key string, labels map[string]string) ([]mount.Mount, error) {
	r := Reason{ReasonParallel, "containerd unpacks in parallel: take the capability rebase from the plugin's entry in its configuration, or set staged with containerd 2.4 or later"}
	if s.staged {
		mounts, why, err := s.stage(ctx, key, labels)
		if err != nil || mounts != nil {
			return mounts, err
		}
		r = why
	}
	return s.ordinary(ctx, key, "", labels, r)
}

// stage makes an active snapshot of a lazy layer, which containerd will commit
// without writing to it, or returns why the layer is ordinary.
func (s *Snapshotter) stage(ctx context.Context, key string, labels map[string]string) ([]mount.Mount, Reason, error) {
	id := labels[labelTarget]
	if err := checkChain(labels, labels[labelParent]); err != nil {
		return nil, Reason{ReasonLabels, err.Error()}, nil
	}
	if ok, err := s.parentWillBeLazy(ctx, key, labels[labelParent]); err != nil || !ok {
		return nil, Reason{ReasonParent, ""}, err
	}
	unlockKey, err := s.keys.lock(ctx, key)
	if err != nil {
		return nil, Reason{}, err
	}
	defer unlockKey()
	unlock, err := s.chainLocks.lock(ctx, id)
	if err != nil {
		return nil, Reason{}, err
	}
	defer unlock()
	stored, r, err := s.decide(ctx, Request{ChainID: id, Labels: labels})
	if err != nil || stored == nil {
		return nil, r, err
	}
	mounts, err := s.inner.Prepare(ctx, key, "", snapshots.WithLabels(stored))
	if err != nil {
		s.forget(ctx, id)
		return nil, Reason{}, err
	}
	s.chains.add(id, key)
	s.report(ctx, Decided{ChainID: id, Image: labels[labelImage], Lazy: true})
	return readOnly(mounts), Reason{}, nil
}

// parentWillBeLazy reports whether the snapshot that the namespace of key has or
// will have for a chain ID is lazy: containerd prepares layers from the lowest
// upwards. Commit makes sure.
func (s *Snapshotter) parentWillBeLazy(ctx context.Context, key, id string) (bool, error) {
	namespace, _, _ := strings.Cut(key, "/")
	lazy, pulled := false, false
	err := s.inner.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		ours := strings.HasPrefix(info.Name, namespace+"/")
		switch {
		case isLazy(info):
			lazy = lazy || ours || info.Name == lazyName(id)
		case ours:
			pulled = true
		}
		return nil
	}, fmt.Sprintf("labels.%q==%q", labelTarget, id))
	return lazy && !pulled, err
}

// commitStaged commits a staged layer. Its key is locked.
func (s *Snapshotter) commitStaged(ctx context.Context, name string, active, want snapshots.Info, opts []snapshots.Opt) error {
	id, below := active.Labels[labelTarget], active.Labels[labelParent]
	if said := want.Labels[labelTarget]; said != "" && said != id {
		return fmt.Errorf("staged layer %s cannot become %s: %w", id, said, errdefs.ErrInvalidArgument)
	}
	parent, err := s.inner.Stat(ctx, want.Parent)
	if err != nil {
		return fmt.Errorf("parent of staged layer %s: %w", id, err)
	}
	if !isLazy(parent) || parent.Labels[labelTarget] != below {
		return fmt.Errorf("staged layer %s is for lazy layer %s, not for snapshot %q: pull again: %w", id, below, parent.Name, errdefs.ErrFailedPrecondition)
	}
	unlock, err := s.chainLocks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	// Without these nothing would tell what the layer is.
	opts = append(opts, snapshots.WithLabels(map[string]string{labelTarget: id, labelParent: below}))
	if err := s.inner.Commit(ctx, name, active.Name, opts...); err != nil {
		return err
	}
	s.chains.add(id, name)
	s.chains.drop(id, active.Name)
	return nil
}
