package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

const (
	// ready is how long containerd may take to start.
	ready = 30 * time.Second
	// leave is how long the removal of containers may take at the end.
	leave = 20 * time.Second
)

// Socket returns the path of the daemon's socket.
func (d *Daemon) Socket() string { return d.o.socket() }

// Daemon is a running containerd.
type Daemon struct {
	*fleet.Process
	o Options
}

// withPath is a host whose programs find the shim that belongs to containerd.
type withPath struct {
	fleet.Host
	env []string
}

// Command prepares a program to run on the host.
func (h withPath) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := h.Host.Command(ctx, program, args...)
	cmd.Env = h.env
	return cmd
}

// Start starts a containerd and waits until it answers. Its data directory is
// made if it is not there.
func Start(ctx context.Context, o Options) (*Daemon, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	if err := o.write(); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	o.Host = withPath{o.Host, o.Programs.Env()}
	p, err := fleet.Start(ctx, o.Host, "containerd", o.path("log"), o.Programs.Containerd, "--config", o.path("config.toml"))
	if err != nil {
		return nil, err
	}
	d := &Daemon{Process: p, o: o}
	if err := d.await(ctx); err != nil {
		p.Stop()
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	return d, nil
}

// await returns when containerd answers and has loaded the snapshotter.
func (d *Daemon) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ready, fmt.Errorf("not ready after %v", ready))
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		// Without a socket, the client would wait for it.
		if _, err := os.Stat(d.o.socket()); err == nil {
			out, err := d.Ctr(ctx, "plugins", "ls", fmt.Sprintf("type==io.containerd.snapshotter.v1,id==%s", d.o.snapshotter()))
			if err == nil && strings.Contains(out, " ok") {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-d.Done():
			return d.Err()
		case <-tick.C:
		}
	}
}

// command prepares ctr, which ends in order when ctx does: it then removes the
// container that it runs.
func (d *Daemon) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := d.o.Host.Command(ctx, d.o.Programs.Ctr, append([]string{"--address", d.o.socket()}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = leave
	return cmd
}

// Ctr runs ctr and returns what it printed.
func (d *Daemon) Ctr(ctx context.Context, args ...string) (string, error) {
	var complaint bytes.Buffer
	cmd := d.command(ctx, args...)
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return string(out), nil
}

// Pull pulls an image and unpacks it, or whatever the snapshotter does instead.
func (d *Daemon) Pull(ctx context.Context, ref string) error {
	_, err := d.Ctr(ctx, "images", "pull", "--hosts-dir", d.o.path("hosts"), "--snapshotter", d.o.snapshotter(), ref)
	return err
}

// Close removes the containers that are left, as an interrupted start leaves
// them, and ends containerd. It does so even if ctx has ended. Mounts of
// snapshotters and data stay.
func (d *Daemon) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leave)
	defer cancel()
	defer d.Stop()
	list, err := d.Ctr(ctx, "tasks", "ls", "--quiet")
	if err != nil {
		return fmt.Errorf("look for containers that are left: %w", err)
	}
	var errs []error
	for _, id := range strings.Fields(list) {
		_, err := d.Ctr(ctx, "tasks", "rm", "--force", id)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
