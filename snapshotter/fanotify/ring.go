package fanotify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// slotSize holds one event with a range (48 bytes) and cannot hold two.
	slotSize = 64
	// slots bounds how many readers of one file wait for a handler at the same
	// time; more wait in the kernel. The first is the header.
	slots    = 256
	ringSize = slotSize * slots

	ringMagic = "damselfly fanotify ring 1\n"
	ringSeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
)

// ring is shared memory with the events that were read and not answered. A slot
// is empty if its first four bytes, the event's length, are zero; the other
// bytes mean nothing then.
type ring struct {
	file *os.File
	// lock is a second open of file that no other process gets, so that the
	// lock on it ends with this process.
	lock *os.File
	mem  []byte
}

func newRing() (*ring, error) {
	fd, err := unix.MemfdCreate("damselfly-fanotify", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err != nil {
		return nil, fmt.Errorf("make memfd for fanotify ring: %w", err)
	}
	file := os.NewFile(uintptr(fd), "fanotify-ring")
	r, err := prepareRing(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	copy(r.slot(0), ringMagic)
	return r, nil
}

// prepareRing gives a new memfd its size for good.
func prepareRing(file *os.File) (*ring, error) {
	if err := file.Truncate(ringSize); err != nil {
		return nil, fmt.Errorf("size fanotify ring: %w", err)
	}
	if _, err := fcntl(file, unix.F_ADD_SEALS, ringSeals); err != nil {
		return nil, fmt.Errorf("seal fanotify ring: %w", err)
	}
	return mapRing(file)
}

// openRing maps a ring that an earlier process has made. The lock is not taken.
func openRing(file *os.File) (*ring, error) {
	seals, err := fcntl(file, unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("read seals of fanotify ring: %w (%w)", ErrCorrupt, err)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat fanotify ring: %w", err)
	}
	if seals&ringSeals != ringSeals || info.Size() != ringSize {
		return nil, fmt.Errorf("fanotify ring has seals %#x and %d bytes: %w", seals, info.Size(), ErrCorrupt)
	}
	r, err := mapRing(file)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(r.slot(0), []byte(ringMagic)) {
		return nil, errors.Join(fmt.Errorf("fanotify ring has a foreign header: %w", ErrCorrupt), r.unmap())
	}
	return r, nil
}

func mapRing(file *os.File) (*ring, error) {
	lock, err := reopen(file)
	if err != nil {
		return nil, err
	}
	r := &ring{file: file, lock: lock}
	err = control(file, func(fd int) (err error) {
		r.mem, err = unix.Mmap(fd, 0, ringSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map fanotify ring: %w", err), lock.Close())
	}
	return r, nil
}

func reopen(file *os.File) (*os.File, error) {
	var lock *os.File
	err := control(file, func(fd int) (err error) {
		lock, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDWR, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open fanotify ring for its lock: %w", err)
	}
	return lock, nil
}

// tryLock returns ErrBusy if another open of the ring has the lock.
func (r *ring) tryLock() error {
	err := control(r.lock, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrBusy
	}
	if err != nil {
		return fmt.Errorf("lock fanotify ring: %w", err)
	}
	return nil
}

func (r *ring) slot(i int) []byte { return r.mem[i*slotSize : (i+1)*slotSize : (i+1)*slotSize] }

func (r *ring) used(i int) bool { return binary.NativeEndian.Uint32(r.slot(i)) != 0 }

// clear empties slot i. The length goes first and at once, so that a process
// killed in here leaves a slot that is either empty or as it was.
func (r *ring) clear(i int) {
	s := r.slot(i)
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&s[0])), 0) //nolint:gosec // slots are aligned, and one store is what is wanted
	clear(s)
}

// unmap gives back what mapRing took; file stays open.
func (r *ring) unmap() error {
	err := unix.Munmap(r.mem)
	if err != nil {
		err = fmt.Errorf("unmap fanotify ring: %w", err)
	}
	return errors.Join(err, r.lock.Close())
}

// control calls f with the descriptor of file, which is not closed meanwhile.
// File.Fd gives no such promise.
func control(file *os.File, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func fcntl(file *os.File, cmd, arg int) (int, error) {
	var result int
	err := control(file, func(fd int) (err error) {
		result, err = unix.FcntlInt(uintptr(fd), cmd, arg)
		return err
	})
	return result, err
}
