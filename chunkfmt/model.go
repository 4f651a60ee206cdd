package chunkfmt

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// BlockSize is the alignment, in bytes, of files in a device: the block size
// of the EROFS images that point into it, and the page size of most machines.
const BlockSize = 4096

// Bounds of the format. They limit what a reader must hold in memory for one
// group, whatever an index claims.
const (
	// MaxGroupPlain bounds the decoded bytes of a group.
	MaxGroupPlain = 16 << 20
	// MaxGroupStored bounds the stored bytes of a group.
	MaxGroupStored = MaxGroupPlain + 1<<20
	// MaxName bounds an entry's name, in bytes (NAME_MAX of Linux).
	MaxName = 255
	// MaxPath bounds a path from the root and a link's target, in bytes
	// (PATH_MAX of Linux less the final NUL).
	MaxPath = 4095
	// MaxXattrValue bounds one extended attribute's value, in bytes
	// (XATTR_SIZE_MAX of Linux less one: EROFS stores the size in 16 bits).
	MaxXattrValue = 65535
	// MaxFileSize bounds one file, in bytes (what 4 KiB blocks with 32-bit
	// numbers address).
	MaxFileSize = 1 << 44
)

// Digest is a SHA-256.
type Digest [sha256.Size]byte

// Sum returns the digest of p.
func Sum(p []byte) Digest { return sha256.Sum256(p) }

// String returns the OCI form: "sha256:" and 64 hex digits.
func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:]) }

// IsZero reports the digest that stands for "unknown".
func (d Digest) IsZero() bool { return d == Digest{} }

// ParseDigest is the inverse of Digest.String.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	digits, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(digits) != 2*len(d) || strings.ToLower(digits) != digits {
		return d, fmt.Errorf("invalid digest %.80q: want sha256:<64 lower-case hex digits>", s)
	}
	if _, err := hex.Decode(d[:], []byte(digits)); err != nil {
		return d, fmt.Errorf("invalid digest %.80q: %w", s, err)
	}
	return d, nil
}

// Index describes one layer.
type Index struct {
	Tree
	// DiffID is the digest of the layer's uncompressed tar, by which
	// containerd knows it; zero where the content never was a tar.
	DiffID Digest
	// Root is the Merkle root of Tree (package merkle), whiteouts included.
	Root Digest
}

// Tree is a file tree with everything needed to find its content: that of one
// layer (Index.Tree) or of several merged (Merge).
//
// Numbers are in level order. Inode 0 is the root directory. The children of
// a directory are neighbours in Entries, sorted by name; directories have their
// children in the order of their own inode numbers; an inode is numbered where
// its first entry stands.
type Tree struct {
	Inodes  []Inode
	Entries []Entry
	// Attrs holds the distinct attributes that inodes refer to.
	Attrs []Attr
	// Xattrs holds the distinct sets of extended attributes that Attrs refer
	// to, each sorted by name. Set 0 is the empty one.
	Xattrs [][]Xattr
	// Targets holds the targets of Symlink inodes, as they are, and of LinkOut
	// inodes, as clean paths relative to the root.
	Targets []string
	// Runs holds the content of files, as runs of Chunks.
	Runs []Run
	// Chunks holds the distinct chunks, sorted by blob, group and offset;
	// holes first.
	Chunks []Chunk
	// Blobs holds what Chunks lie in.
	Blobs []Blob
	// Inline holds the content of files that have no chunks.
	Inline []byte
}

// Kind says what an inode is.
type Kind uint8

// The kinds of inodes. Whiteout and LinkOut occur in the trees of single
// layers only; Merge resolves them.
const (
	Dir Kind = iota
	File
	Symlink
	CharDevice
	BlockDevice
	Fifo
	Socket
	// Whiteout hides what lower layers have under this name.
	Whiteout
	// LinkOut is a hard link to a path which this layer does not have: one of
	// the layers below does. What it links to gets its attributes.
	LinkOut

	kinds = iota
)

// AttrFlags qualify a directory in the tree of a single layer.
type AttrFlags uint8

// The flags of directories. Merge resolves them.
const (
	// Opaque hides the children that lower layers have in this directory.
	Opaque AttrFlags = 1 << iota
	// Implied marks a directory that the layer does not list and that is only
	// there as somebody's parent: a lower layer's attributes stay.
	Implied
	// Replaced hides what lower layers have under this name: neither children
	// nor attributes of theirs stay. It goes without Opaque.
	Replaced

	attrFlags = Opaque | Implied | Replaced
)

// Attr is what many inodes have in common.
type Attr struct {
	Kind  Kind
	Flags AttrFlags
	// Mode has the permission bits, set-id bits and the sticky bit (07777).
	Mode uint16
	UID  uint32
	GID  uint32
	// Xattrs is a place in Tree.Xattrs.
	Xattrs uint32
}

// Xattr is one extended attribute. The name has its prefix ("user.mime_type").
type Xattr struct {
	Name  string
	Value string
}

// Inode is one file system object.
type Inode struct {
	// Mtime in seconds since 1970, and nanoseconds in [0, 1e9).
	Mtime int64
	// Size in bytes of a File; major<<32 | minor of a device; else 0.
	Size int64
	Nsec uint32
	// Attr is a place in Tree.Attrs.
	Attr uint32
	// Nlink is the number of entries of an inode that is no directory, and 2
	// plus the number of child directories of a Dir.
	Nlink uint32
	// First and Count are, of a Dir, its children
	// Entries[First:First+Count]; of a File, its content
	// Runs[First:First+Count], or, when Count is 0 and Size is not,
	// Inline[First:First+Size]. First is a place in Targets of a Symlink and
	// a LinkOut. What has no use is 0.
	First uint32
	Count uint32
	// Parent is the directory of an inode's first entry; of the root, 0.
	Parent uint32
}

// Entry is a name in a directory.
type Entry struct {
	Name  string
	Inode uint32
}

// Run is a part of a file's content: Count chunks that follow each other in
// Tree.Chunks from Chunk on, or, with Repeat, Count times the same chunk.
type Run struct {
	Chunk  uint32
	Count  uint32
	Repeat bool
}

// Hole is the Blob of a chunk that is all zeros and stored nowhere.
const Hole = ^uint32(0)

// Chunk is a slice of file content.
type Chunk struct {
	// Blob is a place in Tree.Blobs, or Hole.
	Blob uint32
	// Group is the number of the chunk's group in its blob.
	Group uint32
	// Offset in bytes in the plain bytes of the group.
	Offset uint32
	// Length in bytes; never 0.
	Length uint32
	// Digest of the plain bytes.
	Digest Digest
}

// Codec says how the stored bytes of a group are decoded.
type Codec uint8

// The codecs.
const (
	// Plain groups are stored as they are.
	Plain Codec = iota
	// Zstd groups are one or more zstd frames.
	Zstd
	// Gzip groups are one or more gzip members.
	Gzip
	// Filler is the bytes between groups of a blob that was not made by
	// chunkfmt. They are moved but never decoded; no chunk lies in them.
	Filler

	codecs = iota
)

// String returns the name of a codec.
func (c Codec) String() string {
	switch c {
	case Plain:
		return "none"
	case Zstd:
		return "zstd"
	case Gzip:
		return "gzip"
	case Filler:
		return "filler"
	}
	return fmt.Sprintf("Codec(%d)", uint8(c))
}

// Blob is an object in a registry whose parts hold chunks.
type Blob struct {
	Digest Digest
	// Size in stored bytes.
	Size int64
	// DeviceSize is the length in bytes of the device: a multiple of
	// BlockSize.
	DeviceSize int64
	// External blobs are defined by an index of a lower layer of the same
	// image. They have no Groups here.
	External bool
	// Unproven blobs were indexed from their own table of contents without
	// being read: their groups have no Digest, and what is read from them is
	// checked against the digests of the chunks. Of an External blob it says
	// nothing.
	Unproven bool
	// Groups tile [0, Size).
	Groups []Group
}

// Group is a part of a blob that is decoded as one.
type Group struct {
	// Offset and Stored are place and length in bytes in the blob.
	Offset int64
	Stored uint32
	// Plain is the length in decoded bytes; 0 of a Filler. In an Unproven blob
	// it is how many of them are used: what else the stored bytes decode to,
	// such as padding and headers, is unknown, and readers stop before it.
	Plain uint32
	Codec Codec
	// Digest of the stored bytes; zero in an Unproven blob.
	Digest Digest
	// Device is where the plain bytes lie in the device: as they are from here
	// on, a multiple of BlockSize, when Segments is nil.
	Device int64
	// Segments are the parts of the plain bytes that have a place in the
	// device, in the order of both, when other bytes lie between them; then
	// Device is 0. Not nil but empty when no part has.
	Segments []Segment
}

// Segment is a part of a group's plain bytes and its place in the device.
type Segment struct {
	// Offset and Length in the plain bytes.
	Offset uint32
	Length uint32
	// Device is the place in the device. It is a multiple of BlockSize, except
	// where the segment goes on with what another has begun.
	Device int64
}
