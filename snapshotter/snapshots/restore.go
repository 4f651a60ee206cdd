package snapshots

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
)

// stored is all snapshots, by name, with the numbers that their directories have.
type stored struct {
	infos map[string]snapshots.Info
	ids   map[string]string
}

// restore removes directories without a record, makes those that are missing of
// lazy layers, builds what is kept in memory, and restores the lazy layers.
func (s *Snapshotter) restore(ctx context.Context) error {
	if err := s.inner.Cleanup(ctx); err != nil {
		return err
	}
	all, err := s.load(ctx)
	if err != nil {
		return err
	}
	var lazy []snapshots.Info
	for name, info := range all.infos {
		if isLazy(info) {
			// After a power cut the record may be there without the directory.
			if err := makeDir(s.dir(all.ids[name])); err != nil {
				return err
			}
			s.chains.add(info.Labels[labelTarget], name)
			lazy = append(lazy, info)
		} else if info.Kind != snapshots.KindCommitted {
			parents := all.lineage(info.Parent)
			if top := topLazy(parents); top >= 0 {
				s.chains.use(parents[top].Labels[labelTarget], name)
			}
		}
	}
	if s.images == nil {
		if len(lazy) > 0 {
			return fmt.Errorf("%d layers are lazy, and lazy layers are off", len(lazy))
		}
		return nil
	}
	restored := make([]Restored, len(lazy))
	for i, info := range lazy {
		restored[i] = Restored{
			Chain: layersOf(all.lineage(info.Name)), Used: s.chains.used(info.Labels[labelTarget]),
		}
	}
	return s.images.Restore(ctx, restored)
}

func (s *Snapshotter) load(ctx context.Context) (stored, error) {
	all := stored{infos: map[string]snapshots.Info{}, ids: map[string]string{}}
	err := s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if err != nil {
			return err
		}
		for id, name := range ids {
			all.ids[name] = id
		}
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			all.infos[info.Name] = info
			return nil
		})
	})
	return all, err
}

// lineage returns a snapshot and its parents, topmost first.
func (a stored) lineage(name string) []snapshots.Info {
	var out []snapshots.Info
	for name != "" {
		info, ok := a.infos[name]
		if !ok {
			break
		}
		out = append(out, info)
		name = info.Parent
	}
	return out
}
