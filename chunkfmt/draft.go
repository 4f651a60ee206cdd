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
	// links has the LinkOuts by target: links to one thing are one inode.
	links map[string]*Node
	// implied is how many directories were made as parents, and followed how
	// many bytes the paths had in all that symbolic links led to, less what
	// was allowed for each walk.
	implied, followed int64
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

const (
	// maxSymlinks is how many links the kernel follows in one path
	// (MAXSYMLINKS).
	maxSymlinks = 40
	// maxFollowed is how many links containerd follows when it unpacks.
	maxFollowed = 255

	// maxImplied is how many directories that have no entry a Draft may make.
	// One path can ask for two thousand.
	maxImplied = 1 << 20
	// maxDetours is how many bytes of paths a Draft may walk because symbolic
	// links led there, and detour how many more for each path: one can ask for
	// a megabyte.
	maxDetours = 256 << 20
	detour     = 1 << 10

	capability = "security.capability"
)

// NewDraft returns a tree that has only a root directory, which is Implied
// until it is Put.
func NewDraft() *Draft { return &Draft{root: impliedDir(), links: map[string]*Node{}} }

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
		n.flags |= old.flags &^ Implied
		n.Xattrs = sortXattrs(append(slices.Clone(old.Xattrs), n.Xattrs...))
	default:
		n.replace()
	}
}

// replace records that nothing of lower layers stays at the directory's place.
func (n *Node) replace() { n.flags = n.flags&^Opaque | Replaced }

// Link adds a hard link. What was under its name is removed first, so that it
// cannot be the target. A target that this tree does not have is one of a layer
// below: the entry becomes a LinkOut.
func (d *Draft) Link(name, target string) error {
	_, err := d.link(name, target)
	return err
}

// LinkAs is Link with the attributes that the link's own header has. Unpacking
// it gives them to what it links to: owner, time, mode (symbolic links have
// none), and extended attributes in addition to those that are there, of which
// capabilities do not survive the change of owner.
func (d *Draft) LinkAs(name, target string, header *Node) error {
	n, err := d.link(name, target)
	if err != nil {
		return err
	}
	if n.Kind != Symlink {
		n.Mode = header.Mode
	}
	n.UID, n.GID, n.Mtime, n.Nsec = header.UID, header.GID, header.Mtime, header.Nsec
	keep := slices.DeleteFunc(slices.Clone(n.Xattrs), func(x Xattr) bool { return x.Name == capability })
	for _, x := range header.Xattrs {
		if linkTakes(n.Kind, x.Name) {
			keep = append(keep, x)
		}
	}
	n.Xattrs = sortXattrs(keep)
	return nil
}

// linkTakes reports whether what a hard link leads to can have an attribute of
// the link's: Linux has user attributes for files and directories only.
func linkTakes(k Kind, name string) bool {
	return k == File || k == LinkOut || !strings.HasPrefix(name, "user.")
}

func (d *Draft) link(name, target string) (*Node, error) {
	clean, err := cleanPath(target)
	if err != nil {
		return nil, fmt.Errorf("target of link %s: %w", name, err)
	}
	dir, base, err := d.place(name)
	if err != nil {
		return nil, err
	}
	if base == "" {
		return nil, fmt.Errorf("%w: the root is a hard link", ErrInvalid)
	}
	dir.set(base, &Node{Kind: Whiteout})
	n, at, below := d.find(clean)
	switch {
	case n != nil && n.Kind == Dir:
		return nil, fmt.Errorf("%w: %s is a hard link to the directory %q", ErrInvalid, name, target)
	case n == nil && !below:
		return nil, fmt.Errorf("%w: %s is a hard link to %q, which this layer removes or replaces", ErrInvalid, name, target)
	case n == nil:
		if n = d.links[at]; n == nil {
			n = &Node{Kind: LinkOut, Target: at}
			d.links[at] = n
		}
	}
	dir.set(base, n)
	return n, nil
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
		old.replace()
	}
	return nil
}

// Hide records that lower layers' children of a directory are not to be seen.
func (d *Draft) Hide(dir string) error {
	n, err := d.dir(dir)
	if err != nil {
		return err
	}
	if n.flags&Replaced == 0 {
		n.flags |= Opaque
	}
	return nil
}

// Find returns the node at a path, and nil when there is none.
func (d *Draft) Find(name string) *Node {
	clean, err := cleanPath(name)
	if err != nil {
		return nil
	}
	n, _, _ := d.find(clean)
	return n
}

// find returns the node at a clean path, or else where layers below may have
// it: a path that leads through no symbolic link of this layer. It makes no
// parents, which place would.
func (d *Draft) find(clean string) (n *Node, at string, below bool) {
	if clean == "" {
		return d.root, "", false
	}
	parent, base := path.Split(clean)
	w, err := d.walk(strings.TrimSuffix(parent, "/"), false)
	if err != nil {
		return nil, "", false
	}
	at = path.Join(w.path, base)
	if w.dir == nil {
		return nil, at, w.below
	}
	if n = w.dir.children[base]; n != nil && n.Kind == Whiteout {
		return nil, at, false
	}
	return n, at, w.below
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
	w, err := d.walk(clean, true)
	return w.dir, err
}

// walked is where a path has led.
type walked struct {
	dir  *Node // nil if it does not exist
	path string
	// below tells whether layers below may have what is not found there.
	below bool
}

func (d *Draft) start() walked { return walked{d.root, "", d.root.showsBelow()} }

// walk follows a clean path to a directory, which create makes if it does not
// exist.
func (d *Draft) walk(clean string, create bool) (walked, error) {
	at, rest := d.start(), clean
	d.followed -= detour
	for links := 0; rest != ""; {
		var first string
		first, rest, _ = strings.Cut(rest, "/")
		full := before(clean, rest)
		next := at.dir.children[first]
		if next != nil && next.Kind == Symlink {
			if links++; links > maxFollowed {
				return walked{}, fmt.Errorf("%w: too many symbolic links at %s", ErrInvalid, full)
			}
			var err error
			if clean, err = joinTarget(at.path, next.Target, rest); err != nil {
				return walked{}, err
			}
			if d.followed += int64(len(next.Target) + len(clean)); d.followed > maxDetours {
				return walked{}, fmt.Errorf("%w: symbolic links at %s and before make paths of too many bytes", ErrInvalid, full)
			}
			at, rest = d.start(), clean
			continue
		}
		if next == nil || next.Kind == Whiteout {
			if !create {
				return walked{nil, clean, at.below && next == nil}, nil
			}
			if d.implied++; d.implied > maxImplied {
				return walked{}, fmt.Errorf("%w: more than %d directories without an entry of their own", ErrInvalid, maxImplied)
			}
			made := impliedDir()
			if next != nil {
				made.replace()
			}
			at.dir.set(first, made)
			next = made
		}
		if next.Kind != Dir {
			return walked{}, fmt.Errorf("%w: %s is no directory", ErrInvalid, full)
		}
		at = walked{next, full, at.below && next.showsBelow()}
	}
	return at, nil
}

// before returns what of a clean path is in front of its last names: a part of
// the string, as paths can be long and deep.
func before(clean, rest string) string {
	if rest == "" {
		return clean
	}
	return clean[:len(clean)-len(rest)-1]
}

// showsBelow reports a directory in which layers below are seen, unless they
// are hidden further up.
func (n *Node) showsBelow() bool { return n.flags&(Opaque|Replaced) == 0 }

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
