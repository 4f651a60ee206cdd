package piecestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// File returns a new read-only descriptor of the data file, at offset 0, for
// sendfile. The caller closes it, before or after Release. Open it first and
// Check after: then what was checked is what will be sent.
func (t *Task) File() (*os.File, error) {
	e := t.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.warm(); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(e.dir, dataName))
	if err != nil {
		return nil, fmt.Errorf("open data of %s: %w", e.meta.ID.Short(), err)
	}
	fp, err := fingerprintOf(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if fp.dev != e.seen.dev || fp.ino != e.seen.ino {
		// Somebody replaced the file: from here on the new one is ours.
		if err := e.adopt(); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// OpenPieces returns File after checking the pieces [first, end): what it
// yields in their range are the bytes they were held with.
func (t *Task) OpenPieces(ctx context.Context, first, end int) (*os.File, error) {
	for {
		_, before, err := t.e.holds(first, end)
		if err != nil {
			return nil, err
		}
		f, err := t.File()
		if err != nil {
			return nil, err
		}
		if err := t.CheckRange(ctx, first, end); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		_, after, err := t.e.holds(first, end)
		if err == nil && before == after {
			return f, nil
		}
		// The data file was replaced meanwhile.
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
}

// PieceReader returns a reader of piece i, with the conditions of ReadAt.
func (t *Task) PieceReader(i int) (*io.SectionReader, error) {
	if err := t.e.inRange(i, i+1); err != nil {
		return nil, err
	}
	off, n := t.e.meta.Table.Piece(i)
	return io.NewSectionReader(t, off, n), nil
}

// ReadAt reads content at off, as io.ReaderAt does. Every piece it touches must
// be held, otherwise it fails with ErrNotHeld; it does not Check them.
func (t *Task) ReadAt(p []byte, off int64) (int, error) {
	e := t.e
	if off < 0 {
		return 0, fmt.Errorf("read %s at %d: %w", e.meta.ID.Short(), off, os.ErrInvalid)
	}
	if off >= e.meta.Table.Length {
		return 0, io.EOF
	}
	rest := e.meta.Table.Length - off
	short := int64(len(p)) > rest
	if short {
		p = p[:rest]
	}
	first, end := e.meta.Table.Span(off, int64(len(p)))
	data, gen, err := e.holds(first, end)
	if err != nil {
		return 0, err
	}
	n, err := data.ReadAt(p, off)
	if err != nil {
		return n, fmt.Errorf("read %s: %w", e.meta.ID.Short(), err)
	}
	// A piece dropped meanwhile may be under rewriting by an unverified writer.
	if _, now, err := e.holds(first, end); err != nil || now != gen {
		return 0, errors.Join(err, fmt.Errorf("read %s: %w", e.meta.ID.Short(), ErrNotHeld))
	}
	if short {
		return n, io.EOF
	}
	return n, nil
}

// holds returns the data file if it holds the pieces [first, end).
func (e *entry) holds(first, end int) (*os.File, uint64, error) {
	if err := e.inRange(first, end); err != nil {
		return nil, 0, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.warm(); err != nil {
		return nil, 0, err
	}
	for i := first; i < end; i++ {
		if !e.held.Has(i) {
			return nil, 0, fmt.Errorf("read piece %d of %s: %w", i, e.meta.ID.Short(), ErrNotHeld)
		}
	}
	return e.data, e.gen, nil
}
