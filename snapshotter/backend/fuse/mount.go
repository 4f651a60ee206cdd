package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// Mount is an image mounted through FUSE.
type Mount struct {
	b       *Backend
	image   string
	dir     string
	view    *view
	devices []*device.Device
	log     *slog.Logger
	conn    *connection

	dropped sync.Once
	gone    chan struct{} // closed when the last user is gone
	ended   chan struct{} // closed when nothing of it runs here any more
}

// Gone is closed when the last user of the mount is gone after Unmount: from
// then on nothing reads its devices.
func (m *Mount) Gone() <-chan struct{} { return m.gone }

// mount mounts a new connection.
func (m *Mount) mount() error {
	fd, err := openDevice()
	if err != nil {
		return err
	}
	if err := mountFD(fd, m.dir); err != nil {
		_ = unix.Close(fd)
		return err
	}
	init, err := m.open(fd, (*connection).handshake)
	if err == nil {
		r := &record{Image: m.image, Dir: m.dir, Shape: m.view.shape, Init: init}
		err = errors.Join(m.b.drop(m.dir), m.b.keep(r, fd))
	}
	if err == nil {
		err = m.serve()
	}
	if err == nil {
		m.settlePoll()
		return nil
	}
	if m.conn != nil {
		m.conn.close()
	}
	return errors.Join(err, detach(m.dir), m.b.drop(m.dir))
}

// open makes the connection and has begin bring it to where it can be served.
// fd is closed with the connection, or by an error.
func (m *Mount) open(fd int, begin func(*connection) ([]byte, error)) ([]byte, error) {
	r := reader{view: m.view, devices: m.devices, filler: m.b.o.Filler, buffers: &m.b.buffers}
	conn, err := newConnection(fd, m.view, r, m.log)
	if err != nil {
		return nil, err
	}
	m.conn = conn
	return begin(conn)
}

// adopt goes on with what an earlier process has mounted.
func (m *Mount) adopt() error {
	if m.b.o.Keeper == nil {
		return errors.New("no keeper has its connection")
	}
	meta, files, err := m.b.o.Keeper.Get(keepName(m.dir))
	if err != nil {
		return fmt.Errorf("get its connection from the keeper: %w", err)
	}
	defer func() {
		for _, f := range files {
			_ = f.Close() // duplicates
		}
	}()
	r, err := decodeRecord(meta)
	if err != nil {
		return err
	}
	if err := m.check(r, files); err != nil {
		return err
	}
	fd, err := duplicate(files[0])
	if err != nil {
		return err
	}
	_, err = m.open(fd, func(c *connection) ([]byte, error) { return nil, c.resume(r.Init) })
	if err == nil {
		err = m.serve()
	}
	if err != nil && m.conn != nil {
		m.conn.close()
	}
	return err
}

// check compares what was mounted with what is to be served.
func (m *Mount) check(r *record, files []*os.File) error {
	switch {
	case len(files) != 1:
		return fmt.Errorf("the keeper has %d files of the mount instead of one", len(files))
	case r.Dir != m.dir || r.Image != m.image:
		return fmt.Errorf("what was kept is image %s at %s", r.Image, r.Dir)
	case r.Shape != m.view.shape:
		return errors.New("the tree has other numbers than when it was mounted")
	}
	at, ok, err := findMount(m.dir)
	if err != nil {
		return err
	}
	if !ok || !at.fuse {
		return errors.New("nothing is mounted there any more")
	}
	return nil
}

// duplicate returns a descriptor of its own for a file.
func duplicate(f *os.File) (int, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	fd, dupErr := -1, error(nil)
	err = conn.Control(func(from uintptr) { fd, dupErr = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dupErr); err != nil {
		return -1, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return fd, nil
}

// serve begins to answer.
func (m *Mount) serve() error {
	if err := m.b.register(m); err != nil {
		return err
	}
	m.readAhead()
	m.conn.start(m.finish)
	return nil
}

// settlePoll has the kernel learn, by asking once, that files are always ready.
// Go's runtime asks whenever it opens a file, and is not prepared to wait: in
// this very process there might then be no thread left to answer.
func (m *Mount) settlePoll() {
	for i := range m.view.inodes {
		inode := uint32(i) // #nosec G115 -- inodes have 32-bit numbers
		if m.view.kind(inode) != chunkfmt.File {
			continue
		}
		fd, err := unix.Open(m.dir+m.view.path(inode), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return // by now somebody has mounted something else, or nothing
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) // #nosec G115 -- a file descriptor
		_ = unix.Close(fd)
		return
	}
}

// readAhead sets how far the kernel reads ahead; without it, all works.
func (m *Mount) readAhead() {
	if m.b.o.ReadAhead == 0 {
		return
	}
	at, ok, err := findMount(m.dir)
	if err == nil && ok {
		err = setReadAhead(at, m.b.o.ReadAhead)
	}
	if err != nil {
		m.log.Warn("the kernel's read-ahead stays as it is", "err", err)
	}
}

// finish runs when serving has ended.
func (m *Mount) finish() {
	m.conn.close()
	if m.conn.gone.Load() {
		if err := m.drop(); err != nil {
			m.log.Warn("the keeper may still hold the connection of a mount that has ended", "err", err)
		}
		close(m.gone)
	}
	m.b.finish(m)
	close(m.ended)
}

// drop has the keeper drop the connection, once: another mount may have its
// name later.
func (m *Mount) drop() (err error) {
	m.dropped.Do(func() { err = m.b.drop(m.dir) })
	return err
}

// Unmount implements backend.Mount. It waits until nothing of the mount runs
// if nobody uses it any more. Else those users go on until they are done or
// this process ends; Gone tells.
func (m *Mount) Unmount(ctx context.Context) error {
	select {
	case <-m.gone:
		return detach(m.dir) // the connection was ended, the directory may be still there
	default:
	}
	if err := errors.Join(detach(m.dir), m.drop()); err != nil {
		return err
	}
	if !m.conn.abandoned() {
		return nil
	}
	select {
	case <-m.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of the mount at %s: %w", m.dir, ctx.Err())
	}
}
