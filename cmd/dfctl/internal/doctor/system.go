package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/snapshotter/backend/erofs"
	"github.com/damselfly-io/damselfly/snapshotter/fanotify"
)

// System is what doctor looks at. The zero value is this machine.
type System struct {
	// Root says whether this process is root's.
	Root func() bool
	// Release is that of the kernel.
	Release func() (string, error)
	// Run returns what a program prints. The error wraps exec.ErrNotFound if
	// there is no such program.
	Run func(ctx context.Context, name string, args ...string) (string, error)
	// ReadFile is os.ReadFile.
	ReadFile func(name string) ([]byte, error)
	// Exists reports whether there is a file.
	Exists func(name string) bool
	// Disk returns the type of the file system that a path is on and the free
	// bytes.
	Disk func(path string) (kind, free int64, err error)
	// Fanotify, EROFS and FUSE try a feature of the kernel; the first two in a
	// directory.
	Fanotify, EROFS func(ctx context.Context, dir string) error
	FUSE            func() error
	// Dial connects to a socket of a network ("unix", "unixpacket") and returns
	// the process that listens, 0 if that is not known.
	Dial func(ctx context.Context, network, path string) (pid int, err error)
}

func (s System) withDefaults() System {
	if s.Root == nil {
		s.Root = func() bool { return os.Geteuid() == 0 }
	}
	if s.Release == nil {
		s.Release = release
	}
	if s.Run == nil {
		s.Run = run
	}
	if s.ReadFile == nil {
		s.ReadFile = os.ReadFile
	}
	if s.Exists == nil {
		s.Exists = func(name string) bool { _, err := os.Stat(name); return err == nil }
	}
	if s.Disk == nil {
		s.Disk = disk
	}
	if s.Fanotify == nil {
		s.Fanotify = fanotify.Probe
	}
	if s.EROFS == nil {
		s.EROFS = erofs.Probe
	}
	if s.FUSE == nil {
		s.FUSE = openFUSE
	}
	if s.Dial == nil {
		s.Dial = dial
	}
	return s
}

func release() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(uts.Release[:]), nil
}

func run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}

func disk(path string) (kind, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Type, int64(st.Bavail) * st.Bsize, nil // #nosec G115 -- a size
}

func openFUSE() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func dial(ctx context.Context, network, path string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, network, path)
	if err != nil {
		return 0, err
	}
	pid := 0
	if u, ok := c.(*net.UnixConn); ok {
		if raw, err := u.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { // 0 if it fails
				if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil { // #nosec G115 -- a file descriptor
					pid = int(cred.Pid)
				}
			})
		}
	}
	return pid, c.Close()
}

// openFiles returns the limit of a process for open files.
func (s *System) openFiles(pid int) (int, error) {
	data, err := s.ReadFile("/proc/" + strconv.Itoa(pid) + "/limits")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		if f := strings.Fields(rest); ok && len(f) >= 2 {
			return strconv.Atoi(f[0])
		}
	}
	return 0, errors.New("the kernel does not say the limit")
}
