package piecestore

import (
	"context"

	"github.com/damselfly-io/damselfly/internal/task"
)

// Proven returns the held pieces whose digest came from somebody who vouched
// for it: those written with a digest to match, and all pieces of a complete
// task. The set is the caller's.
func (t *Task) Proven() task.Set {
	t.e.mu.Lock()
	defer t.e.mu.Unlock()
	proven := t.e.held.Clone()
	for w := range proven {
		proven[w] &^= t.e.unproven[w]
	}
	return proven
}

// Prove compares a held piece with the digest that somebody vouches for. A piece
// with another digest is dropped, and Prove fails with a DigestError; for one
// that is not held it fails with ErrNotHeld.
func (t *Task) Prove(i int, d task.Digest) error {
	e := t.e
	if err := e.inRange(i, i+1); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.warm(); err != nil {
		return err
	}
	switch {
	case !e.held.Has(i):
		return ErrNotHeld
	case e.digests[i] != d:
		err := &DigestError{ID: e.meta.ID, Piece: i, Got: e.digests[i], Want: d}
		e.drop(i)
		return err
	case !e.unproven.Has(i):
		return nil
	}
	if err := e.log(record{kind: recHeld, index: uint32(i), payload: d}); err != nil { //nolint:gosec // below task.MaxPieces
		return err
	}
	e.unproven.Remove(i)
	e.notify()
	return nil
}

// Follow hashes the content as its pieces come and returns the SHA-256 of the
// whole. It fails when ctx ends, and with ErrClosed when the store is closed.
func (t *Task) Follow(ctx context.Context) (task.Digest, error) {
	changed, cancel := t.Subscribe()
	defer cancel()
	for sum := t.NewSummer(); ; {
		pos, err := sum.Advance(ctx)
		if pos == t.e.meta.Table.Length && t.HeldCount() == t.e.count {
			return sum.Sum(), nil
		}
		if err != nil && t.e.stillHeld(sum.next) {
			return task.Digest{}, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return task.Digest{}, context.Cause(ctx)
		case <-t.e.store.done:
			return task.Digest{}, ErrClosed
		}
	}
}

// stillHeld tells a failure to read a piece from the piece having gone.
func (e *entry) stillHeld(i int) bool { return i < e.count && e.has(i) }
