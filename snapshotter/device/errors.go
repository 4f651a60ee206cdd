package device

import (
	"errors"

	"golang.org/x/sys/unix"
)

var (
	// ErrFull says that there is no room for a group, and that nothing can be
	// evicted to make some.
	ErrFull = errors.New("no space for the device")
	// ErrLocked says that another process has the store open.
	ErrLocked = errors.New("the device store is in use")
	// ErrInUse says that a device is referenced and so cannot be removed.
	ErrInUse = errors.New("the device is in use")
	// ErrNotRecovered says that Recovered was not called yet.
	ErrNotRecovered = errors.New("it is not known yet which devices are mounted")
	// ErrClosed says that the store was closed, or the device released.
	ErrClosed = errors.New("the device is closed")
)

func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
