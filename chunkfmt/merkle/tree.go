package merkle

import (
	"slices"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// Tree is a tree with the digests of its inodes.
type Tree struct {
	*chunkfmt.Tree
	// Digests has one for each inode.
	Digests []chunkfmt.Digest
	// first has the paths of the first entries of inodes with several.
	first map[uint32]string
}

// Hash computes the digests of a tree, which must be valid.
func Hash(t *chunkfmt.Tree) *Tree {
	m := &Tree{Tree: t, Digests: make([]chunkfmt.Digest, len(t.Inodes)), first: firstPaths(t)}
	h := hasher{Tree: m}
	for i := range t.Inodes {
		if h.Kind(uint32(i)) != chunkfmt.Dir {
			h.setDigest(uint32(i))
		}
	}
	// A directory's number is below those of its child directories.
	for i := range slices.Backward(t.Inodes) {
		if at := uint32(i); h.Kind(at) == chunkfmt.Dir { //nolint:gosec // numbers of inodes have 32 bits
			h.setDigest(at)
		}
	}
	return m
}

// Root returns the Merkle root of a tree, which must be valid.
func Root(t *chunkfmt.Tree) chunkfmt.Digest { return Hash(t).Root() }

// Digests returns the digests of all inodes of a tree, which must be valid.
func Digests(t *chunkfmt.Tree) []chunkfmt.Digest { return Hash(t).Digests }

// Root returns the Merkle root.
func (t *Tree) Root() chunkfmt.Digest { return t.Digests[0] }

// Node returns what the digest of an inode covers.
func (t *Tree) Node(inode uint32) Node {
	h := hasher{Tree: t}
	return h.node(inode)
}

// hasher has the memory that computing digests needs.
type hasher struct {
	*Tree
	tree    hashTree
	scratch []byte
}

func (h *hasher) setDigest(inode uint32) {
	n := h.node(inode)
	h.scratch = n.append(h.scratch[:0])
	h.Digests[inode] = chunkfmt.Sum(h.scratch)
}

// node makes a directory's node from the digests of its children.
func (h *hasher) node(inode uint32) Node {
	i, a := &h.Inodes[inode], h.Attr(inode)
	n := Node{
		Kind: a.Kind, Flags: a.Flags, Mode: a.Mode, UID: a.UID, GID: a.GID,
		Mtime: i.Mtime, Nsec: i.Nsec, Size: i.Size, Xattrs: h.Xattrs[a.Xattrs],
	}
	if a.Kind != chunkfmt.Dir {
		n.Links = i.Nlink
	}
	if n.Links > 1 {
		n.First = h.first[inode]
	}
	if n.hasTarget() {
		n.Target = h.Target(inode)
	}
	if n.hasTree() {
		h.tree.reset()
		h.leaves(inode, h.tree.add)
		n.Leaves, n.Tree = h.tree.n, h.tree.root()
	}
	return n
}

// leaves yields the hashes of the leaves of an inode's hash tree.
func (h *hasher) leaves(inode uint32, yield func(chunkfmt.Digest)) {
	if h.Kind(inode) == chunkfmt.File {
		chunkLeaves(h.Tree.Tree, inode, func(l Leaf) { yield(l.hash()) })
		return
	}
	for _, e := range h.Children(inode) {
		var leaf chunkfmt.Digest
		leaf, h.scratch = entryHash(h.scratch, e.Name, &h.Digests[e.Inode])
		yield(leaf)
	}
}

// chunkLeaves yields the leaves of a File's hash tree. Neighbours of equal
// content are one, so that a sparse file costs little however long it is, and
// inline content is one chunk.
func chunkLeaves(t *chunkfmt.Tree, inode uint32, yield func(Leaf)) {
	if data, ok := t.InlineData(inode); ok {
		if len(data) > 0 {
			yield(Leaf{Length: uint32(len(data)), Count: 1, Digest: chunkfmt.Sum(data)}) //nolint:gosec // places in Inline have 32 bits
		}
		return
	}
	n := &t.Inodes[inode]
	var leaf Leaf
	for _, r := range t.Runs[n.First : n.First+n.Count] {
		chunks, times := t.Chunks[r.Chunk:r.Chunk+1], uint64(r.Count)
		if !r.Repeat {
			chunks, times = t.Chunks[r.Chunk:r.Chunk+r.Count], 1
		}
		for i := range chunks {
			c := &chunks[i]
			if leaf.Length == c.Length && leaf.Digest == c.Digest {
				leaf.Count += times
				continue
			}
			if leaf.Count > 0 {
				yield(leaf)
			}
			leaf = Leaf{Offset: leaf.end(), Length: c.Length, Count: times, Digest: c.Digest}
		}
	}
	yield(leaf)
}

// firstPaths returns the paths of the first entries of inodes that have
// several and are no directories.
func firstPaths(t *chunkfmt.Tree) map[uint32]string {
	linked := func(inode uint32) bool { return t.Inodes[inode].Nlink > 1 && t.Kind(inode) != chunkfmt.Dir }
	some := false
	for i := range t.Inodes {
		if some = linked(uint32(i)); some {
			break
		}
	}
	if !some {
		return nil
	}
	first := map[uint32]string{}
	names := make([]string, len(t.Inodes)) // of directories
	for at := range t.Inodes {
		if t.Kind(uint32(at)) != chunkfmt.Dir {
			continue
		}
		for _, e := range t.Children(uint32(at)) {
			if t.Kind(e.Inode) == chunkfmt.Dir {
				names[e.Inode] = e.Name
			} else if _, ok := first[e.Inode]; !ok && linked(e.Inode) {
				first[e.Inode] = joinPath(t, names, uint32(at), e.Name)
			}
		}
	}
	return first
}

// joinPath returns the path of a name in a directory.
func joinPath(t *chunkfmt.Tree, names []string, dir uint32, name string) string {
	parts := []string{name}
	size := len(name)
	for ; dir != 0; dir = t.Inodes[dir].Parent {
		parts = append(parts, names[dir])
		size += 1 + len(names[dir])
	}
	p := make([]byte, 0, size)
	for i, part := range slices.Backward(parts) {
		p = append(p, part...)
		if i > 0 {
			p = append(p, '/')
		}
	}
	return string(p)
}
