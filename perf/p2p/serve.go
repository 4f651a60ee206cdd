package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/objectserver"
)

// serveCommand as first argument makes the program an object server, so that
// the origin is a process of its own, on its own host.
const serveCommand = "serve-objects"

// serve runs an object server: args are its directory and address.
func serve(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%s is for the benchmark's own use", serveCommand)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", args[1])
	if err != nil {
		return fmt.Errorf("serve objects: %w", err)
	}
	srv := &http.Server{Handler: objectserver.New(args[0]), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // nothing to save
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve objects: %w", err)
	}
	return nil
}
