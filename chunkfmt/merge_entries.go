package chunkfmt

import "fmt"

// placeEntries walks all layers at once in level order and writes the entries
// of the merged tree. Inodes get their numbers, and of directories First,
// Count and Parent; Nlink is counted up.
func (m *merger) placeEntries() error {
	root := m.number(inodeRef{}, 0)
	for i := len(m.layers) - 1; i >= 0; i-- {
		m.parts = append(m.parts, inodeRef{layer: uint32(i)})
	}
	m.addDir(root, 0)
	for at := 0; at < len(m.dirs); at++ {
		d := m.dirs[at]
		first := len(m.out.Entries)
		if err := m.placeChildren(d); err != nil {
			return err
		}
		n := &m.out.Inodes[d.inode]
		n.First = uint32(first)
		n.Count = uint32(len(m.out.Entries) - first)
	}
	return nil
}

// number makes an inode of the merged tree.
func (m *merger) number(from inodeRef, parent uint32) uint32 {
	n := uint32(len(m.out.Inodes))
	m.out.Inodes = append(m.out.Inodes, Inode{Parent: parent})
	m.sources = append(m.sources, from)
	return n
}

// addDir makes a directory of the parts from first on.
func (m *merger) addDir(inode uint32, first int) {
	d := mergedDir{inode: inode, first: uint32(first), last: uint32(len(m.parts))}
	d.opaque = d.last
	for i := d.first; i < d.last; i++ {
		p := m.parts[i]
		if m.layers[p.layer].Attr(p.inode).Flags&Opaque != 0 {
			d.opaque = i + 1
			break
		}
	}
	m.out.Inodes[inode].Nlink = 2
	m.dirs = append(m.dirs, d)
}

func (m *merger) placeChildren(d mergedDir) error {
	if d.opaque-d.first == 1 {
		p := m.parts[d.first]
		for _, e := range m.layers[p.layer].Children(p.inode) {
			m.group = append(m.group[:0], inodeRef{p.layer, e.Inode})
			if err := m.place(d.inode, e.Name, m.group); err != nil {
				return err
			}
		}
		return nil
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
		if err := m.place(d.inode, name, m.group); err != nil {
			return err
		}
	}
	return nil
}

// place adds the entry that the layers' entries of one name, from top to
// bottom, make together.
func (m *merger) place(dir uint32, name string, group []inodeRef) error {
	top := group[0]
	switch m.layers[top.layer].Kind(top.inode) {
	case Whiteout:
		return nil
	case Dir:
		n := m.number(top, dir)
		m.out.Inodes[dir].Nlink++
		m.out.Entries = append(m.out.Entries, Entry{name, n})
		first := len(m.parts)
		for _, p := range group {
			if m.layers[p.layer].Kind(p.inode) != Dir {
				break
			}
			m.parts = append(m.parts, p)
		}
		m.addDir(n, first)
		return nil
	case LinkOut:
		target, err := m.links.resolve(top)
		if err != nil {
			return fmt.Errorf("layer %d: hard link %s to %s: %w", top.layer, m.path(dir, name),
				m.layers[top.layer].Target(top.inode), err)
		}
		top = target
	}
	n := &m.layers[top.layer].inodes[top.inode]
	if *n == 0 {
		*n = m.number(top, dir)
	}
	m.out.Inodes[*n].Nlink++
	m.out.Entries = append(m.out.Entries, Entry{name, *n})
	return nil
}

// path returns the path of a name in a directory of the merged tree so far.
// It is slow: for errors only.
func (m *merger) path(dir uint32, name string) string {
	for dir != 0 {
		parent := m.out.Inodes[dir].Parent
		for _, e := range m.out.Children(parent) {
			if e.Inode == dir {
				name = e.Name + "/" + name
				break
			}
		}
		dir = parent
	}
	return name
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
