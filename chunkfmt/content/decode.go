package content

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// ErrCorrupt is wrapped by every error about bytes that are not those the tree
// describes.
var ErrCorrupt = errors.New("corrupt content")

const (
	// slack lets the zstd decoder use its fast copies up to the last byte.
	slack = 64
	// blockSlack lets it decode the block in which an Unproven group's plain
	// bytes end (RFC 8878, section 3.1.1.2.4).
	blockSlack = 128<<10 + slack
)

// maxWindow bounds what a zstd frame of an Unproven blob may make the decoder
// keep. Frames of proven blobs need no window beyond their plain bytes.
const maxWindow = 64 << 20

// Decode returns the g.Plain decoded bytes of a group. For a proven group,
// which is one of a blob that is not Unproven, stored must have the group's
// digest and decode to exactly that many bytes. For any other it is enough
// that they begin with as many; they are to be checked with VerifyChunks.
//
// The result uses the memory of dst, which may be nil, when that has capacity
// for g.Plain bytes and, of an Unproven zstd group, for one block more. Decode may be called by several goroutines.
func Decode(g *chunkfmt.Group, proven bool, stored, dst []byte) ([]byte, error) {
	plain, err := decode(g, proven, stored, dst)
	if err != nil {
		return nil, fmt.Errorf("group at byte %d: %w", g.Offset, err)
	}
	return plain, nil
}

func decode(g *chunkfmt.Group, proven bool, stored, dst []byte) ([]byte, error) {
	switch {
	case len(stored) != int(g.Stored):
		return nil, fmt.Errorf("%w: %d stored bytes, want %d", ErrCorrupt, len(stored), g.Stored)
	case g.Plain > chunkfmt.MaxGroupPlain:
		return nil, fmt.Errorf("%w: %d plain bytes, at most %d", chunkfmt.ErrInvalid, g.Plain, chunkfmt.MaxGroupPlain)
	}
	if proven {
		if err := checkStored(g, stored); err != nil {
			return nil, err
		}
	}
	n := int(g.Plain)
	need := n
	if g.Codec == chunkfmt.Zstd && !proven {
		need += blockSlack
	}
	dst = room(dst, need)
	var plain []byte
	var err error
	switch g.Codec {
	case chunkfmt.Plain:
		plain = append(dst, stored...)
	case chunkfmt.Zstd:
		plain, err = decodeZstd(stored, dst, n, proven)
	case chunkfmt.Gzip:
		plain, err = decodeGzip(stored, dst, n, proven)
	default:
		return nil, fmt.Errorf("%w: codec %d holds no content", chunkfmt.ErrInvalid, g.Codec)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if !proven && len(plain) > n {
		plain = plain[:n]
	}
	if len(plain) != n {
		return nil, fmt.Errorf("%w: %d plain bytes, want %d", ErrCorrupt, len(plain), n)
	}
	return plain, nil
}

func checkStored(g *chunkfmt.Group, stored []byte) error {
	if got := chunkfmt.Sum(stored); got != g.Digest {
		return fmt.Errorf("%w: digest %s of the stored bytes, want %s", ErrCorrupt, got, g.Digest)
	}
	return nil
}

// room returns dst without its content, or a new slice when it cannot take n
// bytes.
func room(dst []byte, n int) []byte {
	if cap(dst) < n {
		return make([]byte, 0, n+slack)
	}
	return dst[:0]
}

// The decoders of a process: each holds tables of some hundred kilobytes that
// are dear to make anew for every group.
var (
	zstdDecoders sync.Pool
	zstdStreams  sync.Pool
	gzipDecoders sync.Pool
)

// decodeZstd appends to dst, which has room for n bytes, what stored decodes
// to. Of more than n bytes it may return an error with those that fitted.
func decodeZstd(stored, dst []byte, n int, proven bool) ([]byte, error) {
	d, ok := zstdDecoders.Get().(*zstd.Decoder)
	if !ok {
		var err error
		if d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true)); err != nil {
			return nil, err
		}
	}
	defer zstdDecoders.Put(d)
	plain, err := d.DecodeAll(stored, dst)
	if proven || err == nil {
		return plain, err
	}
	if len(plain) >= n {
		return plain, nil // what did not fit is not needed
	}
	return streamZstd(stored, dst, n)
}

// streamZstd decodes the first n bytes only. It is slower, but does not refuse
// a frame whose header announces more than there is room for.
func streamZstd(stored, dst []byte, n int) ([]byte, error) {
	d, ok := zstdStreams.Get().(*zstd.Decoder)
	if !ok {
		var err error
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow),
			zstd.WithDecodeBuffersBelow(0))
		if err != nil {
			return nil, err
		}
	}
	defer zstdStreams.Put(d)
	if err := d.Reset(bytes.NewReader(stored)); err != nil {
		return nil, err
	}
	defer d.Reset(nil) //nolint:errcheck // it only lets go of stored
	got, err := io.ReadFull(d, dst[:n])
	return dst[:got], err
}

// gzipDecoder has the reader of its input with it, so that using it takes no
// allocation.
type gzipDecoder struct {
	in bytes.Reader
	gz gzip.Reader
}

// decodeGzip is decodeZstd for gzip.
func decodeGzip(stored, dst []byte, n int, proven bool) ([]byte, error) {
	d, ok := gzipDecoders.Get().(*gzipDecoder)
	if !ok {
		d = new(gzipDecoder)
	}
	defer gzipDecoders.Put(d)
	d.in.Reset(stored)
	defer d.in.Reset(nil)
	if err := d.gz.Reset(&d.in); err != nil {
		return nil, err
	}
	got, err := io.ReadFull(&d.gz, dst[:n])
	if err != nil || !proven {
		return dst[:got], err
	}
	// Only at its end does the reader check what it has read.
	var more [1]byte
	switch _, err := io.ReadFull(&d.gz, more[:]); {
	case errors.Is(err, io.EOF):
		return dst[:n], nil
	case err != nil:
		return nil, err
	}
	return nil, fmt.Errorf("more than %d plain bytes", n)
}

// VerifyChunks checks the decoded bytes of a group against the digests of the
// chunks that the tree has in it.
func VerifyChunks(t *chunkfmt.Tree, ref chunkfmt.GroupRef, plain []byte) error {
	first, last := chunksOf(t, ref)
	for i := first; i < last; i++ {
		if err := verifyChunk(&t.Chunks[i], plain); err != nil {
			return err
		}
	}
	return nil
}

func verifyChunk(c *chunkfmt.Chunk, plain []byte) error {
	p, err := slice(c, plain)
	if err != nil {
		return err
	}
	if got := chunkfmt.Sum(p); got != c.Digest {
		return fmt.Errorf("%w: chunk at plain byte %d has digest %s, want %s", ErrCorrupt, c.Offset, got, c.Digest)
	}
	return nil
}

// slice returns a chunk's part of its group.
func slice(c *chunkfmt.Chunk, plain []byte) ([]byte, error) {
	end := int64(c.Offset) + int64(c.Length)
	if end > int64(len(plain)) {
		return nil, fmt.Errorf("%w: chunk ends at plain byte %d of %d", chunkfmt.ErrInvalid, end, len(plain))
	}
	return plain[c.Offset:end], nil
}
