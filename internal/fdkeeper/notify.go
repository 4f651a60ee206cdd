package fdkeeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// firstInherited is the number of the first descriptor that systemd passes.
const firstInherited = 3

// Inherited is a descriptor that the service manager has passed.
type Inherited struct {
	// Name is FDNAME= of what was stored, or that of a socket unit.
	Name string
	File *os.File
}

// Inherit takes over the descriptors that this process was started with
// (sd_listen_fds(3)). It removes the variables that tell of them from the
// environment: it can be called once. They belong to the caller.
func Inherit() ([]Inherited, error) {
	in, err := inherit(os.Getenv, os.Getpid(), firstInherited)
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		err = errors.Join(err, os.Unsetenv(name))
	}
	return in, err
}

func inherit(getenv func(string) string, pid, first int) ([]Inherited, error) {
	if getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return nil, nil
	}
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || n < 0 {
		return nil, fmt.Errorf("read $LISTEN_FDS: %q is no number of descriptors", getenv("LISTEN_FDS"))
	}
	names := strings.Split(getenv("LISTEN_FDNAMES"), ":")
	inherited := make([]Inherited, 0, n)
	for i := range n {
		unix.CloseOnExec(first + i)
		name := ""
		if len(names) == n {
			name = names[i]
		}
		f := os.NewFile(uintptr(first+i), name)
		if f == nil {
			return inherited, fmt.Errorf("descriptor %d of $LISTEN_FDS is not open", first+i)
		}
		inherited = append(inherited, Inherited{Name: name, File: f})
	}
	return inherited, nil
}

// notifier sends to the service manager for one call.
type notifier struct {
	*net.UnixConn
	deadline time.Time
	stop     func()
}

// newNotifier connects to socket, a path or, beginning with @, an abstract name.
func newNotifier(ctx context.Context, socket string) (*notifier, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixgram", socket)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("notify systemd: %w", err)
	}
	uc, _ := c.(*net.UnixConn) // what unixgram gives
	n := &notifier{UnixConn: uc, stop: cancel}
	n.deadline, _ = ctx.Deadline()
	if err := uc.SetDeadline(n.deadline); err != nil {
		n.close()
		return nil, fmt.Errorf("notify systemd: %w", err)
	}
	return n, nil
}

func (n *notifier) close() {
	n.stop()
	_ = n.Close() // barrier has told whether all arrived
}

// send uses the socket itself: WriteMsgUnix refuses a connected one.
func (n *notifier) send(state string, fds ...int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	raw, err := n.SyscallConn()
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendmsg(int(fd), []byte(state), rights, nil, unix.MSG_NOSIGNAL)
		return !errors.Is(sent, unix.EAGAIN)
	})
	if err := errors.Join(err, sent); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// barrier returns when systemd has handled what was sent before.
func (n *notifier) barrier() error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("wait for systemd: %w", err)
	}
	defer r.Close() //nolint:errcheck // nothing is written to it
	err = errors.Join(withFDs([]*os.File{w}, func(fds []int) error { return n.send("BARRIER=1", fds...) }), w.Close())
	if err != nil {
		return err
	}
	if err := r.SetReadDeadline(n.deadline); err != nil {
		return fmt.Errorf("wait for systemd: %w", err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for systemd: %w", err)
	}
	return nil
}
