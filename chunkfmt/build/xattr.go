package build

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

const (
	capability = "security.capability"
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// xattrs returns the attributes of an entry that unpacking it would set, and
// the names of those that the kernel does not know. What the kernel would
// refuse as invalid is an error.
func xattrs(h *tar.Header, n *chunkfmt.Node) (list []chunkfmt.Xattr, dropped []string, err error) {
	for record, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrRecord)
		if !ok {
			continue
		}
		if len(name) > maxXattr || len(value) > chunkfmt.MaxXattrValue {
			return nil, nil, fmt.Errorf("%w: extended attribute %.80q of %d bytes, its name of %d",
				chunkfmt.ErrInvalid, name, len(value), len(name))
		}
		switch {
		case !takesXattr(n.Kind, name):
			dropped = append(dropped, name)
			continue
		case name == capability:
			err = checkCapability(value)
		case name == accessACL:
			value, err = unpackACL(value, n.Mode)
		case name == defaultACL:
			_, err = unpackACL(value, 0)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%w: extended attribute %s: %w", chunkfmt.ErrInvalid, name, err)
		}
		if name != accessACL || value != "" {
			list = append(list, chunkfmt.Xattr{Name: name, Value: value})
		}
	}
	slices.Sort(dropped)
	return list, dropped, nil
}

// takesXattr reports whether Linux lets objects of a kind have an attribute.
func takesXattr(k chunkfmt.Kind, name string) bool {
	if strings.ContainsRune(name, 0) {
		return false
	}
	switch name {
	case accessACL:
		return k != chunkfmt.Symlink
	case defaultACL:
		return k == chunkfmt.Dir
	}
	if rest, ok := strings.CutPrefix(name, "user."); ok {
		// What a link out leads to is known only when layers are merged.
		return rest != "" && (k == chunkfmt.File || k == chunkfmt.Dir || k == chunkfmt.LinkOut)
	}
	for _, space := range []string{"trusted.", "security."} {
		if rest, ok := strings.CutPrefix(name, space); ok {
			return rest != ""
		}
	}
	return false
}

// checkCapability refuses what Linux does not take as capabilities of a file:
// they have version 2 or, with the user ID of a namespace's root, 3.
func checkCapability(value string) error {
	if len(value) >= 4 {
		version := binary.LittleEndian.Uint32([]byte(value)) >> 24
		if version == 2 && len(value) == 20 || version == 3 && len(value) == 24 {
			return nil
		}
	}
	return fmt.Errorf("%d bytes are no capabilities", len(value))
}

// The tags of entries of a POSIX ACL, in the order that the kernel wants.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// unpackACL returns what becomes of a POSIX ACL when the mode is set after it:
// the owner's, the mask's and the others' permissions are those of the mode. An
// ACL that says no more than a mode is "".
func unpackACL(value string, mode uint16) (string, error) {
	b := []byte(value)
	if len(b) < 4 || len(b)%8 != 4 || binary.LittleEndian.Uint32(b) != 2 {
		return "", fmt.Errorf("%d bytes are no ACL of version 2", len(b))
	}
	var seen, last uint16
	for e := b[4:]; len(e) > 0; e = e[8:] {
		tag, perm := binary.LittleEndian.Uint16(e), binary.LittleEndian.Uint16(e[2:])
		switch {
		case perm > 7, tag < last, tag == last && tag != aclUser && tag != aclGroup:
			return "", fmt.Errorf("entry %#x of the ACL is out of order or has permissions %#o", tag, perm)
		case tag == aclUser || tag == aclGroup:
		case tag == aclUserObj || tag == aclGroupObj || tag == aclMask || tag == aclOther:
			binary.LittleEndian.PutUint32(e[4:], 1<<32-1)
		default:
			return "", fmt.Errorf("the ACL has an entry %#x", tag)
		}
		switch tag {
		case aclUserObj:
			perm = mode >> 6 & 7
		case aclMask:
			perm = mode >> 3 & 7
		case aclOther:
			perm = mode & 7
		}
		binary.LittleEndian.PutUint16(e[2:], perm)
		seen, last = seen|tag, tag
	}
	const must = aclUserObj | aclGroupObj | aclOther
	if seen&must != must || seen&(aclUser|aclGroup) != 0 && seen&aclMask == 0 {
		return "", fmt.Errorf("the ACL has entries %#x only", seen)
	}
	if seen == must {
		return "", nil
	}
	return string(b), nil
}
