package erofs

import (
	"fmt"
	"strings"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// maxXattrBody is the most that an inode's 16-bit count can stand for.
const maxXattrBody = xattrHeaderSize + (1<<16-2)*4

// xattrBody is a set of extended attributes as inodes have it.
type xattrBody struct {
	bytes []byte
	// dropped attributes have names that Linux does not know.
	dropped int
	err     error
}

// xattrCount returns what an inode says about the size of a body.
func xattrCount(size int) uint16 {
	if size == 0 {
		return 0
	}
	return uint16((size-xattrHeaderSize)/4 + 1) //nolint:gosec // size is at most maxXattrBody
}

// xattrName splits a name into the number that EROFS has for its prefix, and
// the rest.
func xattrName(name string) (index uint8, rest string, ok bool) {
	switch name {
	case "system.posix_acl_access":
		return 2, "", true
	case "system.posix_acl_default":
		return 3, "", true
	}
	for _, p := range [...]struct {
		prefix string
		index  uint8
	}{{"user.", 1}, {"trusted.", 4}, {"security.", 6}} {
		if rest, ok := strings.CutPrefix(name, p.prefix); ok {
			return p.index, rest, rest != ""
		}
	}
	return 0, "", false
}

func encodeXattrs(set []chunkfmt.Xattr) xattrBody {
	var body xattrBody
	var header [xattrHeaderSize]byte // no name filter, no shared attributes
	for _, x := range set {
		index, rest, ok := xattrName(x.Name)
		if !ok {
			body.dropped++
			continue
		}
		if len(rest) > 255 || len(x.Value) > chunkfmt.MaxXattrValue {
			body.err = fmt.Errorf("extended attribute %.80q has a name of %d bytes and a value of %d", x.Name, len(x.Name), len(x.Value))
			return body
		}
		b := body.bytes
		if b == nil {
			b = header[:]
		}
		b = append(b, uint8(len(rest)), index)             //nolint:gosec // checked above
		b = le.AppendUint16(b, uint16(len(x.Value)))       //nolint:gosec // checked above
		b = append(append(b, rest...), x.Value...)         // names have no prefix on disk
		body.bytes = append(b, make([]byte, -len(b)&3)...) // entries are aligned to 4
		if len(body.bytes) > maxXattrBody {
			body.err = fmt.Errorf("extended attributes take %d bytes or more, at most %d", len(body.bytes), maxXattrBody)
			return body
		}
	}
	return body
}
