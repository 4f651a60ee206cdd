package piecestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/task"
)

// Check makes sure that the bytes of piece i on disk are those it was held
// with. It reads them only if there is doubt: at the first use since the store
// was opened, or after somebody else changed the data file; otherwise it costs
// one fstat. A damaged piece is dropped and Check fails with a DamagedError;
// for a piece that is not held it fails with ErrNotHeld.
func (t *Task) Check(ctx context.Context, i int) error {
	if err := t.e.inRange(i, i+1); err != nil {
		return err
	}
	for {
		c, wait, err := t.e.beginCheck(i)
		if err != nil {
			return fmt.Errorf("check piece %d of %s: %w", i, t.e.meta.ID.Short(), err)
		}
		if wait != nil {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if c == nil {
			return nil
		}
		again, err := t.e.finishCheck(c, c.run(ctx, t.e))
		if !again {
			return t.e.told(err)
		}
	}
}

// told calls OnDamage for a piece that was just dropped.
func (e *entry) told(err error) error {
	var damaged *DamagedError
	if !errors.As(err, &damaged) {
		return err
	}
	e.store.log.Warn("dropped a damaged piece", "task", e.meta.ID.Short(), "piece", damaged.Piece, "error", err)
	if e.store.opts.OnDamage != nil {
		e.store.opts.OnDamage(e.meta.ID, damaged.Piece)
	}
	return err
}

// CheckRange checks the pieces [first, end) and stops at the first error.
func (t *Task) CheckRange(ctx context.Context, first, end int) error {
	if err := t.e.inRange(first, end); err != nil {
		return err
	}
	for i := first; i < end; i++ {
		if err := t.Check(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// check is one reading of a piece in doubt.
type check struct {
	i    int
	gen  uint64
	data *os.File
	want task.Digest
	done chan struct{}
}

// beginCheck returns what there is to check, nil if nothing, or what to wait
// for because somebody else is at it.
func (e *entry) beginCheck(i int) (c *check, wait <-chan struct{}, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.warm(); err != nil {
		return nil, nil, err
	}
	if err := e.notice(); err != nil {
		return nil, nil, err
	}
	if !e.held.Has(i) {
		return nil, nil, ErrNotHeld
	}
	if done := e.checks[i]; done != nil {
		return nil, done, nil
	}
	if !e.doubt.Has(i) {
		return nil, nil, nil
	}
	c = &check{i: i, gen: e.gen, data: e.data, want: e.digests[i], done: make(chan struct{})}
	e.checks[i] = c.done
	// Off before the reading: a change during it puts the piece back.
	e.doubt.Remove(i)
	return c, nil, nil
}

// errWrongBytes is the result of a reading that found another digest.
var errWrongBytes = errors.New("wrong bytes")

func (c *check) run(ctx context.Context, e *entry) error {
	buf := e.store.getBuffer()
	defer e.store.bufs.Put(buf)
	off, n := e.meta.Table.Piece(c.i)
	if _, err := hashRange(ctx, buf.sha, buf.b, c.data, off, n); err != nil {
		return err
	}
	if buf.digest() != c.want {
		return errWrongBytes
	}
	return nil
}

// finishCheck draws the conclusion from a reading. It must be done again when
// the data file changed under it.
func (e *entry) finishCheck(c *check, result error) (again bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.checks[c.i] == c.done {
		delete(e.checks, c.i)
	}
	close(c.done)
	if e.gone {
		return false, ErrClosed
	}
	if e.gen != c.gen {
		return true, nil
	}
	switch {
	case result == nil:
		return false, nil
	case errors.Is(result, errWrongBytes):
		result = nil
	case errors.Is(result, io.ErrUnexpectedEOF), errors.Is(result, unix.EIO):
	default:
		e.doubt.Add(c.i)
		return false, fmt.Errorf("check piece %d of %s: %w", c.i, e.meta.ID.Short(), result)
	}
	e.drop(c.i)
	return false, &DamagedError{ID: e.meta.ID, Piece: c.i, Err: result}
}

// drop takes a damaged piece out of the state and the journal. If that cannot
// be journalled, the piece is found damaged again after a restart.
func (e *entry) drop(i int) {
	e.unhold(i)
	e.notify()
	if err := e.log(record{kind: recDropped, index: uint32(i)}); err != nil { //nolint:gosec // below task.MaxPieces
		e.store.log.Warn("drop of a piece is not journalled", "task", e.meta.ID.Short(), "piece", i, "error", err)
	}
}
