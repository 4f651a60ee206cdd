package dfdaemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/damselfly-io/damselfly/internal/fdkeeper"
)

// keepDescriptors holds the descriptors that mounts of the snapshotter depend on
// until ctx ends: where no service manager does, this daemon is the third that
// has them, after the snapshotter and its keeper. It does nothing with them.
func keepDescriptors(ctx context.Context, path string, log *slog.Logger) (err error) {
	lis, err := fdkeeper.Listen(ctx, path)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	srv := fdkeeper.NewServer(log)
	defer func() { err = errors.Join(err, srv.Close()) }()
	return srv.Serve(ctx, lis)
}
