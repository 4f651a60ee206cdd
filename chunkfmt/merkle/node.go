package merkle

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// Node is what the digest of an inode covers.
type Node struct {
	Kind  chunkfmt.Kind
	Flags chunkfmt.AttrFlags
	Mode  uint16
	UID   uint32
	GID   uint32
	// Mtime, Nsec and Size as in chunkfmt.Inode.
	Mtime int64
	Nsec  uint32
	Size  int64
	// Xattrs are sorted by name.
	Xattrs []chunkfmt.Xattr
	// Links is the number of entries of an inode; 0 of a Dir.
	Links uint32
	// First is the path of the first of several entries in level order.
	First string
	// Target of a Symlink or LinkOut.
	Target string
	// Leaves is the number of leaves of the hash tree of a File's chunks or a
	// Dir's entries, and Tree its root.
	Leaves uint64
	Tree   chunkfmt.Digest
}

// minNode is the least that an encoded Node takes.
const minNode = 3 + 2 + 4 + 4 + 8 + 4 + 8 + 4 + 4

// Digest returns the inode's digest.
func (n *Node) Digest() chunkfmt.Digest { return chunkfmt.Sum(n.append(nil)) }

// hasTree reports whether Leaves and Tree are part of the node.
func (n *Node) hasTree() bool { return n.Kind == chunkfmt.File || n.Kind == chunkfmt.Dir }

func (n *Node) hasTarget() bool { return n.Kind == chunkfmt.Symlink || n.Kind == chunkfmt.LinkOut }

// append adds the canonical encoding.
func (n *Node) append(p []byte) []byte {
	p = append(p, prefixNode, byte(n.Kind), byte(n.Flags))
	p = binary.BigEndian.AppendUint16(p, n.Mode)
	p = binary.BigEndian.AppendUint32(p, n.UID)
	p = binary.BigEndian.AppendUint32(p, n.GID)
	p = binary.BigEndian.AppendUint64(p, uint64(n.Mtime)) //nolint:gosec // two's complement
	p = binary.BigEndian.AppendUint32(p, n.Nsec)
	p = binary.BigEndian.AppendUint64(p, uint64(n.Size)) //nolint:gosec // two's complement
	p = binary.BigEndian.AppendUint32(p, n.Links)
	p = binary.BigEndian.AppendUint32(p, uint32(len(n.Xattrs))) //nolint:gosec // memory is smaller
	for _, x := range n.Xattrs {
		p = appendString(appendString(p, x.Name), x.Value)
	}
	if n.Links > 1 {
		p = appendString(p, n.First)
	}
	switch {
	case n.hasTree():
		p = binary.BigEndian.AppendUint64(p, n.Leaves)
		p = append(p, n.Tree[:]...)
	case n.hasTarget():
		p = appendString(p, n.Target)
	}
	return p
}

func appendString(p []byte, s string) []byte {
	p = binary.BigEndian.AppendUint32(p, uint32(len(s))) //nolint:gosec // memory is smaller
	return append(p, s...)
}

// parseNode is the inverse of append.
func parseNode(p []byte) (Node, error) {
	r := reader{rest: p}
	var n Node
	prefix := r.byte()
	n.Kind, n.Flags = chunkfmt.Kind(r.byte()), chunkfmt.AttrFlags(r.byte())
	n.Mode = r.uint16()
	n.UID, n.GID = r.uint32(), r.uint32()
	n.Mtime = int64(r.uint64()) //nolint:gosec // two's complement
	n.Nsec = r.uint32()
	n.Size = int64(r.uint64()) //nolint:gosec // two's complement
	n.Links = r.uint32()
	for range r.count(8) {
		n.Xattrs = append(n.Xattrs, chunkfmt.Xattr{Name: r.string(), Value: r.string()})
	}
	if n.Links > 1 {
		n.First = r.string()
	}
	switch {
	case n.hasTree():
		n.Leaves = r.uint64()
		n.Tree = r.digest()
	case n.hasTarget():
		n.Target = r.string()
	}
	if err := r.end(); err != nil {
		return n, err
	}
	if prefix != prefixNode || n.Kind > chunkfmt.LinkOut || n.Size < 0 {
		return n, fmt.Errorf("%w: not a node", chunkfmt.ErrInvalid)
	}
	return n, nil
}

// equalMetadata compares all but content and, of directories, children.
func (n *Node) equalMetadata(o *Node) bool {
	return n.Kind == o.Kind && n.Flags == o.Flags && n.Mode == o.Mode && n.UID == o.UID && n.GID == o.GID &&
		n.Mtime == o.Mtime && n.Nsec == o.Nsec && n.Links == o.Links && n.First == o.First &&
		slices.Equal(n.Xattrs, o.Xattrs)
}

// equalContent compares what equalMetadata does not.
func (n *Node) equalContent(o *Node) bool {
	return n.Size == o.Size && n.Target == o.Target && n.Leaves == o.Leaves && n.Tree == o.Tree
}
