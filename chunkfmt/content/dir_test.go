package content_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"golang.org/x/sys/unix"
)

// when is the time of everything in the directories of these tests.
var when = time.Unix(1_600_000_000, 123_456_789)

// makeDir makes a directory that has what scan can describe.
func makeDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"a", "a/b", "empty"} {
		check(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	for name, p := range map[string][]byte{
		"a/file": random(1, 10_000), "a/b/other": random(2, 300_000), "tiny": []byte("tiny"), "zero": nil, "a-file": random(3, 5),
	} {
		check(t, os.WriteFile(filepath.Join(dir, name), p, 0o640))
	}
	check(t, os.Symlink("../a", filepath.Join(dir, "a/link")))
	check(t, os.Link(filepath.Join(dir, "a/file"), filepath.Join(dir, "hard")))
	check(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	check(t, os.Chmod(filepath.Join(dir, "tiny"), 0o755|os.ModeSetuid))
	settle(t, dir)
	return dir
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// settle sets the times of everything.
func settle(t *testing.T, dir string) {
	t.Helper()
	ts := []unix.Timespec{unix.NsecToTimespec(when.UnixNano()), unix.NsecToTimespec(when.UnixNano())}
	check(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
	}))
}

// scan makes the tree of a directory. Chunks are only digests here.
func scan(t *testing.T, dir string) *chunkfmt.Tree {
	t.Helper()
	m := newImage(t)
	m.blob(false)
	first := map[uint64]string{}
	check(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && first[st.Ino] != "" {
			return m.draft.Link(name, first[st.Ino])
		}
		first[st.Ino] = name
		m.put(name, m.node(p, &st))
		return nil
	}))
	tree, _ := m.freeze()
	return tree
}

func (m *image) node(p string, st *unix.Stat_t) *chunkfmt.Node {
	m.t.Helper()
	n := &chunkfmt.Node{
		Mode: uint16(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid,
		Mtime: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec),
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		n.Kind = chunkfmt.Dir
	case unix.S_IFLNK:
		n.Kind = chunkfmt.Symlink
		n.Target, err = os.Readlink(p)
	case unix.S_IFIFO:
		n.Kind = chunkfmt.Fifo
	case unix.S_IFCHR:
		n.Kind = chunkfmt.CharDevice
		n.Size = int64(unix.Major(st.Rdev))<<32 | int64(unix.Minor(st.Rdev))
	case unix.S_IFREG:
		n.Kind, n.Size = chunkfmt.File, st.Size
		var all []byte
		all, err = os.ReadFile(p)
		if len(all) < 10 {
			n.Inline = all
			break
		}
		for len(all) > 0 {
			piece := all[:min(len(all), 128<<10)]
			n.Chunks = append(n.Chunks, m.group(chunkfmt.Plain, 0, piece)...)
			all = all[len(piece):]
		}
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

func diff(t *testing.T, tree *chunkfmt.Tree, dir string, o content.DirOptions) []string {
	t.Helper()
	diffs, err := content.VerifyDir(t.Context(), tree, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, d := range diffs {
		all = append(all, d.Path+": "+d.What)
	}
	return all
}

func TestVerifyDirEqual(t *testing.T) {
	dir := makeDir(t)
	if got := diff(t, scan(t, dir), dir, content.DirOptions{}); len(got) > 0 {
		t.Errorf("differences %q", got)
	}
}

func TestVerifyDirDifferences(t *testing.T) {
	for name, c := range map[string]struct {
		change func(dir string) error
		want   []string
	}{
		"extra":      {func(d string) error { return os.WriteFile(d+"/a/extra", nil, 0o600) }, []string{"a/extra: extra"}},
		"extra last": {func(d string) error { return os.Symlink("x", d+"/~") }, []string{"~: extra"}},
		"missing":    {func(d string) error { return os.Remove(d + "/a/link") }, []string{"a/link: missing"}},
		"mode":       {func(d string) error { return os.Chmod(d+"/tiny", 0o755) }, []string{"tiny: mode"}},
		"root mode":  {func(d string) error { return os.Chmod(d, 0o700) }, []string{": mode"}},
		"type": {func(d string) error { return errors.Join(os.Remove(d+"/empty"), os.WriteFile(d+"/empty", nil, 0o600)) },
			[]string{": links", "empty: type"}},
		"target":      {func(d string) error { return errors.Join(os.Remove(d+"/a/link"), os.Symlink("../b", d+"/a/link")) }, []string{"a/link: target"}},
		"content":     {func(d string) error { return poke(d+"/a/b/other", 200_000) }, []string{"a/b/other: content"}},
		"inline":      {func(d string) error { return poke(d+"/a-file", 1) }, []string{"a-file: content"}},
		"longer":      {func(d string) error { return os.Truncate(d+"/zero", 1) }, []string{"zero: size"}},
		"shorter":     {func(d string) error { return os.Truncate(d+"/a/b/other", 1) }, []string{"a/b/other: size"}},
		"hard link":   {func(d string) error { return os.Link(d+"/zero", d+"/zero2") }, []string{"zero2: extra", "zero: links"}},
		"unlinked":    {func(d string) error { return copyOver(d+"/a/file", d+"/hard") }, []string{"a/file: links", "hard: links", "hard: same file"}},
		"linked":      {func(d string) error { return errors.Join(os.Remove(d+"/zero"), os.Link(d+"/tiny", d+"/zero")) }, []string{"tiny: links", "zero: links", "zero: mode", "zero: same file", "zero: size"}},
		"linked away": {func(d string) error { return errors.Join(os.RemoveAll(d+"/a"), os.Symlink("/", d+"/a")) }, []string{": links", "a: type", "hard: links"}},
		"replaced directory": {func(d string) error { return errors.Join(os.RemoveAll(d+"/a/b"), os.Mkdir(d+"/a/b", 0o755)) },
			[]string{"a/b/other: missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := makeDir(t)
			tree := scan(t, dir)
			check(t, c.change(dir))
			settle(t, dir)
			got := diff(t, tree, dir, content.DirOptions{Workers: 3})
			slices.Sort(c.want)
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("differences %q, want %q", got, c.want)
			}
		})
	}
}

// poke changes one byte of a file.
func poke(name string, at int64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	b[0]++
	_, err2 := f.WriteAt(b[:], at)
	return errors.Join(err, err2, f.Close())
}

func copyOver(from, to string) error {
	p, err := os.ReadFile(from)
	return errors.Join(err, os.Remove(to), os.WriteFile(to, p, 0o640))
}

func TestVerifyDirTimes(t *testing.T) {
	dir := makeDir(t)
	tree := scan(t, dir)
	for _, name := range []string{"a/link", "tiny", "empty"} {
		ts := []unix.Timespec{{}, unix.NsecToTimespec(when.UnixNano() + 1)}
		check(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
	want := []string{"a/link: mtime", "empty: mtime", "tiny: mtime"}
	if got := diff(t, tree, dir, content.DirOptions{}); !slices.Equal(got, want) {
		t.Errorf("differences %q, want %q", got, want)
	}
}

func TestVerifyDirOptions(t *testing.T) {
	dir := makeDir(t)
	tree := scan(t, dir)
	check(t, os.Chmod(dir, 0o700))
	check(t, poke(filepath.Join(dir, "a/b/other"), 0))
	settle(t, dir)
	if got := diff(t, tree, dir, content.DirOptions{IgnoreRoot: true, MetadataOnly: true}); len(got) > 0 {
		t.Errorf("differences %q", got)
	}
	for i := range 20 {
		check(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("extra", i)), nil, 0o600))
	}
	if got := diff(t, tree, dir, content.DirOptions{MaxDifferences: 7}); len(got) != 7 {
		t.Errorf("differences %q", got)
	}
}

func TestVerifyDirErrors(t *testing.T) {
	dir := makeDir(t)
	tree := scan(t, dir)
	if _, err := content.VerifyDir(t.Context(), tree, dir+"/none", content.DirOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := content.VerifyDir(ctx, tree, dir, content.DirOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	tree.Attrs = append(tree.Attrs, chunkfmt.Attr{Kind: chunkfmt.Whiteout})
	if _, err := content.VerifyDir(t.Context(), tree, dir, content.DirOptions{}); err == nil {
		t.Error("a whiteout: no error")
	}
}

// TestVerifyDirLongPaths compares what no path can name.
func TestVerifyDirLongPaths(t *testing.T) {
	dir := t.TempDir()
	m := newImage(t)
	fd, err := unix.Open(dir, unix.O_DIRECTORY, 0)
	check(t, err)
	name, long := strings.Repeat("n", 255), ""
	for range 15 {
		check(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY, 0)
		check(t, err)
		check(t, unix.Close(fd))
		fd, long = next, filepath.Join(long, name)
		m.put(long, &chunkfmt.Node{Kind: chunkfmt.Dir, Mode: 0o755})
	}
	last := strings.Repeat("l", chunkfmt.MaxPath-len(long)-1)
	check(t, unix.Symlinkat(strings.Repeat("t", chunkfmt.MaxPath), fd, last))
	check(t, unix.Close(fd))
	m.put(long+"/"+last, &chunkfmt.Node{Kind: chunkfmt.Symlink, Target: strings.Repeat("t", chunkfmt.MaxPath)})
	tree, _ := m.freeze()
	for _, d := range diff(t, tree, dir, content.DirOptions{IgnoreRoot: true}) {
		if !strings.HasSuffix(d, ": mtime") && !strings.HasSuffix(d, ": owner") {
			t.Errorf("difference %s", d[max(0, len(d)-40):])
		}
	}
}

// TestVerifyDirAsRoot looks at what only root may make.
func TestVerifyDirAsRoot(t *testing.T) {
	testenv.Root(t)
	dir := makeDir(t)
	check(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(t, os.Lchown(filepath.Join(dir, "a/link"), 1, 70_000))
	check(t, unix.Lsetxattr(filepath.Join(dir, "tiny"), "trusted.some", make([]byte, 1000), 0))
	settle(t, dir)
	tree := scan(t, dir)
	inode := lookup(t, tree, "tiny")
	want := []string{"tiny: xattr trusted.some"}
	if got := diff(t, tree, dir, content.DirOptions{}); !slices.Equal(got, want) {
		t.Errorf("an attribute too many: %q, want %q", got, want)
	}
	if got := diff(t, tree, dir, content.DirOptions{IgnoreXattr: func(n string) bool { return n == "trusted.some" }}); len(got) > 0 {
		t.Errorf("with the attribute ignored: %q", got)
	}
	attr := *tree.Attr(inode)
	attr.Xattrs = uint32(len(tree.Xattrs))
	tree.Xattrs = append(tree.Xattrs, []chunkfmt.Xattr{{Name: "trusted.none", Value: "1"}, {Name: "trusted.some", Value: string(make([]byte, 1000))}})
	tree.Inodes[inode].Attr = uint32(len(tree.Attrs))
	tree.Attrs = append(tree.Attrs, attr)
	want = []string{"tiny: xattr trusted.none"}
	if got := diff(t, tree, dir, content.DirOptions{}); !slices.Equal(got, want) {
		t.Errorf("an attribute missing: %q, want %q", got, want)
	}
	check(t, unix.Lsetxattr(filepath.Join(dir, "tiny"), "trusted.none", []byte("1"), 0))
	check(t, os.Lchown(filepath.Join(dir, "a/link"), 2, 70_000))
	check(t, os.Remove(filepath.Join(dir, "null")))
	check(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	settle(t, dir)
	want = []string{"a/link: owner", "null: device"}
	if got := diff(t, tree, dir, content.DirOptions{}); !slices.Equal(got, want) {
		t.Errorf("changed by root: %q, want %q", got, want)
	}
}
