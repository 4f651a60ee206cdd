package chunkfmt

import (
	"math"
	"slices"
)

// Merge returns the tree that layers make together, the lowest first: what a
// directory holds after each layer was unpacked into it in turn. FORMAT.md,
// "Merging layers", has the rules; trusted extended attributes are left out, as
// containerd does. The result has no Whiteout, LinkOut, flag
// or External blob, shares memory with the layers, and has only those chunks
// and blobs that something visible uses; blobs keep whole group tables, and
// Unproven ones all chunks.
//
// The layers must be valid each by itself, as Decode and Draft return them.
// An error that wraps ErrInvalid says that they do not fit each other: a hard
// link to something that the layers below do not have, or a blob that they do
// not define or define in two ways.
func Merge(layers ...*Tree) (*Tree, error) {
	if len(layers) == 1 {
		if t, ok := settled(layers[0]); ok {
			return t, nil
		}
	}
	layers, err := graft(layers)
	if err != nil {
		return nil, err
	}
	m, err := newMerger(layers)
	if err != nil {
		return nil, err
	}
	if err := m.resolveLinks(); err != nil {
		return nil, err
	}
	m.placeEntries()
	if err := m.placeChunks(); err != nil {
		return nil, err
	}
	if err := m.fill(); err != nil {
		return nil, err
	}
	if err := (Limits{}).withDefaults().checkMetadata(m.out); err != nil {
		return nil, err
	}
	if err := m.checkShared(); err != nil {
		return nil, err
	}
	return m.out, nil
}

// merger builds a merged tree in steps: resolveLinks finds what hard links to
// lower layers link to; placeEntries decides what is visible and numbers it;
// placeChunks collects what that needs; fill writes the inodes; checkShared
// checks where layers use one blob.
type merger struct {
	layers []mergeLayer
	out    *Tree
	// sources has, for each inode of out, where it comes from: of a directory,
	// its uppermost part.
	sources []inodeRef
	// dirs are the directories of out in the order of their numbers.
	dirs []mergedDir
	// parts is what the directories are made of, each from top to bottom.
	parts []inodeRef
	heap  cursorHeap
	group []inodeRef
	links linkTable
	blobs blobTable
	attrs attrTable
}

// mergeLayer is a layer and what became of its tables. Zero in attrs, xattrs
// and targets stands for "not used yet", and other values are one too high.
type mergeLayer struct {
	*Tree
	// inodes has numbers in the merged tree; 0 is "none", as no entry has
	// the root.
	inodes  []uint32
	attrs   []uint32
	xattrs  []uint32
	targets []uint32
	chunks  chunkPlaces
	blobs   []*mergedBlob
}

// inodeRef names an inode of a layer.
type inodeRef struct{ layer, inode uint32 }

// mergedDir is a directory of the merged tree. Its attributes come from
// parts[first:last], its children from parts[first:opaque] only.
type mergedDir struct{ inode, first, opaque, last uint32 }

func newMerger(layers []*Tree) (*merger, error) {
	m := &merger{layers: make([]mergeLayer, len(layers))}
	var inodes, entries, chunks, inline uint64
	for i, t := range layers {
		m.layers[i] = mergeLayer{
			Tree:    t,
			inodes:  make([]uint32, len(t.Inodes)),
			attrs:   make([]uint32, len(t.Attrs)),
			xattrs:  make([]uint32, len(t.Xattrs)),
			targets: make([]uint32, len(t.Targets)),
		}
		inodes += uint64(len(t.Inodes))
		entries += uint64(len(t.Entries))
		chunks += uint64(len(t.Chunks))
		inline += uint64(len(t.Inline))
	}
	if max(inodes, entries, chunks, inline) >= math.MaxUint32 {
		return nil, invalid("%d layers have %d inodes, %d entries, %d chunks and %d inline bytes together",
			len(layers), inodes, entries, chunks, inline)
	}
	m.out = &Tree{
		Inodes:  make([]Inode, 0, max(inodes, 1)),
		Entries: make([]Entry, 0, entries),
	}
	m.sources = make([]inodeRef, 0, max(inodes, 1))
	m.attrs.init(m)
	return m, m.defineBlobs()
}

// settled returns the tree of an only layer if there is nothing to resolve in
// it but flags.
func settled(t *Tree) (*Tree, bool) {
	var flags AttrFlags
	for i := range t.Attrs {
		a := &t.Attrs[i]
		if a.Kind >= Whiteout || a.Flags&Implied != 0 && *a != impliedAttr(Dir, a.Flags) {
			return nil, false
		}
		flags |= a.Flags
	}
	for _, set := range t.Xattrs {
		if slices.ContainsFunc(set, isTrusted) {
			return nil, false
		}
	}
	used := 0
	for i := range t.Chunks {
		if b := t.Chunks[i].Blob; b != Hole && (i == 0 || b != t.Chunks[i-1].Blob) {
			used++
		}
	}
	if used != len(t.Blobs) {
		return nil, false
	}
	for i := range t.Blobs {
		if t.Blobs[i].External {
			return nil, false
		}
	}
	if flags == 0 {
		return t, true
	}
	return withoutFlags(t)
}

// withoutFlags returns a copy of a tree that shares all but what flags are in.
func withoutFlags(t *Tree) (*Tree, bool) {
	out := *t
	out.Attrs = make([]Attr, 0, len(t.Attrs))
	out.Inodes = make([]Inode, len(t.Inodes))
	copy(out.Inodes, t.Inodes)
	places := make([]uint32, len(t.Attrs)) // one too high
	known := map[Attr]uint32{}
	for i := range out.Inodes {
		n := &out.Inodes[i]
		from := n.Attr
		if t.Attrs[from].Flags&Implied != 0 && (n.Mtime != 0 || n.Nsec != 0) {
			return nil, false
		}
		if places[from] == 0 {
			a := t.Attrs[from]
			a.Flags = 0
			place, ok := known[a]
			if !ok {
				place = u32(len(out.Attrs))
				known[a] = place
				out.Attrs = append(out.Attrs, a)
			}
			places[from] = place + 1
		}
		n.Attr = places[from] - 1
	}
	return &out, true
}

func impliedAttr(kind Kind, flags AttrFlags) Attr {
	return Attr{Kind: kind, Flags: flags, Mode: 0o755}
}
