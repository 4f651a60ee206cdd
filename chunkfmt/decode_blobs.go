package chunkfmt

import (
	"crypto/sha256"
	"hash"
)

func (d *decoder) blobs(r *reader) error {
	r.room(d.n.blobs, sha256.Size+5, "blobs")
	r.room(d.n.groups, 4, "groups")
	r.room(d.n.segments, 3, "segments")
	if r.err != nil {
		return r.err
	}
	t := &d.x.Tree
	t.Blobs = sized[Blob](d.n.blobs)
	d.blobChunks = make([]uint64, d.n.blobs)
	groups := sized[Group](d.n.groups)
	if err := d.blobRows(r, groups); err != nil {
		return err
	}
	for i := range groups {
		groups[i].Codec = Codec(r.byte())
	}
	for i := range groups {
		groups[i].Stored = r.u32()
	}
	for i := range groups {
		groups[i].Plain = uint32(r.atMost(MaxGroupPlain)) //nolint:gosec // bounded
	}
	d.segments(r, groups)
	for i := range t.Blobs {
		readDevices(r, &t.Blobs[i])
	}
	for i := range t.Blobs {
		for j := range t.Blobs[i].Groups {
			if !t.Blobs[i].Unproven {
				r.digest(&t.Blobs[i].Groups[j].Digest)
			}
		}
	}
	return r.err
}

// blobRows reads the blobs and deals the groups out to them.
func (d *decoder) blobRows(r *reader, groups []Group) error {
	chunks, total := uint64(0), len(groups)
	for i := range d.x.Blobs {
		b := &d.x.Blobs[i]
		r.digest(&b.Digest)
		flags := r.byte()
		if flags&^blobFlags != 0 {
			r.fail("blob %d has flags %#x", i, flags)
		}
		b.External = flags&blobExternal != 0
		b.Unproven = flags&blobUnproven != 0
		b.Size = int64(r.atMost(maxBlobSize))                             //nolint:gosec // bounded
		b.DeviceSize = int64(r.atMost(MaxFileSize/BlockSize)) * BlockSize //nolint:gosec // bounded
		n := r.atMost(uint64(len(groups)))
		if n > 0 {
			b.Groups, groups = groups[:n:n], groups[n:]
		}
		d.blobChunks[i] = r.atMost(d.n.chunks - chunks)
		chunks += d.blobChunks[i]
	}
	if r.err == nil && (len(groups) != 0 || chunks != d.n.chunks) {
		r.fail("%d of %d groups and %d of %d chunks belong to no blob",
			len(groups), total, d.n.chunks-chunks, d.n.chunks)
	}
	return r.err
}

// segments reads the parts of groups that have places of their own.
func (d *decoder) segments(r *reader, groups []Group) {
	all := make([]Segment, d.n.segments)
	left := all
	for i := range groups {
		n := r.atMost(uint64(len(left)) + 1)
		if n > 0 {
			groups[i].Segments, left = left[:n-1:n-1], left[n-1:]
		}
	}
	if len(left) != 0 {
		r.fail("%d segments belong to no group", len(left))
	}
	for i := range all {
		all[i].Offset = uint32(r.atMost(MaxGroupPlain)) //nolint:gosec // bounded; still relative
	}
	for i := range groups {
		g, end := &groups[i], uint32(0)
		for j := range g.Segments {
			s := &g.Segments[j]
			s.Offset += end
			s.Length = uint32(r.atMost(MaxGroupPlain)) //nolint:gosec // bounded
			if end = s.Offset + s.Length; end > g.Plain {
				r.fail("segment %d ends at byte %d of a group of %d", j, end, g.Plain)
				return
			}
		}
	}
}

// readDevices is the inverse of writeDevices; it also sums up the offsets.
func readDevices(r *reader, b *Blob) {
	end, offset := int64(0), int64(0)
	for i := range b.Groups {
		g := &b.Groups[i]
		g.Offset = offset
		offset += int64(g.Stored)
		for j := range g.Segments {
			s := &g.Segments[j]
			s.Device = alignUp(end) + r.within(MaxFileSize)
			end = devicePlace(r, s.Device, s.Length)
		}
		if g.linear() {
			g.Device = alignUp(end) + r.within(MaxFileSize/BlockSize)*BlockSize
			end = devicePlace(r, g.Device, g.Plain)
		}
	}
}

func devicePlace(r *reader, at int64, length uint32) int64 {
	end := at + int64(length)
	if at < 0 || end > MaxFileSize {
		r.fail("place %d in a device", at)
		return 0
	}
	return end
}

func (d *decoder) chunks(r *reader) error {
	r.room(d.n.holes, 1, "holes")
	r.room(d.n.chunks, sha256.Size+3, "chunks")
	if r.err != nil {
		return r.err
	}
	t := &d.x.Tree
	t.Chunks = sized[Chunk](d.n.holes + d.n.chunks)
	if err := readHoles(r, t.Chunks[:d.n.holes]); err != nil {
		return err
	}
	stored := t.Chunks[d.n.holes:]
	if err := d.chunkGroups(r, stored); err != nil {
		return err
	}
	for i := range stored {
		stored[i].Offset = r.u32() // still relative
	}
	var at chunkCursor
	for i := range stored {
		if err := readChunk(r, t, &at, &stored[i]); err != nil {
			return err
		}
	}
	for i := range stored {
		r.digest(&stored[i].Digest)
	}
	return r.err
}

// readHoles derives the digests: the lengths ascend, so that one pass over
// zeros gives all of them.
func readHoles(r *reader, holes []Chunk) error {
	last := uint64(0)
	for i := range holes {
		last += r.atMost(MaxGroupPlain)
		if last > MaxGroupPlain {
			r.fail("a hole of %d bytes", last)
			return r.err
		}
		holes[i] = Chunk{Blob: Hole, Length: uint32(last)}
	}
	z := zeroHash{h: sha256.New()}
	for i := range holes {
		holes[i].Digest = z.sum(int64(holes[i].Length))
	}
	return r.err
}

// zeroHash gives the digests of longer and longer runs of zeros.
type zeroHash struct {
	h hash.Hash
	n int64
}

// sum returns the digest of n zeros; n is at least what it was before.
func (z *zeroHash) sum(n int64) Digest {
	var zeros [4096]byte
	for z.n < n {
		part := min(n-z.n, int64(len(zeros)))
		z.h.Write(zeros[:part])
		z.n += part
	}
	var d Digest
	z.h.Sum(d[:0])
	return d
}

// chunkGroups reads which group of which blob chunks lie in.
func (d *decoder) chunkGroups(r *reader, stored []Chunk) error {
	for blob := range d.x.Blobs {
		b, group := &d.x.Blobs[blob], uint64(0)
		for i := range stored[:d.blobChunks[blob]] {
			group += uint64(r.u32())
			if group > 1<<32-1 || !b.External && group >= uint64(len(b.Groups)) {
				r.fail("a chunk in group %d of blob %d, which has %d", group, blob, len(b.Groups))
				return r.err
			}
			stored[i].Blob, stored[i].Group = uint32(blob), uint32(group)
		}
		stored = stored[d.blobChunks[blob]:]
	}
	return r.err
}

// readChunk reads the length of a chunk, whose offset is still relative.
func readChunk(r *reader, t *Tree, at *chunkCursor, c *Chunk) error {
	expected, ok := at.enter(t, c)
	c.Offset = expected + unzigzag(c.Offset)
	v := r.u32()
	if limit, segmented := at.limit(c.Offset); segmented {
		ok = ok && v < limit
		v = limit - v
	}
	if !ok || c.Offset > MaxGroupPlain || v > MaxGroupPlain {
		r.fail("a chunk at byte %d of group %d of blob %d does not fit", c.Offset, c.Group, c.Blob)
		return r.err
	}
	c.Length = v
	at.leave(c)
	return nil
}
