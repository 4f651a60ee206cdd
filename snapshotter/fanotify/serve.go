package fanotify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Handler has n bytes at off filled. A range may reach beyond the end of the
// file. ctx ends when Serve is to return; an error after that leaves the event
// for the next Serve.
type Handler func(ctx context.Context, off, n int64) error

const (
	// readPause is how long nothing is read after the kernel could not report an
	// event: it refuses each of them to its reader, so a short shortage of
	// descriptors should not reach many.
	readPause = 50 * time.Millisecond

	denyEIO = unix.FAN_DENY | uint32(unix.EIO)<<unix.FAN_ERRNO_SHIFT
)

// errUnknownRange is why an event is refused for which the kernel named no range.
var errUnknownRange = errors.New("event without a range")

// Serve has every range filled that somebody waits for, each on its own
// goroutine, and then lets the reader go on, or gives it EIO if handle fails.
//
// First it does so for the events that an earlier Serve, here or in another
// process, has left; nothing else is read before all these are answered.
//
// It returns nil when ctx has ended and all its goroutines have returned. What
// is not answered by then stays in the ring: its readers wait for the next
// Serve. After an error, too, Serve may be called again. It returns ErrBusy
// while another call serves.
func (w *Watch) Serve(ctx context.Context, handle Handler) error {
	if !w.serving.CompareAndSwap(false, true) {
		return ErrBusy
	}
	defer w.serving.Store(false)
	conn, err := w.group.SyscallConn()
	if err != nil {
		return fmt.Errorf("serve fanotify group: %w", err)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s := &session{
		log: w.log, group: w.group, conn: conn, ring: w.ring, handle: handle,
		stop: stop, room: make(chan struct{}, slots),
	}
	return s.run(ctx)
}

// session is one call of Serve.
type session struct {
	log    *slog.Logger
	group  *os.File
	conn   syscall.RawConn
	ring   *ring
	handle Handler
	stop   context.CancelCauseFunc

	workers sync.WaitGroup
	// room has a token per slot in free.
	room chan struct{}

	mu   sync.Mutex
	free []int // last in, first out: rarely used slots take no memory
	// kept are descriptors of events that stay in the ring. They are closed when
	// nothing is read any more, so that their numbers do not come again.
	kept []int32
	err  error
}

func (s *session) run(ctx context.Context) error {
	if err := s.answerOrphans(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	for i := slots - 1; i > 0; i-- {
		s.release(i)
	}
	err := s.read(ctx)
	s.stop(err)
	s.workers.Wait()
	for _, fd := range s.kept {
		s.closeEvent(fd)
	}
	if err == nil {
		err = s.err
	}
	return err
}

// answerOrphans returns when no event of an earlier reader is in the ring any
// more, or ctx has ended.
func (s *session) answerOrphans(ctx context.Context) error {
	for i := 1; i < slots; i++ {
		events, err := parse(s.ring.slot(i))
		if err != nil {
			s.stop(err)
			s.workers.Wait()
			return fmt.Errorf("read slot %d of fanotify ring: %w", i, err)
		}
		if len(events) > 0 {
			s.workers.Go(func() {
				if s.answerAll(ctx, events) {
					s.ring.clear(i)
				}
			})
		}
	}
	s.workers.Wait()
	return s.err
}

// read reads events and starts their handlers until ctx ends.
func (s *session) read(ctx context.Context) error {
	if err := s.group.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("read fanotify group: %w", err)
	}
	woken := make(chan struct{})
	stopWaking := context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = s.group.SetReadDeadline(time.Unix(1, 0)) // could be set above, can be set here
	})
	defer func() {
		if !stopWaking() {
			<-woken // else it could hit the next Serve
		}
	}()
	for {
		i, ok := s.take(ctx)
		if !ok {
			return nil
		}
		if err := s.readOne(ctx, i); err != nil {
			return err
		}
	}
}

// readOne reads one event into slot i and starts its handler.
func (s *session) readOne(ctx context.Context, i int) error {
	s.ring.clear(i) // also makes sure that the kernel finds the page mapped
	refused, err := s.readInto(s.ring.slot(i))
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read fanotify event: %w", err)
	}
	if refused != nil {
		s.ring.clear(i)
		s.release(i)
		s.pause(ctx, refused)
		return nil
	}
	events, err := parse(s.ring.slot(i))
	if err != nil {
		return fmt.Errorf("read fanotify event: %w", err)
	}
	s.workers.Go(func() { s.serveSlot(ctx, i, events) })
	return nil
}

// readInto has the kernel write an event to slot, without a copy in between.
// refused is why the kernel could not report an event, and has refused it.
func (s *session) readInto(slot []byte) (refused, err error) {
	var n int
	waited := s.conn.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), slot)
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	switch {
	case waited != nil:
		return nil, waited
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EBADF):
		return nil, err // not about one event
	case err == nil && n == 0:
		return nil, io.ErrUnexpectedEOF
	}
	return err, nil
}

// pause returns when reading should go on.
func (s *session) pause(ctx context.Context, refused error) {
	s.log.Error("The kernel could not report an access to a lazily loaded file and refused it.", "error", refused)
	timer := time.NewTimer(readPause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// serveSlot answers what this process has read into slot i. The order of the
// last three lines is what makes a kill at any point harmless: see the package
// comment.
func (s *session) serveSlot(ctx context.Context, i int, events []event) {
	if !s.answerAll(ctx, events) {
		s.keep(events)
		return
	}
	s.ring.clear(i)
	for _, e := range events {
		if e.fd >= 0 {
			s.closeEvent(e.fd)
		}
	}
	s.release(i)
}

// answerAll returns false if an event must stay in the ring.
func (s *session) answerAll(ctx context.Context, events []event) bool {
	for _, e := range events {
		if !e.waits() {
			continue
		}
		err := errUnknownRange
		if e.n >= 0 {
			err = s.handle(ctx, e.off, e.n)
		}
		if err != nil && ctx.Err() != nil {
			return false
		}
		if err := s.answer(e.fd, err); err != nil {
			s.fail(err)
			return false
		}
	}
	return true
}

// answer lets the reader of an event go on, or fails its read.
func (s *session) answer(fd int32, refused error) error {
	response := uint32(unix.FAN_ALLOW)
	if refused != nil {
		response = denyEIO
	}
	err := s.respond(fd, response)
	if refused != nil && errors.Is(err, unix.EINVAL) {
		err = s.respond(fd, unix.FAN_DENY)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("answer fanotify event: %w", err)
	}
	return nil
}

func (s *session) respond(fd int32, response uint32) error {
	var b [8]byte
	binary.NativeEndian.PutUint32(b[:], uint32(fd)) //nolint:gosec // the kernel's field is signed
	binary.NativeEndian.PutUint32(b[4:], response)
	_, err := s.group.Write(b[:])
	return err
}

// take waits for an empty slot. It returns false when ctx has ended.
func (s *session) take(ctx context.Context) (int, bool) {
	if ctx.Err() != nil {
		return 0, false
	}
	select {
	case <-ctx.Done():
		return 0, false
	case <-s.room:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	return i, true
}

func (s *session) release(i int) {
	s.mu.Lock()
	s.free = append(s.free, i)
	s.mu.Unlock()
	s.room <- struct{}{}
}

func (s *session) keep(events []event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		if e.fd >= 0 {
			s.kept = append(s.kept, e.fd)
		}
	}
}

// fail ends the session.
func (s *session) fail(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	s.stop(err)
}

func (s *session) closeEvent(fd int32) {
	if err := unix.Close(int(fd)); err != nil {
		s.log.Warn("The descriptor of a fanotify event could not be closed.", "error", err)
	}
}
