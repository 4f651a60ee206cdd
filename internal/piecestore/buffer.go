package piecestore

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"

	"github.com/damselfly-io/damselfly/internal/task"
)

// bufferSize is what is read, hashed and written at a time: large enough that
// system calls do not count, small enough to stay in a core's cache.
const bufferSize = 128 << 10

// buffer is what moving a piece needs; the store pools them.
type buffer struct {
	b   []byte
	sha hash.Hash
	sum task.Digest
}

func newBuffer() *buffer { return &buffer{b: make([]byte, bufferSize), sha: sha256.New()} }

func (s *Store) getBuffer() *buffer {
	b := s.bufs.Get().(*buffer) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	b.sha.Reset()
	return b
}

// digest returns the SHA-256 of what was written to sha.
func (b *buffer) digest() task.Digest {
	b.sha.Sum(b.sum[:0])
	return b.sum
}

// hashRange writes n bytes of r at off to h and returns how many it wrote. It
// fails with io.ErrUnexpectedEOF if r ends before.
func hashRange(ctx context.Context, h hash.Hash, buf []byte, r io.ReaderAt, off, n int64) (done int64, err error) {
	for done < n {
		if ctx.Err() != nil {
			return done, context.Cause(ctx)
		}
		chunk := buf[:min(int64(len(buf)), n-done)]
		m, err := r.ReadAt(chunk, off+done)
		if m < len(chunk) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return done, err
		}
		_, _ = h.Write(chunk) // a hash never fails
		done += int64(m)
	}
	return done, nil
}
