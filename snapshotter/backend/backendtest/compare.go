package backendtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// Compare fails the test for everything below dir that is not as it is to be:
// names, attributes, links, extended attributes and content.
func (w Want) Compare(t testing.TB, dir string) {
	t.Helper()
	left := maps.Clone(w)
	inodes := map[string]uint64{}
	err := filepath.WalkDir(dir, func(full string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(full, dir), "/")
		if name == "" {
			return nil
		}
		if left[name] == nil {
			return fmt.Errorf("%s is there", name)
		}
		delete(left, name)
		ino, err := w.compare(dir, name)
		inodes[name] = ino
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return nil
	})
	if err != nil {
		t.Errorf("walk: %v", err)
	}
	for name, f := range w {
		if target := path.Clean(f.Linkname); f.Typeflag == tar.TypeLink && inodes[name] != inodes[target] {
			t.Errorf("%s has inode %d and %s has %d", name, inodes[name], target, inodes[target])
		}
	}
	if len(left) > 0 {
		t.Errorf("%d files are missing, among them %v", len(left), slices.Sorted(maps.Keys(left))[0])
	}
}

// compare checks one file and returns its inode number.
func (w Want) compare(dir, name string) (uint64, error) {
	full := filepath.Join(dir, name)
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		return 0, fmt.Errorf("lstat: %w", err)
	}
	f := w[name]
	if f.Typeflag == tar.TypeLink {
		f = w[path.Clean(f.Linkname)]
	}
	var errs []error
	check := func(what string, got, want any) {
		if got != want {
			errs = append(errs, fmt.Errorf("%s is %v, want %v", what, got, want))
		}
	}
	check("mode", fmt.Sprintf("%o", st.Mode), fmt.Sprintf("%o", fileTypes[f.Typeflag]|uint32(f.Mode))) // #nosec G115 -- a mode
	check("owner", fmt.Sprint(st.Uid, ":", st.Gid), fmt.Sprint(f.Uid, ":", f.Gid))
	check("mtime", st.Mtim.Nano(), f.ModTime.UnixNano())
	check("ctime", st.Ctim.Nano(), f.ModTime.UnixNano())
	check("nlink", fmt.Sprint(st.Nlink), fmt.Sprint(w.links(f)))
	switch f.Typeflag {
	case tar.TypeReg:
		check("size", st.Size, int64(len(f.Content)))
		got, err := os.ReadFile(full) // #nosec G304 -- a test's file
		errs = append(errs, err)
		if err == nil && !bytes.Equal(got, f.Content) {
			errs = append(errs, fmt.Errorf("content differs from byte %d on", firstDifference(got, f.Content)))
		}
	case tar.TypeSymlink:
		target, err := os.Readlink(full)
		errs = append(errs, err)
		check("target", target, f.Linkname)
		check("size", st.Size, int64(len(f.Linkname)))
	case tar.TypeChar, tar.TypeBlock:
		check("device", fmt.Sprint(unix.Major(st.Rdev), ":", unix.Minor(st.Rdev)), fmt.Sprint(f.Devmajor, ":", f.Devminor))
	}
	errs = append(errs, compareXattrs(full, f))
	return st.Ino, errors.Join(errs...)
}

var fileTypes = map[byte]uint32{
	tar.TypeReg: syscall.S_IFREG, tar.TypeDir: syscall.S_IFDIR, tar.TypeSymlink: syscall.S_IFLNK,
	tar.TypeChar: syscall.S_IFCHR, tar.TypeBlock: syscall.S_IFBLK, tar.TypeFifo: syscall.S_IFIFO,
}

// links returns the link count that a file is to have.
func (w Want) links(f *File) int {
	own := path.Clean(f.Name)
	n := 1
	if f.Typeflag == tar.TypeDir {
		n = 2
	}
	for name, g := range w {
		switch {
		case f.Typeflag == tar.TypeDir:
			if g.Typeflag == tar.TypeDir && path.Dir(name) == own {
				n++
			}
		case g.Typeflag == tar.TypeLink && path.Clean(g.Linkname) == own:
			n++
		}
	}
	return n
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func compareXattrs(full string, f *File) error {
	want := map[string]string{}
	for name, value := range f.PAXRecords {
		if x, ok := strings.CutPrefix(name, paxXattr); ok {
			want[x] = value
		}
	}
	got, err := xattrs(full)
	if err != nil {
		return err
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("extended attributes are %q, want %q", got, want)
	}
	return nil
}

func xattrs(full string) (map[string]string, error) {
	n, err := unix.Llistxattr(full, nil)
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	list := make([]byte, n+1)
	if n, err = unix.Llistxattr(full, list); err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(full, name, value)
		if err != nil {
			return nil, fmt.Errorf("getxattr %s: %w", name, err)
		}
		all[name] = string(value[:n])
	}
	return all, nil
}
