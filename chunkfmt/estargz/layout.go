package estargz

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"maps"
	"slices"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// maxHole is how long a chunk of zeros is at most; longer ones are cut.
const maxHole = 1 << 20

// maxPieces bounds the chunks of all files together, repeated ones included.
const maxPieces = 4 << 20

// layout is what is known of the blob: its members with content, in order.
type layout struct {
	members []member
	// end is where the members with content end.
	end int64
	// device is the length of the device so far.
	device int64
	// holes has, by length, the chunks of zeros.
	holes  map[uint32]uint32
	pieces int
}

// member is a stretch of the blob that is decoded from its first byte on.
type member struct {
	offset int64
	// end is 0 while it is only known that the next member begins after it.
	end int64
	// plain is how many decoded bytes are used by the tree, and taken how many
	// the pieces so far have, landmarks and zeros included.
	plain, taken int64
	segments     []chunkfmt.Segment
}

// file is the regular file whose pieces are being added.
type file struct {
	// entry is nil between files.
	entry *entry
	// node is nil for a file that is not in the tree.
	node *chunkfmt.Node
	// done is how many bytes the pieces so far have.
	done int64
	// device is where the file begins.
	device int64
}

// begin takes the first entry of a regular file.
func (b *builder) begin(e *entry, n *chunkfmt.Node) error {
	if e.Size < 0 || e.Size > chunkfmt.MaxFileSize-b.device {
		return fmt.Errorf("%w: the files have more than %d bytes", ErrUnsupported, int64(chunkfmt.MaxFileSize))
	}
	b.file = file{entry: e, node: n, device: b.device}
	if e.Size == 0 {
		return nil
	}
	return b.addPiece(e)
}

// finish ends the file that is being added, if any.
func (b *builder) finish() error {
	f := b.file
	b.file = file{}
	if f.entry == nil {
		return nil
	}
	if f.done != f.entry.Size {
		return fmt.Errorf("%w: %.200q has %d bytes in chunks, not %d", chunkfmt.ErrInvalid, f.entry.Name, f.done, f.entry.Size)
	}
	if f.node != nil {
		b.device = align(f.device + f.entry.Size)
	}
	if f.entry.EndOffset == 0 || f.done == 0 {
		return nil
	}
	last := &b.members[len(b.members)-1]
	if f.entry.EndOffset <= last.offset || f.entry.EndOffset > b.end {
		return fmt.Errorf("%w: %.200q ends at byte %d of the layer", chunkfmt.ErrInvalid, f.entry.Name, f.entry.EndOffset)
	}
	last.end = f.entry.EndOffset
	return nil
}

// addPiece takes an entry with content of the current file.
func (b *builder) addPiece(e *entry) error {
	f := &b.file
	if f.entry == nil {
		return fmt.Errorf("%w: a chunk without a file", chunkfmt.ErrInvalid)
	}
	length := e.ChunkSize
	rest := f.entry.Size - f.done
	if length == 0 || e == f.entry && length > rest {
		length = rest
	}
	if e.ChunkOffset != f.done || length <= 0 || length > rest {
		return fmt.Errorf("%w: chunk of %d bytes at %d, while %d of %d bytes are there",
			chunkfmt.ErrInvalid, e.ChunkSize, e.ChunkOffset, f.done, f.entry.Size)
	}
	m, err := b.member(e)
	if err != nil {
		return err
	}
	f.done += length
	m.taken = e.InnerOffset + length
	if f.node == nil {
		return nil
	}
	// Zeros that fill no block share theirs with data, which has to be fetched
	// anyway; the blob has them, too.
	if e.ChunkType == "zeros" && (length >= 2*chunkfmt.BlockSize || e.ChunkDigest == "") {
		return b.addHole(length)
	}
	return b.addData(m, e, length)
}

// member returns the member that an entry's content lies in.
func (b *builder) member(e *entry) (*member, error) {
	var last *member
	if len(b.members) > 0 {
		last = &b.members[len(b.members)-1]
	}
	switch {
	case e.Offset < 0 || e.Offset >= b.end || e.InnerOffset < 0 || e.Offset+e.InnerOffset == 0:
		return nil, fmt.Errorf("%w: content at byte %d + %d of the layer, which has content up to %d",
			chunkfmt.ErrInvalid, e.Offset, e.InnerOffset, b.end)
	case last != nil && (e.Offset < last.offset || e.Offset < last.end):
		return nil, fmt.Errorf("%w: content at byte %d of the layer follows content at %d", chunkfmt.ErrInvalid, e.Offset, last.offset)
	case last != nil && e.Offset == last.offset:
		if e.InnerOffset < last.taken {
			return nil, fmt.Errorf("%w: content at byte %d + %d of the layer overlaps another", chunkfmt.ErrInvalid, e.Offset, e.InnerOffset)
		}
		return last, nil
	}
	b.members = append(b.members, member{offset: e.Offset})
	return &b.members[len(b.members)-1], nil
}

// addData places a chunk that is in the blob.
func (b *builder) addData(m *member, e *entry, length int64) error {
	f := &b.file
	if e.InnerOffset > chunkfmt.MaxGroupPlain || length > chunkfmt.MaxGroupPlain-e.InnerOffset {
		return fmt.Errorf("%w: %d bytes at %d in a member, at most %d", ErrUnsupported, length, e.InnerOffset, chunkfmt.MaxGroupPlain)
	}
	text := e.ChunkDigest
	if text == "" && length == f.entry.Size {
		text = e.Digest
	}
	if text == "" {
		return fmt.Errorf("%w: a chunk without a digest", ErrUnsupported)
	}
	digest, err := chunkfmt.ParseDigest(text)
	if err != nil {
		return fmt.Errorf("%w: %w", chunkfmt.ErrInvalid, err)
	}
	chunk := chunkfmt.Chunk{
		Group:  uint32(len(b.members) - 1), //nolint:gosec // G115: bounded by the entries; tile makes it the group
		Offset: uint32(e.InnerOffset),      //nolint:gosec // G115: at most MaxGroupPlain
		Length: uint32(length),             //nolint:gosec // G115: at most MaxGroupPlain
		Digest: digest,
	}
	m.plain = e.InnerOffset + length
	m.segments = append(m.segments, chunkfmt.Segment{
		Offset: chunk.Offset, Length: chunk.Length, Device: f.device + e.ChunkOffset,
	})
	b.chunks = append(b.chunks, chunk)
	return b.use(uint32(len(b.chunks) - 1)) //nolint:gosec // G115: bounded by the entries
}

// addHole adds zeros that no group holds.
func (b *builder) addHole(length int64) error {
	for length > 0 {
		n := uint32(min(length, maxHole))
		at, ok := b.holes[n]
		if !ok {
			at = uint32(len(b.chunks)) //nolint:gosec // G115: bounded by the entries
			b.holes[n] = at
			b.chunks = append(b.chunks, chunkfmt.Chunk{Blob: chunkfmt.Hole, Length: n})
		}
		if err := b.use(at); err != nil {
			return err
		}
		length -= int64(n)
	}
	return nil
}

// use adds a chunk to the current file.
func (b *builder) use(chunk uint32) error {
	if b.pieces++; b.pieces > maxPieces {
		return fmt.Errorf("%w: more than %d chunks", ErrUnsupported, maxPieces)
	}
	b.file.node.Chunks = append(b.file.node.Chunks, chunk)
	return nil
}

// hashHoles computes the digests of all lengths of zeros in one pass: hashing
// each by itself would let a table ask for a terabyte of zeros.
func (b *builder) hashHoles() {
	var zeros [4096]byte
	h, done := sha256.New(), uint32(0)
	for _, length := range slices.Sorted(maps.Keys(b.holes)) {
		for done < length {
			n := min(length-done, 4096)
			h.Write(zeros[:n])
			done += n
		}
		sum(h, &b.chunks[b.holes[length]].Digest)
	}
}

func sum(h hash.Hash, to *chunkfmt.Digest) { h.Sum(to[:0]) }

// tile returns groups that cover the whole blob, and turns the chunks' members
// into groups.
func (b *builder) tile(codec chunkfmt.Codec, size int64) []chunkfmt.Group {
	var groups []chunkfmt.Group
	numbers := make([]uint32, len(b.members))
	at := int64(0)
	fill := func(to int64) {
		for at < to {
			n := min(to-at, chunkfmt.MaxGroupStored)
			groups = append(groups, chunkfmt.Group{Offset: at, Stored: uint32(n), Codec: chunkfmt.Filler}) //nolint:gosec // G115: at most MaxGroupStored
			at += n
		}
	}
	for i, m := range b.members {
		if len(m.segments) == 0 {
			continue
		}
		fill(m.offset)
		end := m.end
		if end == 0 && i+1 < len(b.members) {
			end = b.members[i+1].offset
		} else if end == 0 {
			end = b.end
		}
		// What is used of a member cannot need more than this; what follows
		// it are headers.
		stored := min(end-at, chunkfmt.MaxGroupStored)
		numbers[i] = uint32(len(groups)) //nolint:gosec // G115: bounded by the entries
		groups = append(groups, chunkfmt.Group{
			Offset: at, Stored: uint32(stored), Plain: uint32(m.plain), //nolint:gosec // G115: bounded by MaxGroupStored
			Codec: codec, Segments: m.segments,
		})
		at += stored
	}
	fill(size)
	for i := range b.chunks {
		if c := &b.chunks[i]; c.Blob != chunkfmt.Hole {
			c.Group = numbers[c.Group]
		}
	}
	return groups
}

func align(n int64) int64 { return (n + chunkfmt.BlockSize - 1) &^ (chunkfmt.BlockSize - 1) }
