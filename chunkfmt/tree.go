package chunkfmt

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"sort"
	"strings"
)

// ErrNotExist is returned by lookups of a path that a tree does not have. It
// is fs.ErrNotExist.
var ErrNotExist = fs.ErrNotExist

// ErrInvalid is wrapped by every error about an index that breaks the format.
var ErrInvalid = errors.New("invalid index")

// Attr returns the attributes of an inode.
func (t *Tree) Attr(inode uint32) *Attr { return &t.Attrs[t.Inodes[inode].Attr] }

// Kind returns what an inode is.
func (t *Tree) Kind(inode uint32) Kind { return t.Attr(inode).Kind }

// XattrsOf returns the extended attributes of an inode, sorted by name.
func (t *Tree) XattrsOf(inode uint32) []Xattr { return t.Xattrs[t.Attr(inode).Xattrs] }

// Children returns the entries of a directory, sorted by name.
func (t *Tree) Children(dir uint32) []Entry {
	n := &t.Inodes[dir]
	return t.Entries[n.First : n.First+n.Count]
}

// Target returns where a Symlink or LinkOut points.
func (t *Tree) Target(inode uint32) string { return t.Targets[t.Inodes[inode].First] }

// Child returns the inode of a directory's entry.
func (t *Tree) Child(dir uint32, name string) (uint32, bool) {
	if t.Kind(dir) != Dir {
		return 0, false
	}
	children := t.Children(dir)
	i := sort.Search(len(children), func(i int) bool { return children[i].Name >= name })
	if i == len(children) || children[i].Name != name {
		return 0, false
	}
	return children[i].Inode, true
}

// Lookup returns the inode of a path from the root. It follows no symbolic
// links; "", "." and "/" are the root.
func (t *Tree) Lookup(name string) (uint32, error) {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	at := uint32(0)
	for clean != "" {
		var first string
		first, clean, _ = strings.Cut(clean, "/")
		next, ok := t.Child(at, first)
		if !ok {
			return 0, fmt.Errorf("%s: %w", name, ErrNotExist)
		}
		at = next
	}
	return at, nil
}

// Resolve is Lookup, but follows symbolic links as a process would whose root
// directory is the tree's, the last one too.
func (t *Tree) Resolve(name string) (uint32, error) {
	rest := strings.TrimPrefix(path.Clean("/"+name), "/")
	at, done := uint32(0), ""
	for links := 0; rest != ""; {
		var first string
		first, rest, _ = strings.Cut(rest, "/")
		next, ok := t.Child(at, first)
		switch {
		case !ok:
			return 0, fmt.Errorf("%s: %w", name, ErrNotExist)
		case t.Kind(next) != Symlink:
			at, done = next, path.Join(done, first)
			continue
		}
		if links++; links > maxSymlinks {
			return 0, fmt.Errorf("%s: more than %d symbolic links: %w", name, maxSymlinks, ErrNotExist)
		}
		target := t.Target(next)
		if !path.IsAbs(target) {
			target = path.Join(done, target)
		}
		rest = strings.TrimPrefix(path.Clean("/"+path.Join(target, rest)), "/")
		at, done = 0, ""
	}
	return at, nil
}

// Walk yields every entry with its path (without leading slash) in level
// order, the root as "" first. An inode with several entries occurs several
// times.
func (t *Tree) Walk() iter.Seq2[string, uint32] {
	return func(yield func(string, uint32) bool) {
		if !yield("", 0) {
			return
		}
		for dirs := []walkDir{{}}; len(dirs) > 0; dirs = dirs[1:] {
			at := &dirs[0]
			children := t.Children(at.inode)
			if len(children) == 0 {
				continue
			}
			prefix := at.prefix()
			for _, e := range children {
				if !yield(prefix+e.Name, e.Inode) {
					return
				}
				if t.Kind(e.Inode) == Dir {
					dirs = append(dirs, walkDir{at, e.Name, e.Inode})
				}
			}
		}
	}
}

// walkDir is a directory that Walk will come to. It has no path yet: millions of
// them may have the same long path to their parent.
type walkDir struct {
	parent *walkDir
	name   string
	inode  uint32
}

// prefix returns what paths in the directory begin with.
func (d *walkDir) prefix() string {
	size := 0
	for at := d; at.parent != nil; at = at.parent {
		size += len(at.name) + 1
	}
	p := make([]byte, size)
	for at := d; at.parent != nil; at = at.parent {
		size--
		p[size] = '/'
		size -= len(at.name)
		copy(p[size:], at.name)
	}
	return string(p)
}

// InlineData returns the content of a File that has no chunks.
func (t *Tree) InlineData(inode uint32) ([]byte, bool) {
	n := &t.Inodes[inode]
	if t.Kind(inode) != File || n.Count != 0 {
		return nil, false
	}
	return t.Inline[n.First : int64(n.First)+n.Size], true
}

// Content yields the chunks of a File in order, each with its offset in the
// file: nothing for an inline or empty one.
func (t *Tree) Content(inode uint32) iter.Seq2[int64, *Chunk] {
	return func(yield func(int64, *Chunk) bool) {
		n := &t.Inodes[inode]
		if t.Kind(inode) != File || n.Count == 0 {
			return
		}
		offset := int64(0)
		for _, r := range t.Runs[n.First : n.First+n.Count] {
			for i := range r.Count {
				c := &t.Chunks[r.Chunk]
				if !r.Repeat {
					c = &t.Chunks[r.Chunk+i]
				}
				if !yield(offset, c) {
					return
				}
				offset += int64(c.Length)
			}
		}
	}
}

// GroupRef names a group of a tree.
type GroupRef struct {
	// Blob is a place in Tree.Blobs, Group one in its Groups.
	Blob, Group uint32
}

// Group returns the group that a reference names.
func (t *Tree) Group(r GroupRef) *Group { return &t.Blobs[r.Blob].Groups[r.Group] }

// GroupsOf returns the groups that must be fetched before the n bytes at off
// of a File can be read, in the order of the file, each once.
func (t *Tree) GroupsOf(inode uint32, off, n int64) []GroupRef {
	node := &t.Inodes[inode]
	if t.Kind(inode) != File {
		return nil
	}
	var refs []GroupRef
	seen := map[GroupRef]bool{}
	at := int64(0) // in the file
	add := func(c *Chunk, length int64) bool {
		ref := GroupRef{c.Blob, c.Group}
		if at-off < n && at+length > off && c.Blob != Hole && !seen[ref] {
			seen[ref] = true
			refs = append(refs, ref)
		}
		at += length
		return at-off < n
	}
	for _, r := range t.Runs[node.First : node.First+node.Count] {
		if r.Repeat {
			c := &t.Chunks[r.Chunk]
			if !add(c, int64(r.Count)*int64(c.Length)) {
				return refs
			}
			continue
		}
		for i := range r.Count {
			c := &t.Chunks[r.Chunk+i]
			if !add(c, int64(c.Length)) {
				return refs
			}
		}
	}
	return refs
}

// DeviceOffset returns the place of a chunk in the device of its blob, which
// must be defined in this tree, and false for a hole.
func (t *Tree) DeviceOffset(c *Chunk) (int64, bool) {
	if c.Blob == Hole {
		return 0, false
	}
	g := &t.Blobs[c.Blob].Groups[c.Group]
	if g.Segments == nil {
		return g.Device + int64(c.Offset), true
	}
	i := sort.Search(len(g.Segments), func(i int) bool { return g.Segments[i].Offset > c.Offset }) - 1
	if i < 0 {
		return 0, false
	}
	return g.Segments[i].Device + int64(c.Offset-g.Segments[i].Offset), true
}

// UsedGroups yields the groups that the tree's content lies in, in the order
// of blobs and groups, each once.
func (t *Tree) UsedGroups() iter.Seq[GroupRef] {
	return func(yield func(GroupRef) bool) {
		// Runs may overlap in any number, so they count at their ends only: as
		// differences, which wrap around.
		uses := make([]uint32, len(t.Chunks)+1)
		for i := range t.Runs {
			uses[t.Runs[i].Chunk]++
			uses[t.Runs[i].end()]--
		}
		last, used := GroupRef{Hole, 0}, uint32(0)
		for i := range t.Chunks {
			used += uses[i]
			ref := GroupRef{t.Chunks[i].Blob, t.Chunks[i].Group}
			if used == 0 || ref.Blob == Hole || ref == last {
				continue
			}
			last = ref
			if !yield(ref) {
				return
			}
		}
	}
}
