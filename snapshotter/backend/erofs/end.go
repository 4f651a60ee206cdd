package erofs

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ending tells when a file system has no user left, which may be long after its
// mount was taken away: overlay mounts and open files keep it.
type ending struct{ events *os.File }

// watchEnd must be called while the file system is mounted at dir.
func watchEnd(dir string) (*ending, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	// IN_UNMOUNT comes whatever the mask is.
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_DELETE_SELF); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), events.Close())
	}
	return &ending{events}, nil
}

// wait returns nil when the file system is gone.
func (e *ending) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = e.events.Close() })
	defer stop()
	defer e.events.Close() //nolint:errcheck // nothing is written
	buf := make([]byte, 4096)
	_, err := e.events.Read(buf) // the only event there can be
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
