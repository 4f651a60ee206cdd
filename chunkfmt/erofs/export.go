package erofs

import (
	"context"
	"fmt"
	"io"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// ReadGroup returns the plain bytes of a group. They are not changed, and not
// used any more when it is called again.
type ReadGroup func(ctx context.Context, r chunkfmt.GroupRef) ([]byte, error)

// Export writes one image that has a tree with all its content. It can be
// mounted from a file or be the content of a block device.
//
// Groups are read one after the other in the order of blob and number, each
// once, and only those that some file needs. Of their bytes, the image has what
// files need, and chunks of equal digests once. Every chunk is checked against
// its digest before it is written; an error about one names a file that has it.
// Besides a group and what Write needs, some hundred bytes of memory for each
// chunk are taken.
func Export(ctx context.Context, w io.Writer, t *chunkfmt.Tree, read ReadGroup, o Options) (*Image, error) {
	e := newExport(t)
	p, err := newPlan(t, &e.chunkMap, o)
	if err != nil {
		return nil, err
	}
	base := p.dataBlock()
	blocks := base + roundUp(e.size, blockSize)/blockSize
	if blocks >= maxBlocks {
		return nil, fmt.Errorf("export an EROFS image: %d bytes cannot be addressed by 32-bit numbers of blocks", blocks*blockSize)
	}
	s := newSink(w)
	p.metadata(s, blocks)
	if err := e.content(ctx, s, base*blockSize, read); err != nil {
		return nil, err
	}
	s.pad(blocks * blockSize)
	if err := s.flush(); err != nil {
		return nil, fmt.Errorf("export an EROFS image: %w", err)
	}
	return p.image(s), nil
}

// export is a chunkMap that has all chunks in the image, by their addresses
// from dataBlock on.
type export struct {
	chunkMap
	// stored are the chunks that the image gets: they are needed, and no other
	// is equal.
	stored []bool
	size   int64
}

func newExport(t *chunkfmt.Tree) *export {
	e := &export{
		chunkMap: chunkMap{t: t, at: make([]int64, len(t.Chunks)), primary: true},
		stored:   make([]bool, len(t.Chunks)),
	}
	from := mapDevices(t)
	used := usedChunks(t)
	equal := make(map[contentID]uint32)
	last := -1 // stored
	for i := range t.Chunks {
		c := &t.Chunks[i]
		switch {
		case c.Blob == chunkfmt.Hole:
		case !used[i] || !hasGroup(t, c):
			e.at[i] = unplaced
		case from.movable(i) && e.shared(i, equal):
		default:
			e.place(i, last, from)
			last = i
		}
	}
	e.link()
	return e
}

// contentID is what equal chunks have in common. A digest that stands beside
// two lengths is wrong beside one of them, which is found when both are read.
type contentID struct {
	digest chunkfmt.Digest
	length uint32
}

// shared gives a chunk the address of an equal one, if there is any.
func (e *export) shared(i int, equal map[contentID]uint32) bool {
	c := &e.t.Chunks[i]
	id := contentID{c.Digest, c.Length}
	j, ok := equal[id]
	if !ok {
		equal[id] = uint32(i) //nolint:gosec // chunks are numbered in 32 bits
		return false
	}
	e.at[i] = e.at[j]
	return true
}

// place gives a chunk an address of its own. last is the chunk before it. What
// shares a page of the device shares one here, and everything keeps its place
// in the page, for files may go on from chunk to chunk amid a page.
func (e *export) place(i, last int, from *chunkMap) {
	at := roundUp(e.size, blockSize)
	if src := from.at[i]; src != unplaced {
		at += src % blockSize
		if last >= 0 && from.sharePage(last, i) {
			at = e.at[last] + src - from.at[last]
		}
	}
	e.at[i], e.stored[i] = at, true
	e.size = at + int64(e.t.Chunks[i].Length)
}

// movable reports whether a chunk begins a page and has its pages for itself.
func (m *chunkMap) movable(i int) bool {
	if m.at[i] == unplaced {
		return true
	}
	return m.at[i]%blockSize == 0 && (i+1 == len(m.at) || !m.sharePage(i, i+1))
}

// sharePage reports whether chunk j begins behind chunk i in a page that i
// has some of.
func (m *chunkMap) sharePage(i, j int) bool {
	c, d := &m.t.Chunks[i], &m.t.Chunks[j]
	end := m.at[i] + int64(c.Length)
	return c.Blob == d.Blob && m.at[i] != unplaced && m.at[j] >= end && m.at[j] < roundUp(end, blockSize)
}

// usedChunks returns which chunks files have. Runs may overlap a lot, so it
// counts their ends instead of walking them.
func usedChunks(t *chunkfmt.Tree) []bool {
	depth := make([]int32, len(t.Chunks)+1)
	for i := range t.Runs {
		r := &t.Runs[i]
		n := r.Count
		if r.Repeat {
			n = 1
		}
		depth[r.Chunk]++
		depth[r.Chunk+n]--
	}
	used := make([]bool, len(t.Chunks))
	runs := int32(0)
	for i := range used {
		runs += depth[i]
		used[i] = runs > 0
	}
	return used
}

// content reads groups and writes what of them is stored.
func (e *export) content(ctx context.Context, s *sink, base int64, read ReadGroup) error {
	chunks := e.t.Chunks
	var at chunkfmt.GroupRef
	var plain []byte
	for i := range chunks {
		if !e.stored[i] {
			continue
		}
		if s.err != nil {
			return fmt.Errorf("export an EROFS image: %w", s.err)
		}
		ref := chunkfmt.GroupRef{Blob: chunks[i].Blob, Group: chunks[i].Group}
		if plain == nil || ref != at {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("export an EROFS image: %w", err)
			}
			var err error
			if plain, err = read(ctx, ref); err != nil {
				return fmt.Errorf("export /%s: read group %d of blob %s: %w", e.fileOf(i), ref.Group, e.t.Blobs[ref.Blob].Digest, err)
			}
			at = ref
		}
		part, err := e.part(i, plain)
		if err != nil {
			return fmt.Errorf("export /%s: group %d of blob %s: %w", e.fileOf(i), ref.Group, e.t.Blobs[ref.Blob].Digest, err)
		}
		s.pad(base + e.at[i])
		s.write(part)
	}
	return nil
}

// part returns the verified bytes of a chunk.
func (e *export) part(i int, plain []byte) ([]byte, error) {
	c := &e.t.Chunks[i]
	end := int64(c.Offset) + int64(c.Length)
	if end > int64(len(plain)) {
		return nil, fmt.Errorf("chunk of %d bytes at %d ends beyond the %d of the group", c.Length, c.Offset, len(plain))
	}
	part := plain[c.Offset:end]
	if sum := chunkfmt.Sum(part); sum != c.Digest {
		return nil, fmt.Errorf("chunk of %d bytes at %d has digest %s, want %s", c.Length, c.Offset, sum, c.Digest)
	}
	return part, nil
}

// fileOf returns the path of a file that has a chunk, for messages.
func (e *export) fileOf(chunk int) string {
	for i := range e.t.Inodes {
		n := &e.t.Inodes[i]
		if e.t.Kind(uint32(i)) != chunkfmt.File {
			continue
		}
		for _, r := range e.t.Runs[n.First : n.First+n.Count] {
			if chunk == int(r.Chunk) || !r.Repeat && chunk > int(r.Chunk) && chunk < int(r.Chunk)+int(r.Count) {
				return pathOf(e.t, uint32(i))
			}
		}
	}
	return "?"
}
