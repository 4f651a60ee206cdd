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
	// Attrs bounds Tree.Attrs and Tree.Xattrs each. Default 4 Mi.
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
// bytes.
func (l Limits) checkContent(t *Tree) error {
	total := int64(0)
	for _, r := range t.Runs {
		total += int64(r.Count)
	}
	if total > l.Content {
		return invalid("files have %d chunks, at most %d are accepted", total, l.Content)
	}
	if int64(len(t.Inline)) > l.Inline {
		return invalid("%d inline bytes, at most %d are accepted", len(t.Inline), l.Inline)
	}
	return nil
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
