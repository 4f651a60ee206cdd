package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxRead bounds a read request, in bytes: the kernel's default limit.
const maxRead = 1 << 20

// openDevice opens a connection that is not mounted yet.
func openDevice() (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	return fd, nil
}

// mountFD mounts a connection at a directory.
func mountFD(fd int, dir string) error {
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,max_read=%d,default_permissions,allow_other",
		fd, os.Geteuid(), os.Getegid(), maxRead)
	const flags = unix.MS_RDONLY | unix.MS_NOATIME
	if err := unix.Mount("damselfly", dir, "fuse.damselfly", flags, options); err != nil {
		return fmt.Errorf("mount FUSE at %s: %w", dir, err)
	}
	return nil
}

// detach takes the mount at a directory away. Who uses it keeps it.
func detach(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // EINVAL: nothing is mounted there
	}
	return fmt.Errorf("unmount %s: %w", dir, err)
}

// mounted is what the kernel says about a mount.
type mounted struct {
	dev  string // "major:minor"
	fuse bool
}

// connection returns the number that FUSE gives the connection.
func (m mounted) connection() string {
	_, minor, _ := strings.Cut(m.dev, ":")
	return minor
}

// findMount returns the topmost mount at a directory. It does not touch the
// directory: nobody may be there to answer.
func findMount(dir string) (mounted, bool, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mounted{}, false, fmt.Errorf("list mounts: %w", err)
	}
	var found mounted
	for line := range bytes.Lines(table) {
		fields := strings.Fields(string(line))
		if len(fields) < 7 || unescape(fields[4]) != dir {
			continue
		}
		found = mounted{dev: fields[2]}
		for i, f := range fields {
			if f == "-" && i+1 < len(fields) {
				found.fuse = strings.HasPrefix(fields[i+1], "fuse")
			}
		}
	}
	return found, found.dev != "", nil
}

// unescape undoes what the kernel does to blanks and backslashes in
// mountinfo: \040.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// abort ends the connection of a mount, wherever it is used.
func abort(m mounted) error {
	err := os.WriteFile("/sys/fs/fuse/connections/"+m.connection()+"/abort", []byte("1"), 0)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("abort FUSE connection %s: %w", m.connection(), err)
}

// setReadAhead lets the kernel read ahead so many bytes.
func setReadAhead(m mounted, n int) error {
	name := "/sys/class/bdi/" + m.dev + "/read_ahead_kb"
	if err := os.WriteFile(name, []byte(strconv.Itoa(n>>10)), 0); err != nil {
		return fmt.Errorf("set read-ahead: %w", err)
	}
	return nil
}

// dying reports whether a thread waits to be ended by a signal that it cannot
// catch.
func dying(thread uint32) bool {
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(thread), 10) + "/status")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(status) {
		mask, ok := strings.CutPrefix(string(line), "SigPnd:")
		if !ok {
			mask, ok = strings.CutPrefix(string(line), "ShdPnd:")
		}
		if !ok {
			continue
		}
		pending, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
		if err == nil && pending&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
