package build

import (
	"context"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// rawBatch takes a group of the stream as it is: all of it is stored, whatever
// chunks of it are used.
func (p *packer) rawBatch(ctx context.Context, b batch) error {
	if p.image == nil {
		p.image = p.newBlob()
	}
	segments := []chunkfmt.Segment{}
	for i := range b.pieces {
		piece := &b.pieces[i]
		if piece.node != p.file {
			p.file, p.base = piece.node, -1
		}
		if p.reuse(piece) {
			continue
		}
		if p.base < 0 {
			p.base = p.image.reserve(piece.node.Size)
		}
		segments = addSegment(segments, chunkfmt.Segment{
			Offset: piece.offset, Length: piece.length, Device: p.base + piece.at,
		})
		p.add(piece, chunkfmt.Chunk{Blob: p.image.number, Group: p.image.count, Offset: piece.offset})
	}
	p.image.count++
	t := &task{blob: p.image, filler: len(segments) == 0}
	if b.slab != nil {
		t.slab, t.plain, t.done = b.slab, b.slab.buf[:b.raw.plain], make(chan struct{})
	} else {
		t.group = *b.raw.stored
	}
	t.group.Segments = segments
	t.group.Plain = uint32(b.raw.plain) //nolint:gosec // G115: at most MaxGroupPlain
	return p.b.dispatch(ctx, t)
}

// addSegment appends a segment, or makes the last one longer if that is the
// same.
func addSegment(list []chunkfmt.Segment, s chunkfmt.Segment) []chunkfmt.Segment {
	if n := len(list); n > 0 {
		last := &list[n-1]
		if last.Offset+last.Length == s.Offset && last.Device+int64(last.Length) == s.Device {
			last.Length += s.Length
			return list
		}
	}
	return append(list, s)
}
