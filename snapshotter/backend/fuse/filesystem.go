package fuse

import (
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// forever is for how long the kernel may keep what it is told, in seconds. The
// tree never changes.
const forever = 10 * 365 * 24 * 3600

// fileSystem answers everything but reads of files (see connection.read).
// Reading directories is stateless: an offset is a place among the entries.
type fileSystem struct {
	gofuse.RawFileSystem // answers ENOSYS to what is not below
	view                 *view
}

func newFileSystem(v *view) *fileSystem {
	return &fileSystem{RawFileSystem: gofuse.NewDefaultRawFileSystem(), view: v}
}

// inode returns the inode of a node id.
func (f *fileSystem) inode(node uint64) (uint32, bool) {
	if node == 0 || node > uint64(len(f.view.inodes)) {
		return 0, false
	}
	return uint32(node - 1), true // #nosec G115 -- checked
}

func (f *fileSystem) Lookup(_ <-chan struct{}, in *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	dir, ok := f.inode(in.NodeId)
	if !ok {
		return gofuse.Status(syscall.ESTALE)
	}
	child, ok := f.view.child(dir, name)
	if !ok {
		out.EntryValid = forever // node id 0: the name is known to be absent
		return gofuse.OK
	}
	f.entry(child, out)
	return gofuse.OK
}

// Open has the kernel open what it likes without asking, and cache
// it.
func (f *fileSystem) Open(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

// OpenDir is as Open.
func (f *fileSystem) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

// Flush has the kernel never say again that a file is closed. Besides what that
// takes, nobody could fork while nobody answers.
func (f *fileSystem) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status { return gofuse.ENOSYS }

// Forget has nothing to forget.
func (f *fileSystem) Forget(uint64, uint64) {}

func (f *fileSystem) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	inode, ok := f.inode(in.NodeId)
	if !ok {
		return gofuse.Status(syscall.ESTALE)
	}
	out.AttrValid = forever
	f.attr(inode, &out.Attr)
	return gofuse.OK
}

func (f *fileSystem) entry(inode uint32, out *gofuse.EntryOut) {
	out.NodeId = uint64(inode) + 1
	out.EntryValid, out.AttrValid = forever, forever
	f.attr(inode, &out.Attr)
}

var fileTypes = [...]uint32{
	chunkfmt.Dir:         syscall.S_IFDIR,
	chunkfmt.File:        syscall.S_IFREG,
	chunkfmt.Symlink:     syscall.S_IFLNK,
	chunkfmt.CharDevice:  syscall.S_IFCHR,
	chunkfmt.BlockDevice: syscall.S_IFBLK,
	chunkfmt.Fifo:        syscall.S_IFIFO,
	chunkfmt.Socket:      syscall.S_IFSOCK,
}

func (f *fileSystem) attr(inode uint32, out *gofuse.Attr) {
	n := &f.view.inodes[inode]
	a := &f.view.attrs[n.Attr]
	*out = gofuse.Attr{
		Ino: uint64(inode) + 1, Nlink: n.Nlink, Blksize: chunkfmt.BlockSize,
		Mode:  fileTypes[a.Kind] | uint32(a.Mode),
		Owner: gofuse.Owner{Uid: a.UID, Gid: a.GID},
	}
	mtime := uint64(n.Mtime) // #nosec G115 -- bits
	out.Atime, out.Mtime, out.Ctime = mtime, mtime, mtime
	out.Atimensec, out.Mtimensec, out.Ctimensec = n.Nsec, n.Nsec, n.Nsec
	switch a.Kind {
	case chunkfmt.File:
		out.Size = uint64(n.Size) // #nosec G115 -- never negative
	case chunkfmt.Symlink:
		out.Size = uint64(len(f.view.target(inode)))
	case chunkfmt.Dir:
		out.Size = chunkfmt.BlockSize
	case chunkfmt.CharDevice, chunkfmt.BlockDevice:
		out.Rdev = encodeDevice(uint64(n.Size)) // #nosec G115 -- bits
	}
	out.Blocks = (out.Size + 511) / 512
}

// encodeDevice is the kernel's new_encode_dev.
func encodeDevice(major32minor uint64) uint32 {
	major, minor := uint32(major32minor>>32), uint32(major32minor) // #nosec G115 -- halves
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

func (f *fileSystem) Readlink(_ <-chan struct{}, in *gofuse.InHeader) ([]byte, gofuse.Status) {
	inode, ok := f.inode(in.NodeId)
	if !ok || f.view.kind(inode) != chunkfmt.Symlink {
		return nil, gofuse.EINVAL
	}
	return []byte(f.view.target(inode)), gofuse.OK
}

func (f *fileSystem) GetXAttr(_ <-chan struct{}, in *gofuse.InHeader, name string, dest []byte) (uint32, gofuse.Status) {
	if !f.view.anyXattr {
		return 0, gofuse.ENOSYS // the kernel does not ask again
	}
	inode, ok := f.inode(in.NodeId)
	if !ok {
		return 0, gofuse.Status(syscall.ESTALE)
	}
	for _, x := range f.view.xattrsOf(inode) {
		if x.Name == name {
			return copyOut(dest, x.Value)
		}
	}
	return 0, gofuse.ENOATTR
}

func (f *fileSystem) ListXAttr(_ <-chan struct{}, in *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	inode, ok := f.inode(in.NodeId)
	if !ok {
		return 0, gofuse.Status(syscall.ESTALE)
	}
	var names []byte
	for _, x := range f.view.xattrsOf(inode) {
		names = append(append(names, x.Name...), 0)
	}
	return copyOut(dest, string(names))
}

// copyOut is how getxattr(2) and listxattr(2) return a value.
func copyOut(dest []byte, value string) (uint32, gofuse.Status) {
	n := uint32(len(value)) // #nosec G115 -- at most some 64 KiB
	if len(value) > len(dest) {
		return n, gofuse.ERANGE
	}
	copy(dest, value)
	return n, gofuse.OK
}

func (f *fileSystem) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.list(in, func(e gofuse.DirEntry, _ uint32) bool { return out.AddDirEntry(e) })
}

func (f *fileSystem) ReadDirPlus(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.list(in, func(e gofuse.DirEntry, child uint32) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Name != "." && e.Name != ".." { // the kernel wants no node for these
			f.entry(child, entry)
		}
		return true
	})
}

// list gives add the entries from an offset on, until it has no room.
func (f *fileSystem) list(in *gofuse.ReadIn, add func(gofuse.DirEntry, uint32) bool) gofuse.Status {
	dir, ok := f.inode(in.NodeId)
	if !ok || f.view.kind(dir) != chunkfmt.Dir {
		return gofuse.ENOTDIR
	}
	n := &f.view.inodes[dir]
	for i := in.Offset; i < uint64(n.Count)+2; i++ {
		var name string
		var child uint32
		switch i {
		case 0:
			name, child = ".", dir
		case 1:
			name, child = "..", n.Parent
		default:
			at := uint64(n.First) + i - 2
			name, child = f.view.names.at(int(at)), f.view.children[at] // #nosec G115 -- a place in a slice
		}
		e := gofuse.DirEntry{
			Name: name, Ino: uint64(child) + 1, Off: i + 1,
			Mode: fileTypes[f.view.kind(child)],
		}
		if !add(e, child) {
			break
		}
	}
	return gofuse.OK
}

func (f *fileSystem) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	*out = gofuse.StatfsOut{
		Blocks: uint64(f.view.bytes+chunkfmt.BlockSize-1) / chunkfmt.BlockSize, // #nosec G115 -- never negative
		Bsize:  chunkfmt.BlockSize, Frsize: chunkfmt.BlockSize,
		Files: uint64(len(f.view.inodes)), NameLen: unix.NAME_MAX,
	}
	return gofuse.OK
}
