package fuse

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Of the protocol: linux/include/uapi/linux/fuse.h.
const (
	opForget      = 2
	opRead        = 15
	opGetXattr    = 22
	opListXattr   = 23
	opInit        = 26
	opReaddir     = 28
	opInterrupt   = 36
	opPoll        = 40
	opBatchForget = 42
	opReaddirPlus = 44

	notifyResend = 7

	capExportSupport    = 1 << 4
	capNoOpenSupport    = 1 << 17
	capNoOpendirSupport = 1 << 24

	inHeaderSize  = 40
	outHeaderSize = 16
	initInSize    = inHeaderSize + 64
	initMaxWrite  = outHeaderSize + 20 // where the answer to INIT has max_write

	// requestSize is the smallest buffer that the kernel accepts, and enough:
	// nobody writes.
	requestSize = 8192
	maxWrite    = 4096
	// answerSize is enough for any answer that has no size in its request.
	answerSize = 8192

	// maxIdle bounds the goroutines that wait for requests.
	maxIdle = 2
)

// connection serves one mount. Goroutines take turns: one waits for a request,
// and before it begins a read, which may take long, makes sure that another
// waits.
type connection struct {
	fd    int
	file  *os.File // has fd; in non-blocking mode, so that no thread waits
	proto *gofuse.ProtocolServer
	reader
	log *slog.Logger

	ctx    context.Context // of the fills
	cancel context.CancelFunc
	wg     sync.WaitGroup
	idle   atomic.Int32
	gone   atomic.Bool // the kernel has ended the connection

	mu    sync.Mutex
	reads map[uint64]*readOp // by request
}

// newConnection takes fd over, which is mounted.
func newConnection(fd int, v *view, r reader, log *slog.Logger) (*connection, error) {
	// Only a connection that is mounted can be waited for with epoll, and
	// NewFile looks whether it can.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set up /dev/fuse: %w", err)
	}
	// Not ASYNC_DIO: who waits for such a read could not be killed.
	extra := uint64(gofuse.CAP_READDIRPLUS_AUTO | capExportSupport)
	c := &connection{
		fd: fd, file: os.NewFile(uintptr(fd), "/dev/fuse"), reader: r, log: log, // #nosec G115 -- a file descriptor
		reads: map[uint64]*readOp{},
		proto: gofuse.NewProtocolServer(newFileSystem(v), &gofuse.MountOptions{
			MaxWrite: maxRead, MaxBackground: 64, EnableSymlinkCaching: true, ExplicitDataCacheControl: true,
			EnableAcl: v.acl, ExtraCapabilities: extra, DisabledCapabilities: gofuse.CAP_PASSTHROUGH,
			Logger: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// handshake answers the first request of a new connection and returns it.
func (c *connection) handshake() ([]byte, error) {
	request := make([]byte, requestSize)
	n, err := c.file.Read(request)
	if err != nil {
		return nil, fmt.Errorf("read the first FUSE request: %w", err)
	}
	request = request[:n]
	if n < inHeaderSize+16 || u32(request[4:]) != opInit {
		return nil, errors.New("the first FUSE request is not INIT")
	}
	if flags := u32(request[inHeaderSize+12:]); flags&capNoOpenSupport == 0 || flags&capNoOpendirSupport == 0 {
		return nil, errors.New("this kernel's FUSE cannot do without opening files: Linux 5.1 or later is needed")
	}
	answer := make([]byte, answerSize)
	m, status := c.proto.HandleRequest([][]byte{request}, [][]byte{answer})
	if !status.Ok() || m < initMaxWrite+4 {
		return nil, fmt.Errorf("FUSE INIT: %s", status)
	}
	binary.NativeEndian.PutUint32(answer[initMaxWrite:], maxWrite)
	if err := c.answer(answer[:m]); err != nil {
		return nil, fmt.Errorf("answer FUSE INIT: %w", err)
	}
	return request, nil
}

// resume brings a connection to where an earlier process had it, and has the
// kernel repeat the requests which that one did not answer.
func (c *connection) resume(init []byte) error {
	if len(init) < inHeaderSize+20 || len(init) > requestSize || u32(init[4:]) != opInit {
		return errors.New("the INIT request that was kept is none")
	}
	if flags := uint64(u32(init[inHeaderSize+16:])) << 32; flags&gofuse.CAP_HAS_RESEND == 0 {
		return errors.New("this kernel's FUSE does not repeat requests: Linux 6.9 or later is needed")
	}
	if _, status := c.proto.HandleRequest([][]byte{init}, [][]byte{make([]byte, answerSize)}); !status.Ok() {
		return fmt.Errorf("FUSE INIT: %s", status)
	}
	var notice [outHeaderSize]byte
	putHeader(notice[:], len(notice), notifyResend, 0)
	if err := c.answer(notice[:]); err != nil {
		return fmt.Errorf("ask FUSE to repeat requests: %w", err)
	}
	return nil
}

// start begins to serve, and calls ended when that ends, by stop or by the end
// of the connection.
func (c *connection) start(ended func()) {
	c.idle.Store(1)
	c.wg.Add(1)
	go c.serve()
	go func() {
		c.wg.Wait()
		ended()
	}()
}

// stop ends serving. Requests that wait for fills stay unanswered, for a
// successor.
func (c *connection) stop() {
	c.cancel()
	_ = c.file.SetReadDeadline(time.Unix(1, 0)) // fails only if it is closed
}

// close closes the device; nothing may be served any more.
func (c *connection) close() {
	c.cancel()
	_ = c.file.Close() // nothing is buffered
}

// serve reads and handles requests.
func (c *connection) serve() {
	defer c.wg.Done()
	request := make([]byte, requestSize)
	for c.ctx.Err() == nil {
		n, err := c.file.Read(request)
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINTR):
			continue // a request was taken back
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		case c.abandoned(): // Go calls a device that epoll has an error for "not pollable"
			c.gone.Store(true)
			c.cancel()
			return
		default:
			c.log.Error("reading FUSE requests failed: readers of the mount wait for a restart", "err", err)
			return
		}
		if n < inHeaderSize {
			continue
		}
		if u32(request[4:]) != opRead {
			c.handle(request[:n])
			continue
		}
		if c.serveRead(request[:n]) {
			return
		}
	}
}

// serveRead handles a read request, while another goroutine waits for the next.
// It reports that there are enough of those.
func (c *connection) serveRead(request []byte) (enough bool) {
	op := c.begin(request)
	if c.idle.Add(-1) == 0 {
		c.idle.Add(1)
		c.wg.Add(1)
		go c.serve()
	}
	c.read(op)
	c.end(op)
	if c.idle.Add(1) > maxIdle {
		c.idle.Add(-1)
		return true
	}
	return false
}

// handle answers a request that takes no time.
func (c *connection) handle(request []byte) {
	size := 0
	switch u32(request[4:]) {
	case opForget, opBatchForget:
		return
	case opInterrupt:
		c.interrupt(request)
		return
	case opPoll:
		c.replyStatus(syscall.ENOSYS, u64(request[8:])) // files are always ready
		return
	case opReaddir, opReaddirPlus:
		size = int(fieldAt(request, inHeaderSize+16))
	case opGetXattr, opListXattr:
		size = int(fieldAt(request, inHeaderSize))
	}
	if size > maxRead {
		size = maxRead
	}
	buf := c.buffers.get(size + answerSize)
	defer c.buffers.put(buf)
	n, status := c.proto.HandleRequest([][]byte{request}, [][]byte{*buf})
	switch {
	case !status.Ok(): // there is no answer in the buffer, but the kernel must have one
		c.replyStatus(syscall.EIO, u64(request[8:]))
	case n > 0:
		c.reply((*buf)[:n])
	}
}

// replyStatus answers a request with an error.
func (c *connection) replyStatus(status syscall.Errno, unique uint64) {
	var answer [outHeaderSize]byte
	putHeader(answer[:], len(answer), -int32(status), unique) // #nosec G115 -- a small number
	c.reply(answer[:])
}

// reply is answer for those who cannot do anything about a failure.
func (c *connection) reply(p []byte) {
	err := c.answer(p)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EPERM):
		// The one who asked, or the mount, has gone.
	default:
		c.log.Warn("FUSE took no answer", "status", int32(u32(p[4:])), "bytes", len(p), "err", err) // #nosec G115 -- a signed field
	}
}

// answer writes one message. It does not go through file, which would let one
// goroutine at a time do so. fd is open: it is closed after all have ended.
func (c *connection) answer(p []byte) error {
	for {
		_, err := unix.Write(c.fd, p)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func u32(p []byte) uint32 { return binary.NativeEndian.Uint32(p) }

func u64(p []byte) uint64 { return binary.NativeEndian.Uint64(p) }

// fieldAt returns a field that a request may be too short for.
func fieldAt(request []byte, at int) uint32 {
	if len(request) < at+4 {
		return 0
	}
	return u32(request[at:])
}

// putHeader writes the header of a message.
func putHeader(p []byte, size int, status int32, unique uint64) {
	binary.NativeEndian.PutUint32(p, uint32(size))       // #nosec G115 -- at most some MiB
	binary.NativeEndian.PutUint32(p[4:], uint32(status)) // #nosec G115 -- bits
	binary.NativeEndian.PutUint64(p[8:], unique)
}

// abandoned reports whether the kernel has ended the connection. fd may be
// closed by then, with the same meaning.
func (c *connection) abandoned() bool {
	if c.gone.Load() {
		return true
	}
	conn, err := c.file.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = conn.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} // #nosec G115 -- a file descriptor
		n, pollErr := unix.Poll(p, 0)
		gone = pollErr == nil && n == 1 && p[0].Revents&unix.POLLERR != 0
	})
	return gone || err != nil
}
