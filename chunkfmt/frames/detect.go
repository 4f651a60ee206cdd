package frames

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Format is how a layer is compressed.
type Format uint8

// The formats.
const (
	// Tar is a stream that is not compressed.
	Tar Format = iota
	// Gzip is a stream of gzip members.
	Gzip
	// Zstd is a stream of zstd frames.
	Zstd
)

// String returns the suffix that media types use: "tar", "gzip" or "zstd".
func (f Format) String() string {
	switch f {
	case Tar:
		return "tar"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("format %d", uint8(f))
}

var (
	gzipMagic = []byte{0x1f, 0x8b, 0x08}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	// skippableMagic is the end of the magic of skippable zstd frames; the
	// first byte is 0x50 to 0x5f.
	skippableMagic = []byte{0x2a, 0x4d, 0x18}
)

// Detect tells the format from the first bytes of r, which stay unread. What
// has no known magic is Tar, an empty stream too: it is for the tar reader to
// judge. Errors are those of r.
func Detect(r *bufio.Reader) (Format, error) {
	head, err := r.Peek(len(zstdMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return Tar, fmt.Errorf("detecting the compression: %w", err)
	}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		return Gzip, nil
	case bytes.Equal(head, zstdMagic), isSkippable(head):
		return Zstd, nil
	}
	return Tar, nil
}

func isSkippable(magic []byte) bool {
	return len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], skippableMagic)
}
