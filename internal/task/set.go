package task

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"
)

// Set is a set of piece numbers, one bit each, piece 0 in the lowest bit of
// the first word. The zero value is empty; a Set made by NewSet does not grow.
// It is not safe for concurrent use.
type Set []uint64

// NewSet returns an empty set with room for the pieces [0, n).
func NewSet(n int) Set { return make(Set, (n+63)/64) }

// FullSet returns the set of all pieces in [0, n).
func FullSet(n int) Set {
	s := NewSet(n)
	s.AddRange(0, n)
	return s
}

// Add puts piece i into the set, which must have room for it.
func (s Set) Add(i int) { s[i/64] |= 1 << (i % 64) }

// AddRange puts the pieces [first, end) into the set.
func (s Set) AddRange(first, end int) {
	for first < end {
		// Whole words at a time: ranges come from the network and may be long.
		in, n := first%64, min(64-first%64, end-first)
		s[first/64] |= ^uint64(0) >> (64 - n) << in
		first += n
	}
}

// Remove takes piece i out of the set; pieces beyond its room are not in it.
func (s Set) Remove(i int) {
	if w := i / 64; i >= 0 && w < len(s) {
		s[w] &^= 1 << (i % 64)
	}
}

// Has reports whether piece i is in the set; pieces beyond its room are not.
func (s Set) Has(i int) bool {
	w := i / 64
	return i >= 0 && w < len(s) && s[w]&(1<<(i%64)) != 0
}

// Len returns the number of pieces in the set.
func (s Set) Len() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// All yields the pieces in ascending order.
func (s Set) All() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i, w := range s {
			for ; w != 0; w &= w - 1 {
				if !yield(i*64 + bits.TrailingZeros64(w)) {
					return
				}
			}
		}
	}
}

// Clone returns an independent copy.
func (s Set) Clone() Set { return append(Set(nil), s...) }

// Bytes returns the set in its wire form: little-endian 64-bit words.
func (s Set) Bytes() []byte {
	b := make([]byte, 0, 8*len(s))
	for _, w := range s {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

// ParseSet reads the wire form of a set for a task of n pieces. A set of
// another size, or with a piece at or beyond n, is refused.
func ParseSet(b []byte, n int) (Set, error) {
	s := NewSet(n)
	if len(b) != 8*len(s) {
		return nil, fmt.Errorf("piece set of %d bytes for %d pieces: want %d", len(b), n, 8*len(s))
	}
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	if n%64 != 0 && s[len(s)-1]>>(n%64) != 0 {
		return nil, fmt.Errorf("piece set has pieces beyond the last of %d", n)
	}
	return s, nil
}
