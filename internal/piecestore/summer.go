package piecestore

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"

	"github.com/damselfly-io/damselfly/internal/task"
)

// Summer computes the SHA-256 of a task's whole content while its pieces
// arrive. It is for one goroutine.
type Summer struct {
	t    *Task
	hash hash.Hash
	pos  int64
	next int // piece that the byte at pos is in
	gen  uint64
}

// NewSummer returns a Summer that has hashed nothing. It uses t's reference.
func (t *Task) NewSummer() *Summer { return &Summer{t: t, hash: sha256.New()} }

// Advance hashes on to the first piece that is not held, checking each piece
// that is in doubt, and returns how many bytes are hashed. When the task was
// reset it starts over, so that pos may be smaller than before. After an error
// Advance may be called again and goes on at pos.
func (s *Summer) Advance(ctx context.Context) (pos int64, err error) {
	e := s.t.e
	buf := e.store.getBuffer()
	defer e.store.bufs.Put(buf)
	for s.next < e.count && s.t.Has(s.next) {
		if err := s.t.Check(ctx, s.next); err != nil {
			return s.pos, err
		}
		data, gen, err := e.holds(s.next, s.next+1)
		if err != nil {
			return s.pos, err
		}
		if gen != s.gen {
			s.restart(gen)
			continue
		}
		off, n := e.meta.Table.Piece(s.next)
		done, err := hashRange(ctx, s.hash, buf.b, data, s.pos, off+n-s.pos)
		s.pos += done
		if err != nil {
			return s.pos, fmt.Errorf("hash %s: %w", e.meta.ID.Short(), err)
		}
		s.next++
	}
	return s.pos, nil
}

func (s *Summer) restart(gen uint64) {
	s.hash.Reset()
	s.pos, s.next, s.gen = 0, 0, gen
}

// Sum returns the SHA-256 of the bytes hashed so far: of the whole content once
// Advance has returned its length.
func (s *Summer) Sum() task.Digest {
	var d task.Digest
	s.hash.Sum(d[:0])
	return d
}
