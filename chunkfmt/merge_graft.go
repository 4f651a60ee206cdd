package chunkfmt

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// maxGrafts bounds how often one layer is searched for directories to graft:
// each time finds those that the last one has brought to light.
const maxGrafts = 40

// maxMade bounds the directories that one merge makes where symbolic links lead
// nowhere: a few bytes of target can ask for thousands.
const maxMade = 1 << 18

func (l *linkTable) step(n int) error {
	if l.steps <= maxLinkSteps {
		l.steps += 1 + n
	}
	if l.steps > maxLinkSteps {
		return invalid("the layers' links lead through too many directories")
	}
	return nil
}

// joinTarget returns the path that a symbolic link in the directory done makes
// of the rest of a path.
func joinTarget(done, target, rest string) (string, error) {
	if !path.IsAbs(target) {
		target = path.Join(done, target)
	}
	name := strings.TrimPrefix(path.Clean("/"+path.Join(target, rest)), "/")
	if len(name) > MaxPath {
		return "", invalid("a symbolic link in %.80q makes a path of %d bytes, at most %d", done, len(name), MaxPath)
	}
	return name, nil
}

// graft returns the layers with every Implied directory at a place where the
// layers below have a symbolic link moved to where that leads. Unpacking does
// the same when it makes a file in a directory that the layer does not list.
func graft(layers []*Tree) ([]*Tree, error) {
	if len(layers) < 2 || !slices.ContainsFunc(layers[1:], hasImplied) {
		return layers, nil
	}
	l := linkTable{targets: map[inodeRef]inodeRef{}}
	out := slices.Clone(layers)
	for i, t := range layers {
		if i > 0 && hasImplied(t) {
			g := grafter{links: &l, layer: i}
			var err error
			if out[i], err = g.layerTree(t); err != nil {
				return nil, fmt.Errorf("layer %d: %w", i, err)
			}
		}
		l.layers = append(l.layers, mergeLayer{Tree: out[i]})
		l.know(i)
	}
	return out, nil
}

// know finds the targets of a layer's LinkOuts, which may be symbolic links.
// Those that have none are resolveLinks' business.
func (l *linkTable) know(layer int) {
	t := l.layers[layer].Tree
	for i := range t.Inodes {
		ref := inodeRef{u32(layer), u32(i)}
		if t.Kind(ref.inode) != LinkOut {
			continue
		}
		if target, err := l.find(ref); err == nil {
			l.targets[ref] = target
		}
	}
}

// hasImplied reports a layer that has something to graft, perhaps.
func hasImplied(t *Tree) bool {
	if !slices.ContainsFunc(t.Attrs, func(a Attr) bool { return a.Flags&Implied != 0 }) {
		return false
	}
	for i := 1; i < len(t.Inodes); i++ {
		if t.Attr(u32(i)).Flags&(Implied|Replaced) == Implied {
			return true
		}
	}
	return false
}

// grafter moves directories of one layer.
type grafter struct {
	links *linkTable // of the layers below
	layer int
	tree  *Tree
	moves []graftMove
}

type graftMove struct {
	parent *graftNode
	name   string
	from   string // its path
	to     string
}

// graftNode is an entry of the layer.
type graftNode struct {
	inode    uint32
	kind     Kind
	attr     Attr // of a Dir
	made     bool // it has no inode yet
	children map[string]*graftNode
}

func (g *grafter) layerTree(t *Tree) (*Tree, error) {
	if t.Attr(0).Flags&(Opaque|Replaced) != 0 {
		return t, nil
	}
	if needed, err := g.needed(t); err != nil || !needed {
		return t, err
	}
	g.tree = t
	root := g.nodes()
	for range maxGrafts {
		if err := g.search(root); err != nil {
			return nil, err
		}
		if len(g.moves) == 0 {
			out := g.write(root)
			// Paths have become longer.
			return out, (&validator{Tree: out}).checkNames()
		}
		for _, m := range g.moves {
			if err := g.move(root, m); err != nil {
				return nil, err
			}
		}
	}
	return nil, invalid("directories lead through too many symbolic links")
}

// needed reports whether there is something to move, or to refuse. It is what
// nearly all layers need of grafting, and quick.
func (g *grafter) needed(t *Tree) (bool, error) {
	// leads has the directories that are, or lead to, Implied ones.
	leads := make([]bool, len(t.Inodes))
	for i := len(t.Inodes) - 1; i > 0; i-- {
		if leads[i] || t.Attr(u32(i)).Flags&Implied != 0 {
			leads[i], leads[t.Inodes[i].Parent] = true, true
		}
	}
	type place struct {
		inode uint32
		parts []inodeRef
	}
	todo := []place{{parts: g.links.root(g.layer)}}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, e := range t.Children(at.inode) {
			a := t.Attr(e.Inode)
			if !leads[e.Inode] || a.Flags&Replaced != 0 {
				continue
			}
			if err := g.links.step(len(at.parts)); err != nil {
				return false, err
			}
			below := g.links.child(at.parts, e.Name)
			if len(below) == 0 {
				continue
			}
			isDir := g.links.layers[below[0].layer].Kind(below[0].inode) == Dir
			switch {
			case !isDir && a.Flags&Implied != 0:
				return true, nil
			case isDir && a.Flags&Opaque == 0:
				todo = append(todo, place{e.Inode, below})
			}
		}
	}
	return false, nil
}

// graftPlace is a directory of the layer and what is below it: parts of a
// directory.
type graftPlace struct {
	node  *graftNode
	parts []inodeRef
	path  string
}

// search collects the directories to move.
func (g *grafter) search(root *graftNode) error {
	g.moves = nil
	todo := []graftPlace{{node: root, parts: g.links.root(g.layer)}}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := g.links.step(len(at.node.children)); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(at.node.children)) {
			n := at.node.children[name]
			if n.kind != Dir {
				continue
			}
			into, err := g.look(at, name, n)
			if err != nil {
				return err
			}
			if into != nil {
				todo = append(todo, *into)
			}
		}
	}
	return nil
}

// look compares a directory of the layer with what is below it. It returns the
// directory if its children are to be looked at.
func (g *grafter) look(at graftPlace, name string, n *graftNode) (*graftPlace, error) {
	if err := g.links.step(len(at.parts)); err != nil {
		return nil, err
	}
	below := g.links.child(at.parts, name)
	if len(below) == 0 || n.attr.Flags&Replaced != 0 {
		return nil, nil
	}
	full := path.Join(at.path, name)
	switch kind := g.links.layers[below[0].layer].Kind(below[0].inode); {
	case kind == Dir && n.attr.Flags&Opaque != 0:
	case kind == Dir:
		return &graftPlace{n, below, full}, nil
	case n.attr.Flags&Implied == 0:
	case kind != Symlink:
		return nil, invalid("%s is no directory in the layers below", full)
	default:
		to, err := g.resolve(full)
		if err != nil {
			return nil, err
		}
		g.moves = append(g.moves, graftMove{at.node, name, full, to})
	}
	return nil, nil
}

// resolve follows all symbolic links of a path through the layers below. What
// does not exist stays as it is.
func (g *grafter) resolve(name string) (string, error) {
	l := g.links
	dir, rest := l.root(g.layer), name
	for links := 0; rest != ""; {
		if err := l.step(len(dir)); err != nil {
			return "", err
		}
		var first string
		first, rest, _ = strings.Cut(rest, "/")
		full := before(name, rest)
		parts := l.child(dir, first)
		if len(parts) == 0 {
			return name, nil
		}
		at := parts[0]
		switch layer := &l.layers[at.layer]; layer.Kind(at.inode) {
		case Dir:
			dir = parts
		case Symlink:
			if links++; links > maxFollowed {
				return "", invalid("too many symbolic links at %s", full)
			}
			if err := l.step(symlinkSteps); err != nil {
				return "", err
			}
			var err error
			if name, err = joinTarget(path.Dir(full), layer.Target(at.inode), rest); err != nil {
				return "", err
			}
			dir, rest = l.root(g.layer), name
		default:
			return "", invalid("%s is no directory in the layers below", full)
		}
	}
	return name, nil
}

// nodes returns the nodes of the layer.
func (g *grafter) nodes() *graftNode {
	root := &graftNode{attr: *g.tree.Attr(0)}
	for todo := []*graftNode{root}; len(todo) > 0; todo = todo[1:] {
		n := todo[0]
		n.children = map[string]*graftNode{}
		for _, e := range g.tree.Children(n.inode) {
			child := &graftNode{inode: e.Inode, attr: *g.tree.Attr(e.Inode)}
			child.kind = child.attr.Kind
			n.children[e.Name] = child
			if child.kind == Dir {
				todo = append(todo, child)
			}
		}
	}
	return root
}

func (g *grafter) move(root *graftNode, m graftMove) error {
	from := m.parent.children[m.name]
	delete(m.parent.children, m.name)
	at := root
	for name := range strings.SplitSeq(m.to, "/") {
		if name == "" {
			break // the root
		}
		next := at.children[name]
		if next == nil || next.kind == Whiteout {
			made := &graftNode{attr: impliedAttr(Dir, Implied), made: true, children: map[string]*graftNode{}}
			if next != nil {
				made.attr.Flags |= Replaced
			}
			if g.links.made++; g.links.made > maxMade {
				return invalid("symbolic links lead to more than %d directories that do not exist", maxMade)
			}
			at.children[name], next = made, made
		}
		if next.kind != Dir {
			return invalid("%s leads to %s, which is no directory", m.from, m.to)
		}
		at = next
	}
	for name, n := range from.children {
		if n.kind == LinkOut && g.isOwn(n, path.Join(m.to, name)) {
			return invalid("%s is a hard link to itself, %s", path.Join(m.from, name), path.Join(m.to, name))
		}
	}
	at.take(from)
	return nil
}

// isOwn reports a link whose target is its own name.
func (g *grafter) isOwn(n *graftNode, name string) bool {
	dir, base := path.Split(g.tree.Target(n.inode))
	to, err := g.resolve(strings.TrimSuffix(dir, "/"))
	return err == nil && path.Join(to, base) == name
}

// take adds what another directory has.
func (n *graftNode) take(from *graftNode) {
	type pair struct{ to, from *graftNode }
	for todo := []pair{{n, from}}; len(todo) > 0; todo = todo[1:] {
		to, from := todo[0].to, todo[0].from
		if to.attr.Flags&Replaced == 0 {
			to.attr.Flags |= from.attr.Flags & Opaque
		}
		for name, child := range from.children {
			old := to.children[name]
			switch {
			case old == nil || child.kind != Whiteout && (child.kind != Dir || old.kind != Dir):
				to.children[name] = child
			case child.kind == Dir:
				if child.attr.Flags&Implied == 0 {
					flags := old.attr.Flags
					old.inode, old.made, old.attr = child.inode, child.made, child.attr
					old.attr.Flags |= flags &^ Implied
				}
				todo = append(todo, pair{old, child})
			}
		}
	}
}

// write returns the tree of the nodes. It shares all tables but those of
// inodes, entries and attributes with the layer.
func (g *grafter) write(root *graftNode) *Tree {
	out := *g.tree
	out.Inodes, out.Entries, out.Attrs = nil, nil, slices.Clone(g.tree.Attrs)
	w := graftWriter{from: g.tree, out: &out, attrs: map[Attr]uint32{}, numbers: make([]uint32, len(g.tree.Inodes))}
	for i, a := range out.Attrs {
		w.attrs[a] = u32(i)
	}
	w.add(root, 0)
	out.Inodes[0].Nlink = 2
	for at := 0; at < len(w.dirs); at++ {
		w.children(w.dirs[at].node, w.dirs[at].inode)
	}
	return &out
}

type graftWriter struct {
	from, out *Tree
	attrs     map[Attr]uint32
	numbers   []uint32 // of inodes that are no directories; 0: none yet
	dirs      []graftDir
}

type graftDir struct {
	node  *graftNode
	inode uint32
}

// add makes an inode whose entry stands in parent.
func (w *graftWriter) add(n *graftNode, parent uint32) uint32 {
	var inode Inode
	if !n.made {
		inode = w.from.Inodes[n.inode]
	}
	inode.Nlink, inode.Parent = 0, parent
	number := u32(len(w.out.Inodes))
	if n.kind == Dir {
		at, ok := w.attrs[n.attr]
		if !ok {
			at = u32(len(w.out.Attrs))
			w.attrs[n.attr] = at
			w.out.Attrs = append(w.out.Attrs, n.attr)
		}
		inode.Attr = at
		inode.Nlink = 1 // its own "."
		w.dirs = append(w.dirs, graftDir{n, number})
	}
	w.out.Inodes = append(w.out.Inodes, inode)
	return number
}

// children writes the entries of a directory.
func (w *graftWriter) children(dir *graftNode, inode uint32) {
	first := u32(len(w.out.Entries))
	for _, name := range slices.Sorted(maps.Keys(dir.children)) {
		n := dir.children[name]
		number := uint32(0)
		if n.kind != Dir {
			number = w.numbers[n.inode]
		}
		if number == 0 {
			number = w.add(n, inode)
		}
		if n.kind == Dir {
			w.out.Inodes[inode].Nlink++
		} else {
			w.numbers[n.inode] = number
		}
		w.out.Inodes[number].Nlink++
		w.out.Entries = append(w.out.Entries, Entry{name, number})
	}
	w.out.Inodes[inode].First = first
	w.out.Inodes[inode].Count = u32(len(w.out.Entries)) - first
}
