package fill

import (
	"slices"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// What is read ahead and what is read together is decided here, without I/O,
// time or locks.

const (
	// maxSequences bounds the readers of one device whose place is remembered.
	maxSequences = 32
	// slack is how far from the end of the last read the next one of a sequence
	// may begin, in bytes: the kernel's requests overtake each other, and leave
	// out what is in the page cache.
	// It is at least as much as the read has, up to maxSlack.
	slack    = 128 << 10
	maxSlack = 1 << 20
	// minSequence is how much must have been read in sequence before anything is
	// read ahead, in bytes.
	minSequence = 256 << 10
	// bridge is how many bytes of a blob are read for nothing rather than cut a
	// read in two.
	bridge = 64 << 10
	// maxRun bounds the stored bytes of one read of several groups.
	maxRun = 16 << 20
	// near is how many stored bytes may come before a group that a reader waits
	// for; at 1 Gbit/s they take 17 ms.
	near = 2 << 20
)

// sequence is a series of reads, each of which goes on where another ended.
type sequence struct {
	end    int64 // of what was read
	length int64 // read in sequence
	reads  int
	ahead  int64 // end of what was asked for
	used   uint64
}

// detector finds the sequences among the reads of a device.
type detector struct {
	sequences []sequence
	clock     uint64
}

// access takes note of a read of n bytes at off. It returns the part of the
// device to read ahead, from == to for nothing, which is at most limit bytes
// beyond the read.
func (d *detector) access(off, n, limit int64) (from, to int64) {
	d.clock++
	s := d.find(off, n)
	if s == nil {
		s = d.add()
		*s = sequence{end: off, ahead: off}
	}
	s.used = d.clock
	s.reads++
	s.length += max(off+n-s.end, 0)
	s.end = max(off+n, s.end)
	s.ahead = max(s.ahead, s.end)
	if s.reads < 2 || s.length < minSequence {
		return 0, 0
	}
	window := min(s.length, limit)
	to = s.end + window
	if to-s.ahead < window/2 { // few large reads rather than many small ones
		return 0, 0
	}
	from, s.ahead = s.ahead, to
	return from, to
}

// find returns the sequence that a read goes on with: the one whose end is
// nearest, if it is near enough.
func (d *detector) find(off, n int64) *sequence {
	var best *sequence
	distance := min(max(slack, n), maxSlack)
	for i := range d.sequences {
		s := &d.sequences[i]
		if apart := max(off-s.end, s.end-off); apart <= distance {
			best, distance = s, apart
		}
	}
	return best
}

// add returns a sequence to use anew: the one that was used least recently.
func (d *detector) add() *sequence {
	if len(d.sequences) < maxSequences {
		d.sequences = append(d.sequences, sequence{})
		return &d.sequences[len(d.sequences)-1]
	}
	oldest := &d.sequences[0]
	for i := range d.sequences {
		if s := &d.sequences[i]; s.used < oldest.used {
			oldest = s
		}
	}
	return oldest
}

// coalesce cuts distinct groups of a blob, in any order, into parts that are read
// at once: neighbours, and those with little between them, of at most limit
// stored bytes. The parts are in the order of the blob and use the memory of
// wanted.
func coalesce(groups []chunkfmt.Group, wanted []int, limit int64) [][]int {
	slices.Sort(wanted)
	var parts [][]int
	for first, i := 0, 1; i <= len(wanted); i++ {
		if i < len(wanted) {
			g := &groups[wanted[i]]
			gap := g.Offset - end(&groups[wanted[i-1]])
			if gap <= bridge && end(g)-groups[wanted[first]].Offset <= limit {
				continue
			}
		}
		parts = append(parts, wanted[first:i:i])
		first = i
	}
	return parts
}

// batch cuts the front off a list of groups that are wanted in this order: as
// many as have at most limit stored bytes, and at least one.
func batch(groups []chunkfmt.Group, wanted []int, limit int64) (front, rest []int) {
	var size int64
	for i, g := range wanted {
		if size += int64(groups[g].Stored); size > limit && i > 0 {
			return wanted[:i:i], wanted[i:]
		}
	}
	return wanted, nil
}

// end of a group in the blob.
func end(g *chunkfmt.Group) int64 { return g.Offset + int64(g.Stored) }

// place is where a read that is under way has come to, as seen by a reader that
// wants a group of it.
type place struct {
	background bool
	// at is the offset in the blob up to which bytes have come, begun whether
	// some of the wanted group's are among them.
	at    int64
	begun bool
}

// late reports whether a group had better be asked for by itself.
func late(p place, g *chunkfmt.Group) bool {
	switch {
	case p.begun:
		return false
	case p.background:
		return true
	}
	return g.Offset-p.at > near
}
