package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

const (
	// headerTimeout bounds reading a request's header, so that idle
	// connections that never ask anything cannot pile up.
	headerTimeout = 10 * time.Second
	// idleTimeout bounds the pause between two requests of a connection.
	idleTimeout = 2 * time.Minute
	// drainTimeout bounds how long requests in progress may go on after the
	// context's end.
	drainTimeout = 10 * time.Second
	maxHeader    = 64 << 10
)

// Serve answers HTTP requests on lis with h until ctx ends, then lets requests
// in progress finish for up to 10 seconds, cuts off the rest and returns nil.
// Any other end is an error. It always closes lis. Requests have no overall
// time limit, so large bodies may take as long as they need.
func Serve(ctx context.Context, lis net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		// Requests outlive ctx by the drain time, else draining would cut
		// them off at its start.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP on %s: %w", lis.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := srv.Shutdown(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		log.Warn("requests cut off at shutdown", "address", lis.Addr().String(), "after", drainTimeout)
		err = srv.Close()
	}
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	if err != nil {
		return fmt.Errorf("shut down HTTP on %s: %w", lis.Addr(), err)
	}
	return nil
}

// Listen opens a listener for the address that the configuration key holds;
// its errors name both. On network "unix" a socket file that a dead process
// left behind is replaced; one that somebody listens on is not.
func Listen(network, addr, key string) (net.Listener, error) {
	if network == "unix" {
		if err := removeStale(addr); err != nil {
			return nil, fmt.Errorf("listen on %s (setting %s): %w", addr, key, err)
		}
	}
	lis, err := net.Listen(network, addr) //nolint:noctx // binding a local address does not block
	switch {
	case err == nil:
		return lis, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: address is in use by another process; stop that process or change %q (flag --%s): %w", addr, key, key, err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("listen on %s: permission denied; run with the needed rights or change %q (flag --%s): %w", addr, key, key, err)
	}
	return nil, fmt.Errorf("listen on %s (setting %s): %w", addr, key, err)
}

// removeStale deletes the socket file at path when connecting to it is
// refused, which means that no process listens on it any more.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	conn, err := net.Dial("unix", path) //nolint:noctx // connecting to a local socket does not block
	if err == nil {
		return conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	return os.Remove(path)
}
