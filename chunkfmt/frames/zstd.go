package frames

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// maxBlock is the largest size of a zstd block, stored or plain (RFC 8878,
// section 3.1.1.2.4).
const maxBlock = 128 << 10

// decodeSlack lets the decoder use its fast copies up to a frame's last byte,
// and lets the block that exceeds the limit be decoded before it is refused.
const decodeSlack = maxBlock + 64

// nextZstd decodes one frame into r.plain. The decoder cannot tell where a
// frame ended, so that the frame is walked first.
func (r *Reader) nextZstd() error {
	var magic [4]byte
	if _, err := io.ReadFull(r.br, magic[:]); err != nil {
		return err
	}
	r.plain = r.plain[:0]
	if isSkippable(magic[:]) {
		return r.walkSkippable()
	}
	if string(magic[:]) != string(zstdMagic) {
		return fmt.Errorf("%w: no zstd frame begins with %x", ErrFormat, magic)
	}
	bound, err := r.walkFrame()
	if err != nil {
		return err
	}
	if need := min(bound, r.maxPlain) + decodeSlack; cap(r.plain) < need {
		r.plain = make([]byte, 0, need)
	}
	plain, err := r.zd.DecodeAll(r.stored(), r.plain[:0])
	switch {
	case len(plain) > r.maxPlain,
		errors.Is(err, zstd.ErrDecoderSizeExceeded), errors.Is(err, zstd.ErrWindowSizeExceeded):
		return ErrTooLarge
	case err != nil:
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	r.plain = plain
	return nil
}

func (r *Reader) walkSkippable() error {
	var size [4]byte
	if _, err := io.ReadFull(r.br, size[:]); err != nil {
		return err
	}
	return r.discard(int64(binary.LittleEndian.Uint32(size[:])))
}

// walkFrame reads to the end of a frame whose magic has been read, and returns
// a bound of its plain bytes.
func (r *Reader) walkFrame() (int, error) {
	size, known, checksum, err := r.frameHeader()
	if err != nil {
		return 0, err
	}
	if known && size > uint64(r.maxPlain) { //nolint:gosec // G115: positive, as NewReader checked
		return 0, ErrTooLarge
	}
	blocks, err := r.walkBlocks()
	if err != nil {
		return 0, err
	}
	if checksum {
		if err := r.discard(4); err != nil {
			return 0, err
		}
	}
	if known {
		return int(size), nil //nolint:gosec // G115: at most maxPlain
	}
	return blocks, nil
}

// frameHeader reads what follows the magic (RFC 8878, section 3.1.1.1): the
// size of the content, when it is known, and whether a checksum follows.
func (r *Reader) frameHeader() (size uint64, known, checksum bool, err error) {
	descriptor, err := r.br.ReadByte()
	if err != nil {
		return 0, false, false, err
	}
	single := descriptor&0x20 != 0
	skip := [4]int64{0, 1, 2, 4}[descriptor&3] // dictionary number
	if !single {
		skip++ // window
	}
	if err := r.discard(skip); err != nil {
		return 0, false, false, err
	}
	n := [4]int{0, 2, 4, 8}[descriptor>>6]
	if n == 0 && single {
		n = 1
	}
	var field [8]byte
	if _, err := io.ReadFull(r.br, field[:n]); err != nil {
		return 0, false, false, err
	}
	size = binary.LittleEndian.Uint64(field[:])
	if n == 2 {
		size += 256
	}
	return size, n > 0, descriptor&4 != 0, nil
}

// walkBlocks reads the blocks of a frame and returns a bound of their plain
// bytes.
func (r *Reader) walkBlocks() (int, error) {
	bound, certain := 0, 0
	for {
		var head [3]byte
		if _, err := io.ReadFull(r.br, head[:]); err != nil {
			return 0, err
		}
		h := int(head[0]) | int(head[1])<<8 | int(head[2])<<16
		size, stored := h>>3, h>>3
		if size > maxBlock {
			return 0, fmt.Errorf("%w: zstd block of %d bytes", ErrFormat, size)
		}
		switch h >> 1 & 3 {
		case 0: // raw
			certain += size
		case 1: // one byte, repeated
			certain += size
			stored = 1
		case 2: // compressed
			size = maxBlock
		default:
			return 0, fmt.Errorf("%w: zstd block of the reserved type", ErrFormat)
		}
		if certain > r.maxPlain {
			return 0, ErrTooLarge
		}
		bound = min(bound+size, r.maxPlain)
		if err := r.discard(int64(stored)); err != nil {
			return 0, err
		}
		if h&1 != 0 {
			return bound, nil
		}
	}
}

// discard consumes n bytes.
func (r *Reader) discard(n int64) error {
	for n > 0 {
		d, err := r.br.Discard(int(min(n, readAhead)))
		if err != nil {
			return err
		}
		n -= int64(d)
	}
	return nil
}

// isFlate reports an error of the deflate decoder about its input.
func isFlate(err error) bool {
	var corrupt flate.CorruptInputError
	return errors.As(err, &corrupt)
}
