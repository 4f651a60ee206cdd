package chunkfmt

// placeEntries walks all layers at once in level order and writes the entries
// of the merged tree. Inodes get their numbers, and of directories First,
// Count and Parent; Nlink is counted up.
func (m *merger) placeEntries() {
	root := m.number(inodeRef{}, 0)
	for i := len(m.layers) - 1; i >= 0; i-- {
		m.group = append(m.group, inodeRef{layer: u32(i)})
	}
	m.addDir(root, m.group)
	for at := 0; at < len(m.dirs); at++ {
		d := m.dirs[at]
		first := len(m.out.Entries)
		m.placeChildren(d)
		n := &m.out.Inodes[d.inode]
		n.First = u32(first)
		n.Count = u32(len(m.out.Entries) - first)
	}
}

// number makes an inode of the merged tree.
func (m *merger) number(from inodeRef, parent uint32) uint32 {
	n := u32(len(m.out.Inodes))
	m.out.Inodes = append(m.out.Inodes, Inode{Parent: parent})
	m.sources = append(m.sources, from)
	return n
}

// addDir makes a directory of the layers' inodes of one path, from top to
// bottom.
func (m *merger) addDir(inode uint32, group []inodeRef) {
	d := mergedDir{inode: inode, first: u32(len(m.parts))}
	for _, p := range group {
		a := m.layers[p.layer].Attr(p.inode)
		if a.Kind != Dir {
			break
		}
		m.parts = append(m.parts, p)
		if a.Flags&Opaque != 0 && d.opaque == 0 {
			d.opaque = u32(len(m.parts))
		}
		if a.Flags&Replaced != 0 {
			break
		}
	}
	d.last = u32(len(m.parts))
	if d.opaque == 0 {
		d.opaque = d.last
	}
	m.out.Inodes[inode].Nlink = 2
	m.dirs = append(m.dirs, d)
}

func (m *merger) placeChildren(d mergedDir) {
	if d.opaque-d.first == 1 {
		p := m.parts[d.first]
		for _, e := range m.layers[p.layer].Children(p.inode) {
			m.group = append(m.group[:0], inodeRef{p.layer, e.Inode})
			m.place(d.inode, e.Name, m.group)
		}
		return
	}
	m.heap = m.heap[:0]
	for _, p := range m.parts[d.first:d.opaque] {
		if children := m.layers[p.layer].Children(p.inode); len(children) > 0 {
			m.heap = append(m.heap, cursor{p.layer, children})
		}
	}
	m.heap.init()
	for len(m.heap) > 0 {
		name := m.heap[0].rest[0].Name
		m.group = m.group[:0]
		for len(m.heap) > 0 && m.heap[0].rest[0].Name == name {
			m.group = append(m.group, inodeRef{m.heap[0].layer, m.heap[0].rest[0].Inode})
			m.heap.next()
		}
		m.place(d.inode, name, m.group)
	}
}

// place adds the entry that the layers' entries of one name, from top to
// bottom, make together.
func (m *merger) place(dir uint32, name string, group []inodeRef) {
	top := group[0]
	switch m.layers[top.layer].Kind(top.inode) {
	case Whiteout:
		return
	case Dir:
		n := m.number(top, dir)
		m.out.Inodes[dir].Nlink++
		m.out.Entries = append(m.out.Entries, Entry{name, n})
		m.addDir(n, group)
		return
	case LinkOut:
		top = m.links.targets[top]
	}
	n := &m.layers[top.layer].inodes[top.inode]
	if *n == 0 {
		*n = m.number(top, dir)
	}
	m.out.Inodes[*n].Nlink++
	m.out.Entries = append(m.out.Entries, Entry{name, *n})
}

// cursor is what is left of one layer's children of a directory; never empty.
type cursor struct {
	layer uint32
	rest  []Entry
}

func (c *cursor) before(o *cursor) bool {
	if c.rest[0].Name != o.rest[0].Name {
		return c.rest[0].Name < o.rest[0].Name
	}
	return c.layer > o.layer
}

// cursorHeap is a heap with the first name on top, and of equal names that of
// the uppermost layer.
type cursorHeap []cursor

func (h cursorHeap) init() {
	for i := len(h)/2 - 1; i >= 0; i-- {
		h.sink(i)
	}
}

// next moves the top cursor on by one.
func (h *cursorHeap) next() {
	c := &(*h)[0]
	if c.rest = c.rest[1:]; len(c.rest) == 0 {
		last := len(*h) - 1
		(*h)[0] = (*h)[last]
		*h = (*h)[:last]
	}
	h.sink(0)
}

func (h cursorHeap) sink(i int) {
	for {
		child := 2*i + 1
		if child >= len(h) {
			return
		}
		if child+1 < len(h) && h[child+1].before(&h[child]) {
			child++
		}
		if !h[child].before(&h[i]) {
			return
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
}

// u32 is for numbers of layers and places in tables, which newMerger and Freeze
// bound.
func u32(n int) uint32 { return uint32(n) } //nolint:gosec // as said
