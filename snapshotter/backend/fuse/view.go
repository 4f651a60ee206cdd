package fuse

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// view is what of a tree is needed to serve it: some 100 bytes for each file,
// nearly without pointers. It does not change after it is made.
type view struct {
	// inodes are those of the tree, but First and Count of files that have
	// chunks are places in extents.
	inodes []chunkfmt.Inode
	attrs  []chunkfmt.Attr
	xattrs [][]chunkfmt.Xattr
	// children are the inodes of entries, names their names.
	children []uint32
	names    stringTable
	targets  stringTable
	inline   []byte
	extents  []extent
	// devices are the keys of the devices that extents are on.
	devices []device.Key
	// bytes is the sum of the sizes of files.
	bytes int64
	shape chunkfmt.Digest
	// anyXattr and acl say whether some inode has an extended attribute, or an
	// ACL.
	anyXattr, acl bool
}

// newView returns the view of a merged tree, of which it keeps nothing.
func newView(t *chunkfmt.Tree) (*view, error) {
	v := &view{
		inodes:   slices.Clone(t.Inodes),
		attrs:    slices.Clone(t.Attrs),
		children: make([]uint32, len(t.Entries)),
		inline:   bytes.Clone(t.Inline),
		targets:  newStringTable(len(t.Targets), func(i int) string { return t.Targets[i] }),
		names:    newStringTable(len(t.Entries), func(i int) string { return t.Entries[i].Name }),
	}
	for i, e := range t.Entries {
		v.children[i] = e.Inode
	}
	v.copyXattrs(t)
	x := extentWriter{t: t, v: v, numbers: map[uint32]uint32{}}
	for i := range v.inodes {
		if err := x.add(uint32(i)); err != nil { // #nosec G115 -- inodes have 32-bit numbers
			return nil, fmt.Errorf("find the content of inode %d: %w", i, err)
		}
	}
	v.extents = slices.Clip(v.extents)
	v.shape = v.sum()
	return v, nil
}

// copyXattrs keeps the attributes that Linux has names for.
func (v *view) copyXattrs(t *chunkfmt.Tree) {
	v.xattrs = make([][]chunkfmt.Xattr, len(t.Xattrs))
	for i, set := range t.Xattrs {
		for _, x := range set {
			if !knownXattr(x.Name) {
				continue
			}
			v.anyXattr = true
			v.acl = v.acl || strings.HasPrefix(x.Name, aclPrefix)
			v.xattrs[i] = append(v.xattrs[i], chunkfmt.Xattr{Name: strings.Clone(x.Name), Value: strings.Clone(x.Value)})
		}
	}
}

const aclPrefix = "system.posix_acl_"

// knownXattr reports whether package chunkfmt/erofs would keep a name.
func knownXattr(name string) bool {
	if name == aclPrefix+"access" || name == aclPrefix+"default" {
		return true
	}
	for _, p := range [...]string{"user.", "trusted.", "security."} {
		if strings.HasPrefix(name, p) && name != p {
			return true
		}
	}
	return false
}

// sum digests all that node ids stand for: the names, and the kind and size of
// what has them.
func (v *view) sum() chunkfmt.Digest {
	h := sha256.New()
	var b [24]byte
	for i := range v.inodes {
		n := &v.inodes[i]
		binary.LittleEndian.PutUint64(b[:], uint64(n.Size))                 // #nosec G115 -- bits
		binary.LittleEndian.PutUint64(b[8:], uint64(n.Mtime))               // #nosec G115 -- bits
		binary.LittleEndian.PutUint32(b[16:], uint32(v.attrs[n.Attr].Kind)) // #nosec G115 -- bits
		binary.LittleEndian.PutUint32(b[20:], n.Parent)
		_, _ = h.Write(b[:]) // never fails
	}
	for i, inode := range v.children {
		binary.LittleEndian.PutUint32(b[:], inode)
		binary.LittleEndian.PutUint32(b[4:], v.names.end(i))
		_, _ = h.Write(b[:8])
	}
	_, _ = h.Write([]byte(v.names.text))
	return chunkfmt.Digest(h.Sum(nil))
}

func (v *view) kind(inode uint32) chunkfmt.Kind { return v.attrs[v.inodes[inode].Attr].Kind }

func (v *view) xattrsOf(inode uint32) []chunkfmt.Xattr {
	return v.xattrs[v.attrs[v.inodes[inode].Attr].Xattrs]
}

func (v *view) target(inode uint32) string { return v.targets.at(int(v.inodes[inode].First)) }

// child returns the inode of a directory's entry; "." and ".." are entries.
func (v *view) child(dir uint32, name string) (uint32, bool) {
	n := &v.inodes[dir]
	switch {
	case v.kind(dir) != chunkfmt.Dir:
		return 0, false
	case name == ".":
		return dir, true
	case name == "..":
		return n.Parent, true
	}
	first := int(n.First)
	i := first + sort.Search(int(n.Count), func(i int) bool { return v.names.at(first+i) >= name })
	if i == first+int(n.Count) || v.names.at(i) != name {
		return 0, false
	}
	return v.children[i], true
}

// path returns a path of an inode, for messages.
func (v *view) path(inode uint32) string {
	var names []string
	for inode != 0 && len(names) < chunkfmt.MaxPath/2 {
		parent := v.inodes[inode].Parent
		d := &v.inodes[parent]
		for i := d.First; i < d.First+d.Count; i++ {
			if v.children[i] == inode {
				names = append(names, v.names.at(int(i)))
				break
			}
		}
		inode = parent
	}
	slices.Reverse(names)
	return "/" + strings.Join(names, "/")
}

// stringTable holds many short strings in one.
type stringTable struct {
	text string
	ends []uint32
}

func newStringTable(n int, at func(int) string) stringTable {
	size := 0
	for i := range n {
		size += len(at(i))
	}
	var text strings.Builder
	text.Grow(size)
	t := stringTable{ends: make([]uint32, n)}
	for i := range n {
		text.WriteString(at(i))
		t.ends[i] = uint32(text.Len()) // #nosec G115 -- an index has at most 2 GiB
	}
	t.text = text.String()
	return t
}

func (t *stringTable) end(i int) uint32 { return t.ends[i] }

func (t *stringTable) at(i int) string {
	begin := uint32(0)
	if i > 0 {
		begin = t.ends[i-1]
	}
	return t.text[begin:t.ends[i]]
}

// hole is the device of an extent of zeros.
const hole = ^uint32(0)

// maxExtents bounds the extents of an image: 384 MiB of memory.
const maxExtents = 16 << 20

var errFragmented = errors.New("the image lies in too many pieces")

// extent is a part of a file, up to the next one's off or the end, that lies in
// one piece on a device.
type extent struct {
	off int64 // in the file
	at  int64 // on the device
	dev uint32
	// period, if it is not 0, says that the same bytes come again and again:
	// the piece on the device has this length.
	period uint32
}

// extentWriter finds the extents of the files of a tree.
type extentWriter struct {
	t       *chunkfmt.Tree
	v       *view
	numbers map[uint32]uint32 // blob -> place in v.devices
	// end is where on its device the last extent ends, off in the file.
	off, end int64
	first    int
}

// add makes the extents of an inode.
func (x *extentWriter) add(inode uint32) error {
	n := &x.v.inodes[inode]
	switch x.v.kind(inode) {
	case chunkfmt.File:
	case chunkfmt.Whiteout, chunkfmt.LinkOut:
		return errors.New("the tree must be merged first")
	default:
		return nil
	}
	x.v.bytes += n.Size
	if n.Count == 0 {
		return nil
	}
	x.first, x.off = len(x.v.extents), 0
	for _, r := range x.t.Runs[n.First : n.First+n.Count] {
		if err := x.addRun(r); err != nil {
			return err
		}
	}
	if x.off != n.Size {
		return fmt.Errorf("chunks of %d bytes make up a file of %d", x.off, n.Size)
	}
	n.First, n.Count = uint32(x.first), uint32(len(x.v.extents)-x.first) // #nosec G115 -- at most maxExtents
	return nil
}

func (x *extentWriter) addRun(r chunkfmt.Run) error {
	if !r.Repeat {
		for i := range r.Count {
			c := &x.t.Chunks[r.Chunk+i]
			if err := x.put(c, int64(c.Length), 0); err != nil {
				return err
			}
		}
		return nil
	}
	c := &x.t.Chunks[r.Chunk]
	period := c.Length
	if c.Blob == chunkfmt.Hole || r.Count == 1 {
		period = 0
	}
	return x.put(c, int64(r.Count)*int64(c.Length), period)
}

// put appends n bytes of the file, which are those of a chunk.
func (x *extentWriter) put(c *chunkfmt.Chunk, n int64, period uint32) error {
	dev, at := hole, int64(0)
	if c.Blob != chunkfmt.Hole {
		var ok bool
		if at, ok = x.t.DeviceOffset(c); !ok || at+int64(c.Length) > x.t.Blobs[c.Blob].DeviceSize {
			return fmt.Errorf("the chunk at byte %d is not on the device of %s", x.off, x.t.Blobs[c.Blob].Digest)
		}
		dev = x.number(c.Blob)
	}
	off := x.off
	if n > chunkfmt.MaxFileSize-off {
		return fmt.Errorf("the file has more than %d bytes", int64(chunkfmt.MaxFileSize))
	}
	x.off += n
	if all := x.v.extents; len(all) > x.first && period == 0 {
		last := &all[len(all)-1]
		if last.dev == dev && last.period == 0 && (dev == hole || x.end == at) {
			x.end = at + n
			return nil
		}
	}
	if len(x.v.extents) == maxExtents {
		return errFragmented
	}
	x.end = at + n
	x.v.extents = append(x.v.extents, extent{off: off, at: at, dev: dev, period: period})
	return nil
}

func (x *extentWriter) number(blob uint32) uint32 {
	n, ok := x.numbers[blob]
	if !ok {
		n = uint32(len(x.v.devices)) // #nosec G115 -- not more than blobs
		x.numbers[blob] = n
		x.v.devices = append(x.v.devices, x.t.DeviceKey(blob))
	}
	return n
}

// piece is a part of a file that lies in one piece on a device, or a hole.
type piece struct {
	dev    uint32
	at     int64
	length int64
}

// pieces calls f for the parts of n bytes of a file at off, in order, until f
// returns false. The n bytes are in the file.
func (v *view) pieces(inode uint32, off, n int64, f func(piece) bool) {
	node := &v.inodes[inode]
	all := v.extents[node.First : node.First+node.Count]
	i := sort.Search(len(all), func(i int) bool { return all[i].off > off }) - 1
	for ; n > 0; i++ {
		e, end := all[i], node.Size
		if i+1 < len(all) {
			end = all[i+1].off
		}
		for n > 0 && off < end {
			p := piece{dev: e.dev, at: e.at + off - e.off, length: min(n, end-off)}
			if e.period > 0 {
				in := (off - e.off) % int64(e.period)
				p.at, p.length = e.at+in, min(p.length, int64(e.period)-in)
			}
			if !f(p) {
				return
			}
			off += p.length
			n -= p.length
		}
	}
}
