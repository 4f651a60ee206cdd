package frames

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// ErrTooLarge is wrapped by the error for a frame whose stored or plain bytes
// are more than a Reader's limits, or whose window is. Reader.Rest then gives
// the stream from that frame on.
var ErrTooLarge = errors.New("frame too large")

// ErrFormat is wrapped by the errors about a stream that is not of its format.
var ErrFormat = errors.New("invalid compressed stream")

// readAhead is how many bytes may be read beyond the end of a frame.
const readAhead = 64 << 10

// Frame is one gzip member or one zstd frame.
type Frame struct {
	// Offset of the first stored byte in the stream.
	Offset int64
	// Stored is the frame as it is in the stream. Valid until the next Next.
	Stored []byte
	// Plain is what the frame decodes to; empty for skippable zstd frames.
	// Valid until the next Next.
	Plain []byte
}

// Digest computes the SHA-256 of the stored bytes.
func (f *Frame) Digest() chunkfmt.Digest { return chunkfmt.Sum(f.Stored) }

// Reader splits a compressed stream into its frames.
type Reader struct {
	format    Format
	maxPlain  int
	maxStored int

	src    *capture
	br     *bufio.Reader
	gz     *gzip.Reader
	zd     *zstd.Decoder
	plain  []byte
	last   int // stored bytes of the frame that Next returned last
	offset int64
	err    error
}

// NewReader returns a Reader of the frames of r, which begins at a frame. A
// frame may have at most maxPlain decoded and maxStored stored bytes. It fails
// for the format Tar, which has no frames, and limits below 1.
func NewReader(r io.Reader, f Format, maxPlain, maxStored int) (*Reader, error) {
	if maxPlain < 1 || maxStored < 1 {
		return nil, fmt.Errorf("limits of %d plain and %d stored bytes are not positive", maxPlain, maxStored)
	}
	fr := &Reader{format: f, maxPlain: maxPlain, maxStored: maxStored}
	fr.src = &capture{r: r, limit: maxStored + readAhead}
	fr.br = bufio.NewReaderSize(fr.src, readAhead)
	switch f {
	case Gzip:
		fr.gz = new(gzip.Reader)
	case Zstd:
		zd, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return nil, fmt.Errorf("making a zstd decoder: %w", err)
		}
		fr.zd = zd
	default:
		return nil, fmt.Errorf("a %s stream has no frames", f)
	}
	return fr, nil
}

// Next returns the next frame, and io.EOF after the last. The frame's slices
// are reused by the next call. After an error every call returns it again.
func (r *Reader) Next() (Frame, error) {
	if r.err != nil {
		return Frame{}, r.err
	}
	r.src.start += r.last
	r.offset += int64(r.last)
	r.last = 0
	f, err := r.next()
	if err != nil {
		r.err = r.explain(err)
		return Frame{}, r.err
	}
	r.last = len(f.Stored)
	return f, nil
}

func (r *Reader) next() (Frame, error) {
	if _, err := r.br.Peek(1); err != nil {
		return Frame{}, err
	}
	decode := r.nextGzip
	if r.format == Zstd {
		decode = r.nextZstd
	}
	if err := decode(); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	stored := r.stored()
	if len(stored) > r.maxStored {
		return Frame{}, ErrTooLarge
	}
	return Frame{Offset: r.offset, Stored: stored, Plain: r.plain}, nil
}

// stored returns the bytes of the current frame that were consumed.
func (r *Reader) stored() []byte { return r.src.upTo(r.br.Buffered()) }

// explain adds to an error of next where and why it happened.
func (r *Reader) explain(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return io.EOF
	case r.src.full || errors.Is(err, ErrTooLarge):
		return fmt.Errorf("%s frame at byte %d: %w: more than %d plain or %d stored bytes",
			r.format, r.offset, ErrTooLarge, r.maxPlain, r.maxStored)
	case errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || isFlate(err):
		err = fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return fmt.Errorf("%s frame at byte %d: %w", r.format, r.offset, err)
}

// nextGzip decodes one member into r.plain. The gzip reader takes a
// *bufio.Reader as it is and does not read beyond the member's last byte.
func (r *Reader) nextGzip() error {
	if err := r.gz.Reset(r.br); err != nil {
		return err
	}
	r.gz.Multistream(false)
	r.plain = r.plain[:0]
	for {
		if len(r.plain) == cap(r.plain) {
			r.plain = grow(r.plain, r.maxPlain+1)
		}
		n, err := r.gz.Read(r.plain[len(r.plain):cap(r.plain)])
		r.plain = r.plain[:len(r.plain)+n]
		if len(r.plain) > r.maxPlain {
			return ErrTooLarge
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// grow returns p with more capacity, though never more than most.
func grow(p []byte, most int) []byte {
	size := min(max(2*cap(p), readAhead), most)
	return append(make([]byte, 0, size), p...)
}

// Rest returns the stored stream from the frame on that Next failed at, or, if
// it did not fail, from the one that it would return next. The Reader must not
// be used after it.
func (r *Reader) Rest() io.Reader {
	kept := r.src.buf[r.src.start+r.last:]
	r.err = errors.New("the rest of the stream was taken")
	return io.MultiReader(bytes.NewReader(kept), r.src.r)
}
