package build

import "github.com/damselfly-io/damselfly/chunkfmt"

// addDictionary makes the chunks of another image known. Of equal chunks the
// first counts, which is the one in the lowest layer. Blobs that are layers of
// this image too are left out: they need not be found elsewhere.
func (p *packer) addDictionary(layers []*chunkfmt.Index, own map[chunkfmt.Digest]bool) {
	defined := map[chunkfmt.Digest]*blob{}
	for _, x := range layers {
		for i := range x.Blobs {
			b := &x.Blobs[i]
			// Groups without digests would make what is proven unproven.
			if b.External || b.Unproven || own[b.Digest] || defined[b.Digest] != nil {
				continue
			}
			known := p.newBlob()
			known.Blob = *b
			defined[b.Digest] = known
		}
	}
	for _, x := range layers {
		for i := range x.Chunks {
			c := x.Chunks[i]
			if c.Blob == chunkfmt.Hole {
				continue
			}
			if b := defined[x.Blobs[c.Blob].Digest]; b != nil {
				p.learn(b, c)
			}
		}
	}
}

// learn makes one chunk of the dictionary known, if a page of a file can be
// mapped onto it.
func (p *packer) learn(b *blob, c chunkfmt.Chunk) {
	if _, ok := p.places[c.Digest]; ok || int(c.Group) >= len(b.Groups) {
		return
	}
	t := chunkfmt.Tree{Blobs: []chunkfmt.Blob{b.Blob}}
	at := c
	at.Blob = 0
	if device, ok := t.DeviceOffset(&at); !ok || device%chunkfmt.BlockSize != 0 {
		return
	}
	c.Blob = b.number
	p.places[c.Digest] = uint32(len(p.chunks)) //nolint:gosec // G115: no memory for so many
	p.chunks = append(p.chunks, known{chunk: c, layer: -1})
}
