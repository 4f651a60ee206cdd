package build

import (
	"archive/tar"
	"fmt"
	"math"
	"path"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = whiteoutPrefix + whiteoutPrefix
	opaqueName     = aufsPrefix + ".opq"
	xattrRecord    = "SCHILY.xattr."

	// Bounds of the kernel's device numbers.
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
	maxXattr = 255 // XATTR_NAME_MAX
)

// newNode returns the node of an entry that is neither link nor whiteout, and
// what had to be left out.
func newNode(h *tar.Header) (n *chunkfmt.Node, dropped []string, err error) {
	n = &chunkfmt.Node{Mode: uint16(h.Mode & 0o7777)}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse: //nolint:staticcheck // SA1019: old tars have it
		n.Kind = chunkfmt.File
		n.Size = h.Size
	case tar.TypeDir:
		n.Kind = chunkfmt.Dir
	case tar.TypeSymlink:
		n.Kind, n.Mode, n.Target = chunkfmt.Symlink, 0o777, h.Linkname
	case tar.TypeChar:
		n.Kind = chunkfmt.CharDevice
	case tar.TypeBlock:
		n.Kind = chunkfmt.BlockDevice
	case tar.TypeFifo:
		n.Kind = chunkfmt.Fifo
	default:
		return nil, nil, fmt.Errorf("%w: entry of unknown type %q", chunkfmt.ErrInvalid, h.Typeflag)
	}
	if err := setOwner(n, h); err != nil {
		return nil, nil, err
	}
	if err := checkKind(n, h); err != nil {
		return nil, nil, err
	}
	n.Xattrs, dropped, err = xattrs(h, n)
	return n, dropped, err
}

// checkKind checks, and for devices sets, what only some kinds have.
func checkKind(n *chunkfmt.Node, h *tar.Header) error {
	switch n.Kind {
	case chunkfmt.File:
		if n.Size < 0 || n.Size > chunkfmt.MaxFileSize {
			return fmt.Errorf("%w: file of %d bytes", chunkfmt.ErrInvalid, n.Size)
		}
	case chunkfmt.Symlink:
		if n.Target == "" || len(n.Target) > chunkfmt.MaxPath {
			return fmt.Errorf("%w: symbolic link with a target of %d bytes", chunkfmt.ErrInvalid, len(n.Target))
		}
	case chunkfmt.CharDevice, chunkfmt.BlockDevice:
		if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
			return fmt.Errorf("%w: device number %d:%d", chunkfmt.ErrInvalid, h.Devmajor, h.Devminor)
		}
		n.Size = h.Devmajor<<32 | h.Devminor
	}
	return nil
}

// setOwner sets who owns the node and when it was changed.
func setOwner(n *chunkfmt.Node, h *tar.Header) error {
	// The highest number means "leave it" to chown, and is no owner.
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return fmt.Errorf("%w: owner %d:%d", chunkfmt.ErrInvalid, h.Uid, h.Gid)
	}
	n.UID, n.GID = uint32(h.Uid), uint32(h.Gid)
	n.Mtime, n.Nsec = boundTime(h.ModTime)
	return nil
}

// boundTime does as containerd: what is not in [1970, 2262) becomes 1970.
func boundTime(t time.Time) (int64, uint32) {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return 0, 0
	}
	return t.Unix(), uint32(t.Nanosecond()) //nolint:gosec // G115: below 1e9
}

// isRoot reports a path that is the root itself.
func isRoot(name string) bool { return path.Clean("/"+name) == "/" }

// whiteout puts an entry into the draft whose name has the whiteout prefix. It
// reports false for another.
func whiteout(d *chunkfmt.Draft, name string) (bool, error) {
	dir, base := path.Split(path.Clean("/" + name))
	hidden, ok := strings.CutPrefix(base, whiteoutPrefix)
	switch {
	case base == opaqueName:
		return true, d.Hide(dir)
	case strings.HasPrefix(base, aufsPrefix), strings.HasPrefix(dir, "/"+aufsPrefix):
		return true, nil // of aufs' own: says nothing about the tree
	case !ok:
		return false, nil
	case hidden == "" || hidden == "." || hidden == "..":
		return true, fmt.Errorf("%w: whiteout of %q", chunkfmt.ErrInvalid, hidden)
	}
	return true, d.Remove(path.Join(dir, hidden))
}

// link puts a hard link into the draft. Its header's attributes become those
// of the inode, as unpacking it would do.
func link(d *chunkfmt.Draft, h *tar.Header) (dropped []string, err error) {
	n := &chunkfmt.Node{Kind: chunkfmt.LinkOut, Mode: uint16(h.Mode & 0o7777)}
	if err := setOwner(n, h); err != nil {
		return nil, err
	}
	if n.Xattrs, dropped, err = xattrs(h, n); err != nil {
		return nil, err
	}
	return dropped, d.LinkAs(h.Name, h.Linkname, n)
}
