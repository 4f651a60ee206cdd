package erofs

import (
	"errors"
	"fmt"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/snapshotter/backend"
)

// attach mounts an image at dir. It takes the options one by one: mount(2) has
// one page for all of them.
func attach(im *backend.Image, dir string) (err error) {
	fsfd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen erofs: %w", err)
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
		return err
	}
	if err := errors.Join(unix.FsconfigSetFlag(fsfd, "ro"), unix.FsconfigCreate(fsfd)); err != nil {
		return fmt.Errorf("create the EROFS mount of %s: %w%s", im.Meta, err, messages(fsfd))
	}
	root, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return fmt.Errorf("fsmount: %w%s", err, messages(fsfd))
	}
	defer unix.Close(root) //nolint:errcheck // the mount stays where it was moved to
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

// attached reports whether an EROFS is mounted at dir.
func attached(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return false, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return st.Type == unix.EROFS_SUPER_MAGIC_V1, nil
}

// source returns what is mounted at dir, "" if nothing is.
func source(dir string) (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil || len(mounts) == 0 {
		return "", err
	}
	return mounts[len(mounts)-1].Source, nil
}

// detach takes the mounts at dir away; what is open in them goes on.
func detach(dir string) error {
	for {
		on, err := attached(dir)
		if err != nil || !on {
			return err
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}
