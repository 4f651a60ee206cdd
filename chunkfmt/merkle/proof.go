package merkle

import (
	"errors"
	"fmt"
	"strings"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// Proof shows what one path of a tree is to somebody who knows the tree's
// Merkle root. Its fields are claims until Verify has returned nil.
type Proof struct {
	// Path from the root, without leading slash; "" is the root.
	Path string
	// Dirs are the directories from the root to the path's parent.
	Dirs []Step
	// Node is what the path is.
	Node Node
	// Range proves a part of a file's content; nil if there is none.
	Range *Range
}

// Step is a directory on the way to a proved path.
type Step struct {
	Node Node
	// Index is the place of the path's next name among the children.
	Index uint64
	// Siblings are the other subtrees' roots, from left to right.
	Siblings []chunkfmt.Digest
}

// Range is a part of the leaves of a file's hash tree.
type Range struct {
	// First is the number of the first leaf.
	First    uint64
	Leaves   []Leaf
	Siblings []chunkfmt.Digest
}

var errNoProof = errors.New("the proof does not fit together")

// Verify checks that a tree of this Merkle root has at Path what Node and
// Range say.
func (p *Proof) Verify(root chunkfmt.Digest) error {
	if err := p.verify(root); err != nil {
		return fmt.Errorf("proof of %.256q: %w", "/"+p.Path, err)
	}
	return nil
}

func (p *Proof) verify(root chunkfmt.Digest) error {
	var names []string
	if p.Path != "" {
		names = strings.Split(p.Path, "/")
	}
	if len(names) != len(p.Dirs) {
		return fmt.Errorf("%w: %d directories for %d names", errNoProof, len(p.Dirs), len(names))
	}
	d := p.Node.Digest()
	for i := len(names) - 1; i >= 0; i-- {
		step := &p.Dirs[i]
		leaf, _ := entryHash(nil, names[i], &d)
		tree, ok := rootOf(step.Node.Leaves, step.Index, []chunkfmt.Digest{leaf}, step.Siblings)
		if !ok || step.Node.Kind != chunkfmt.Dir {
			return fmt.Errorf("%w: the directory of %.256q", errNoProof, names[i])
		}
		if tree != step.Node.Tree {
			return fmt.Errorf("%w: the directory of %.256q has another entry", ErrMismatch, names[i])
		}
		d = step.Node.Digest()
	}
	if d != root {
		return fmt.Errorf("%w: the proof leads to the Merkle root %s, not %s", ErrMismatch, d, root)
	}
	if p.Range != nil {
		return p.Range.verify(&p.Node)
	}
	return nil
}

func (r *Range) verify(n *Node) error {
	hashes := make([]chunkfmt.Digest, len(r.Leaves))
	for i := range r.Leaves {
		l := &r.Leaves[i]
		// Divided, as the product might overflow.
		if l.Offset < 0 || l.Offset > n.Size || l.Length == 0 || l.Count == 0 ||
			l.Count > uint64(n.Size-l.Offset)/uint64(l.Length) || //nolint:gosec // not negative
			i > 0 && l.Offset != r.Leaves[i-1].end() {
			return fmt.Errorf("%w: chunks at byte %d", errNoProof, l.Offset)
		}
		hashes[i] = l.hash()
	}
	tree, ok := rootOf(n.Leaves, r.First, hashes, r.Siblings)
	if !ok || n.Kind != chunkfmt.File {
		return fmt.Errorf("%w: the content", errNoProof)
	}
	if tree != n.Tree {
		return fmt.Errorf("%w: the file has other content", ErrMismatch)
	}
	return nil
}

// VerifyData checks bytes of the file against a Range that Verify has found
// good. They must be whole chunks.
func (p *Proof) VerifyData(off int64, data []byte) error {
	if p.Range == nil {
		return fmt.Errorf("proof of %.256q: %w: it has no range", "/"+p.Path, errNoProof)
	}
	for i := range p.Range.Leaves {
		l := &p.Range.Leaves[i]
		for len(data) > 0 && off >= l.Offset && off < l.end() {
			if (off-l.Offset)%int64(l.Length) != 0 || int64(len(data)) < int64(l.Length) {
				return fmt.Errorf("proof of %.256q: %w: byte %d is inside a chunk", "/"+p.Path, errNoProof, off)
			}
			if got := chunkfmt.Sum(data[:l.Length]); got != l.Digest {
				return fmt.Errorf("proof of %.256q: %w: the %d bytes at %d have the digest %s, not %s",
					"/"+p.Path, ErrMismatch, l.Length, off, got, l.Digest)
			}
			data, off = data[l.Length:], off+int64(l.Length)
		}
	}
	if len(data) > 0 {
		return fmt.Errorf("proof of %.256q: %w: it does not cover byte %d", "/"+p.Path, errNoProof, off)
	}
	return nil
}
