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
	if int(c.Blob) >= len(t.Blobs) || int(c.Group) >= len(t.Blobs[c.Blob].Groups) {
		return unplaced // an External blob, for one
	}
	if at, ok := t.DeviceOffset(c); ok {
		return at
	}
	return unplaced
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

// extent is a part of a file that lies in one piece, or that is a hole.
type extent struct {
	off    int64 // in the file
	length int64
	blob   uint32 // or Hole
	at     int64  // in the device
}

// extents walks the content of one file.
type extents struct {
	m    *chunkMap
	runs []chunkfmt.Run
	done uint32 // chunks of runs[0] that were seen
	off  int64
	held extent
}

func (m *chunkMap) extents(n *chunkfmt.Inode) extents {
	return extents{m: m, runs: m.t.Runs[n.First : n.First+n.Count]}
}

// next returns the next maximal extent, or one without length at the end.
func (x *extents) next() extent {
	e := x.held
	if e.length == 0 {
		e = x.piece()
	}
	for e.length > 0 {
		x.held = x.piece()
		if !e.joins(&x.held) {
			return e
		}
		e.length += x.held.length
	}
	return extent{}
}

func (e *extent) joins(f *extent) bool {
	return f.length > 0 && e.blob == f.blob && (e.blob == chunkfmt.Hole || e.at+e.length == f.at)
}

// piece returns the next chunk with those that lie right behind it.
func (x *extents) piece() extent {
	for len(x.runs) > 0 && x.done >= x.runs[0].Count {
		x.runs, x.done = x.runs[1:], 0
	}
	if len(x.runs) == 0 {
		return extent{}
	}
	r := &x.runs[0]
	first := r.Chunk
	if !r.Repeat {
		first += x.done
	}
	c := &x.m.t.Chunks[first]
	e := extent{off: x.off, length: int64(c.Length), blob: c.Blob, at: x.m.at[first]}
	switch {
	case r.Repeat && c.Blob == chunkfmt.Hole:
		e.length *= int64(r.Count - x.done)
		x.done = r.Count
	case r.Repeat:
		x.done++
	default:
		end := min(x.m.next[first], r.Chunk+r.Count)
		e.length = x.m.at[end-1] + int64(x.m.t.Chunks[end-1].Length) - e.at
		if c.Blob == chunkfmt.Hole {
			e.length = int64(c.Length)
		}
		x.done += end - first
	}
	if x.m.primary && e.blob != chunkfmt.Hole {
		e.blob = 0
	}
	x.off += e.length
	return e
}

// check reports why an extent cannot be mapped on blocks.
func (m *chunkMap) check(e *extent) error {
	switch {
	case e.off < 0 || e.off+e.length > chunkfmt.MaxFileSize:
		return fmt.Errorf("content goes on beyond %d bytes", int64(chunkfmt.MaxFileSize))
	case e.off%blockSize != 0:
		return fmt.Errorf("a new extent begins at byte %d of the file, which is no multiple of %d", e.off, blockSize)
	case e.blob == chunkfmt.Hole || m.primary:
		return nil
	case e.at == unplaced:
		return fmt.Errorf("the content at byte %d is in no group of this tree", e.off)
	}
	b := &m.t.Blobs[e.blob]
	switch {
	case e.at%blockSize != 0:
		return fmt.Errorf("the content at byte %d lies at byte %d of device %s, which is no multiple of %d", e.off, e.at, b.Digest, blockSize)
	case e.at+e.length > b.DeviceSize:
		return fmt.Errorf("the content at byte %d lies beyond the %d bytes of device %s", e.off, b.DeviceSize, b.Digest)
	}
	return nil
}
