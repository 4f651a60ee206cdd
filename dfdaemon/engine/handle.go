package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"sync"

	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
)

// Handle reads one task. Copy may be called concurrently.
type Handle struct {
	e *Engine
	r Request

	mu    sync.Mutex
	t     *piecestore.Task
	d     *download // nil when the store had it complete
	meta  Meta
	whole bool // all of the content is wanted, not ranges of it
	close sync.Once
}

// reader is one Copy under way; its download fetches ahead of it.
type reader struct {
	next     int // guarded by download.mu
	end      int // the piece after its last
	priority pieces.Priority
	whole    bool
	d        *download // where it is enrolled; nil if nowhere
	run      int       // pieces opened at a time so far
}

// ID names the task.
func (h *Handle) ID() task.ID { return h.t.ID() }

// Table divides the task into pieces.
func (h *Handle) Table() task.Table { return h.t.Table() }

// Meta is what the origin said about the content, as far as that is known here.
func (h *Handle) Meta() Meta {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.d == nil || h.meta != (Meta{}) {
		return h.meta
	}
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	return h.d.meta
}

func (h *Handle) setMeta(m Meta) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.meta = m
}

// Close gives the handle back.
func (h *Handle) Close() {
	h.close.Do(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.t != nil {
			h.t.Release()
		}
		if h.d != nil {
			h.d.leave()
		}
	})
}

// download returns the handle's download, nil if there is none.
func (h *Handle) download() *download {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.d
}

// rejoin starts a download for content that was complete and was found damaged.
func (h *Handle) rejoin() (*download, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.r
	r.Authorized = true // it was being served
	if h.d != nil {
		select {
		case <-h.d.done:
			h.d.leave()
			h.d = nil
		default:
			return h.d, nil
		}
	}
	var err error
	h.d, err = h.e.use(r)
	return h.d, err
}

// Want asks for ranges without waiting for them; none means everything.
func (h *Handle) Want(ranges []Range) error {
	d := h.download()
	if d == nil {
		return nil
	}
	if len(ranges) == 0 {
		h.mu.Lock()
		h.whole = true
		h.mu.Unlock()
	}
	r := h.r
	r.Whole, r.Ranges, r.Authorized = len(ranges) == 0, ranges, true
	if d.enter(r) {
		d.leave()
	}
	return nil
}

// Copy sends the n bytes at off to w, in order, each piece as soon as it is
// there and verified. It returns how many bytes it has sent.
func (h *Handle) Copy(ctx context.Context, w io.Writer, off, n int64) (sent int64, err error) {
	table := h.Table()
	if off < 0 || n < 0 || off > table.Length || n > table.Length-off {
		return 0, fmt.Errorf("range [%d, +%d) of %s: it has %d bytes", off, n, h.ID().Short(), table.Length)
	}
	if n == 0 {
		return 0, nil
	}
	r := &reader{next: table.Index(off), end: table.Index(off+n-1) + 1, priority: h.r.Priority, whole: h.isWhole()}
	defer r.enrol(nil)
	if d := h.download(); d != nil {
		r.enrol(d)
	} else {
		h.e.o.Received(FromLocal, n)
	}
	for end := off + n; off < end; {
		f, stop, err := h.await(ctx, r, table.Index(off), table.Index(end-1)+1)
		if err != nil {
			return sent, err
		}
		lastOff, lastN := table.Piece(stop - 1)
		m, err := copyRange(w, f, off, min(end, lastOff+lastN)-off)
		sent += m
		off += m
		if err != nil {
			return sent, fmt.Errorf("sending %s at %d: %w", h.ID().Short(), off, err)
		}
	}
	return sent, nil
}

func (h *Handle) isWhole() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.whole || h.r.Whole
}

// copyRange sends n bytes of f at off and closes f. It is a plain copy from a
// file, so that the kernel sends from the page cache.
func copyRange(w io.Writer, f *os.File, off, n int64) (int64, error) {
	defer f.Close() //nolint:errcheck // opened for reading
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	return io.CopyN(w, f, n)
}

// checkAhead bounds how many pieces are checked before the first of them is
// sent. A reader begins with one and doubles, so that its first byte is early.
const checkAhead = 64

// await waits until piece first can be read. It returns a file to read from,
// and the end of the run of pieces from first, up to limit, that it is good for.
func (h *Handle) await(ctx context.Context, r *reader, first, limit int) (f *os.File, end int, err error) {
	for {
		d := h.download()
		ready := func(i int) bool { return h.t.Has(i) }
		var grown chan struct{}
		if d != nil {
			d.mu.Lock()
			r.next = first
			grown = d.grown
			failed := d.err
			held := d.readableLocked(r.whole)
			d.mu.Unlock()
			ready = held.Has
			if failed != nil && !ready(first) {
				return nil, 0, failed
			}
		}
		ahead := min(max(2*r.run, 1), checkAhead)
		for end = first; end < limit && end < first+ahead && ready(end); {
			end++
		}
		if end > first {
			f, err := h.t.OpenPieces(ctx, first, end)
			var damaged *piecestore.DamagedError
			switch {
			case err == nil:
				r.run = end - first
				return f, end, nil
			case errors.As(err, &damaged) && damaged.Piece > first:
				limit = damaged.Piece
				continue
			case !errors.As(err, &damaged) && !errors.Is(err, piecestore.ErrNotHeld):
				return nil, 0, err
			}
		}
		if d == nil || isClosed(d.done) {
			next, err := h.rejoin()
			if err != nil {
				return nil, 0, err
			}
			r.enrol(next)
			continue
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("waiting for piece %d of %s: %w", first, h.ID().Short(), context.Cause(ctx))
		}
	}
}

// readableLocked is the set of pieces that readers may have: all that is held,
// but, for readers of the whole, not the end of content whose digest as a whole
// has not been checked, by the supernode for pieces that it vouches for, or here.
func (d *download) readableLocked(whole bool) task.Set {
	if d.t == nil {
		return nil
	}
	held := d.t.Held()
	last := d.t.Table().Count() - 1
	if _, checkable := d.id.Digest(); !checkable || !whole || last < 0 || d.t.Complete() {
		return held
	}
	if !d.vouched || d.t.Proven().Len() < last+1 {
		held.Remove(last)
	}
	return held
}

// enrol makes d fetch ahead of r, and no other download; nil: none.
func (r *reader) enrol(d *download) {
	if r.d == d {
		return
	}
	if r.d != nil {
		r.d.mu.Lock()
		delete(r.d.readers, r)
		r.d.mu.Unlock()
	}
	if r.d = d; d != nil {
		d.mu.Lock()
		d.readers[r] = struct{}{}
		d.mu.Unlock()
		d.post(func() {})
	}
}

// WaitComplete returns when all of the task is held and checked.
func (h *Handle) WaitComplete(ctx context.Context) error {
	for !h.t.Complete() {
		d := h.download()
		if d == nil || isClosed(d.done) && d.failure() == nil {
			next, err := h.rejoin()
			if err != nil {
				return err
			}
			d = next
		}
		d.mu.Lock()
		grown, failed := d.grown, d.err
		d.mu.Unlock()
		if failed != nil {
			return failed
		}
		if h.t.Complete() {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", h.ID().Short(), context.Cause(ctx))
		}
	}
	return nil
}

// Progress is how far a task has come.
type Progress struct {
	HeldPieces int
	HeldBytes  int64
	Complete   bool
	Active     bool // a download is under way, or was when the handle was opened
	Err        error
	From       map[From]int64 // bytes received since the daemon started
}

// Progress returns how far the task has come, and a channel that is closed when
// there is news; nil when there will be none.
func (h *Handle) Progress() (Progress, <-chan struct{}) {
	d := h.download()
	p := Progress{Complete: h.t.Complete()}
	var grown chan struct{}
	if d != nil {
		d.mu.Lock()
		grown, p.Err = d.grown, d.err
		d.mu.Unlock()
		p.Active = true
	}
	h.e.mu.Lock()
	p.From = maps.Clone(h.e.from[h.ID()])
	h.e.mu.Unlock()
	held := h.t.Held()
	p.HeldPieces = held.Len()
	for i := range held.All() {
		_, n := h.t.Table().Piece(i)
		p.HeldBytes += n
	}
	if d == nil || isClosed(d.done) {
		grown = nil
	}
	return p, grown
}
