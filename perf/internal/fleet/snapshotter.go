package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Snapshotter is a program of this module that Build builds.
const Snapshotter = "snapshotter"

// SnapshotterOptions say how to run a snapshotter with its keeper. All but
// Backend, TrustPolicy and Flags are required.
type SnapshotterOptions struct {
	Host     Host
	Program  string
	Dfdaemon string // socket of the node's dfdaemon
	HTTP     string // address to listen on
	// Dir is for data, sockets and logs; its path has room for their names.
	Dir         string
	Backend     string // default: auto
	TrustPolicy string // file; default: only the supernode's keys
	// Flags are others of the program; default none.
	Flags []string
}

// Address returns the socket for containerd.
func (o SnapshotterOptions) Address() string { return filepath.Join(o.Dir, "s.sock") }

// Root returns the data directory.
func (o SnapshotterOptions) Root() string { return filepath.Join(o.Dir, "data") }

func (o SnapshotterOptions) keeper() string { return filepath.Join(o.Dir, "k.sock") }

// spare is the socket of the second keeper that a snapshotter starts where there
// is no systemd.
func (o SnapshotterOptions) spare() string { return filepath.Join(o.Dir, "k-spare.sock") }

func (o SnapshotterOptions) args() []string {
	args := []string{
		"--address", o.Address(), "--dfdaemon", o.Dfdaemon, "--keeper", o.keeper(),
		"--http", o.HTTP, "--data-dir", o.Root(),
	}
	if o.Backend != "" {
		args = append(args, "--backend", o.Backend)
	}
	if o.TrustPolicy != "" {
		args = append(args, "--trust-policy", o.TrustPolicy)
	}
	return append(args, o.Flags...)
}

// LazyNode is a snapshotter with its keeper.
type LazyNode struct {
	*Daemon
	keeper *Process
	o      SnapshotterOptions
}

// Keeper returns the keeper's process.
func (n *LazyNode) Keeper() *Process { return n.keeper }

// Restart ends the snapshotter, not the keeper, starts another one and waits until
// that is ready.
func (n *LazyNode) Restart(ctx context.Context) error {
	n.Daemon.Stop()
	d, err := n.o.start(ctx)
	if err != nil {
		return err
	}
	n.Daemon = d
	return nil
}

// StartSnapshotter starts a keeper and a snapshotter and waits until the latter
// is ready.
func StartSnapshotter(ctx context.Context, o SnapshotterOptions) (*LazyNode, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("start a snapshotter: %w", err)
	}
	keeper, err := Start(ctx, o.Host, "keeper", filepath.Join(o.Dir, "keeper.log"), o.Program, "keeper", "--address", o.keeper())
	if err != nil {
		return nil, err
	}
	d, err := o.start(ctx)
	if err != nil {
		keeper.Kill()
		return nil, errors.Join(err, endListener(o.spare()))
	}
	return &LazyNode{Daemon: d, keeper: keeper, o: o}, nil
}

func (o SnapshotterOptions) start(ctx context.Context) (*Daemon, error) {
	return start(ctx, o.Host, "snapshotter", o.Dir, o.Program, o.HTTP, o.args())
}

// Stop ends both, and the spare keeper that the snapshotter may have started. What
// is mounted stays.
func (n *LazyNode) Stop() {
	n.Daemon.Stop()
	n.keeper.Stop()
	_ = endListener(n.o.spare()) // otherwise it ends by itself after some minutes
}

// endListener ends the process that listens on a unix socket of packets, if there
// is one, and waits for its end. The kernel knows which it is.
func endListener(socket string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("end who listens on %s: %w", socket, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end who listens on %s: %w", socket, err)
	}
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err == nil {
		err = endProcess(int(peer.Pid))
	}
	if err != nil {
		return fmt.Errorf("end who listens on %s: %w", socket, err)
	}
	return nil
}

// endProcess ends a process that is no child of this one.
func endProcess(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return err
	}
	ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} // #nosec G115 -- a descriptor
	n, err := unix.Poll(ended, int(grace.Milliseconds()))
	if n > 0 {
		return nil
	}
	return errors.Join(err, unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
}
