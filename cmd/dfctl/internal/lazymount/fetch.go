package lazymount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/snapshotter/fill"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

// part is how much of a blob is asked for at a time, in bytes: a source tells
// nothing of a part before all of it is there.
const part = 4 << 20

// straight fetches from where the image is. It implements fill.Fetcher.
type straight struct {
	source *image.Source
	sizes  map[chunkfmt.Digest]int64
	bytes  *atomic.Int64
}

// Stream implements fill.Fetcher.
func (s *straight) Stream(ctx context.Context, b node.Blob, off, n int64, _ node.Priority, w io.Writer) error {
	desc := v1.Descriptor{MediaType: artifact.DataType, Digest: digest.Digest(b.Digest.String()), Size: s.sizes[b.Digest]}
	buf := make([]byte, min(n, part))
	for n > 0 {
		p := buf[:min(n, part)]
		got, err := s.source.ReadBlobAt(ctx, desc, p, off)
		if got < len(p) {
			return fmt.Errorf("read %d bytes at %d of %s of %s: %w", len(p), off, desc.Digest, s.source.Ref(), classify(ctx, err))
		}
		s.bytes.Add(int64(got))
		if _, err := w.Write(p); err != nil {
			return err
		}
		off, n = off+int64(got), n-int64(got)
	}
	return nil
}

// classify says in the words of package node what is of no use to try again.
func classify(ctx context.Context, err error) error {
	class := error(nil)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, image.ErrCorrupt):
		class, err = node.ErrDamaged, errors.Join(err, io.ErrUnexpectedEOF)
	case errors.Is(err, image.ErrNotFound):
		class = node.ErrNotFound
	case errors.Is(err, image.ErrDenied):
		class = node.ErrDenied
	default:
		return err
	}
	return fmt.Errorf("%w: %w", class, err)
}

// preferring fetches from the first of two, and from the second what the first
// does not give. It implements fill.Fetcher.
type preferring struct {
	first, second fill.Fetcher
	bytes         *atomic.Int64 // of the first
	log           *slog.Logger
	told          atomic.Bool
}

// Stream implements fill.Fetcher.
func (f *preferring) Stream(ctx context.Context, b node.Blob, off, n int64, p node.Priority, w io.Writer) error {
	c := &counter{w: w}
	err := f.first.Stream(ctx, b, off, n, p, c)
	f.bytes.Add(c.n)
	if err == nil || ctx.Err() != nil || c.err != nil {
		return err
	}
	if f.told.CompareAndSwap(false, true) {
		f.log.Warn("content is fetched without dfdaemon", "error", err)
	}
	return f.second.Stream(ctx, b, off+c.n, n-c.n, p, w)
}

// counter counts what is written, and keeps the error of that.
type counter struct {
	w   io.Writer
	n   int64
	err error
}

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n, c.err = c.n+int64(n), err
	return n, err
}
