package fanotify

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrPrivilege says that the process lacks CAP_SYS_ADMIN.
	ErrPrivilege = errors.New("fanotify needs root (CAP_SYS_ADMIN in the initial user namespace)")
	// ErrKernel says that this kernel has no pre-content events.
	ErrKernel = errors.New("the kernel has no pre-content events: it needs Linux 6.14 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS")
	// ErrFilesystem says that the file's file system raises no pre-content
	// events.
	ErrFilesystem = errors.New("the file system raises no pre-content events: ext4 and xfs do")
	// ErrGroups says that no further group can be made.
	ErrGroups = errors.New("no more fanotify groups: raise fs.fanotify.max_user_groups or the limit of open files")
	// ErrBusy says that somebody else serves the group: another process, or one
	// that was killed but has not ended yet.
	ErrBusy = errors.New("the fanotify group is served by another process")
	// ErrCorrupt says that a ring or group is not what a Watch has written. What
	// it guarded must not be trusted.
	ErrCorrupt = errors.New("not a watch's group and ring")
)

// initError explains a failure of fanotify_init(2).
func initError(err error) error {
	why := err
	switch {
	case errors.Is(err, unix.EPERM):
		why = ErrPrivilege
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		why = ErrKernel
	case errors.Is(err, unix.EMFILE):
		why = ErrGroups
	}
	return explain("make fanotify group", why, err)
}

// markError explains a failure of fanotify_mark(2).
func markError(name string, err error) error {
	why := err
	switch {
	case errors.Is(err, unix.EPERM):
		why = ErrPrivilege
	case errors.Is(err, unix.EINVAL):
		why = ErrKernel
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENODEV):
		why = ErrFilesystem
	}
	return explain("mark "+name, why, err)
}

func explain(doing string, why, err error) error {
	if why == err { //nolint:errorlint // is it the very same value, not explained
		return fmt.Errorf("%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %w (%w)", doing, why, err)
}
