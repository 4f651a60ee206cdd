package runtimetest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// object is everything that a file system tells about a name, as text by field.
type object map[field]string

type field string

const (
	fType    field = "type"
	fMode    field = "mode"
	fOwner   field = "owner"
	fSize    field = "size"
	fDevice  field = "device number"
	fMtime   field = "mtime"
	fXattrs  field = "xattrs"
	fLinks   field = "link count"
	fSame    field = "first name of the same inode"
	fTarget  field = "target"
	fContent field = "content"
)

// walk returns the objects of a mounted tree by their path from its root, which
// is ".".
func walk(t *testing.T, root string) map[string]object {
	t.Helper()
	tree := map[string]object{}
	// Layers of an overlay mount that are on other file systems keep their device.
	type inode struct{ device, number uint64 }
	inodes := map[inode]string{}
	err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", name, err)
		}
		if tree[rel], err = objectOf(name, &st); err != nil {
			return err
		}
		// WalkDir goes in the order of names.
		id := inode{st.Dev, st.Ino}
		if first, ok := inodes[id]; ok && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			tree[rel][fSame] = first
		} else {
			inodes[id] = rel
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func objectOf(name string, st *unix.Stat_t) (object, error) {
	o := object{
		fType:  fmt.Sprintf("%#o", st.Mode&unix.S_IFMT),
		fMode:  fmt.Sprintf("%#o", st.Mode&0o7777),
		fOwner: fmt.Sprintf("%d:%d", st.Uid, st.Gid),
		fMtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec),
		fLinks: fmt.Sprint(st.Nlink),
	}
	var err error
	if o[fXattrs], err = xattrsOf(name); err != nil {
		return nil, fmt.Errorf("xattrs of %s: %w", name, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		o[fSize] = fmt.Sprint(st.Size)
		o[fTarget], err = os.Readlink(name)
	case unix.S_IFREG:
		o[fSize] = fmt.Sprint(st.Size)
		o[fContent], err = contentOf(name)
	case unix.S_IFCHR, unix.S_IFBLK:
		o[fDevice] = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	return o, err
}

func contentOf(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// xattrsOf returns all extended attributes of a file, the sorted names with
// their values.
func xattrsOf(name string) (string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, list)
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return "", nil
	} else if err != nil {
		return "", err
	}
	names := strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var text strings.Builder
	for _, x := range names {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(name, x, value)
		if err != nil {
			return "", fmt.Errorf("%s: %w", x, err)
		}
		fmt.Fprintf(&text, "%s=%q ", x, value[:n])
	}
	return text.String(), nil
}

// differences says how two trees differ. Where except returns true, a field is
// not compared.
func differences(want, got map[string]object, except func(name string, f field, want, got object) bool) []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w, g := want[name], got[name]
		if g == nil {
			all = append(all, fmt.Sprintf("%s is missing: %v", name, w))
			continue
		}
		for _, f := range []field{fType, fMode, fOwner, fSize, fDevice, fMtime, fXattrs, fLinks, fSame, fTarget, fContent} {
			if w[f] != g[f] && !except(name, f, w, g) {
				all = append(all, fmt.Sprintf("%.200s: %s is %.200s, want %.200s", name, f, g[f], w[f]))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if want[name] == nil {
			all = append(all, fmt.Sprintf("%s should not be there: %v", name, got[name]))
		}
	}
	return all
}

// report fails the test for differences, of which it prints the first ones.
func report(t *testing.T, what string, all []string) {
	t.Helper()
	const most = 12
	if len(all) > most {
		all = append(all[:most:most], fmt.Sprintf("and %d more", len(all)-most))
	}
	for _, d := range all {
		t.Errorf("%s: %s", what, d)
	}
}

var (
	typeDir  = fmt.Sprintf("%#o", unix.S_IFDIR)
	typeFile = fmt.Sprintf("%#o", unix.S_IFREG)
)
