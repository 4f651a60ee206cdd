package chunkfmt

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Draft is a tree being made from entries in any order, as a tar has them.
// Freeze turns it into a Tree.
//
// Paths are those of a tar: cleaned, with ".." at the root staying there, so
// that nothing leaves the tree. Parents that do not exist are made as Implied
// directories; a parent that is a symbolic link is followed inside the tree.
// The zero Draft is not usable; see NewDraft.
type Draft struct {
	root *Node
}

// Node is one object of a Draft. The caller fills it before it is put into the
// tree and, the content fields excepted, leaves it alone from then on.
type Node struct {
	Kind Kind
	Mode uint16
	UID  uint32
	GID  uint32
	// Mtime and Nsec as in Inode.
	Mtime int64
	Nsec  uint32
	// Size as in Inode: bytes of a File, major<<32 | minor of a device.
	Size int64
	// Target of a Symlink.
	Target string
	// Xattrs in any order; the last of equal names counts.
	Xattrs []Xattr
	// Chunks of a File, as places in the list that Freeze is given.
	Chunks []uint32
	// Inline is the content of a File without Chunks.
	Inline []byte

	flags    AttrFlags
	children map[string]*Node
	inode    uint32
	seen     bool
}

// maxSymlinks is how many links the kernel follows in one path (MAXSYMLINKS).
const maxSymlinks = 40

// NewDraft returns a tree that has only a root directory, which is Implied
// until it is Put.
func NewDraft() *Draft { return &Draft{root: impliedDir()} }

func impliedDir() *Node { return &Node{Kind: Dir, Mode: 0o755, flags: Implied} }

// Put adds a node. A directory that is there already keeps its children and
// the extended attributes that n does not set; anything else is replaced.
func (d *Draft) Put(name string, n *Node) error {
	n.Xattrs = sortXattrs(n.Xattrs)
	dir, base, err := d.place(name)
	if err != nil {
		return err
	}
	if base == "" {
		if n.Kind != Dir {
			return fmt.Errorf("%w: the root is no directory", ErrInvalid)
		}
		n.adopt(d.root)
		d.root = n
		return nil
	}
	if old := dir.children[base]; old != nil && n.Kind == Dir {
		n.adopt(old)
	}
	dir.set(base, n)
	return nil
}

// adopt makes the directory n stand for what was at its place before.
func (n *Node) adopt(old *Node) {
	switch old.Kind {
	case Dir:
		n.children = old.children
		n.flags |= old.flags & Opaque
		n.Xattrs = sortXattrs(append(slices.Clone(old.Xattrs), n.Xattrs...))
	case Whiteout:
		n.flags |= Opaque
	}
}

// Link adds a hard link. A target that this tree does not have is one of a
// layer below: the entry becomes a LinkOut.
func (d *Draft) Link(name, target string) error {
	clean, err := cleanPath(target)
	if err != nil {
		return fmt.Errorf("target of link %s: %w", name, err)
	}
	n := d.find(clean)
	switch {
	case clean == "" || n != nil && n.Kind == Dir:
		return fmt.Errorf("%w: %s is a hard link to the directory %q", ErrInvalid, name, target)
	case n != nil && n.Kind == Whiteout:
		return fmt.Errorf("%w: %s is a hard link to %q, which this layer removes", ErrInvalid, name, target)
	case n == nil:
		n = &Node{Kind: LinkOut, Target: clean}
	}
	dir, base, err := d.place(name)
	if err != nil {
		return err
	}
	if base == "" {
		return fmt.Errorf("%w: the root is a hard link", ErrInvalid)
	}
	dir.set(base, n)
	return nil
}

// Remove records that lower layers' entry of this name is not to be seen. By
// the OCI specification it does not touch what this layer has there.
func (d *Draft) Remove(name string) error {
	dir, base, err := d.place(name)
	if err != nil {
		return err
	}
	if base == "" {
		return fmt.Errorf("%w: whiteout of the root", ErrInvalid)
	}
	switch old := dir.children[base]; {
	case old == nil:
		dir.set(base, &Node{Kind: Whiteout})
	case old.Kind == Dir:
		old.flags |= Opaque
	}
	return nil
}

// Hide records that lower layers' children of a directory are not to be seen.
func (d *Draft) Hide(dir string) error {
	n, err := d.dir(dir)
	if err != nil {
		return err
	}
	n.flags |= Opaque
	return nil
}

// Find returns the node at a path, and nil when there is none.
func (d *Draft) Find(name string) *Node {
	clean, err := cleanPath(name)
	if err != nil {
		return nil
	}
	return d.find(clean)
}

// find does not make parents, which place would.
func (d *Draft) find(clean string) *Node {
	if clean == "" {
		return d.root
	}
	parent, base := path.Split(clean)
	dir, err := d.walk(strings.TrimSuffix(parent, "/"), false)
	if err != nil || dir == nil {
		return nil
	}
	return dir.children[base]
}

// place returns the directory of a path, which it makes, and the last name;
// "" is the root's.
func (d *Draft) place(name string) (*Node, string, error) {
	clean, err := cleanPath(name)
	if err != nil || clean == "" {
		return nil, "", err
	}
	parent, base := path.Split(clean)
	dir, err := d.dir(strings.TrimSuffix(parent, "/"))
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	return dir, base, nil
}

func (d *Draft) dir(name string) (*Node, error) {
	clean, err := cleanPath(name)
	if err != nil {
		return nil, err
	}
	return d.walk(clean, true)
}

// walk follows a clean path to a directory. Without create it returns nil for
// one that does not exist.
func (d *Draft) walk(clean string, create bool) (*Node, error) {
	at, done := d.root, ""
	for links := 0; clean != ""; {
		var first string
		first, clean, _ = strings.Cut(clean, "/")
		next := at.children[first]
		if next != nil && next.Kind == Symlink {
			if links++; links > maxSymlinks {
				return nil, fmt.Errorf("%w: too many symbolic links at %s", ErrInvalid, path.Join(done, first))
			}
			target := next.Target
			if !path.IsAbs(target) {
				target = path.Join(done, target)
			}
			clean = strings.TrimPrefix(path.Clean("/"+path.Join(target, clean)), "/")
			at, done = d.root, ""
			continue
		}
		if next == nil || next.Kind == Whiteout {
			if !create {
				return nil, nil
			}
			made := impliedDir()
			if next != nil {
				made.flags |= Opaque
			}
			at.set(first, made)
			next = made
		}
		if next.Kind != Dir {
			return nil, fmt.Errorf("%w: %s is no directory", ErrInvalid, path.Join(done, first))
		}
		at, done = next, path.Join(done, first)
	}
	return at, nil
}

func (n *Node) set(name string, child *Node) {
	if n.children == nil {
		n.children = map[string]*Node{}
	}
	n.children[name] = child
}

// cleanPath returns a path without leading slash and dots, "" for the root.
func cleanPath(name string) (string, error) {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	switch {
	case strings.ContainsRune(clean, 0):
		return "", fmt.Errorf("%w: path %.80q has a NUL", ErrInvalid, clean)
	case len(clean) > MaxPath:
		return "", fmt.Errorf("%w: path %.80q… has %d bytes, at most %d", ErrInvalid, clean, len(clean), MaxPath)
	}
	for part := range strings.SplitSeq(clean, "/") {
		if len(part) > MaxName {
			return "", fmt.Errorf("%w: name %.80q… has %d bytes, at most %d", ErrInvalid, part, len(part), MaxName)
		}
	}
	return clean, nil
}

// sortXattrs sorts by name and keeps the last of equal names.
func sortXattrs(x []Xattr) []Xattr {
	if len(x) < 2 {
		return x
	}
	slices.SortStableFunc(x, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	out := x[:0]
	for i := range x {
		if i+1 < len(x) && x[i+1].Name == x[i].Name {
			continue
		}
		out = append(out, x[i])
	}
	return out
}
