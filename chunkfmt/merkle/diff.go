package merkle

import (
	"iter"
	"strings"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// Op is what became of a path.
type Op uint8

// The changes of a path.
const (
	Added Op = iota
	Removed
	Modified
)

// String returns the word for the change.
func (o Op) String() string { return [...]string{"added", "removed", "modified"}[o] }

// Change is a path that two trees differ in.
type Change struct {
	// Path from the root, without leading slash; "" is the root.
	Path string
	Op   Op
	// Metadata and Content say what was Modified. Content is also a link's
	// target and a device's number. The number of hard links of a file and the
	// path of the first of them are metadata.
	Metadata, Content bool
	// Old and New are the inodes, as far as there is one.
	Old, New uint32
}

// Diff yields the paths in which two trees differ, from the old to the new
// one: directories before what is in them, by name. What changes its kind is
// removed with everything in it, then added. Subtrees of equal digests are not
// looked at.
func Diff(older, newer *Tree) iter.Seq[Change] {
	return func(yield func(Change) bool) {
		d := differ{
			older: hasher{Tree: older}, newer: hasher{Tree: newer},
			yield: yield,
		}
		if older.Root() != newer.Root() {
			d.both("", 0, 0)
		}
	}
}

// differ goes down both trees. Its methods return false when the caller has
// had enough. They call themselves as deep as a path has names.
type differ struct {
	older, newer hasher
	yield        func(Change) bool
}

// both compares two inodes of one path and different digests.
func (d *differ) both(path string, older, newer uint32) bool {
	if d.older.Kind(older) != d.newer.Kind(newer) {
		return d.all(&d.older, path, older, Removed) && d.all(&d.newer, path, newer, Added)
	}
	o, n := d.older.node(older), d.newer.node(newer)
	c := Change{Path: path, Op: Modified, Old: older, New: newer, Metadata: !o.equalMetadata(&n)}
	if o.Kind != chunkfmt.Dir {
		c.Content = !o.equalContent(&n)
		return d.yield(c)
	}
	if c.Metadata && !d.yield(c) {
		return false
	}
	return d.children(path, d.older.Children(older), d.newer.Children(newer))
}

func (d *differ) children(path string, older, newer []chunkfmt.Entry) bool {
	for len(older) > 0 || len(newer) > 0 {
		var order int
		switch {
		case len(newer) == 0:
			order = -1
		case len(older) == 0:
			order = 1
		default:
			order = strings.Compare(older[0].Name, newer[0].Name)
		}
		ok := true
		switch {
		case order < 0:
			ok = d.all(&d.older, child(path, older[0].Name), older[0].Inode, Removed)
		case order > 0:
			ok = d.all(&d.newer, child(path, newer[0].Name), newer[0].Inode, Added)
		case d.older.Digests[older[0].Inode] != d.newer.Digests[newer[0].Inode]:
			ok = d.both(child(path, older[0].Name), older[0].Inode, newer[0].Inode)
		}
		if !ok {
			return false
		}
		if order <= 0 {
			older = older[1:]
		}
		if order >= 0 {
			newer = newer[1:]
		}
	}
	return true
}

// all yields a path that only one tree has, and everything in it.
func (d *differ) all(in *hasher, path string, inode uint32, op Op) bool {
	c := Change{Path: path, Op: op}
	if op == Added {
		c.New = inode
	} else {
		c.Old = inode
	}
	if !d.yield(c) {
		return false
	}
	if in.Kind(inode) != chunkfmt.Dir {
		return true
	}
	for _, e := range in.Children(inode) {
		if !d.all(in, child(path, e.Name), e.Inode, op) {
			return false
		}
	}
	return true
}

func child(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
