package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// ErrMismatch is wrapped by the error for a layer whose bytes are not those
// that its digest, size or DiffID promise.
var ErrMismatch = errors.New("layer is not what it should be")

// ErrLimit is wrapped by the error for a layer that is beyond a limit of the
// options.
var ErrLimit = errors.New("layer exceeds a limit")

// source reads the stored bytes of a layer and checks them.
type source struct {
	layer Layer
	body  io.ReadCloser
	ctx   context.Context //nolint:containedctx // lives as long as one scan
	hash  hash.Hash       // nil if Open's reader verifies
	n     int64
	told  int64
	tell  func(read int64)
}

// progressStep is how many bytes are read between two calls of Progress.
const progressStep = 1 << 20

// openSource opens a layer. Reads end when ctx does.
func openSource(ctx context.Context, l Layer, tell func(int64)) (*source, error) {
	body, err := l.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening it: %w", err)
	}
	s := &source{layer: l, body: body, ctx: ctx, tell: tell}
	if !l.Verified || l.Digest.IsZero() {
		s.hash = sha256.New()
	}
	return s, nil
}

// digest is that of the stored bytes, after finish.
func (s *source) digest() chunkfmt.Digest {
	if s.hash == nil {
		return s.layer.Digest
	}
	return sum(s.hash)
}

// close gives the reader back: everything of value was read and checked before.
func (s *source) close() { _ = s.body.Close() }

func (s *source) Read(p []byte) (int, error) {
	n, err := s.body.Read(p)
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	if s.hash != nil {
		s.hash.Write(p[:n])
	}
	s.n += int64(n)
	if s.n-s.told >= progressStep {
		s.told = s.n
		s.tell(s.n)
	}
	if s.layer.Size >= 0 && s.n > s.layer.Size {
		return n, fmt.Errorf("%w: more than the expected %d bytes", ErrMismatch, s.layer.Size)
	}
	return n, err
}

// finish reads the rest and checks size and digest.
func (s *source) finish(rest io.Reader) error {
	if _, err := io.Copy(io.Discard, rest); err != nil {
		return err
	}
	if s.layer.Size >= 0 && s.n != s.layer.Size {
		return fmt.Errorf("%w: %d bytes, expected %d", ErrMismatch, s.n, s.layer.Size)
	}
	if found := s.digest(); !s.layer.Digest.IsZero() && found != s.layer.Digest {
		return fmt.Errorf("%w: digest %s, expected %s", ErrMismatch, found, s.layer.Digest)
	}
	return nil
}

func sum(h hash.Hash) chunkfmt.Digest {
	var d chunkfmt.Digest
	h.Sum(d[:0])
	return d
}

// tap is what the tar reader reads: the plain bytes, counted and hashed.
type tap struct {
	r     io.Reader
	hash  hash.Hash // nil where the stored bytes are the plain ones
	n     int64
	limit int64
	// keep, when it is set, gets what passes.
	keep func([]byte) error
}

func newTap(r io.Reader, limit int64) *tap {
	return &tap{r: r, hash: sha256.New(), limit: limit}
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if t.hash != nil {
		t.hash.Write(p[:n])
	}
	t.n += int64(n)
	if t.n > t.limit {
		return n, fmt.Errorf("%w: its tar has more than %d bytes", ErrLimit, t.limit)
	}
	if n > 0 && t.keep != nil {
		if err := t.keep(p[:n]); err != nil {
			return n, err
		}
	}
	return n, err
}
