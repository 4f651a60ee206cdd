package chunkfmt

// Encode returns the bytes of an index. Equal indexes give equal bytes as long
// as the compressor does not change; the decompressed body never differs. An
// index that does not pass Validate, or that Decode would refuse with default
// Limits, is an error which wraps ErrInvalid.
func Encode(x *Index) ([]byte, error) {
	if err := x.Validate(); err != nil {
		return nil, err
	}
	n := countsOf(&x.Tree)
	l := Limits{}.withDefaults()
	if err := l.check(&n); err != nil {
		return nil, err
	}
	if err := l.checkContent(&x.Tree); err != nil {
		return nil, err
	}
	if err := l.checkMetadata(&x.Tree); err != nil {
		return nil, err
	}
	body := encodeBody(&x.Tree, &n)
	if int64(len(body)) > l.Body {
		return nil, invalid("a body of %d bytes, at most %d are accepted", len(body), l.Body)
	}
	compressed, err := compress(body)
	if err != nil {
		return nil, err
	}
	h := Header{Major: Major, Minor: Minor, Body: int64(len(body)), DiffID: x.DiffID, Root: x.Root}
	return seal(&h, compressed), nil
}

func countsOf(t *Tree) counts {
	n := counts{
		inodes:  uint64(len(t.Inodes)),
		entries: uint64(len(t.Entries)),
		attrs:   uint64(len(t.Attrs)),
		xattrs:  uint64(len(t.Xattrs) - 1), //nolint:gosec // there is always set 0
		targets: uint64(len(t.Targets)),
		runs:    uint64(len(t.Runs)),
		blobs:   uint64(len(t.Blobs)),
		inline:  uint64(len(t.Inline)),
	}
	for n.holes < uint64(len(t.Chunks)) && t.Chunks[n.holes].Blob == Hole {
		n.holes++
	}
	n.chunks = uint64(len(t.Chunks)) - n.holes
	for i := range t.Blobs {
		n.groups += uint64(len(t.Blobs[i].Groups))
		for j := range t.Blobs[i].Groups {
			n.segments += uint64(len(t.Blobs[i].Groups[j].Segments))
		}
	}
	return n
}

func encodeBody(t *Tree, n *counts) []byte {
	w := &writer{p: make([]byte, 0, 4096+48*len(t.Inodes)+36*len(t.Chunks)+len(t.Inline))}
	for _, s := range []struct {
		id    uint16
		write func()
	}{
		{secCounts, func() { writeCounts(w, n) }},
		{secBlobs, func() { writeBlobs(w, t) }},
		{secChunks, func() { writeChunks(w, t, n) }},
		{secRuns, func() { writeRuns(w, t, n) }},
		{secAttrs, func() { writeAttrs(w, t) }},
		{secTargets, func() { writeTargets(w, t) }},
		{secInodes, func() { writeInodes(w, t) }},
		{secEntries, func() { writeEntries(w, t) }},
		{secInline, func() { w.bytes(t.Inline) }},
	} {
		w.begin(s.id)
		s.write()
		w.end()
	}
	return w.p
}

func writeCounts(w *writer, n *counts) {
	for _, v := range n.fields() {
		w.uvarint(*v)
	}
}

func writeAttrs(w *writer, t *Tree) {
	sets := t.Xattrs[1:]
	for _, set := range sets {
		w.uvarint(uint64(len(set)))
		for _, x := range set {
			w.uvarint(uint64(len(x.Name)))
			w.uvarint(uint64(len(x.Value)))
		}
	}
	for _, a := range t.Attrs {
		w.byte(byte(a.Kind))
		w.byte(byte(a.Flags))
		w.uvarint(uint64(a.Mode))
		w.uvarint(uint64(a.UID))
		w.uvarint(uint64(a.GID))
		w.uvarint(uint64(a.Xattrs))
	}
	for _, set := range sets {
		for _, x := range set {
			w.string(x.Name)
			w.string(x.Value)
		}
	}
}

func writeTargets(w *writer, t *Tree) {
	for _, s := range t.Targets {
		w.uvarint(uint64(len(s)))
	}
	for _, s := range t.Targets {
		w.string(s)
	}
}

func writeInodes(w *writer, t *Tree) {
	for i := range t.Inodes {
		w.uvarint(uint64(t.Inodes[i].Attr))
	}
	last := int64(0)
	for i := range t.Inodes {
		w.varint(t.Inodes[i].Mtime - last) // may wrap, and wraps back
		last = t.Inodes[i].Mtime
	}
	for i := range t.Inodes {
		w.uvarint(uint64(t.Inodes[i].Nsec))
	}
	writeShapes(w, t)
	for i := range t.Inodes {
		if n := &t.Inodes[i]; n.Count == 0 && t.Attrs[n.Attr].Kind == File {
			w.uvarint(uint64(n.Size)) //nolint:gosec // not negative
		}
	}
}

// writeShapes writes, per inode, what its kind needs beside the attributes.
func writeShapes(w *writer, t *Tree) {
	targets := uint32(0)
	for i := range t.Inodes {
		n := &t.Inodes[i]
		switch t.Attrs[n.Attr].Kind {
		case Dir, File:
			w.uvarint(uint64(n.Count))
		case Symlink, LinkOut:
			w.uvarint(uint64(targets - n.First))
			if n.First == targets {
				targets++
			}
		case CharDevice, BlockDevice:
			w.uvarint(uint64(n.Size)) //nolint:gosec // not negative
		default: // a Fifo, Socket or Whiteout has nothing more
		}
	}
}

func writeEntries(w *writer, t *Tree) {
	for i := range t.Entries {
		w.byte(byte(len(t.Entries[i].Name))) //nolint:gosec // at most MaxName
	}
	next := uint32(1)
	for i := range t.Entries {
		w.uvarint(uint64(next - t.Entries[i].Inode))
		if t.Entries[i].Inode == next {
			next++
		}
	}
	for i := range t.Entries {
		w.string(t.Entries[i].Name)
	}
}
