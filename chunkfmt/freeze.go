package chunkfmt

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// Freeze returns the tree of a draft. The nodes' Chunks are places in chunks,
// whose Blob fields are places in blobs; chunks that no node uses are left out.
// Tables are in the order of first use, chunks in that of their places. The
// draft is used up.
func (d *Draft) Freeze(chunks []Chunk, blobs []Blob) (*Tree, error) {
	f := freezer{
		tree:    &Tree{Blobs: blobs, Xattrs: [][]Xattr{nil}},
		attrs:   map[Attr]uint32{},
		xattrs:  map[string]uint32{"": 0},
		targets: map[string]uint32{},
	}
	nodes := f.number(d.root)
	if err := f.placeChunks(chunks, nodes); err != nil {
		return nil, err
	}
	for i, n := range nodes {
		if err := f.fill(&f.tree.Inodes[i], n); err != nil {
			return nil, err
		}
	}
	// Places were made before it was known that they fit.
	t := f.tree
	if most := max(len(t.Inodes), len(t.Entries), len(t.Runs), len(t.Chunks), len(t.Inline)); uint64(most) > math.MaxUint32 {
		return nil, invalid("a table of the tree has %d entries", most)
	}
	return t, nil
}

type freezer struct {
	tree    *Tree
	attrs   map[Attr]uint32
	xattrs  map[string]uint32
	targets map[string]uint32
	// places has, for each chunk of the caller, its place in tree.Chunks.
	places []uint32
}

// number gives inodes their numbers and writes the entries. It returns the
// nodes by number.
func (f *freezer) number(root *Node) []*Node {
	root.seen = true
	nodes := []*Node{root}
	t := f.tree
	t.Inodes = []Inode{{Nlink: 2}}
	for at := 0; at < len(nodes); at++ {
		n := nodes[at]
		if n.Kind != Dir {
			continue
		}
		t.Inodes[at].First = u32(len(t.Entries))
		t.Inodes[at].Count = u32(len(n.children))
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			child := n.children[name]
			if !child.seen {
				child.seen, child.inode = true, u32(len(nodes))
				nodes = append(nodes, child)
				t.Inodes = append(t.Inodes, Inode{Parent: u32(at)})
				if child.Kind == Dir {
					t.Inodes[child.inode].Nlink = 1 // its own "."
					t.Inodes[at].Nlink++
				}
			}
			t.Inodes[child.inode].Nlink++
			t.Entries = append(t.Entries, Entry{name, child.inode})
		}
		n.children = nil
	}
	return nodes
}

// placeChunks sorts the chunks in use and remembers where each went.
func (f *freezer) placeChunks(chunks []Chunk, nodes []*Node) error {
	used := make([]bool, len(chunks))
	for _, n := range nodes {
		for _, c := range n.Chunks {
			if int(c) >= len(chunks) {
				return fmt.Errorf("%w: chunk %d of %d", ErrInvalid, c, len(chunks))
			}
			used[c] = true
		}
	}
	var order []uint32
	for i := range chunks {
		if used[i] {
			order = append(order, uint32(i))
		}
	}
	slices.SortFunc(order, func(a, b uint32) int { return compareChunks(&chunks[a], &chunks[b]) })
	f.places = make([]uint32, len(chunks))
	out := f.tree.Chunks
	for i, at := range order {
		c := chunks[at]
		if i == 0 || compareChunks(&c, &out[len(out)-1]) != 0 {
			out = append(out, c)
		} else if c != out[len(out)-1] {
			return fmt.Errorf("%w: two chunks at byte %d of group %d of blob %d", ErrInvalid, c.Offset, c.Group, c.Blob)
		}
		f.places[at] = u32(len(out) - 1)
	}
	f.tree.Chunks = out
	return nil
}

// compareChunks orders chunks by place, holes first and by length.
func compareChunks(a, b *Chunk) int {
	if a.Blob == Hole && b.Blob == Hole {
		return cmp.Compare(a.Length, b.Length)
	}
	return cmp.Or(
		cmp.Compare(a.Blob+1, b.Blob+1), // Hole wraps to 0
		cmp.Compare(a.Group, b.Group),
		cmp.Compare(a.Offset, b.Offset),
	)
}

// fill writes what number has not.
func (f *freezer) fill(to *Inode, n *Node) error {
	to.Attr = f.attr(n)
	to.Mtime, to.Nsec = n.Mtime, n.Nsec
	switch n.Kind {
	case File:
		to.Size = n.Size
		to.First, to.Count = f.content(n)
		if to.Count == 0 && int64(len(n.Inline)) != n.Size {
			return fmt.Errorf("%w: a file of %d bytes has %d inline and no chunks", ErrInvalid, n.Size, len(n.Inline))
		}
	case CharDevice, BlockDevice:
		to.Size = n.Size
	case Symlink, LinkOut:
		to.First = f.target(n.Target)
	}
	return nil
}

func (f *freezer) attr(n *Node) uint32 {
	a := Attr{Kind: n.Kind, Flags: n.flags, Mode: n.Mode, UID: n.UID, GID: n.GID, Xattrs: f.xattrSet(n.Xattrs)}
	at, ok := f.attrs[a]
	if !ok {
		at = u32(len(f.tree.Attrs))
		f.attrs[a] = at
		f.tree.Attrs = append(f.tree.Attrs, a)
	}
	return at
}

func (f *freezer) xattrSet(set []Xattr) uint32 {
	var key strings.Builder
	for _, x := range set {
		fmt.Fprintf(&key, "%d:%s%d:%s", len(x.Name), x.Name, len(x.Value), x.Value)
	}
	at, ok := f.xattrs[key.String()]
	if !ok {
		at = u32(len(f.tree.Xattrs))
		f.xattrs[key.String()] = at
		f.tree.Xattrs = append(f.tree.Xattrs, set)
	}
	return at
}

func (f *freezer) target(s string) uint32 {
	at, ok := f.targets[s]
	if !ok {
		at = u32(len(f.tree.Targets))
		f.targets[s] = at
		f.tree.Targets = append(f.tree.Targets, s)
	}
	return at
}

// content writes a file's runs or inline bytes and returns First and Count.
func (f *freezer) content(n *Node) (first, count uint32) {
	t := f.tree
	if len(n.Chunks) == 0 {
		if len(n.Inline) == 0 {
			return 0, 0
		}
		first = u32(len(t.Inline))
		t.Inline = append(t.Inline, n.Inline...)
		return first, 0
	}
	first = u32(len(t.Runs))
	for _, c := range n.Chunks {
		t.Runs = extend(t.Runs, int(first), f.places[c])
	}
	return first, u32(len(t.Runs)) - first
}

// extend adds a chunk to the runs of one file, which begin at first. Runs are
// as long as they can be; a run of one is no Repeat.
func extend(runs []Run, first int, chunk uint32) []Run {
	if len(runs) > first {
		r := &runs[len(runs)-1]
		switch {
		case r.Chunk == chunk && (r.Repeat || r.Count == 1):
			r.Repeat = true
			r.Count++
			return runs
		case !r.Repeat && r.Chunk+r.Count == chunk:
			r.Count++
			return runs
		}
	}
	return append(runs, Run{Chunk: chunk, Count: 1})
}
