package erofs

import (
	"fmt"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// unplaced is the address of a chunk that is on no device.
const unplaced = -1

// chunkMap says where the chunks of a tree lie.
type chunkMap struct {
	t *chunkfmt.Tree
	// at is a chunk's address in its device, in bytes.
	at []int64
	// next is the first chunk behind another that does not lie right after the
	// one before it.
	next []uint32
	// primary means that all chunks lie in the image itself.
	primary bool
}

// mapDevices places chunks on the devices of their blobs.
func mapDevices(t *chunkfmt.Tree) *chunkMap {
	m := &chunkMap{t: t, at: make([]int64, len(t.Chunks))}
	for i := range t.Chunks {
		m.at[i] = deviceOffset(t, &t.Chunks[i])
	}
	m.link()
	return m
}

func deviceOffset(t *chunkfmt.Tree, c *chunkfmt.Chunk) int64 {
	if c.Blob == chunkfmt.Hole {
		return 0
	}
	if !hasGroup(t, c) {
		return unplaced
	}
	if at, ok := t.DeviceOffset(c); ok {
		return at
	}
	return unplaced
}

// hasGroup reports whether the tree says what a chunk's group is. It does not
// if the blob is External.
func hasGroup(t *chunkfmt.Tree, c *chunkfmt.Chunk) bool {
	return int(c.Blob) < len(t.Blobs) && int(c.Group) < len(t.Blobs[c.Blob].Groups)
}

// link fills next. With it, a run of any length is one step (of extents).
func (m *chunkMap) link() {
	m.next = make([]uint32, len(m.at))
	for i := len(m.at) - 1; i >= 0; i-- {
		m.next[i] = uint32(i + 1) //nolint:gosec // chunks are numbered in 32 bits
		if i+1 < len(m.at) && m.adjacent(i) {
			m.next[i] = m.next[i+1]
		}
	}
}

// adjacent reports whether the chunk after the i-th lies right behind it.
func (m *chunkMap) adjacent(i int) bool {
	c, d := &m.t.Chunks[i], &m.t.Chunks[i+1]
	if c.Blob == chunkfmt.Hole || d.Blob == chunkfmt.Hole || m.at[i] == unplaced || m.at[i+1] == unplaced {
		return false
	}
	return (m.primary || c.Blob == d.Blob) && m.at[i]+int64(c.Length) == m.at[i+1]
}

// extent is a part of a file, in whole pages, that lies in one piece on a
// device or has nothing on any.
type extent struct {
	off    int64 // in the file
	length int64
	blob   uint32 // or Hole
	at     int64  // in the device
}

// piece is a stretch of chunks that lie in one piece, or some zeros.
type piece struct {
	extent
	first, last uint32 // chunks
}

// extents walks the content of one file. A page that is partly a hole and
// partly data is where its data is: the device has zeros around it.
type extents struct {
	m    *chunkMap
	runs []chunkfmt.Run
	done uint32 // chunks of runs[0] that were seen
	off  int64  // up to which pieces were seen
	pos  int64  // up to which extents were returned
	last piece  // with data
	held extent // pages of last that were not looked at
	data extent // to be returned after the hole before it
	err  error
}

func (m *chunkMap) extents(n *chunkfmt.Inode) extents {
	return extents{m: m, runs: m.t.Runs[n.First : n.First+n.Count]}
}

// next returns the next maximal extent, or one without length at the end or
// after an error.
func (x *extents) next() extent {
	if x.data.length == 0 {
		x.data = x.join()
	}
	e := x.data
	switch {
	case x.err != nil:
		return extent{}
	case e.length == 0:
		e = extent{off: x.pos, length: roundUp(x.off, blockSize) - x.pos, blob: chunkfmt.Hole}
	case e.off > x.pos:
		e = extent{off: x.pos, length: e.off - x.pos, blob: chunkfmt.Hole}
	default:
		x.data = extent{}
	}
	x.pos += e.length
	return e
}

// join returns the next extent with data.
func (x *extents) join() extent {
	e := x.held
	if e.length == 0 {
		e = x.pages()
	}
	for x.held = x.pages(); x.held.length > 0; x.held = x.pages() {
		f, end := &x.held, e.off+e.length
		switch same := e.blob == f.blob && e.at-e.off == f.at-f.off; {
		case f.off > end || f.off == end && !same:
			return e
		case !same:
			x.err = fmt.Errorf("%w: the page at byte %d has content in two places", ErrUnmappable, f.off)
			return extent{}
		}
		e.length = max(e.length, f.off+f.length-e.off)
	}
	return e
}

// pages returns the pages that have the next data.
func (x *extents) pages() extent {
	p, gap := x.step(), int64(0)
	for p.length > 0 && p.blob == chunkfmt.Hole {
		gap += p.length
		p = x.step()
	}
	if gap > 0 {
		x.checkGap(&x.last, &p, gap)
	}
	x.last = p
	switch shift := p.off % blockSize; {
	case x.err != nil || p.length == 0:
		return extent{}
	case p.at == unplaced:
		x.err = fmt.Errorf("%w: the content at byte %d is in no group of this tree", ErrUnmappable, p.off)
		return extent{}
	case (p.at-p.off)%blockSize != 0:
		x.err = fmt.Errorf("%w: what is at byte %d of the file is at byte %d of its device, and the places in their pages differ", ErrUnmappable, p.off, p.at)
		return extent{}
	default:
		return extent{off: p.off - shift, length: roundUp(shift+p.length, blockSize), blob: p.blob, at: p.at - shift}
	}
}

// checkGap makes sure that, where a hole begins or ends amid a page, no other
// content is in the page in place of the zeros.
func (x *extents) checkGap(before, after *piece, gap int64) {
	if end := before.off + before.length; end%blockSize != 0 {
		at := before.at + before.length
		x.checkFree(before, int64(before.last)+1, at, at+min(gap, blockSize-end%blockSize))
	}
	if shift := after.off % blockSize; after.length > 0 && shift != 0 {
		x.checkFree(after, int64(after.first)-1, after.at-min(gap, shift), after.at)
	}
}

// checkFree makes sure that a piece's neighbour is not in a part of the device.
func (x *extents) checkFree(p *piece, neighbour, from, to int64) {
	if neighbour < 0 || neighbour >= int64(len(x.m.at)) || x.err != nil {
		return
	}
	c, at := &x.m.t.Chunks[neighbour], x.m.at[neighbour]
	if c.Blob != x.m.t.Chunks[p.first].Blob || at == unplaced {
		return
	}
	if at < to && at+int64(c.Length) > from {
		x.err = fmt.Errorf("%w: a hole beside byte %d begins or ends amid a page that has other content on the device", ErrUnmappable, p.off)
	}
}

// step returns the next chunk with those that lie right behind it.
func (x *extents) step() piece {
	for len(x.runs) > 0 && x.done >= x.runs[0].Count {
		x.runs, x.done = x.runs[1:], 0
	}
	if len(x.runs) == 0 || x.err != nil {
		return piece{}
	}
	r := &x.runs[0]
	first := r.Chunk
	if !r.Repeat {
		first += x.done
	}
	c := &x.m.t.Chunks[first]
	p := piece{extent{x.off, int64(c.Length), c.Blob, x.m.at[first]}, first, first}
	switch {
	case r.Repeat && c.Blob == chunkfmt.Hole:
		p.length *= int64(r.Count - x.done)
		x.done = r.Count
	case r.Repeat || c.Blob == chunkfmt.Hole:
		x.done++
	default:
		p.last = min(x.m.next[first], r.Chunk+r.Count) - 1
		p.length = x.m.at[p.last] + int64(x.m.t.Chunks[p.last].Length) - p.at
		x.done += p.last - first + 1
	}
	if x.m.primary && p.blob != chunkfmt.Hole {
		p.blob = 0
	}
	if p.length < 0 || p.length > chunkfmt.MaxFileSize-x.off {
		x.err = fmt.Errorf("the file has more than %d bytes", int64(chunkfmt.MaxFileSize))
		return piece{}
	}
	x.off += p.length
	return p
}
