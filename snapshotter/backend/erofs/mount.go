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

// at returns the type of the file system that is mounted at dir and what it was
// mounted from; both are "" if none is. It does not touch the file system, which
// may be one that nobody answers for.
func at(dir string) (kind, source string, err error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil {
		return "", "", fmt.Errorf("look for mounts at %s: %w", dir, err)
	}
	if len(mounts) == 0 {
		return "", "", nil
	}
	last := mounts[len(mounts)-1]
	return last.FSType, last.Source, nil
}

// detach takes all mounts at dir away; what is open in them goes on.
func detach(dir string) error {
	for {
		kind, _, err := at(dir)
		if err != nil || kind == "" {
			return err
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}
