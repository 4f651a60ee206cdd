package piecestore

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// fingerprint is what changes on a file when somebody writes to it.
type fingerprint struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func fingerprintOf(f *os.File) (fingerprint, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fingerprint{}, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return fingerprint{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

// lockFile takes an exclusive lock on path, which the kernel drops when the
// process ends, however it ends.
func lockFile(path, dir string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of piece store: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("in use by another process")
		}
		return nil, errors.Join(fmt.Errorf("piece store %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// freeSpace returns the bytes that dir's file system has free for us.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("look up free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil //nolint:gosec // a disk's size fits
}
