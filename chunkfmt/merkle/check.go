package merkle

import (
	"errors"
	"fmt"
	"path"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// ErrMismatch is wrapped by every error about content that has another digest
// than it should.
var ErrMismatch = errors.New("digest mismatch")

// Check recomputes the Merkle root of an index, which must be valid, and
// compares it with the root that the index claims. A root alone cannot say
// which file is wrong; see CheckDigests.
func Check(x *chunkfmt.Index) error {
	if got := Root(&x.Tree); got != x.Root {
		return fmt.Errorf("%w: the tree has the Merkle root %s, but the index says %s", ErrMismatch, got, x.Root)
	}
	return nil
}

// CheckDigests compares a tree with the digests of the inodes of the tree that
// it should be. The error names the path that differs: of directories that do
// so because of what is in them, one of those.
func CheckDigests(t *Tree, want []chunkfmt.Digest) error {
	if len(t.Digests) != len(want) {
		return fmt.Errorf("%w: the tree has %d inodes, not %d", ErrMismatch, len(t.Digests), len(want))
	}
	if t.Digests[0] == want[0] {
		return nil
	}
	at, name := uint32(0), "/"
	for {
		e, ok := differing(t, at, want)
		if !ok {
			return fmt.Errorf("%w: %s has the digest %s, not %s", ErrMismatch, name, t.Digests[at], want[at])
		}
		at, name = e.Inode, path.Join(name, e.Name)
	}
}

// differing returns the first child of a directory that has another digest
// than it should.
func differing(t *Tree, dir uint32, want []chunkfmt.Digest) (chunkfmt.Entry, bool) {
	if t.Kind(dir) != chunkfmt.Dir {
		return chunkfmt.Entry{}, false
	}
	for _, e := range t.Children(dir) {
		if t.Digests[e.Inode] != want[e.Inode] {
			return e, true
		}
	}
	return chunkfmt.Entry{}, false
}
