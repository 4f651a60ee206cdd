package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// While content is missing, devices are read through the page cache, where what has
// just come still is, and the kernel reads 128 KiB ahead: every byte may have to be
// fetched. What is complete is read from the disk instead, and through two caches
// that is half as fast as other files are: each copies, and the second waits for the
// first. So the devices of a complete image are read directly, and as far ahead as
// other files on the same disk, or minReadAhead, without which direct reads are
// slower still.
const minReadAhead = 1 << 10 // KiB

// whenComplete has the mount read in the way that suits a complete image as soon as
// it is one. root is a descriptor of its root directory.
func (m *mounted) whenComplete(root int) {
	if len(m.devices) == 0 || !directIsSafe() {
		return
	}
	setting, err := readAheadOf(root)
	if err != nil {
		m.b.o.Log.Debug("a complete image will be read as an incomplete one", "image", m.id, "error", err)
		return
	}
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	if m.b.closed {
		return
	}
	m.b.wg.Go(func() {
		for _, d := range m.devices {
			select {
			case <-d.Done():
			case <-m.gone:
				return
			case <-m.b.ctx.Done():
				return
			}
		}
		// Either fails for a mount that ends in this moment.
		err := raise(setting, diskReadAhead(m.devices[0].Path()))
		if err == nil {
			err = readDirectly(m.dir)
		}
		if err != nil {
			m.b.o.Log.Debug("a complete image is read as an incomplete one", "image", m.id, "error", err)
		}
	})
}

// directIsSafe reports whether this kernel is known to read devices directly
// without fault: some before Linux 6.18 use memory after they have freed it.
func directIsSafe() bool {
	var uts unix.Utsname
	if unix.Uname(&uts) != nil {
		return false
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 6 || major == 6 && minor >= 18
}

// readDirectly has the devices of the mount at dir read without the page cache of
// their own. Pages that are not on the disk yet are written first.
func readDirectly(dir string) error {
	fd, err := unix.Fspick(unix.AT_FDCWD, dir, unix.FSPICK_CLOEXEC|unix.FSPICK_SYMLINK_NOFOLLOW|unix.FSPICK_NO_AUTOMOUNT)
	if err != nil {
		return fmt.Errorf("fspick %s: %w", dir, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is written through it
	if err := errors.Join(unix.FsconfigSetFlag(fd, "directio"), unix.FsconfigSetFlag(fd, "ro"), unix.FsconfigReconfigure(fd)); err != nil {
		return fmt.Errorf("set directio at %s: %w%s", dir, err, messages(fd))
	}
	return nil
}

// raise sets a number of KiB unless it is as high.
func raise(setting string, kib int) error {
	old, err := number(setting)
	if err != nil || old >= kib {
		return err
	}
	return os.WriteFile(setting, []byte(strconv.Itoa(kib)), 0o644) // #nosec G306 -- the kernel's file
}

// diskReadAhead returns how many KiB are read ahead in files beside path.
func diskReadAhead(path string) int {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return minReadAhead
	}
	disk := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	for _, at := range []string{"/bdi", "/../bdi"} { // of a disk, or a partition, which are links
		if kib, err := number(disk + at + "/read_ahead_kb"); err == nil {
			return max(kib, minReadAhead)
		}
	}
	return minReadAhead
}

func number(path string) (int, error) {
	text, err := os.ReadFile(path) // #nosec G304 -- below /sys
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(bytes.TrimSpace(text)))
}

// getSysfsPath is FS_IOC_GETFSSYSFSPATH, of Linux 6.10, on most architectures.
const getSysfsPath = 0x80811501

// readAheadOf returns the file that says how many KiB are read ahead in a mount.
func readAheadOf(root int) (string, error) {
	fd, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open the root directory: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	var path struct {
		length uint8
		name   [128]byte
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), getSysfsPath, uintptr(unsafe.Pointer(&path))); errno != 0 { //nolint:gosec // the kernel fills it
		return "", fmt.Errorf("ask for the mount's name in /sys: %w", errno)
	}
	// "erofs/NAME", and NAME is also that of its backing device information.
	name := filepath.Base(string(path.name[:min(int(path.length), len(path.name))]))
	return filepath.Join("/sys/class/bdi", name, "read_ahead_kb"), nil
}
