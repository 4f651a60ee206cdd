package erofs_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"testing"
	"time"

	reader "github.com/erofs/go-erofs"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// status is what a file system says about a path.
type status struct {
	mode     fs.FileMode
	uid, gid uint32
	nlink    uint64
	rdev     uint64 // major<<32 | minor
	size     int64
	mtime    time.Time
	ino      uint64
	xattrs   map[string]string
}

// view is a file system that shows a tree.
type view interface {
	stat(name string) (*status, error)
	list(name string) ([]string, error)
	readlink(name string) (string, error)
	open(name string) (io.ReaderAt, io.Closer, error)
}

// compare checks that a view shows a tree.
func compare(t testing.TB, tree *chunkfmt.Tree, v view) {
	t.Helper()
	inodes := map[uint64]uint32{}
	failed := 0
	for name, inode := range tree.Walk() {
		if err := compareInode(tree, v, name, inode, inodes); err != nil {
			t.Errorf("/%.300q: %v", name, err)
			if failed++; failed > 10 {
				t.Fatal("too many differences")
			}
		}
	}
	if len(inodes) != len(tree.Inodes) {
		t.Errorf("%d different inode numbers, want %d", len(inodes), len(tree.Inodes))
	}
}

func compareInode(tree *chunkfmt.Tree, v view, name string, inode uint32, inodes map[uint64]uint32) error {
	got, err := v.stat(name)
	if err != nil {
		return err
	}
	if was, ok := inodes[got.ino]; got.ino == 0 || ok && was != inode {
		return fmt.Errorf("inode number %d is that of inode %d, want %d", got.ino, was, inode)
	} else if ok {
		return nil // another name of what was compared
	}
	inodes[got.ino] = inode
	n, a := &tree.Inodes[inode], tree.Attr(inode)
	want := status{
		mode: modeOf(a), uid: a.UID, gid: a.GID, nlink: uint64(n.Nlink), size: n.Size,
		mtime: time.Unix(n.Mtime, int64(n.Nsec)), ino: got.ino, xattrs: map[string]string{},
	}
	for _, x := range tree.XattrsOf(inode) {
		want.xattrs[x.Name] = x.Value
	}
	switch a.Kind {
	case chunkfmt.CharDevice, chunkfmt.BlockDevice:
		want.rdev, want.size = uint64(n.Size), 0
	case chunkfmt.Symlink:
		want.size = int64(len(tree.Target(inode)))
	case chunkfmt.Dir:
		want.size = got.size
	}
	if !got.mtime.Equal(want.mtime) {
		return fmt.Errorf("mtime %v, want %v", got.mtime, want.mtime)
	}
	if !maps.Equal(got.xattrs, want.xattrs) {
		return fmt.Errorf("xattrs %.200q, want %.200q", got.xattrs, want.xattrs)
	}
	got.mtime, got.xattrs, want.mtime, want.xattrs = time.Time{}, nil, time.Time{}, nil
	if fmt.Sprint(*got) != fmt.Sprint(want) {
		return fmt.Errorf("status %+v, want %+v", *got, want)
	}
	return compareContent(tree, v, name, inode)
}

func compareContent(tree *chunkfmt.Tree, v view, name string, inode uint32) error {
	switch tree.Kind(inode) {
	case chunkfmt.Dir:
		got, err := v.list(name)
		var want []string
		for _, e := range tree.Children(inode) {
			want = append(want, e.Name)
		}
		if err != nil || !slices.Equal(got, want) {
			return fmt.Errorf("lists %.300q, %w, want %.300q", got, err, want)
		}
	case chunkfmt.Symlink:
		got, err := v.readlink(name)
		if want := tree.Target(inode); err != nil || got != want {
			return fmt.Errorf("target %.100q, %w, want %.100q", got, err, want)
		}
	case chunkfmt.File:
		r, c, err := v.open(name)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		return compareFile(tree, r, inode)
	}
	return nil
}

func compareFile(tree *chunkfmt.Tree, r io.ReaderAt, inode uint32) error {
	size := tree.Inodes[inode].Size
	if n, err := r.ReadAt(make([]byte, 1), size); n != 0 || err != io.EOF {
		return fmt.Errorf("read at the end: %d, %w", n, err)
	}
	if want, ok := tree.InlineData(inode); ok {
		got := make([]byte, size)
		if n, err := r.ReadAt(got, 0); n != len(got) || !bytes.Equal(got, want) {
			return fmt.Errorf("inline content differs (%d of %d bytes, %w)", n, size, err)
		}
		return nil
	}
	for off, c := range tree.Content(inode) {
		length := int64(c.Length)
		if c.Blob != chunkfmt.Hole {
			got := make([]byte, length)
			if n, err := r.ReadAt(got, off); n != len(got) || chunkfmt.Sum(got) != c.Digest {
				return fmt.Errorf("content at %d differs (%d of %d bytes, %w)", off, n, length, err)
			}
			continue
		}
		for _, at := range []int64{off, off + length/2, off + length - min(length, 5000)} {
			got := make([]byte, min(5000, off+length-at))
			if n, err := r.ReadAt(got, at); n != len(got) || !bytes.Equal(got, make([]byte, len(got))) {
				return fmt.Errorf("no hole at %d (%d bytes, %w)", at, n, err)
			}
		}
	}
	return nil
}

func modeOf(a *chunkfmt.Attr) fs.FileMode {
	m := fs.FileMode(a.Mode & 0o777)
	for bit, mode := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if a.Mode&bit != 0 {
			m |= mode
		}
	}
	return m | map[chunkfmt.Kind]fs.FileMode{
		chunkfmt.Dir: fs.ModeDir, chunkfmt.Symlink: fs.ModeSymlink, chunkfmt.CharDevice: fs.ModeDevice | fs.ModeCharDevice,
		chunkfmt.BlockDevice: fs.ModeDevice, chunkfmt.Fifo: fs.ModeNamedPipe, chunkfmt.Socket: fs.ModeSocket,
	}[a.Kind]
}

// goFS is what go-erofs returns.
type goFS interface {
	fs.ReadDirFS
	ReadLink(string) (string, error)
	Lstat(string) (fs.FileInfo, error)
}

// ranger is what its fs.FileInfo is.
type ranger interface {
	DataRange() []reader.DataRange
}

// goView shows an image through go-erofs.
type goView struct {
	fs goFS
	// devices by number; 0 is the image itself.
	devices []io.ReaderAt
}

func newGoView(t testing.TB, image []byte, devices [][]byte) goView {
	t.Helper()
	v := goView{devices: []io.ReaderAt{bytes.NewReader(image)}}
	for _, d := range devices {
		v.devices = append(v.devices, bytes.NewReader(d))
	}
	img, err := reader.Open(v.devices[0], reader.WithExtraDevices(v.devices[1:]...))
	if err != nil {
		t.Fatal(err)
	}
	var ok bool
	if v.fs, ok = img.(goFS); !ok {
		t.Fatalf("%T is no goFS", img)
	}
	return v
}

func (v goView) stat(name string) (*status, error) {
	fi, err := v.fs.Lstat(name)
	if err != nil {
		return nil, err
	}
	st, ok := fi.Sys().(*reader.Stat)
	if !ok {
		return nil, fmt.Errorf("status of type %T", fi.Sys())
	}
	s := &status{
		mode: st.Mode, uid: st.UID, gid: st.GID, nlink: uint64(st.Nlink), size: st.Size,
		mtime: time.Unix(int64(st.Mtime), int64(st.MtimeNs)), ino: uint64(st.Ino), xattrs: map[string]string{},
	}
	rdev := uint64(st.Rdev)
	s.rdev = (rdev&0xfff00)>>8<<32 | rdev&0xff | rdev>>12&0xfff00
	for name, value := range st.Xattrs {
		if name == "system.posix_acl_access." || name == "system.posix_acl_default." {
			name = name[:len(name)-1] // a slip of the reader
		}
		s.xattrs[name] = value
	}
	return s, nil
}

func (v goView) list(name string) ([]string, error) {
	entries, err := v.fs.ReadDir(path.Join(".", name))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func (v goView) readlink(name string) (string, error) { return v.fs.ReadLink(name) }

func (v goView) open(name string) (io.ReaderAt, io.Closer, error) {
	f, err := v.fs.Open(name)
	if err != nil {
		return nil, nil, err
	}
	return &streamAt{v: v, name: name, f: f}, f, nil
}

// streamAt reads at any place of a file that only streams, and jumps far
// forward over nothing: holes that large are the kernel's tests' business.
type streamAt struct {
	v    goView
	name string
	f    fs.File
	at   int64
}

func (s *streamAt) ReadAt(p []byte, off int64) (int, error) {
	if off > 64<<20 {
		return s.far(p, off)
	}
	if off < s.at {
		f, err := s.v.fs.Open(s.name)
		if err != nil {
			return 0, err
		}
		s.f, s.at = f, 0
	}
	n, err := io.CopyN(io.Discard, s.f, off-s.at)
	s.at += n
	if err != nil {
		return 0, err
	}
	m, err := io.ReadFull(s.f, p)
	s.at += int64(m)
	return m, err
}

// far answers from the reader's list of extents.
func (s *streamAt) far(p []byte, off int64) (int, error) {
	fi, err := s.f.Stat()
	if err != nil {
		return 0, err
	}
	if off >= fi.Size() {
		return 0, io.EOF
	}
	ranges, ok := fi.(ranger)
	if !ok {
		return 0, fmt.Errorf("%T is no ranger", fi)
	}
	at := int64(0)
	for _, r := range ranges.DataRange() {
		if off >= at && off+int64(len(p)) <= at+r.Size {
			if r.Offset == -1 {
				clear(p)
				return len(p), nil
			}
			return s.v.devices[r.Device].ReadAt(p, r.Offset+off-at)
		}
		at += r.Size
	}
	return 0, fmt.Errorf("no extent of %d bytes at %d", len(p), off)
}
