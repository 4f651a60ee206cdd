package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/damselfly-io/damselfly/internal/fdkeeper"
)

const (
	// spareUnused is how long a spare keeper stays that nobody needs.
	spareUnused = 10 * time.Minute
	// spareStart is how long one may take to be there.
	spareStart = 5 * time.Second
	// spareCheck is how often it is looked for.
	spareCheck = 2 * time.Second
)

// spare is a keeper that the snapshotter starts itself, in a session of its own,
// where no systemd holds the kernel's files: when keeper, dfdaemon and snapshotter
// are killed at once, it is what keeps readers waiting.
type spare struct {
	socket string
	log    *slog.Logger
}

// ensure starts the spare keeper unless it is there.
func (s *spare) ensure(ctx context.Context) error {
	if s.there(ctx) {
		return nil
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start a spare keeper: %w", err)
	}
	socket, err := filepath.Abs(s.socket)
	if err != nil {
		return fmt.Errorf("start a spare keeper: %w", err)
	}
	// It outlives this process, so the context does not end it.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, "keeper", "--address", socket, "--unused", spareUnused.String()) // #nosec G204 -- this program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	cmd.Dir = "/" // it keeps no file system busy
	cmd.Env = withoutServiceManager(os.Environ())
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a spare keeper: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // it ends with the child, or with this process
	ctx, cancel := context.WithTimeout(ctx, spareStart)
	defer cancel()
	for !s.there(ctx) {
		select {
		case err := <-ended:
			return errors.Join(errors.New("the spare keeper has ended at once"), err)
		case <-ctx.Done():
			return fmt.Errorf("the spare keeper does not answer: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	s.log.Info("started a spare keeper", "address", s.socket, "pid", cmd.Process.Pid)
	return nil
}

// withoutServiceManager leaves out what a service manager tells one process only:
// the spare keeper is not that service.
func withoutServiceManager(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE", "MAINPID", "INVOCATION_ID":
			return true
		}
		return false
	})
}

// there reports whether a spare keeper answers.
func (s *spare) there(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, spareCheck)
	defer cancel()
	c := fdkeeper.NewClient(s.socket)
	_, err := c.Instance(ctx)
	return errors.Join(err, c.Close()) == nil
}

// run starts the spare keeper again when it is gone, until ctx ends.
func (s *spare) run(ctx context.Context) {
	tick := time.NewTicker(spareCheck)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := s.ensure(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("there is no spare keeper", "error", err)
		}
	}
}

// endUnused ends a keeper that has held nothing for nobody for a while.
func endUnused(ctx context.Context, end context.CancelFunc, server *fdkeeper.Server, after time.Duration) {
	tick := time.NewTicker(after / 10)
	defer tick.Stop()
	for unused := 0; unused < 10; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		unused++
		if sets, _ := server.Held(); sets > 0 || server.Clients() > 0 {
			unused = 0
		}
	}
	end()
}
