package main

import (
	"cmp"
	"io/fs"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// tree is what there is to read in an image; paths are relative.
type tree struct {
	entries []string // all names
	files   []entry  // regular files with content, each inode once, the largest first
	bytes   int64    // of files
}

type entry struct {
	path string
	size int64
}

// listTree lists what is below root.
func listTree(root string) (*tree, error) {
	t := &tree{}
	seen := map[uint64]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		t.entries = append(t.entries, rel)
		if !d.Type().IsRegular() {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		if st.Size > 0 && !seen[st.Ino] {
			seen[st.Ino] = true
			t.files = append(t.files, entry{rel, st.Size})
			t.bytes += st.Size
		}
		return nil
	})
	slices.SortStableFunc(t.files, func(a, b entry) int { return cmp.Compare(b.size, a.size) })
	return t, err
}

// largest returns the largest files, together of about n bytes.
func (t *tree) largest(n int64) []entry {
	for i := range t.files {
		if n -= t.files[i].size; n <= 0 {
			return t.files[:i+1]
		}
	}
	return t.files
}
