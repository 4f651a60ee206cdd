package chunkfmt

func writeBlobs(w *writer, t *Tree) {
	chunks := make([]uint64, len(t.Blobs))
	for i := range t.Chunks {
		if b := t.Chunks[i].Blob; b != Hole {
			chunks[b]++
		}
	}
	for i := range t.Blobs {
		b := &t.Blobs[i]
		w.bytes(b.Digest[:])
		flags := byte(0)
		if b.External {
			flags |= blobExternal
		}
		if b.Unproven {
			flags |= blobUnproven
		}
		w.byte(flags)
		w.uvarint(uint64(b.Size))                   //nolint:gosec // not negative
		w.uvarint(uint64(b.DeviceSize) / BlockSize) //nolint:gosec // not negative
		w.uvarint(uint64(len(b.Groups)))
		w.uvarint(chunks[i])
	}
	eachGroup(t, func(g *Group) { w.byte(byte(g.Codec)) })
	eachGroup(t, func(g *Group) { w.uvarint(uint64(g.Stored)) })
	eachGroup(t, func(g *Group) { w.uvarint(uint64(g.Plain)) })
	eachGroup(t, func(g *Group) {
		if g.Segments == nil {
			w.uvarint(0)
		} else {
			w.uvarint(uint64(len(g.Segments)) + 1)
		}
	})
	writeSegments(w, t)
	for i := range t.Blobs {
		writeDevices(w, &t.Blobs[i])
	}
	for i := range t.Blobs {
		for j := range t.Blobs[i].Groups {
			if !t.Blobs[i].Unproven {
				w.bytes(t.Blobs[i].Groups[j].Digest[:])
			}
		}
	}
}

func eachGroup(t *Tree, do func(g *Group)) {
	for i := range t.Blobs {
		for j := range t.Blobs[i].Groups {
			do(&t.Blobs[i].Groups[j])
		}
	}
}

func writeSegments(w *writer, t *Tree) {
	eachGroup(t, func(g *Group) {
		end := uint32(0)
		for _, s := range g.Segments {
			w.uvarint(uint64(s.Offset - end))
			end = s.Offset + s.Length
		}
	})
	eachGroup(t, func(g *Group) {
		for _, s := range g.Segments {
			w.uvarint(uint64(s.Length))
		}
	})
}

// writeDevices writes where groups and segments lie in the device, relative to
// the next block that is free.
func writeDevices(w *writer, b *Blob) {
	end := int64(0)
	for i := range b.Groups {
		g := &b.Groups[i]
		for _, s := range g.Segments {
			w.varint(s.Device - alignUp(end))
			end = s.Device + int64(s.Length)
		}
		if g.linear() {
			w.varint((g.Device - alignUp(end)) / BlockSize)
			end = g.Device + int64(g.Plain)
		}
	}
}

// linear reports that all plain bytes have a place in the device.
func (g *Group) linear() bool { return g.Segments == nil && g.Codec != Filler }

func writeChunks(w *writer, t *Tree, n *counts) {
	last := uint32(0)
	for i := range t.Chunks[:n.holes] {
		w.uvarint(uint64(t.Chunks[i].Length - last))
		last = t.Chunks[i].Length
	}
	stored := t.Chunks[n.holes:]
	var at chunkCursor
	for i := range stored {
		w.uvarint(uint64(at.group(&stored[i])))
	}
	at = chunkCursor{}
	for i := range stored {
		expected, _ := at.enter(t, &stored[i])
		w.uvarint(uint64(zigzag(stored[i].Offset - expected)))
		at.leave(&stored[i])
	}
	at = chunkCursor{}
	for i := range stored {
		c := &stored[i]
		at.enter(t, c)
		if limit, ok := at.limit(c.Offset); ok {
			w.uvarint(uint64(limit - c.Length))
		} else {
			w.uvarint(uint64(c.Length))
		}
		at.leave(c)
	}
	for i := range stored {
		w.bytes(stored[i].Digest[:])
	}
}

func writeRuns(w *writer, t *Tree, n *counts) {
	expected := uint32(n.holes) //nolint:gosec // limits are below 2^32
	for _, r := range t.Runs {
		w.uvarint(uint64(zigzag(r.Chunk - expected)))
		expected = r.next()
	}
	for _, r := range t.Runs {
		v := uint64(r.Count-1) << 1
		if r.Repeat {
			v |= 1
		}
		w.uvarint(v)
	}
}

// next returns the chunk after those of a run.
func (r *Run) next() uint32 {
	if r.Repeat {
		return r.Chunk + 1
	}
	return r.Chunk + r.Count
}
