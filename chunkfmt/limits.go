package chunkfmt

// Limits bound what Decode makes of an index, so that a reader decides how much
// memory an index may cost it. The zero value of a field stands for its
// default, and none is more than 2 GiB or 2 Gi. An index that exhausts the
// defaults decodes into some gigabytes, a usual one into about 150 bytes per
// file.
type Limits struct {
	// Body bounds the decompressed bytes of an index. Default 1 GiB.
	Body int64
	// Inodes bounds Tree.Inodes, and Tree.Targets with them. Default 16 Mi.
	Inodes int
	// Entries bounds Tree.Entries. Default 16 Mi.
	Entries int
	// Attrs bounds Tree.Attrs, Tree.Xattrs and the extended attributes in all
	// sets together, each. Default 4 Mi.
	Attrs int
	// Chunks bounds Tree.Chunks, and Tree.Runs and the segments of all groups
	// each. Default 16 Mi.
	Chunks int
	// Content bounds the sum of Run.Count, which is how often Tree.Content
	// yields if it is asked for every file. Default 64 Mi: 16 TiB of files in
	// chunks of 256 KiB.
	Content int64
	// Blobs bounds Tree.Blobs. Default 64 Ki.
	Blobs int
	// Groups bounds the groups of all blobs together. Default 4 Mi.
	Groups int
	// Inline bounds the bytes of Tree.Inline. Default 256 MiB.
	Inline int64
	// Metadata bounds the sum over all inodes of the lengths of the strings in
	// their Merkle encoding: extended attributes, target and, of an inode with
	// several entries, the path of the first. Many inodes can share those, so
	// that few bytes of an index make much work for whoever hashes or writes
	// its tree. Default 1 GiB, the default bound of EROFS images too.
	Metadata int64
}

// withDefaults returns l with every unset field at its default.
func (l Limits) withDefaults() Limits {
	return Limits{
		Body:    orDefault(l.Body, 1<<30),
		Inodes:  orDefault(l.Inodes, 1<<24),
		Entries: orDefault(l.Entries, 1<<24),
		Attrs:   orDefault(l.Attrs, 1<<22),
		Chunks:  orDefault(l.Chunks, 1<<24),
		Content: orDefault(l.Content, 1<<26),
		Blobs:   orDefault(l.Blobs, 1<<16),
		Groups:  orDefault(l.Groups, 1<<22),
		Inline:  orDefault(l.Inline, 1<<28),

		Metadata: orDefault(l.Metadata, 1<<30),
	}
}

func orDefault[T int | int64](v, def T) T {
	if v > 0 {
		return min(v, maxLimit)
	}
	return def
}

// maxLimit bounds every limit: places in tables have 32 bits.
const maxLimit = 1<<31 - 1

// checkContent refuses an index whose files have too many chunks or inline
// bytes, or whose sets have too many extended attributes.
func (l Limits) checkContent(t *Tree) error {
	total := int64(0)
	for _, r := range t.Runs {
		total += int64(r.Count)
	}
	if total > l.Content {
		return invalid("files have %d chunks, at most %d are accepted", total, l.Content)
	}
	xattrs := 0
	for _, set := range t.Xattrs {
		xattrs += len(set)
	}
	if xattrs > l.Attrs {
		return invalid("%d extended attributes, at most %d are accepted", xattrs, l.Attrs)
	}
	if int64(len(t.Inline)) > l.Inline {
		return invalid("%d inline bytes, at most %d are accepted", len(t.Inline), l.Inline)
	}
	return nil
}

// checkMetadata refuses a tree whose inodes have too much metadata, however
// much of it they share.
func (l Limits) checkMetadata(t *Tree) error {
	if n := metadataSize(t); n > uint64(l.Metadata) { //nolint:gosec // limits are positive
		return invalid("inodes have %d bytes of extended attributes, targets and paths, at most %d are accepted", n, l.Metadata)
	}
	return nil
}

// metadataSize is what Limits.Metadata bounds.
func metadataSize(t *Tree) uint64 {
	const prefix = 4 // the length of a string
	sets := make([]uint64, len(t.Xattrs))
	for i, set := range t.Xattrs {
		for _, x := range set {
			sets[i] += uint64(2*prefix + len(x.Name) + len(x.Value))
		}
	}
	total, linked := uint64(0), false
	for i := range t.Inodes {
		n := &t.Inodes[i]
		a := &t.Attrs[n.Attr]
		total += sets[a.Xattrs]
		linked = linked || n.Nlink > 1 && a.Kind != Dir
		if a.Kind == Symlink || a.Kind == LinkOut {
			total += uint64(prefix + len(t.Targets[n.First]))
		}
	}
	if !linked {
		return total
	}
	lengths := make([]uint16, len(t.Inodes)) // of the paths of directories
	next := uint32(1)
	for i := range t.Inodes {
		if t.Attrs[t.Inodes[i].Attr].Kind != Dir {
			continue
		}
		for _, e := range t.Children(uint32(i)) {
			if e.Inode != next {
				continue // not the first entry
			}
			next++
			length := lengths[i] + 1 + uint16(len(e.Name)) //nolint:gosec // at most MaxPath + 1
			if lengths[e.Inode] = length; t.Inodes[e.Inode].Nlink > 1 && t.Kind(e.Inode) != Dir {
				total += uint64(prefix - 1 + int(length))
			}
		}
	}
	return total
}

// check refuses an index whose tables are too long.
func (l Limits) check(n *counts) error {
	for _, c := range []struct {
		what string
		have uint64
		max  int
	}{
		{"inodes", n.inodes, l.Inodes},
		{"entries", n.entries, l.Entries},
		{"attributes", n.attrs, l.Attrs},
		{"xattr sets", n.xattrs, l.Attrs},
		{"targets", n.targets, l.Inodes},
		{"runs", n.runs, l.Chunks},
		{"holes", n.holes, l.Chunks},
		{"chunks", n.chunks, l.Chunks},
		{"blobs", n.blobs, l.Blobs},
		{"groups", n.groups, l.Groups},
		{"segments", n.segments, l.Chunks},
	} {
		if c.have > uint64(c.max) { //nolint:gosec // limits are positive
			return invalid("%d %s, at most %d are accepted", c.have, c.what, c.max)
		}
	}
	return nil
}
