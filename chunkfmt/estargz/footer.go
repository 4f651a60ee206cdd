package estargz

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

const (
	// gzipFooter is the length of the footer of eStargz: an empty gzip member
	// whose extra field has the offset of the table.
	gzipFooter = 51
	// oldGzipFooter is that of stargz, whose extra field has no subfield.
	oldGzipFooter = 47
	// zstdFooter and oldZstdFooter are the lengths of the two footers of
	// zstd:chunked, each in a skippable frame.
	zstdFooter    = 64
	oldZstdFooter = 40
	// skippableHeader is the length of the header of a skippable frame.
	skippableHeader = 8

	// crfsTable is the only type of table that zstd:chunked has so far.
	crfsTable = 1
)

// zstdMagics end the footers of zstd:chunked; stargz-snapshotter wrote the
// second one for a while.
var zstdMagics = [][]byte{[]byte("GNUlInUx"), []byte("GnUlInUx")}

// locate finds the table of a layer, by the annotations or by the footer.
func locate(r io.ReaderAt, size int64, annotations map[string]string) (place, error) {
	for _, name := range []string{PositionAnnotation, oldPositionAnnotation} {
		if text, ok := annotations[name]; ok {
			at, err := parsePosition(text, size)
			if err != nil {
				return at, fmt.Errorf("annotation %s: %w", name, err)
			}
			return at, nil
		}
	}
	tail := make([]byte, min(size, zstdFooter+skippableHeader))
	if err := readAt(r, tail, size-int64(len(tail))); err != nil {
		return place{}, err
	}
	for _, magic := range zstdMagics {
		if bytes.HasSuffix(tail, magic) {
			return parseZstdFooter(tail, size)
		}
	}
	for _, n := range []int{gzipFooter, oldGzipFooter} {
		if len(tail) < n {
			continue
		}
		if offset, ok := parseGzipFooter(tail[len(tail)-n:]); ok {
			at := place{codec: chunkfmt.Gzip, offset: offset, length: size - int64(n) - offset, dataEnd: offset}
			return at, at.check(size)
		}
	}
	return place{}, ErrNoTable
}

// check tells whether the table lies in the layer.
func (at place) check(size int64) error {
	if at.offset < 0 || at.length <= 0 || at.plain < 0 || at.dataEnd < 0 || at.offset > size-at.length {
		return fmt.Errorf("%w: the table is said to be %d bytes at %d of %d", chunkfmt.ErrInvalid, at.length, at.offset, size)
	}
	return nil
}

func parsePosition(text string, size int64) (place, error) {
	fields := strings.Split(text, ":")
	if len(fields) != 4 {
		return place{}, fmt.Errorf("%w: %.80q has not four fields", chunkfmt.ErrInvalid, text)
	}
	var numbers [4]uint64
	for i, f := range fields {
		n, err := strconv.ParseUint(f, 10, 63)
		if err != nil {
			return place{}, fmt.Errorf("%w: %.80q: %w", chunkfmt.ErrInvalid, text, err)
		}
		numbers[i] = n
	}
	return zstdPlace(numbers, size)
}

func parseZstdFooter(tail []byte, size int64) (place, error) {
	for _, n := range []int{zstdFooter, oldZstdFooter} {
		header := []byte{0x50, 0x2a, 0x4d, 0x18, byte(n), 0, 0, 0} //nolint:gosec // G115: one of two constants
		at := len(tail) - n - skippableHeader
		if at < 0 || !bytes.Equal(tail[at:at+skippableHeader], header) {
			continue
		}
		var numbers [4]uint64
		for i := range numbers {
			numbers[i] = binary.LittleEndian.Uint64(tail[at+skippableHeader+8*i:])
		}
		return zstdPlace(numbers, size)
	}
	return place{}, fmt.Errorf("%w: zstd:chunked footer of an unknown size", ErrUnsupported)
}

// zstdPlace takes offset, length, plain length and type.
func zstdPlace(numbers [4]uint64, size int64) (place, error) {
	for _, n := range numbers {
		if n > math.MaxInt64 {
			return place{}, fmt.Errorf("%w: position %d", chunkfmt.ErrInvalid, n)
		}
	}
	if numbers[3] != crfsTable {
		return place{}, fmt.Errorf("%w: table of type %d", ErrUnsupported, numbers[3])
	}
	at := place{
		codec:  chunkfmt.Zstd,
		offset: int64(numbers[0]), //nolint:gosec // G115: checked above
		length: int64(numbers[1]), //nolint:gosec // G115: checked above
		plain:  int64(numbers[2]), //nolint:gosec // G115: checked above
	}
	at.dataEnd = at.offset - skippableHeader
	return at, at.check(size)
}

// parseGzipFooter returns the offset of the table, and false if p is no footer
// with one: layers whose table is elsewhere have another text in it.
func parseGzipFooter(p []byte) (int64, bool) {
	const extra = 22 // 16 digits and the text STARGZ
	if !bytes.HasPrefix(p, []byte{0x1f, 0x8b, 0x08, 0x04}) {
		return 0, false
	}
	field := p[12:]
	if len(p) == gzipFooter {
		if !bytes.Equal(field[:4], []byte{'S', 'G', extra, 0}) {
			return 0, false
		}
		field = field[4:]
	}
	if n := int(binary.LittleEndian.Uint16(p[10:])); n != extra+len(p)-oldGzipFooter || string(field[16:extra]) != "STARGZ" {
		return 0, false
	}
	offset, err := strconv.ParseUint(string(field[:16]), 16, 63)
	if err != nil {
		return 0, false
	}
	return int64(offset), true
}
