package task

import (
	"errors"
	"fmt"
	"sort"
)

// ErrInvalidTable is returned by Table.Validate.
var ErrInvalidTable = errors.New("invalid piece table")

// Bounds on piece tables, enforced by Table.Validate because tables arrive
// from the network and size allocations.
const (
	// MaxPieces bounds the pieces of a task with a variable table (one piece
	// per chunkfmt group). Uniform tables stay at or below MaxUniformPieces.
	MaxPieces = 1 << 20
	// MaxUniformPieces bounds the pieces of a uniform table.
	MaxUniformPieces = 4096
	// MaxPieceSize bounds one piece, in bytes.
	MaxPieceSize = 1 << 32

	minPieceSize  = 64 << 10
	basePieceSize = 1 << 20
	// smallPieces is the least number of pieces a task smaller than
	// smallPieces × basePieceSize is cut into, so that many nodes can pass on
	// parts of it before any has the whole: with one piece, a 1 MiB object
	// crosses a cluster by doubling, one transfer time per step.
	smallPieces = 128
)

// Table divides a task's content into pieces. Piece i is the bytes
// [Ends[i-1], Ends[i]) of a variable table, or [i·PieceSize, (i+1)·PieceSize)
// cut at Length of a uniform one. An empty task has no pieces.
type Table struct {
	// Length of the content in bytes.
	Length int64
	// PieceSize in bytes of every piece but the last; 0 in a variable table.
	PieceSize int64
	// Ends are the exclusive, ascending end offsets of a variable table; nil
	// in a uniform one.
	Ends []int64
}

// Uniform returns the table for content of the given length without structure
// of its own: pieces of 1 MiB, doubled until there are at most 4,096; below
// 128 MiB halved instead, down to 64 KiB, until there are at least 128. The
// table of a length beyond 16 TiB does not pass Validate.
func Uniform(length int64) Table {
	size := int64(basePieceSize)
	for size > minPieceSize && length < size*smallPieces {
		size /= 2
	}
	// No origin's word on a length may make this overflow: what needs larger
	// pieces than there may be is left to Validate.
	for size <= MaxPieceSize && length > size*MaxUniformPieces {
		size *= 2
	}
	return Table{Length: length, PieceSize: size}
}

// Variable returns a table with the given exclusive end offsets.
func Variable(ends []int64) Table {
	t := Table{Ends: ends}
	if len(ends) > 0 {
		t.Length = ends[len(ends)-1]
	}
	return t
}

// Validate reports a table that breaks its own rules or the package's bounds.
func (t Table) Validate() error {
	switch {
	case t.Length < 0:
		return fmt.Errorf("%w: length %d", ErrInvalidTable, t.Length)
	case t.Ends != nil && t.PieceSize != 0:
		return fmt.Errorf("%w: both uniform and variable", ErrInvalidTable)
	case t.Ends != nil:
		return t.validateEnds()
	case t.PieceSize <= 0 || t.PieceSize > MaxPieceSize:
		return fmt.Errorf("%w: piece size %d", ErrInvalidTable, t.PieceSize)
	case (t.Length-1)/t.PieceSize >= MaxUniformPieces:
		return fmt.Errorf("%w: %d bytes in pieces of %d are more than %d pieces", ErrInvalidTable, t.Length, t.PieceSize, MaxUniformPieces)
	}
	return nil
}

func (t Table) validateEnds() error {
	if len(t.Ends) > MaxPieces {
		return fmt.Errorf("%w: %d pieces, at most %d", ErrInvalidTable, len(t.Ends), MaxPieces)
	}
	last := int64(0)
	for i, end := range t.Ends {
		if end <= last || end-last > MaxPieceSize {
			return fmt.Errorf("%w: piece %d spans [%d, %d)", ErrInvalidTable, i, last, end)
		}
		last = end
	}
	if last != t.Length {
		return fmt.Errorf("%w: pieces end at %d of %d", ErrInvalidTable, last, t.Length)
	}
	return nil
}

// Count returns the number of pieces.
func (t Table) Count() int {
	if t.Ends != nil {
		return len(t.Ends)
	}
	if t.PieceSize <= 0 {
		return 0
	}
	return int((t.Length + t.PieceSize - 1) / t.PieceSize)
}

// Piece returns offset and length of piece i, which must be in [0, Count()).
func (t Table) Piece(i int) (off, n int64) {
	if t.Ends != nil {
		if i > 0 {
			off = t.Ends[i-1]
		}
		return off, t.Ends[i] - off
	}
	off = int64(i) * t.PieceSize
	return off, min(t.PieceSize, t.Length-off)
}

// Index returns the piece that holds the byte at off, which must be in
// [0, Length).
func (t Table) Index(off int64) int {
	if t.Ends != nil {
		return sort.Search(len(t.Ends), func(i int) bool { return t.Ends[i] > off })
	}
	return int(off / t.PieceSize)
}

// Span returns the pieces [first, end) that cover the n bytes at off. The
// range is cut at Length; an empty range gives first == end.
func (t Table) Span(off, n int64) (first, end int) {
	if off < 0 || n <= 0 || off >= t.Length {
		return 0, 0
	}
	last := t.Length - 1
	if n < t.Length-off {
		last = off + n - 1
	}
	return t.Index(off), t.Index(last) + 1
}

// Equal reports whether both tables cut the same content the same way.
func (t Table) Equal(o Table) bool {
	if t.Length != o.Length || t.PieceSize != o.PieceSize || len(t.Ends) != len(o.Ends) {
		return false
	}
	for i, end := range t.Ends {
		if o.Ends[i] != end {
			return false
		}
	}
	return true
}
