package content

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// DirOptions of VerifyDir.
type DirOptions struct {
	// Workers is how many files are read at the same time. Default: the
	// number of processors.
	Workers int
	// MaxDifferences is after how many differences to stop. Default 100.
	MaxDifferences int
	// IgnoreRoot leaves the attributes of the root directory out.
	IgnoreRoot bool
	// IgnoreXattr, if not nil, reports extended attributes to leave out, on
	// both sides, besides those that VerifyDir leaves out itself.
	IgnoreXattr func(name string) bool
	// MetadataOnly leaves the content of files out.
	MetadataOnly bool
}

// Difference is one thing that a directory has otherwise than its tree.
type Difference struct {
	// Path from the root, "" for the root itself.
	Path string
	// What differs: "missing", "extra", "type", "mode", "owner", "mtime",
	// "size", "device", "links", "target", "xattr NAME", "same file" (which
	// names are one file) or "content".
	What string
	// Got is what the directory has, Want what the tree has; either may be
	// empty.
	Got, Want string
}

// String is one line for people.
func (d Difference) String() string {
	at := "/" + d.Path
	switch {
	case d.Got == "" && d.Want == "":
		return at + ": " + d.What
	case d.Want == "":
		return fmt.Sprintf("%s: %s: %s", at, d.What, d.Got)
	}
	return fmt.Sprintf("%s: %s: got %s, want %s", at, d.What, d.Got, d.Want)
}

// VerifyDir compares a directory, which may be a mounted tree or an unpacked
// one, with the tree: names, types, permission bits, owners, modification times
// to the nanosecond, extended attributes, sizes, device numbers, targets of
// links, which names are one file and how many there are, and content by the
// digests of its chunks. It returns the differences sorted by path, and an
// error when it could not look at something.
//
// Link counts of directories are compared where the file system keeps them;
// those that do not (btrfs, merged directories of overlayfs) report 1. Extended
// attributes that the kernel or its file systems make up are left out unless
// the tree has them: see madeUp. Attributes of the class "trusted" are only
// seen by root, so that without being root those of the tree count as missing.
//
// The tree is one without whiteouts. Symbolic links are not followed, whatever
// happens in the directory meanwhile; paths may be longer than PATH_MAX.
func VerifyDir(ctx context.Context, t *chunkfmt.Tree, dir string, o DirOptions) ([]Difference, error) {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.MaxDifferences <= 0 {
		o.MaxDifferences = 100
	}
	for i := range t.Attrs {
		if k := t.Attrs[i].Kind; k == chunkfmt.Whiteout || k == chunkfmt.LinkOut {
			return nil, errors.New("verifying a directory: the tree is of a single layer and not merged")
		}
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", dir, err)
	}
	defer unix.Close(fd) //nolint:errcheck // only read from
	v := &dirVerifier{tree: t, o: o, files: map[uint32]fileID{}, inodes: map[fileID]uint32{}}
	v.readers.SetLimit(o.Workers)
	err = v.root(ctx, fd)
	if err2 := v.readers.Wait(); err == nil {
		err = err2
	}
	if err != nil && !errors.Is(err, errEnough) {
		return nil, fmt.Errorf("verifying %s: %w", dir, err)
	}
	slices.SortStableFunc(v.diffs, func(a, b Difference) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.What, b.What))
	})
	return v.diffs, nil
}

// fileID is what tells files apart in a directory.
type fileID struct{ dev, ino uint64 }

// dirVerifier is one run of VerifyDir.
type dirVerifier struct {
	tree *chunkfmt.Tree
	o    DirOptions
	// files and inodes say which file is which inode.
	files   map[uint32]fileID
	inodes  map[fileID]uint32
	readers errgroup.Group

	mu    sync.Mutex
	diffs []Difference
}

// differ records a difference.
func (v *dirVerifier) differ(p, what, got, want string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.diffs) >= v.o.MaxDifferences {
		return errEnough
	}
	v.diffs = append(v.diffs, Difference{p, what, got, want})
	return nil
}

// object is one name of the directory.
type object struct {
	path string
	// dir is the open directory that the name is in; the root is "." in itself.
	dir   int
	name  string
	inode uint32
	st    unix.Stat_t
}

func (v *dirVerifier) root(ctx context.Context, fd int) error {
	root := &object{dir: fd, name: "."}
	if err := unix.Fstat(fd, &root.st); err != nil {
		return err
	}
	if !v.o.IgnoreRoot {
		if err := v.attributes(root); err != nil {
			return err
		}
	}
	return v.children(ctx, root, fd)
}

// children compares the names in an open directory, and then what they name.
func (v *dirVerifier) children(ctx context.Context, dir *object, fd int) error {
	names, err := readNames(fd)
	if err != nil {
		return fmt.Errorf("listing /%s: %w", dir.path, err)
	}
	want := v.tree.Children(dir.inode)
	for len(names) > 0 || len(want) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case len(want) == 0 || len(names) > 0 && names[0] < want[0].Name:
			err = v.differ(path.Join(dir.path, names[0]), "extra", "", "")
			names = names[1:]
		case len(names) == 0 || want[0].Name < names[0]:
			err = v.differ(path.Join(dir.path, want[0].Name), "missing", "", "")
			want = want[1:]
		default:
			err = v.object(ctx, &object{
				path: path.Join(dir.path, names[0]), dir: fd, name: names[0], inode: want[0].Inode,
			})
			names, want = names[1:], want[1:]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// object compares one name that both sides have.
func (v *dirVerifier) object(ctx context.Context, x *object) error {
	if err := unix.Fstatat(x.dir, x.name, &x.st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat /%s: %w", x.path, err)
	}
	got, want := x.st.Mode&unix.S_IFMT, fileTypes[v.tree.Kind(x.inode)]
	if got != want {
		return v.differ(x.path, "type", typeName(got), typeName(want))
	}
	if err := v.attributes(x); err != nil {
		return err
	}
	if got == unix.S_IFDIR {
		fd, err := x.open(unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(fd) //nolint:errcheck // only read from
		return v.children(ctx, x, fd)
	}
	first, err := v.identity(x)
	if err != nil || got != unix.S_IFREG || !first || v.o.MetadataOnly {
		return err
	}
	if x.st.Size != v.tree.Inodes[x.inode].Size {
		return nil // said already; the content can only differ
	}
	fd, err := x.open(0)
	if err != nil {
		return err
	}
	v.readers.Go(func() error {
		defer unix.Close(fd) //nolint:errcheck // only read from
		return v.content(ctx, x, fd)
	})
	return nil
}

// open opens what was looked at with stat, and nothing else.
func (x *object) open(flags int) (int, error) {
	fd, err := unix.Openat(x.dir, x.name, flags|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening /%s: %w", x.path, err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (st.Ino != x.st.Ino || st.Mode&unix.S_IFMT != x.st.Mode&unix.S_IFMT) {
		err = errors.New("it was replaced meanwhile")
	}
	if err != nil {
		unix.Close(fd) //nolint:errcheck // only read from
		return -1, fmt.Errorf("opening /%s: %w", x.path, err)
	}
	return fd, nil
}

// identity checks that names are one file exactly where they are one inode.
// It reports the first name of each inode.
func (v *dirVerifier) identity(x *object) (bool, error) {
	id := fileID{uint64(x.st.Dev), x.st.Ino}
	file, seen := v.files[x.inode]
	if !seen {
		v.files[x.inode] = id
	}
	inode, taken := v.inodes[id]
	if !taken {
		v.inodes[id] = x.inode
	}
	switch {
	case seen && file != id:
		return true, v.differ(x.path, "same file", "a file of its own", "the file of "+pathOf(v.tree, x.inode))
	case taken && inode != x.inode:
		return !seen, v.differ(x.path, "same file", "the file of "+pathOf(v.tree, inode), "a file of its own")
	}
	return !seen, nil
}

// readNames lists a directory, sorted.
func readNames(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, err
	}
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			slices.Sort(names)
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
