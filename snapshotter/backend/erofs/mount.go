package erofs

import (
	"errors"
	"fmt"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/snapshotter/backend"
)

// create makes a file system of an image and returns a descriptor of its root,
// which is mounted nowhere yet. It takes the options one by one: mount(2) has one
// page for all of them.
func create(im *backend.Image) (root int, err error) {
	fsfd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen erofs: %w", err)
	}
	defer unix.Close(fsfd) //nolint:errcheck // nothing is written through it
	set := func(key, value string) {
		if err == nil {
			if err = unix.FsconfigSetString(fsfd, key, value); err != nil {
				err = fmt.Errorf("set %s=%s: %w%s", key, value, err, messages(fsfd))
			}
		}
	}
	set("source", im.Meta)
	for _, d := range im.Devices {
		set("device", d.Path())
	}
	if err != nil {
		return -1, err
	}
	if err := errors.Join(unix.FsconfigSetFlag(fsfd, "ro"), unix.FsconfigCreate(fsfd)); err != nil {
		return -1, fmt.Errorf("create the EROFS mount of %s: %w%s", im.Meta, err, messages(fsfd))
	}
	root, err = unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w%s", err, messages(fsfd))
	}
	return root, nil
}

// attach mounts what create has made. root stays the caller's.
func attach(root int, dir string) error {
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount at %s: %w", dir, err)
	}
	return nil
}

// messages is what the kernel says about a mount that has failed.
func messages(fsfd int) string {
	var all strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fsfd, buf)
		if err != nil || n <= 0 {
			return all.String()
		}
		all.WriteString(": ")
		all.WriteString(strings.TrimSpace(string(buf[:n])))
	}
}

// openMount returns a descriptor of the root of what is mounted at dir, if that is
// the EROFS image meta; the error wraps backend.ErrLost if it is something else.
// It does not touch the file system, which may be one that nobody answers for.
func openMount(dir, meta string) (root int, err error) {
	root, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return -1, fmt.Errorf("%s: %w: %w", dir, backend.ErrLost, err)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", dir, err)
	}
	kind, source, err := mountOf(root, "")
	if err == nil && (kind != "erofs" || source != meta) {
		err = fmt.Errorf("%s: what is mounted is %q of type %q, not %s: %w", dir, source, kind, meta, backend.ErrLost)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(root))
	}
	return root, nil
}

// mountOf returns the type of the file system whose mount's root a path is, and
// what it was mounted from; both are "" if it is none. A mount is found by its
// number: its path may be written in many ways.
func mountOf(at int, path string) (kind, source string, err error) {
	var st unix.Statx_t
	const flags = unix.AT_EMPTY_PATH | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	if err := unix.Statx(at, path, flags, unix.STATX_MNT_ID, &st); err != nil {
		return "", "", fmt.Errorf("look for a mount at %s: %w", path, err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return "", "", nil
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		found := m.ID >= 0 && uint64(m.ID) == st.Mnt_id
		return !found, found
	})
	if err != nil {
		return "", "", fmt.Errorf("look for a mount at %s: %w", path, err)
	}
	if len(mounts) == 0 {
		return "", "", nil
	}
	return mounts[0].FSType, mounts[0].Source, nil
}

// detach takes all mounts at dir away; what is open in them goes on.
func detach(dir string) error {
	for {
		kind, _, err := mountOf(unix.AT_FDCWD, dir)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ENOTCONN) || err == nil && kind == "" {
			return err
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}
