package merkle

import (
	"fmt"
	"math/bits"
	"path"
	"strings"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// Prove returns a proof of what is at a path. It follows no symbolic links.
func (t *Tree) Prove(name string) (*Proof, error) {
	p := &Proof{Path: strings.TrimPrefix(path.Clean("/"+name), "/")}
	h := hasher{Tree: t}
	at := uint32(0)
	for rest := p.Path; rest != ""; {
		var first string
		first, rest, _ = strings.Cut(rest, "/")
		next, ok := t.Child(at, first)
		if !ok {
			return nil, fmt.Errorf("prove %s: %w", name, chunkfmt.ErrNotExist)
		}
		index := uint64(0)
		for t.Children(at)[index].Name != first {
			index++
		}
		p.Dirs = append(p.Dirs, Step{Node: h.node(at), Index: index, Siblings: h.siblings(at, index, index+1)})
		at = next
	}
	p.Node = h.node(at)
	return p, nil
}

// ProveRange returns a proof of which chunks hold the n bytes at off of a
// file, and of the file itself.
func (t *Tree) ProveRange(name string, off, n int64) (*Proof, error) {
	p, err := t.Prove(name)
	if err != nil {
		return nil, err
	}
	if p.Node.Kind != chunkfmt.File || off < 0 || n <= 0 || n > p.Node.Size-off {
		return nil, fmt.Errorf("prove %s: no %d bytes at %d: %w", name, n, off, chunkfmt.ErrNotExist)
	}
	inode, err := t.Lookup(p.Path)
	if err != nil {
		return nil, err
	}
	r := &Range{}
	index := uint64(0)
	chunkLeaves(t.Tree, inode, func(l Leaf) {
		if l.end() > off && l.Offset < off+n {
			if len(r.Leaves) == 0 {
				r.First = index
			}
			r.Leaves = append(r.Leaves, l)
		}
		index++
	})
	h := hasher{Tree: t}
	r.Siblings = h.siblings(inode, r.First, r.First+uint64(len(r.Leaves)))
	p.Range = r
	return p, nil
}

// siblings returns, from left to right, the roots of the largest subtrees of
// an inode's hash tree that have none of the leaves from first to last.
func (h *hasher) siblings(inode uint32, first, last uint64) []chunkfmt.Digest {
	var leaves, out []chunkfmt.Digest
	h.leaves(inode, func(d chunkfmt.Digest) { leaves = append(leaves, d) })
	var visit func(from, to uint64)
	visit = func(from, to uint64) {
		if to <= first || from >= last {
			h.tree.reset()
			for _, d := range leaves[from:to] {
				h.tree.add(d)
			}
			out = append(out, h.tree.root())
			return
		}
		if to-from == 1 {
			return
		}
		middle := from + split(to-from)
		visit(from, middle)
		visit(middle, to)
	}
	visit(0, uint64(len(leaves)))
	return out
}

// split returns how many of n > 1 leaves are in the left subtree: the largest
// power of two below n.
func split(n uint64) uint64 { return 1 << (bits.Len64(n-1) - 1) }

// rootOf is the verifier's side of siblings: the root of a hash tree of size
// leaves, of which those from first on and all siblings are known. It reports
// false if the numbers do not fit.
func rootOf(size, first uint64, leaves, siblings []chunkfmt.Digest) (chunkfmt.Digest, bool) {
	last := first + uint64(len(leaves))
	if len(leaves) == 0 || last < first || last > size {
		return chunkfmt.Digest{}, false
	}
	ok := true
	var visit func(from, to uint64) chunkfmt.Digest
	visit = func(from, to uint64) chunkfmt.Digest {
		list := &siblings
		inside := from < last && to > first
		if inside && to-from > 1 {
			middle := from + split(to-from)
			left := visit(from, middle)
			return inner(left, visit(middle, to))
		}
		if inside {
			list = &leaves
		}
		if len(*list) == 0 {
			ok = false
			return chunkfmt.Digest{}
		}
		d := (*list)[0]
		*list = (*list)[1:]
		return d
	}
	root := visit(0, size)
	return root, ok && len(siblings) == 0
}
