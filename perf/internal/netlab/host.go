package netlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// Host is one host of a lab. Its methods are safe for concurrent use until the
// lab is closed.
type Host struct {
	name, namespace, port, sw string
	addr                      netip.Addr
}

// Command returns a command that runs in the host's network. The process it
// starts becomes the program itself: its id is the program's.
func (h *Host) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + h.path(), "--", program}, args...)...)
}

func (h *Host) path() string { return namespaceDir + "/" + h.namespace }

// Dial connects from within the host. The address must be literal: names are
// not looked up there.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial from %s: %w", h.name, err)
	}
	var conn net.Conn
	err := h.within(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens for TCP connections within the host, on a literal address.
func (h *Host) Listen(ctx context.Context, address string) (net.Listener, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("listen in %s: %w", h.name, err)
	}
	var l net.Listener
	err := h.within(func() (err error) {
		var lc net.ListenConfig
		l, err = lc.Listen(ctx, "tcp", address)
		return err
	})
	return l, err
}

// within runs f with its thread in the host's network. A socket belongs to the
// network of the thread that created it, for good; what f starts on other
// goroutines is not within.
func (h *Host) within(f func() error) error {
	target, err := os.Open(h.path())
	if err != nil {
		return fmt.Errorf("enter the network of %s: %w", h.name, err)
	}
	defer target.Close() //nolint:errcheck // only read
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network of %s: %w", h.name, err)
	}
	defer home.Close() //nolint:errcheck // only read
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network of %s: %w", h.name, err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked: it ends with this goroutine and nothing
		// else ever runs in the wrong network.
		return fmt.Errorf("leave the network of %s: %w", h.name, back)
	}
	runtime.UnlockOSThread()
	return err
}
