package merkle

import (
	"encoding/binary"
	"math/bits"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// First bytes of what is hashed, so that nothing of one sort can be taken for
// one of another: leaves and inner nodes as in RFC 6962.
const (
	prefixLeaf  = 0x00
	prefixInner = 0x01
	prefixNode  = 0x02
)

// Second bytes of leaves.
const (
	leafChunk = 'c'
	leafEntry = 'e'
)

func inner(l, r chunkfmt.Digest) chunkfmt.Digest {
	var p [1 + 2*len(l)]byte
	p[0] = prefixInner
	copy(p[1:], l[:])
	copy(p[1+len(l):], r[:])
	return chunkfmt.Sum(p[:])
}

// hashTree computes the root of a binary hash tree from its leaves' digests,
// one after another: all left subtrees are full, as in RFC 6962.
type hashTree struct {
	// full has the roots of full subtrees of falling sizes: the ones in n.
	full []chunkfmt.Digest
	n    uint64
}

func (t *hashTree) reset() { t.full, t.n = t.full[:0], 0 }

func (t *hashTree) add(leaf chunkfmt.Digest) {
	for range bits.TrailingZeros64(^t.n) {
		last := len(t.full) - 1
		leaf = inner(t.full[last], leaf)
		t.full = t.full[:last]
	}
	t.full = append(t.full, leaf)
	t.n++
}

// root returns the root of the leaves so far; of none, the digest of nothing.
func (t *hashTree) root() chunkfmt.Digest {
	if t.n == 0 {
		return chunkfmt.Sum(nil)
	}
	root := t.full[len(t.full)-1]
	for i := len(t.full) - 2; i >= 0; i-- {
		root = inner(t.full[i], root)
	}
	return root
}

// Leaf is a leaf of a file's hash tree: Count chunks of the same content that
// follow each other.
type Leaf struct {
	// Offset in bytes in the file of the first chunk.
	Offset int64
	// Length in bytes of each chunk.
	Length uint32
	Count  uint64
	// Digest of each chunk's plain bytes.
	Digest chunkfmt.Digest
}

// leafSize is the length of a Leaf's encoding.
const leafSize = 8 + 4 + 8 + 32

func (l *Leaf) end() int64 {
	return l.Offset + int64(l.Length)*int64(l.Count) //nolint:gosec // bounded by the file's size where it is read
}

func (l *Leaf) append(p []byte) []byte {
	p = binary.BigEndian.AppendUint64(p, uint64(l.Offset)) //nolint:gosec // two's complement
	p = binary.BigEndian.AppendUint32(p, l.Length)
	p = binary.BigEndian.AppendUint64(p, l.Count)
	return append(p, l.Digest[:]...)
}

func (l *Leaf) hash() chunkfmt.Digest {
	var p [2 + leafSize]byte
	p[0], p[1] = prefixLeaf, leafChunk
	l.append(p[:2])
	return chunkfmt.Sum(p[:])
}

// entryHash returns the leaf of a directory's hash tree. The digest has a fixed
// length, so that the name needs none.
func entryHash(scratch []byte, name string, d *chunkfmt.Digest) (chunkfmt.Digest, []byte) {
	scratch = append(scratch[:0], prefixLeaf, leafEntry)
	scratch = append(scratch, name...)
	scratch = append(scratch, d[:]...)
	return chunkfmt.Sum(scratch), scratch
}
