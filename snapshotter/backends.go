package snapshotter

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/backend/erofs"
	"github.com/damselfly-io/damselfly/snapshotter/backend/fuse"
	"github.com/damselfly-io/damselfly/snapshotter/fanotify"
)

// chooseBackend returns the backend that is set or, if that is "auto", the first
// that works here.
func (s *snapshotter) chooseBackend(ctx context.Context) (backend.Backend, error) {
	if s.c.Backend == "fuse" {
		return s.newFUSE()
	}
	err := s.probeEROFS(ctx)
	switch {
	case err == nil:
		return erofs.New(erofs.Options{Filler: s.filler, Keeper: s.keeper, Log: s.log}), nil
	case s.c.Backend == "erofs":
		return nil, fmt.Errorf("backend erofs does not work here: %w", err)
	}
	s.log.Warn("EROFS with fanotify does not work here: lazy images are mounted with FUSE, which is slower", "reason", err)
	return s.newFUSE()
}

func (s *snapshotter) probeEROFS(ctx context.Context) error {
	changes, err := fanotify.RaiseLimits()
	if err != nil {
		s.log.Warn("the limits of fanotify could not be raised: few images can be mounted", "error", err)
	}
	for _, c := range changes {
		s.log.Info("raised a limit of the kernel", "change", c)
	}
	return erofs.Probe(ctx, filepath.Join(s.c.DataDir, "devices"))
}

func (s *snapshotter) newFUSE() (backend.Backend, error) {
	return fuse.New(fuse.Options{Filler: s.filler, Keeper: s.keeper, Log: s.log})
}
