package chunkfmt

import (
	"encoding/binary"
	"fmt"
)

// The sections of a body, in their order: each needs only those before it.
// FORMAT.md describes them.
const (
	secCounts uint16 = 1 + iota
	secBlobs
	secChunks
	secRuns
	secAttrs
	secTargets
	secInodes
	secEntries
	secInline
)

const (
	sectionHeaderSize = 12
	// sectionIgnorable marks a section that a reader which does not know it
	// skips.
	sectionIgnorable uint16 = 1
)

// Flags of a blob in secBlobs.
const (
	blobExternal = 1 << iota
	blobUnproven

	blobFlags = blobExternal | blobUnproven
)

// counts are the lengths of the tables of an index: the content of secCounts,
// in this order. Those of Xattrs leave out set 0; chunks leaves out holes.
type counts struct {
	inodes, entries, attrs, xattrs, targets, runs  uint64
	holes, chunks, blobs, groups, segments, inline uint64
}

func (n *counts) fields() []*uint64 {
	return []*uint64{
		&n.inodes, &n.entries, &n.attrs, &n.xattrs, &n.targets, &n.runs,
		&n.holes, &n.chunks, &n.blobs, &n.groups, &n.segments, &n.inline,
	}
}

// invalid returns an error that wraps ErrInvalid.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// alignUp returns the first multiple of BlockSize that is not below n.
func alignUp(n int64) int64 { return (n + BlockSize - 1) &^ (BlockSize - 1) }

// zigzag puts numbers of small amount, of either sign, among the small ones.
func zigzag(v uint32) uint32   { return v<<1 ^ uint32(int32(v)>>31) } //nolint:gosec // two's complement on purpose
func unzigzag(v uint32) uint32 { return v>>1 ^ -(v & 1) }

// writer makes a body.
type writer struct {
	p []byte
	// content is where the content of the open section begins.
	content int
}

func (w *writer) begin(id uint16) {
	w.p = binary.LittleEndian.AppendUint16(w.p, id)
	w.p = binary.LittleEndian.AppendUint16(w.p, 0)
	w.p = binary.LittleEndian.AppendUint64(w.p, 0)
	w.content = len(w.p)
}

func (w *writer) end() {
	binary.LittleEndian.PutUint64(w.p[w.content-8:], uint64(len(w.p)-w.content)) //nolint:gosec // a length
}

func (w *writer) byte(b byte)      { w.p = append(w.p, b) }
func (w *writer) bytes(p []byte)   { w.p = append(w.p, p...) }
func (w *writer) string(s string)  { w.p = append(w.p, s...) }
func (w *writer) uvarint(v uint64) { w.p = binary.AppendUvarint(w.p, v) }
func (w *writer) varint(v int64)   { w.p = binary.AppendVarint(w.p, v) }

// reader reads one section. The first error sticks, and reads after it return
// zeros; loops are bounded by counts which room has checked.
type reader struct {
	section string
	p       []byte
	off     int
	err     error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = invalid("section %s, byte %d: %s", r.section, r.off, fmt.Sprintf(format, args...))
	}
	r.off = len(r.p)
}

func (r *reader) rest() int { return len(r.p) - r.off }

// room makes sure that the section can have n items of at least size bytes,
// before anything is allocated for them.
func (r *reader) room(n uint64, size int, what string) {
	if r.err == nil && n > uint64(r.rest()/size) { //nolint:gosec // rest is never negative
		r.fail("%d %s in %d bytes", n, what, r.rest())
	}
}

func (r *reader) byte() byte {
	if r.off >= len(r.p) {
		r.fail("the section ends too early")
		return 0
	}
	b := r.p[r.off]
	r.off++
	return b
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > r.rest() {
		r.fail("the section ends too early")
		return nil
	}
	p := r.p[r.off : r.off+n]
	r.off += n
	return p
}

func (r *reader) uvarint() uint64 {
	if r.off < len(r.p) && r.p[r.off] < 0x80 {
		v := r.p[r.off]
		r.off++
		return uint64(v)
	}
	return r.longUvarint()
}

func (r *reader) longUvarint() uint64 {
	v, n := binary.Uvarint(r.p[r.off:])
	switch {
	case n == 0:
		r.fail("the section ends too early")
		return 0
	case n < 0:
		r.fail("a number has more than 64 bits")
		return 0
	case r.p[r.off+n-1] == 0: // n is not 1: that is what uvarint handles
		r.fail("a number is longer than it needs to be")
		return 0
	}
	r.off += n
	return v
}

func (r *reader) varint() int64 {
	v := r.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

// below reads a number of at most limit.
func (r *reader) atMost(limit uint64) uint64 {
	v := r.uvarint()
	if v > limit {
		r.fail("%d is more than %d", v, limit)
		return 0
	}
	return v
}

func (r *reader) u32() uint32 { return uint32(r.atMost(1<<32 - 1)) } //nolint:gosec // bounded

// within reads a signed number of an amount of at most limit.
func (r *reader) within(limit int64) int64 {
	v := r.varint()
	if v > limit || v < -limit {
		r.fail("%d is out of range", v)
		return 0
	}
	return v
}

// digests fills a column of digests.
func (r *reader) digest(d *Digest) { copy(d[:], r.take(len(d))) }

// end reports the first error, and bytes that are left.
func (r *reader) end() error {
	if r.err == nil && r.rest() != 0 {
		r.fail("%d bytes too many", r.rest())
	}
	return r.err
}
