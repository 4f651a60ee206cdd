package build

import (
	"context"
	"slices"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// known is a chunk of the image or the dictionary.
type known struct {
	chunk chunkfmt.Chunk // its Blob is a place in packer.blobs
	// layer is the one that stored it, -1 the dictionary.
	layer int32
	// listed and local say that the layer listed-1 has it at local.
	listed int32
	local  uint32
}

// packer decides, layer by layer and in the order of the tars, which chunks are
// stored and where. It is one goroutine.
type packer struct {
	b      *builder
	chunks []known
	places map[chunkfmt.Digest]uint32
	holes  map[uint32]uint32 // by length
	blobs  []*blob

	// Of the layer in work.
	scan  *scan
	list  []uint32 // places in chunks
	data  *blob
	image *blob
	open  *task // the group of data being filled
	held  held
	file  *chunkfmt.Node // whose content came last in image
	base  int64          // where it lies in the device, -1: nowhere yet
}

func newPacker(b *builder) *packer {
	p := &packer{b: b, places: map[chunkfmt.Digest]uint32{}, holes: map[uint32]uint32{}}
	p.addDictionary(b.o.Dictionary, b.placed)
	return p
}

// run packs all layers and closes the queues.
func (p *packer) run(ctx context.Context) error {
	defer close(p.b.jobs)
	defer close(p.b.order)
	defer p.held.close()
	for _, s := range p.b.scans {
		p.b.budget.advance(s.at)
		if err := p.layer(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) layer(ctx context.Context, s *scan) error {
	p.scan, p.list, p.data, p.image, p.file = s, nil, nil, nil, nil
	p.held.reset(p.b)
	for {
		select {
		case b, more := <-s.out:
			if !more {
				return p.endLayer(ctx)
			}
			if err := p.batch(ctx, b); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (p *packer) batch(ctx context.Context, b batch) error {
	if b.raw != nil {
		return p.rawBatch(ctx, b)
	}
	defer b.slab.release()
	for i := range b.pieces {
		piece := &b.pieces[i]
		if p.reuse(piece) {
			continue
		}
		data := b.slab.buf[piece.offset : piece.offset+piece.length]
		if piece.rank > 0 {
			if err := p.hold(piece, data); err != nil {
				return err
			}
			continue
		}
		group, offset, err := p.store(ctx, data, piece.large)
		if err != nil {
			return err
		}
		p.add(piece, chunkfmt.Chunk{Blob: p.data.number, Group: group, Offset: offset})
	}
	return nil
}

// reuse adds a piece to its file whose content is there already.
func (p *packer) reuse(piece *piece) bool {
	st := &p.scan.stats
	if piece.holes > 0 {
		at := p.local(p.hole(piece))
		piece.node.Chunks = slices.Grow(piece.node.Chunks, int(piece.holes))
		for range piece.holes {
			piece.node.Chunks = append(piece.node.Chunks, at)
		}
		st.Holes += int64(piece.holes) * int64(piece.length)
		return true
	}
	if piece.fixed {
		return false
	}
	at, ok := p.places[piece.digest]
	if !ok {
		return false
	}
	switch from := int(p.chunks[at].layer); {
	case from < 0:
		st.FromDictionary += int64(piece.length)
	case from == p.scan.at:
		st.FromLayer += int64(piece.length)
	default:
		st.FromImage += int64(piece.length)
	}
	piece.node.Chunks = append(piece.node.Chunks, p.local(at))
	return true
}

// hole returns the place in chunks of zeros.
func (p *packer) hole(piece *piece) uint32 {
	at, ok := p.holes[piece.length]
	if !ok {
		at = uint32(len(p.chunks)) //nolint:gosec // G115: no memory for so many
		p.holes[piece.length] = at
		p.chunks = append(p.chunks, known{
			chunk: chunkfmt.Chunk{Blob: chunkfmt.Hole, Length: piece.length, Digest: piece.digest},
		})
	}
	return at
}

// local returns the place of a chunk in the list of the layer in work.
func (p *packer) local(at uint32) uint32 {
	k := &p.chunks[at]
	if int(k.listed) != p.scan.at+1 {
		k.listed, k.local = int32(p.scan.at)+1, uint32(len(p.list)) //nolint:gosec // G115: no memory for so many
		p.list = append(p.list, at)
	}
	return k.local
}

// add records a new chunk and adds it to its file. It returns its place.
func (p *packer) add(piece *piece, c chunkfmt.Chunk) uint32 {
	c.Length, c.Digest = piece.length, piece.digest
	at := uint32(len(p.chunks))                                           //nolint:gosec // G115: no memory for so many
	p.chunks = append(p.chunks, known{chunk: c, layer: int32(p.scan.at)}) //nolint:gosec // G115: a place in a slice
	if !piece.fixed {
		p.places[c.Digest] = at
	}
	piece.node.Chunks = append(piece.node.Chunks, p.local(at))
	p.scan.stats.New += int64(piece.length)
	return at
}

// store puts data into the open group and returns where.
func (p *packer) store(ctx context.Context, data []byte, large bool) (group, offset uint32, err error) {
	if p.data == nil {
		p.data = p.newBlob()
	}
	if p.open != nil && (large || alignUp(len(p.open.plain))+len(data) > int(p.b.o.GroupSize)) {
		if err := p.seal(ctx); err != nil {
			return 0, 0, err
		}
	}
	if p.open == nil {
		p.open = &task{blob: p.data, plain: p.b.buffers.get(), done: make(chan struct{})}
	}
	from, at := len(p.open.plain), alignUp(len(p.open.plain))
	p.open.plain = p.open.plain[:at+len(data)]
	clear(p.open.plain[from:at])
	copy(p.open.plain[at:], data)
	return p.data.count, uint32(at), nil //nolint:gosec // G115: within a group
}

// seal sends the open group on its way.
func (p *packer) seal(ctx context.Context) error {
	t := p.open
	if t == nil {
		return nil
	}
	p.open = nil
	t.group.Device = t.blob.reserve(int64(len(t.plain)))
	t.group.Plain = uint32(len(t.plain)) //nolint:gosec // G115: at most MaxGroupPlain
	t.blob.count++
	return p.b.dispatch(ctx, t)
}

func (p *packer) newBlob() *blob {
	b := &blob{number: uint32(len(p.blobs)), layer: -1} //nolint:gosec // G115: two for each layer
	p.blobs = append(p.blobs, b)
	return b
}

// endLayer sends what is left of the layer and its end.
func (p *packer) endLayer(ctx context.Context) error {
	if err := p.packHeld(ctx); err != nil {
		return err
	}
	if err := p.seal(ctx); err != nil {
		return err
	}
	end := &layerEnd{scan: p.scan, data: p.data, image: p.image, chunks: make([]chunkfmt.Chunk, len(p.list))}
	for i, at := range p.list {
		end.chunks[i] = p.chunks[at].chunk
	}
	end.useBlobs(p.blobs)
	if p.data != nil {
		p.scan.stats.Groups += int(p.data.count)
	}
	if p.image != nil {
		p.scan.stats.Groups += int(p.image.count)
	}
	p.scan.stats.Chunks = len(p.list)
	return p.b.dispatch(ctx, &task{end: end})
}

func alignUp[T int | int64](n T) T { return (n + chunkfmt.BlockSize - 1) &^ (chunkfmt.BlockSize - 1) }
