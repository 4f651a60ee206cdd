package chunkfmt

import (
	"fmt"
	"math"
	"slices"
	"sort"
)

// blobTable has the blobs of all layers by digest.
type blobTable struct {
	byDigest map[Digest]*mergedBlob
	// order is that of definition, lowest layer first.
	order []*mergedBlob
}

// mergedBlob is a blob of the merged tree and the chunks in it.
type mergedBlob struct {
	*Blob
	// layer is the one that defines it.
	layer uint32
	parts []chunkRange
}

// chunkRange is one layer's chunks in one blob: Chunks[first:last].
type chunkRange struct{ layer, first, last uint32 }

// chunkPlaces says what becomes of a layer's chunks.
type chunkPlaces struct {
	// place has their places in the merged tree, or unused.
	place []uint32
	// breaks[i] counts those of chunks 0 to i that do not follow, in the
	// merged tree, the chunk before.
	breaks []uint32
}

// defineBlobs finds the definition of every blob, External ones included.
func (m *merger) defineBlobs() error {
	m.blobs.byDigest = map[Digest]*mergedBlob{}
	for i := range m.layers {
		layer := &m.layers[i]
		layer.blobs = make([]*mergedBlob, len(layer.Blobs))
		for j := range layer.Blobs {
			b := &layer.Blobs[j]
			known := m.blobs.byDigest[b.Digest]
			switch {
			case known == nil && b.External:
				return fmt.Errorf("%w: layer %d: no layer below defines blob %s", ErrInvalid, i, b.Digest)
			case known == nil:
				known = &mergedBlob{Blob: b, layer: u32(i)}
				m.blobs.byDigest[b.Digest] = known
				m.blobs.order = append(m.blobs.order, known)
			case !known.agrees(b):
				return fmt.Errorf("%w: layer %d: a layer below defines blob %s in another way", ErrInvalid, i, b.Digest)
			}
			layer.blobs[j] = known
		}
	}
	return nil
}

// agrees reports whether another layer's view of the blob is the same.
func (b *mergedBlob) agrees(o *Blob) bool {
	if b.Size != o.Size || b.DeviceSize != o.DeviceSize {
		return false
	}
	return o.External || b.Unproven == o.Unproven && slices.EqualFunc(b.Groups, o.Groups, func(x, y Group) bool {
		return x.Offset == y.Offset && x.Stored == y.Stored && x.Plain == y.Plain && x.Codec == y.Codec &&
			x.Digest == y.Digest && x.Device == y.Device &&
			(x.Segments == nil) == (y.Segments == nil) && slices.Equal(x.Segments, y.Segments)
	})
}

// placeChunks writes the chunks that visible files use, and their blobs.
func (m *merger) placeChunks() error {
	m.findUses()
	var holes mergedBlob
	for i := range m.layers {
		m.splitByBlob(u32(i), &holes)
	}
	if err := m.placeRanges(holes.parts, Hole); err != nil {
		return err
	}
	for _, b := range m.blobs.order {
		before := len(m.out.Chunks)
		known := m.keepChunks(b)
		if err := m.placeRanges(b.parts, u32(len(m.out.Blobs))); err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
		if b.Unproven && len(m.out.Chunks)-before > known {
			return fmt.Errorf("blob %s: %w: it is unproven, and a layer has chunks in it that layer %d, which defines it, does not have",
				b.Digest, ErrInvalid, b.layer)
		}
		if len(m.out.Chunks) > before {
			m.out.Blobs = append(m.out.Blobs, *b.Blob)
		}
	}
	for i := range m.layers {
		m.layers[i].chunks.countBreaks()
	}
	return nil
}

// keepChunks makes all chunks that the definer of an Unproven blob has in it
// used if any chunk in it is, and returns their number. They are all that says
// what is in the blob: who fills its device, which trees of other files share,
// checks all of a group, whatever of it is visible here.
func (m *merger) keepChunks(b *mergedBlob) (known int) {
	if !b.Unproven {
		return 0
	}
	used := false
	for _, p := range b.parts {
		for _, place := range m.layers[p.layer].chunks.place[p.first:p.last] {
			used = used || place != unused
		}
	}
	for _, p := range b.parts {
		if p.layer != b.layer {
			continue
		}
		known = int(p.last - p.first)
		if used {
			clear(m.layers[p.layer].chunks.place[p.first:p.last])
		}
	}
	return known
}

// unused is the place of a chunk that no visible file uses.
const unused = math.MaxUint32

// findUses marks the chunks that visible files use: place becomes 0 or unused.
func (m *merger) findUses() {
	for i := range m.layers {
		m.layers[i].chunks.place = make([]uint32, len(m.layers[i].Chunks)+1)
	}
	// Runs may overlap each other in any number, so a run counts at its ends
	// only: as differences, which wrap around.
	for _, from := range m.sources[1:] { // not the root
		layer := &m.layers[from.layer]
		n := &layer.Inodes[from.inode]
		if layer.Attrs[n.Attr].Kind != File || n.Count == 0 {
			continue
		}
		for _, r := range layer.Runs[n.First : n.First+n.Count] {
			layer.chunks.place[r.Chunk]++
			layer.chunks.place[r.end()]--
		}
	}
	for i := range m.layers {
		uses := uint32(0)
		places := m.layers[i].chunks.place
		for j, d := range places {
			uses += d
			places[j] = 0
			if uses == 0 {
				places[j] = unused
			}
		}
	}
}

// end returns the number after that of the run's last chunk.
func (r *Run) end() uint32 {
	if r.Repeat {
		return r.Chunk + 1
	}
	return r.Chunk + r.Count
}

// splitByBlob hands a layer's chunks to their blobs.
func (m *merger) splitByBlob(number uint32, holes *mergedBlob) {
	layer := &m.layers[number]
	for first := 0; first < len(layer.Chunks); {
		blob := layer.Chunks[first].Blob
		last := first + sort.Search(len(layer.Chunks)-first, func(i int) bool {
			return layer.Chunks[first+i].Blob != blob
		})
		to := holes
		if blob != Hole {
			to = layer.blobs[blob]
		}
		to.parts = append(to.parts, chunkRange{number, u32(first), u32(last)})
		first = last
	}
}

// chunkRef names a chunk of a layer.
type chunkRef struct{ layer, chunk uint32 }

// placeRanges writes the used chunks of a blob.
func (m *merger) placeRanges(parts []chunkRange, blob uint32) error {
	var refs []chunkRef
	for _, p := range parts {
		places := m.layers[p.layer].chunks.place
		for c := p.first; c < p.last; c++ {
			if places[c] != unused {
				refs = append(refs, chunkRef{p.layer, c})
			}
		}
	}
	if len(parts) > 1 {
		slices.SortFunc(refs, func(a, b chunkRef) int {
			return comparePlaces(&m.layers[a.layer].Chunks[a.chunk], &m.layers[b.layer].Chunks[b.chunk])
		})
	}
	start := len(m.out.Chunks)
	m.out.Chunks = slices.Grow(m.out.Chunks, len(refs))
	for _, r := range refs {
		layer := &m.layers[r.layer]
		c := layer.Chunks[r.chunk]
		c.Blob = blob
		if last := len(m.out.Chunks) - 1; last < start || comparePlaces(&c, &m.out.Chunks[last]) != 0 {
			m.out.Chunks = append(m.out.Chunks, c)
		} else if c != m.out.Chunks[last] {
			return fmt.Errorf("%w: layer %d: another layer has another chunk at byte %d of group %d",
				ErrInvalid, r.layer, c.Offset, c.Group)
		}
		layer.chunks.place[r.chunk] = u32(len(m.out.Chunks) - 1)
	}
	return nil
}

// comparePlaces is compareChunks of two chunks that are in the same blob, but
// whose numbers of it may differ.
func comparePlaces(a, b *Chunk) int {
	x, y := *a, *b
	if x.Blob != Hole {
		x.Blob, y.Blob = 0, 0
	}
	return compareChunks(&x, &y)
}

func (c *chunkPlaces) countBreaks() {
	c.breaks = make([]uint32, len(c.place))
	n := uint32(0)
	for i := range c.place {
		if i == 0 || c.place[i] == unused || c.place[i] != c.place[i-1]+1 {
			n++
		}
		c.breaks[i] = n
	}
}
