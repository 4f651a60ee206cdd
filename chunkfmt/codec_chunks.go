package chunkfmt

// chunkCursor walks through the stored chunks of a tree in their order and
// says where the next one is expected: after the last one, at the next
// multiple of BlockSize or, in a group with segments, in the last one's segment
// or else at the begin of the segment after it.
type chunkCursor struct {
	begun bool
	blob  uint32
	at    uint32 // the group
	end   uint32 // of the last chunk of the group
	segs  []Segment
	// seg is the place in segs of the first one that ends after end.
	seg int
}

// group returns how far a chunk's group is from that of the chunk before, or
// the number of the group of the first chunk of a blob.
func (k *chunkCursor) group(c *Chunk) uint32 {
	delta := c.Group - k.at
	if !k.begun || c.Blob != k.blob {
		delta = c.Group
	}
	k.begun, k.blob, k.at = true, c.Blob, c.Group
	return delta
}

// enter goes to the group of c and returns the offset at which c is expected,
// and false if there is no place left.
func (k *chunkCursor) enter(t *Tree, c *Chunk) (uint32, bool) {
	if !k.begun || c.Blob != k.blob || c.Group != k.at {
		*k = chunkCursor{begun: true, blob: c.Blob, at: c.Group}
		if b := &t.Blobs[c.Blob]; !b.External {
			k.segs = b.Groups[c.Group].Segments
		}
	}
	if k.segs == nil {
		return uint32(alignUp(int64(k.end))), true //nolint:gosec // ends are bounded by MaxGroupPlain
	}
	k.skip(k.end + 1)
	if k.seg == len(k.segs) {
		return 0, false
	}
	return max(k.end, k.segs[k.seg].Offset), true
}

// skip goes to the first segment that ends at or after a byte.
func (k *chunkCursor) skip(end uint32) {
	for k.seg < len(k.segs) && k.segs[k.seg].Offset+k.segs[k.seg].Length < end {
		k.seg++
	}
}

// limit returns the most bytes that a chunk at an offset can have, and false in
// a group without segments.
func (k *chunkCursor) limit(offset uint32) (uint32, bool) {
	if k.segs == nil {
		return 0, false
	}
	k.skip(offset + 1)
	if k.seg == len(k.segs) || k.segs[k.seg].Offset > offset {
		return 0, true
	}
	s := &k.segs[k.seg]
	return s.Offset + s.Length - offset, true
}

// leave takes note of where c ends.
func (k *chunkCursor) leave(c *Chunk) { k.end = c.Offset + c.Length }
