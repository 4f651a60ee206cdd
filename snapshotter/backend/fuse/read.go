package fuse

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

const (
	// watchEvery is how often it is looked whether a thread that got a signal
	// while it waits for a fill is to end.
	watchEvery = 100 * time.Millisecond
	// streamed is from how many bytes on a read is taken for one of a stream,
	// whose pages on the device nobody will want again.
	streamed = 64 << 10
	// repeated marks the number of a request that the kernel has sent before.
	repeated = 1 << 63
	// refills is how often a read is tried whose groups are dropped meanwhile.
	refills = 3
)

var (
	errStale   = errors.New("no such file in the tree")
	errDropped = errors.New("groups are dropped as soon as they are filled")
)

// reader reads the files of a view.
type reader struct {
	view    *view
	devices []*device.Device // as view.devices
	filler  backend.Filler
	buffers *buffers
}

// readOp is a read request.
type readOp struct {
	unique uint64
	node   uint64
	thread uint32 // who reads, in this process's namespace; 0 if it is not there
	off    int64
	size   int64

	ctx     context.Context // of the fill
	cancel  context.CancelFunc
	watched bool // guarded by connection.mu
	dead    bool // who reads is to end; written before cancel is called
}

// begin notes a read request, so that an interrupt finds it.
func (c *connection) begin(request []byte) *readOp {
	op := &readOp{
		unique: u64(request[8:]), node: u64(request[16:]), thread: u32(request[32:]),
		size: int64(fieldAt(request, inHeaderSize+16)),
	}
	if len(request) >= inHeaderSize+16 {
		op.off = int64(u64(request[inHeaderSize+8:])) // #nosec G115 -- checked in place
	}
	op.ctx, op.cancel = context.WithCancel(c.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads[op.unique] = op
	if op.unique&repeated != 0 {
		c.watch(op) // an earlier process may have had the interrupt
	}
	return op
}

func (c *connection) end(op *readOp) {
	op.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.reads, op.unique)
}

// interrupt is told that a request's thread got a signal. If the read failed
// then, programs would see errors that no local file system has (Go's runtime
// sends its threads signals all the time), so only those that are to end are
// let go.
func (c *connection) interrupt(request []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(request) < inHeaderSize+8 {
		return
	}
	if op := c.reads[u64(request[inHeaderSize:])]; op != nil {
		c.watch(op)
		return
	}
	// It is answered already, or has been read by a goroutine that did not get
	// to begin it: the kernel knows, and tells again.
	c.replyStatus(syscall.EAGAIN, u64(request[8:]))
}

// watch ends a read when its thread is to end. The caller holds mu.
func (c *connection) watch(op *readOp) {
	if op.watched || op.thread == 0 {
		return
	}
	op.watched = true
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-op.ctx.Done():
				return
			case <-tick.C:
			}
			if dying(op.thread) {
				c.mu.Lock()
				op.dead = true
				c.mu.Unlock()
				op.cancel()
				return
			}
		}
	}()
}

// read answers a read request.
func (c *connection) read(op *readOp) {
	inode, n, err := c.locate(op)
	if err == nil {
		// Before there is a buffer: any number of reads may wait.
		err = c.fill(op.ctx, inode, op.off, n)
	}
	if err != nil {
		c.fail(op, inode, err)
		return
	}
	buf := c.buffers.get(outHeaderSize + int(n))
	defer c.buffers.put(buf)
	answer := (*buf)[:outHeaderSize+n]
	if err := c.copyPresent(op.ctx, answer[outHeaderSize:], inode, op.off); err != nil {
		c.fail(op, inode, err)
		return
	}
	putHeader(answer, len(answer), 0, op.unique)
	c.reply(answer)
}

// fail answers a read that could not be done.
func (c *connection) fail(op *readOp, inode uint32, err error) {
	c.mu.Lock()
	dead := op.dead
	c.mu.Unlock()
	status := syscall.EIO
	switch {
	case dead:
		status = syscall.EINTR
	case c.ctx.Err() != nil:
		return // left to a successor
	default:
		c.log.Error("read failed", "path", c.view.path(inode), "offset", op.off, "bytes", op.size, "err", err)
	}
	c.replyStatus(status, op.unique)
}

// locate returns the file that is read and how many of the wanted bytes it has.
func (r *reader) locate(op *readOp) (inode uint32, n int64, err error) {
	if op.node == 0 || op.node > uint64(len(r.view.inodes)) || op.off < 0 {
		return 0, 0, errStale
	}
	inode = uint32(op.node - 1) // #nosec G115 -- checked
	if r.view.kind(inode) != chunkfmt.File {
		return inode, 0, errStale
	}
	return inode, max(0, min(op.size, maxRead, r.view.inodes[inode].Size-op.off)), nil
}

// fill brings what is missing of n bytes of a file.
func (r *reader) fill(ctx context.Context, inode uint32, off, n int64) (err error) {
	if r.view.inodes[inode].Count == 0 {
		return nil
	}
	r.view.pieces(inode, off, n, func(p piece) bool {
		if p.dev != hole {
			err = r.filler.Fill(ctx, r.devices[p.dev], p.at, p.length)
		}
		return err == nil
	})
	return err
}

// copyPresent reads bytes of a file that have been filled. Groups that turn out
// to be damaged are dropped at any time, so what was read counts only if they
// are present afterwards, too.
func (r *reader) copyPresent(ctx context.Context, dst []byte, inode uint32, off int64) error {
	if node := &r.view.inodes[inode]; node.Count == 0 {
		copy(dst, r.view.inline[int64(node.First)+off:])
		return nil
	}
	for range refills {
		if err := r.copy(dst, inode, off); err != nil {
			return err
		}
		if r.present(inode, off, int64(len(dst))) {
			return nil
		}
		if err := r.fill(ctx, inode, off, int64(len(dst))); err != nil {
			return err
		}
	}
	return errDropped
}

func (r *reader) present(inode uint32, off, n int64) bool {
	all := true
	r.view.pieces(inode, off, n, func(p piece) bool {
		all = p.dev == hole || len(r.devices[p.dev].Missing(p.at, p.length)) == 0
		return all
	})
	return all
}

func (r *reader) copy(dst []byte, inode uint32, off int64) (err error) {
	r.view.pieces(inode, off, int64(len(dst)), func(p piece) bool {
		part := dst[:p.length]
		dst = dst[p.length:]
		if p.dev == hole {
			clear(part)
			return true
		}
		d := r.devices[p.dev]
		if _, err = d.ReadAt(part, p.at); err == nil && p.length >= streamed {
			forgetPages(d, p.at, p.length)
		}
		return err == nil
	})
	return err
}

// forgetPages gives the pages of a device back whose content is in the page
// cache for the file now. While a device is filled they are not on the disk
// yet, and asking would begin to write them.
func forgetPages(d *device.Device, off, n int64) {
	if !d.Complete() {
		return
	}
	conn, err := d.Writer().SyscallConn()
	if err != nil {
		return // it is closed
	}
	_ = conn.Control(func(fd uintptr) { // it is advice
		_ = unix.Fadvise(int(fd), off, n, unix.FADV_DONTNEED) // #nosec G115 -- a file descriptor
	})
}

// buffers are for answers, in sizes of which nearly all need the smaller ones.
type buffers struct{ pools [3]sync.Pool }

var bufferSizes = [...]int{2 * answerSize, 128<<10 + answerSize, maxRead + answerSize}

func (b *buffers) get(size int) *[]byte {
	for i, s := range bufferSizes {
		if size > s {
			continue
		}
		if buf, ok := b.pools[i].Get().(*[]byte); ok {
			return buf
		}
		size = s
		break
	}
	buf := make([]byte, size)
	return &buf
}

func (b *buffers) put(buf *[]byte) {
	for i, s := range bufferSizes {
		if len(*buf) == s {
			b.pools[i].Put(buf)
		}
	}
}
