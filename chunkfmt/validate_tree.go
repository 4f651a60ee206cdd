package chunkfmt

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// checkNumbers checks that inodes and entries are numbered in level order.
// After it the parents of an inode lead to the root.
func (v *validator) checkNumbers() error {
	for i := range v.Inodes {
		if a := v.Inodes[i].Attr; int64(a) >= int64(len(v.Attrs)) {
			return invalid("inode %d has attributes %d of %d", i, a, len(v.Attrs))
		}
	}
	if root := &v.Inodes[0]; v.Kind(0) != Dir || root.Parent != 0 {
		return invalid("the root is no directory")
	}
	links := make([]uint32, len(v.Inodes))
	links[0] = 2
	first, next := int64(0), uint32(1)
	for i := range v.Inodes {
		n := &v.Inodes[i]
		if v.Attrs[n.Attr].Kind != Dir {
			continue
		}
		if int64(n.First) != first || int64(n.Count) > int64(len(v.Entries))-first || int64(i) >= int64(next) {
			return invalid("directory %d of %d has entries %d+%d of %d, not from %d on",
				i, next, n.First, n.Count, len(v.Entries), first)
		}
		first += int64(n.Count)
		for _, e := range v.Entries[n.First:first] {
			if err := v.number(uint32(i), e, &next, links); err != nil {
				return err
			}
		}
	}
	if first != int64(len(v.Entries)) || int64(next) != int64(len(v.Inodes)) {
		return invalid("%d of %d entries have a directory, %d of %d inodes an entry",
			first, len(v.Entries), next, len(v.Inodes))
	}
	for i := range v.Inodes {
		if v.Inodes[i].Nlink != links[i] {
			return v.at(i, invalid("link count %d, not %d", v.Inodes[i].Nlink, links[i]))
		}
	}
	return nil
}

// number checks the inode of one entry and counts its links.
func (v *validator) number(dir uint32, e Entry, next *uint32, links []uint32) error {
	if e.Inode > *next || int64(e.Inode) >= int64(len(v.Inodes)) || e.Inode == 0 {
		return invalid("entry %.300q is inode %d, the next is %d of %d", e.Name, e.Inode, *next, len(v.Inodes))
	}
	isDir := v.Kind(e.Inode) == Dir
	if e.Inode < *next {
		if isDir {
			return invalid("entry %.300q is a second name of a directory", e.Name)
		}
		links[e.Inode]++
		return nil
	}
	*next++
	links[e.Inode]++
	if isDir {
		links[e.Inode]++
		links[dir]++
	}
	if parent := v.Inodes[e.Inode].Parent; parent != dir {
		return invalid("entry %.300q of directory %d has the parent %d", e.Name, dir, parent)
	}
	return nil
}

// at names the place of an error.
func (v *validator) at(inode int, err error) error {
	return fmt.Errorf("/%s: %w", v.path(uint32(inode)), err) //nolint:gosec // lengths has checked
}

// path returns the path of an inode's first entry.
func (v *validator) path(inode uint32) string {
	var names []string
	for inode != 0 {
		parent := v.Inodes[inode].Parent
		for _, e := range v.Children(parent) {
			if e.Inode == inode {
				names = append(names, e.Name)
				break
			}
		}
		inode = parent
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

func (v *validator) checkInodes() error {
	attrs := firstUse{what: "attributes", length: len(v.Attrs)}
	targets := firstUse{what: "target", length: len(v.Targets)}
	content := contents{validator: v}
	for i := range v.Inodes {
		n := &v.Inodes[i]
		err := attrs.use(n.Attr)
		if !v.layer {
			err = nil
		}
		if err == nil {
			err = v.checkInode(n, &targets, &content)
		}
		if err != nil {
			return v.at(i, err)
		}
	}
	if content.runs != len(v.Runs) || content.inline != int64(len(v.Inline)) {
		return invalid("files have %d of %d runs and %d of %d inline bytes",
			content.runs, len(v.Runs), content.inline, len(v.Inline))
	}
	if !v.layer {
		return nil
	}
	if i := slices.Index(v.used, false); i >= 0 {
		return invalid("chunk %d is not used", i)
	}
	if err := attrs.end(); err != nil {
		return err
	}
	return targets.end()
}

func (v *validator) checkInode(n *Inode, targets *firstUse, content *contents) error {
	a := &v.Attrs[n.Attr]
	if n.Nsec >= 1e9 {
		return invalid("%d nanoseconds", n.Nsec)
	}
	if n.Size < 0 || n.Size != 0 && a.Kind != File && a.Kind != CharDevice && a.Kind != BlockDevice {
		return invalid("size %d", n.Size)
	}
	switch a.Kind {
	case Dir:
		if a.Flags&Implied != 0 && (n.Mtime != 0 || n.Nsec != 0) {
			return invalid("an implied directory has a time")
		}
		return nil
	case File:
		return content.check(n)
	case Symlink, LinkOut:
		return v.checkTarget(n, a.Kind, targets)
	case CharDevice, BlockDevice:
		if major, minor := n.Size>>32, n.Size&(1<<32-1); major > maxMajor || minor > maxMinor {
			return invalid("device %d:%d", major, minor)
		}
	case Whiteout:
		if n.Mtime != 0 || n.Nsec != 0 || n.Nlink != 1 {
			return invalid("a whiteout has a time or a second name")
		}
	default: // a Fifo or Socket has nothing to check
	}
	if n.First != 0 || n.Count != 0 {
		return invalid("content %d+%d of what has none", n.First, n.Count)
	}
	return nil
}

// Bounds of device numbers, of Linux.
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

func (v *validator) checkTarget(n *Inode, k Kind, targets *firstUse) error {
	if n.Count != 0 || int64(n.First) >= int64(len(v.Targets)) {
		return invalid("target %d+%d of %d", n.First, n.Count, len(v.Targets))
	}
	if v.layer {
		if err := targets.use(n.First); err != nil {
			return err
		}
	}
	if k == Symlink {
		return nil
	}
	s := v.Targets[n.First]
	if path.Clean("/" + s)[1:] != s {
		return invalid("a hard link to %.300q, which is no clean relative path", s)
	}
	for part := range strings.SplitSeq(s, "/") {
		if len(part) > MaxName {
			return invalid("a hard link to a name of %d bytes", len(part))
		}
	}
	return nil
}

// checkNames checks the names of entries and the lengths of paths.
func (v *validator) checkNames() error {
	lengths := make([]uint16, len(v.Inodes)) // of the paths of directories
	for i := range v.Inodes {
		n := &v.Inodes[i]
		if v.Attrs[n.Attr].Kind != Dir {
			continue
		}
		prefix := int(lengths[i])
		if i > 0 {
			prefix++
		}
		children := v.Entries[n.First : n.First+n.Count]
		for j := range children {
			e := &children[j]
			switch {
			case !validName(e.Name):
				return v.at(i, invalid("an entry has the name %.300q", e.Name))
			case j > 0 && children[j-1].Name >= e.Name:
				return v.at(i, invalid("entry %q after %q", e.Name, children[j-1].Name))
			case prefix+len(e.Name) > MaxPath:
				return v.at(i, invalid("entry %q has a path of %d bytes, at most %d are possible", e.Name, prefix+len(e.Name), MaxPath))
			}
			lengths[e.Inode] = uint16(prefix + len(e.Name)) //nolint:gosec // bounded by MaxPath
		}
	}
	return nil
}

func validName(s string) bool {
	if s == "" || len(s) > MaxName || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		if s[i] == '/' || s[i] == 0 {
			return false
		}
	}
	return true
}
