package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// endings tells when file systems have no user left, which may be long after
// their mounts were taken away: overlay mounts and open files keep them.
type endings struct {
	events *os.File
	// watched are the mounts by the number that inotify gave their roots; guarded
	// by Backend.mu.
	watched map[int32]*mounted
}

// follow has m.end called when the file system whose root is open as root has no
// user left. b.mu is held.
func (b *Backend) follow(m *mounted, root int) error {
	if b.endings == nil {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return fmt.Errorf("inotify: %w", err)
		}
		b.endings = &endings{events: os.NewFile(uintptr(fd), "inotify"), watched: map[int32]*mounted{}}
		b.wg.Go(func() { b.readEndings(b.endings) })
	}
	conn, err := b.endings.events.SyscallConn()
	if err != nil {
		return err
	}
	var number int
	var watchErr error
	err = conn.Control(func(fd uintptr) {
		// IN_UNMOUNT comes whatever the mask is; nothing is deleted in there.
		number, watchErr = unix.InotifyAddWatch(int(fd), fmt.Sprintf("/proc/self/fd/%d", root), unix.IN_DELETE_SELF)
	})
	if err := errors.Join(err, watchErr); err != nil {
		return fmt.Errorf("watch the root of a file system: %w", err)
	}
	b.endings.watched[int32(number)] = m // #nosec G115 -- the kernel's is an int32
	return nil
}

// readEndings returns when the backend is closed.
func (b *Backend) readEndings(e *endings) {
	buf := make([]byte, 64<<10)
	for {
		n, err := e.events.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				b.o.Log.Error("it is not known any more when file systems end: their devices stay guarded", "error", err)
			}
			return
		}
		for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
			number, mask := int32(binary.NativeEndian.Uint32(p)), binary.NativeEndian.Uint32(p[4:]) // #nosec G115 -- it is one
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(p[12:]))
			b.ended(e, number, mask)
			p = p[min(size, len(p)):]
		}
	}
}

// ended looks at an event.
func (b *Backend) ended(e *endings, number int32, mask uint32) {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		b.o.Log.Error("it was missed that a file system has ended: its devices stay guarded")
		return
	}
	if mask&unix.IN_UNMOUNT == 0 {
		return
	}
	b.mu.Lock()
	m := e.watched[number]
	delete(e.watched, number)
	b.mu.Unlock()
	if m != nil {
		m.end()
	}
}
