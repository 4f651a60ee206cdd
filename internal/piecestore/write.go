package piecestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/damselfly-io/damselfly/internal/task"
)

// slot is a piece that somebody is writing. Bytes go into the piece's region of
// the data file, and the piece becomes held, only with mu held and by the
// owner. A writer that verified its bytes elsewhere takes ownership before it
// puts them in place; a former owner finds out at its next chunk, and so cannot
// write into a piece that is held.
type slot struct {
	mu    sync.Mutex
	owner *writer

	users int // guarded by entry.mu
}

// writer is one WritePiece under way.
type writer struct {
	e      *entry
	i      int
	off, n int64
	slot   *slot
	data   *os.File
	gen    uint64
	buf    *buffer
	// scratch gets the bytes of a writer that is not the owner. It has no name,
	// so it is gone with the process.
	scratch *os.File
	settled bool // the reservation was used up
	proven  bool // the digest was given by somebody who knows
}

// errHeld ends a write because the piece is held meanwhile.
var errHeld = errors.New("piece is held already")

// WritePiece reads piece i from r, exactly as many bytes as it is long, and
// makes it held if they have the digest want; without want whatever digest they
// have becomes that of the piece, which is then not proven (see Proven). It
// returns the digest of the held piece.
//
// It fails with a DigestError when the bytes are wrong, io.ErrUnexpectedEOF
// when r ends early, ErrFull (a FullError) when there is no room, and
// ErrSuperseded. If the piece is held already, or becomes so from another
// writer, WritePiece returns its digest and nil, and r is not read to the end.
// Reads from r are not interrupted when ctx ends; r should fail by itself then.
func (t *Task) WritePiece(ctx context.Context, i int, want *task.Digest, r io.Reader) (task.Digest, error) {
	e := t.e
	if err := e.inRange(i, i+1); err != nil {
		return task.Digest{}, err
	}
	d, err := e.write(ctx, i, want, r)
	if errors.Is(err, errHeld) || errors.Is(err, ErrSuperseded) {
		if held, ok := t.Digest(i); ok {
			return held, nil
		}
		err = ErrSuperseded
	}
	var bad *DigestError
	if err != nil && !errors.As(err, &bad) {
		err = fmt.Errorf("write piece %d of %s: %w", i, e.meta.ID.Short(), err)
	}
	return d, err
}

func (e *entry) write(ctx context.Context, i int, want *task.Digest, r io.Reader) (task.Digest, error) {
	w, err := e.newWriter(i)
	if err != nil {
		return task.Digest{}, err
	}
	defer w.end()
	w.proven = want != nil
	s := e.store
	if err := s.reserve(w.n); err != nil {
		return task.Digest{}, err
	}
	defer func() {
		if !w.settled {
			s.unreserve(w.n)
		}
	}()
	w.buf = s.getBuffer()
	defer s.bufs.Put(w.buf)
	if err := w.claim(); err != nil {
		return task.Digest{}, err
	}
	if err := w.receive(ctx, r); err != nil {
		return task.Digest{}, err
	}
	got := w.buf.digest()
	if want != nil && got != *want {
		return task.Digest{}, &DigestError{ID: e.meta.ID, Piece: i, Got: got, Want: *want}
	}
	if err := w.retry(func() error { return w.finish(got) }); err != nil {
		return task.Digest{}, err
	}
	return got, nil
}

// newWriter joins the piece's slot, or fails with errHeld.
func (e *entry) newWriter(i int) (*writer, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.warm(); err != nil {
		return nil, err
	}
	if e.held.Has(i) {
		return nil, errHeld
	}
	sl := e.slots[i]
	if sl == nil {
		sl = &slot{}
		e.slots[i] = sl
	}
	sl.users++
	w := &writer{e: e, i: i, slot: sl, data: e.data, gen: e.gen}
	w.off, w.n = e.meta.Table.Piece(i)
	return w, nil
}

// end leaves the slot.
func (w *writer) end() {
	w.slot.mu.Lock()
	if w.slot.owner == w {
		w.slot.owner = nil
	}
	w.slot.mu.Unlock()
	if w.scratch != nil {
		_ = w.scratch.Close() // its content is of no further use
	}
	w.e.mu.Lock()
	defer w.e.mu.Unlock()
	w.slot.users--
	if w.slot.users == 0 && w.e.slots[w.i] == w.slot {
		delete(w.e.slots, w.i)
	}
}

// claim makes w the owner if there is none, and gives it a scratch file
// otherwise.
func (w *writer) claim() error {
	w.slot.mu.Lock()
	owned := w.slot.owner != nil
	if !owned {
		// The piece may have become held since newWriter looked. It cannot while
		// we hold the slot.
		if w.e.has(w.i) {
			w.slot.mu.Unlock()
			return errHeld
		}
		w.slot.owner = w
	}
	w.slot.mu.Unlock()
	if !owned {
		return nil
	}
	return w.retry(w.openScratch)
}

func (e *entry) has(i int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.held.Has(i)
}

func (w *writer) openScratch() error {
	f, err := os.CreateTemp(w.e.store.path(scratchDir), "piece-")
	if err != nil {
		return fmt.Errorf("make scratch file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return errors.Join(fmt.Errorf("unlink scratch file: %w", err), f.Close())
	}
	w.scratch = f
	return nil
}

// retry runs f a second time when the file system was full and something could
// be evicted.
func (w *writer) retry(f func() error) error {
	err := f()
	if !noSpace(err) {
		return err
	}
	if err := w.e.store.makeRoom(w.n, err); err != nil {
		return err
	}
	if err = f(); noSpace(err) {
		return w.e.store.full(w.n, err)
	}
	return err
}

// receive takes the piece's bytes from r and hashes them.
func (w *writer) receive(ctx context.Context, r io.Reader) error {
	for done := int64(0); done < w.n; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		chunk := w.buf.b[:min(int64(len(w.buf.b)), w.n-done)]
		if _, err := io.ReadFull(r, chunk); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		_, _ = w.buf.sha.Write(chunk) // a hash never fails
		if err := w.put(chunk, done); err != nil {
			return err
		}
		done += int64(len(chunk))
	}
	return nil
}

// put writes a chunk that begins at byte at of the piece.
func (w *writer) put(chunk []byte, at int64) error {
	return w.retry(func() error { return w.putOnce(chunk, at) })
}

func (w *writer) putOnce(chunk []byte, at int64) error {
	if w.scratch != nil {
		if w.e.has(w.i) {
			return errHeld
		}
		if _, err := w.scratch.WriteAt(chunk, at); err != nil {
			return fmt.Errorf("write scratch file: %w", err)
		}
		return nil
	}
	w.slot.mu.Lock()
	defer w.slot.mu.Unlock()
	if w.slot.owner != w {
		return ErrSuperseded
	}
	return w.place(chunk, at)
}

// place writes into the data file. The caller holds the slot and is its owner.
func (w *writer) place(chunk []byte, at int64) error {
	if err := w.e.beginWrite(w.gen); err != nil {
		return err
	}
	w.e.writes.Lock()
	_, err := w.data.WriteAt(chunk, w.off+at)
	w.e.writes.Unlock()
	w.e.endWrite(w.gen)
	if err != nil {
		return fmt.Errorf("write data file: %w", err)
	}
	return nil
}

// finish makes the verified piece held.
func (w *writer) finish(d task.Digest) error {
	w.slot.mu.Lock()
	defer w.slot.mu.Unlock()
	if w.scratch != nil {
		if w.e.has(w.i) {
			return errHeld
		}
		w.slot.owner = w
		if err := w.copyScratch(); err != nil {
			return err
		}
	}
	if w.slot.owner != w {
		return ErrSuperseded
	}
	if err := w.e.commit(w.i, d, w.proven, w.gen); err != nil {
		return err
	}
	w.slot.owner = nil
	w.settled = true
	return nil
}

// copyScratch puts the bytes in place. The caller holds the slot and owns it.
func (w *writer) copyScratch() error {
	for done := int64(0); done < w.n; {
		chunk := w.buf.b[:min(int64(len(w.buf.b)), w.n-done)]
		if _, err := w.scratch.ReadAt(chunk, done); err != nil {
			return fmt.Errorf("read scratch file: %w", err)
		}
		if err := w.place(chunk, done); err != nil {
			return err
		}
		done += int64(len(chunk))
	}
	return nil
}
