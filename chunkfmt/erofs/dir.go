package erofs

import (
	"sort"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// listing is a directory's entries as EROFS has them: "." and ".." stand where
// they sort, byte by byte, among the names. That is not always in front ("!",
// "-" and "+" sort before them, and ".-" between).
type listing struct {
	entries     []chunkfmt.Entry
	self        uint32
	parent      uint32
	dot, dotdot int // their places
}

func newListing(t *chunkfmt.Tree, dir uint32) listing {
	l := listing{entries: t.Children(dir), self: dir, parent: t.Inodes[dir].Parent, dotdot: 1}
	if len(l.entries) > 0 && l.entries[0].Name < ".." {
		l.dot = l.before(".")
		l.dotdot = l.before("..") + 1
	}
	return l
}

// before counts the names that sort before one.
func (l *listing) before(name string) int {
	return sort.Search(len(l.entries), func(i int) bool { return l.entries[i].Name >= name })
}

func (l *listing) len() int { return len(l.entries) + 2 }

func (l *listing) at(i int) (name string, inode uint32) {
	switch {
	case i == l.dot:
		return ".", l.self
	case i == l.dotdot:
		return "..", l.parent
	case i > l.dotdot:
		i -= 2
	case i > l.dot:
		i--
	}
	return l.entries[i].Name, l.entries[i].Inode
}

// block returns how many entries from the i-th on go into one block, and the
// bytes they take.
func (l *listing) block(i int) (n, used int) {
	for ; i+n < l.len(); n++ {
		name, _ := l.at(i + n)
		if used+direntSize+len(name) > blockSize {
			break
		}
		used += direntSize + len(name)
	}
	return n, used
}

// size returns the bytes that the whole takes: full blocks and a last one.
func (l *listing) size() int64 {
	var full int64
	for i := 0; ; full++ {
		n, used := l.block(i)
		i += n
		if i == l.len() {
			return full*blockSize + int64(used)
		}
	}
}

// last returns the place of the first entry of the last block.
func (l *listing) last() int {
	for i := 0; ; {
		n, _ := l.block(i)
		if i+n == l.len() {
			return i
		}
		i += n
	}
}

// dirents writes n entries from the i-th on into a block.
func (p *plan) dirents(b []byte, l *listing, i, n int) {
	name := n * direntSize
	for j := range n {
		s, inode := l.at(i + j)
		d := b[j*direntSize:]
		le.PutUint64(d, uint64(p.nids[inode]))
		le.PutUint16(d[8:], uint16(name)) //nolint:gosec // less than a block
		d[10] = fileTypes[p.t.Kind(inode)].dirent
		name += copy(b[name:], s)
	}
}
