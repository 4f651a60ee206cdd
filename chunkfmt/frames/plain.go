package frames

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the window, and with it the memory, of a zstd stream: what
// the zstd command accepts when it is not told otherwise.
const maxWindow = 128 << 20

// Open returns the plain bytes of r, whose format it detects. See
// NewPlainReader.
func Open(r io.Reader) (io.ReadCloser, Format, error) {
	br, ok := r.(*bufio.Reader)
	if !ok {
		br = bufio.NewReaderSize(r, readAhead)
	}
	f, err := Detect(br)
	if err != nil {
		return nil, f, err
	}
	plain, err := NewPlainReader(br, f)
	return plain, f, err
}

// NewPlainReader returns the plain bytes of all frames of r. It may read ahead
// of what it returns. A stream that ends inside a frame gives
// io.ErrUnexpectedEOF, and one with something else behind the last frame an
// error. Close frees the decoder and leaves r alone; the reader starts no
// goroutines.
func NewPlainReader(r io.Reader, f Format) (io.ReadCloser, error) {
	switch f {
	case Tar:
		return io.NopCloser(r), nil
	case Gzip:
		br, ok := r.(*bufio.Reader)
		if !ok {
			br = bufio.NewReaderSize(r, readAhead)
		}
		m := &members{br: br}
		return m, m.open()
	case Zstd:
		zd, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("opening a zstd stream: %w", err)
		}
		return zd.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("no reader for %s", f)
}

// members reads gzip members one after the other. The gzip reader's own way of
// doing so takes a stream that ends in a later member's header for a whole one.
type members struct {
	br *bufio.Reader
	gz gzip.Reader
}

// open begins the next member.
func (m *members) open() error {
	if err := m.gz.Reset(m.br); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("opening a gzip member: %w", err)
	}
	m.gz.Multistream(false)
	return nil
}

func (m *members) Read(p []byte) (int, error) {
	for {
		n, err := m.gz.Read(p)
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		if _, end := m.br.Peek(1); end != nil {
			return n, end
		}
		if err := m.open(); err != nil {
			return n, err
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
}

func (m *members) Close() error { return m.gz.Close() }
