package chunkfmt

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
)

// attrTable collects the attributes, extended attributes and targets of the
// merged tree, in the order of first use.
type attrTable struct {
	m       *merger
	attrs   map[Attr]uint32
	targets map[string]uint32
	// sets are numbered as they turn up; those that inodes have in the end get
	// a place in the tree.
	sets    [][]Xattr
	numbers map[Digest]uint32
	places  []uint32
	unions  map[[2]uint32]uint32
	kept    map[keepKey]uint32
	// sizes has the bytes of each set.
	sizes []uint64
	// room is how many bytes unions may yet take: sets are shared by many
	// directories, so that few bytes make many unions.
	room uint64
	hash hash.Hash
}

func (a *attrTable) init(m *merger) {
	*a = attrTable{
		m:       m,
		attrs:   map[Attr]uint32{},
		targets: map[string]uint32{},
		numbers: map[Digest]uint32{},
		unions:  map[[2]uint32]uint32{},
		kept:    map[keepKey]uint32{},
		room:    64 << 20,
		hash:    sha256.New(),
	}
	for i := range m.layers {
		for _, set := range m.layers[i].Xattrs {
			a.room += 4 * xattrBytes(set)
		}
	}
	m.out.Xattrs = [][]Xattr{nil}
	a.number(nil)
}

// of returns the place of an inode's attributes, of which flags are cleared.
func (a *attrTable) of(layer *mergeLayer, inode uint32) uint32 {
	place := &layer.attrs[layer.Inodes[inode].Attr]
	if *place == 0 {
		attr := *layer.Attr(inode)
		attr.Flags = 0
		attr.Xattrs = a.set(layer, attr.Xattrs)
		*place = a.intern(attr) + 1
	}
	return *place - 1
}

// intern returns the place of attributes whose Xattrs is the number of a set.
func (a *attrTable) intern(attr Attr) uint32 {
	place, ok := a.attrs[attr]
	if ok {
		return place
	}
	place = u32(len(a.m.out.Attrs))
	a.attrs[attr] = place
	set := attr.Xattrs
	if set != 0 && a.places[set] == 0 {
		a.places[set] = u32(len(a.m.out.Xattrs))
		a.m.out.Xattrs = append(a.m.out.Xattrs, a.sets[set])
	}
	attr.Xattrs = a.places[set]
	a.m.out.Attrs = append(a.m.out.Attrs, attr)
	return place
}

// ofDir writes the attributes of a directory: those of the uppermost part that
// is not Implied, with the extended attributes of all such parts.
func (a *attrTable) ofDir(to *Inode, parts []inodeRef) error {
	var listed []inodeRef
	for i, p := range parts {
		if a.m.layers[p.layer].Attr(p.inode).Flags&Implied == 0 {
			listed = parts[i:]
			break
		}
	}
	if len(listed) == 0 {
		to.Attr = a.intern(impliedAttr(Dir, 0))
		return nil
	}
	layer, inode := &a.m.layers[listed[0].layer], listed[0].inode
	to.Mtime, to.Nsec = layer.Inodes[inode].Mtime, layer.Inodes[inode].Nsec
	if len(listed) == 1 {
		to.Attr = a.of(layer, inode)
		return nil
	}
	attr := *layer.Attr(inode)
	attr.Flags, attr.Xattrs = 0, 0
	for i := len(listed) - 1; i >= 0; i-- {
		layer := &a.m.layers[listed[i].layer]
		part := layer.Attr(listed[i].inode)
		if part.Flags&Implied != 0 || part.Xattrs == 0 {
			continue
		}
		var err error
		if attr.Xattrs, err = a.union(attr.Xattrs, a.set(layer, part.Xattrs)); err != nil {
			return err
		}
	}
	to.Attr = a.intern(attr)
	return nil
}

// set returns the number of a layer's set of extended attributes, without
// those that unpacking leaves out.
func (a *attrTable) set(layer *mergeLayer, from uint32) uint32 {
	if layer.xattrs[from] == 0 {
		set := layer.Xattrs[from]
		if slices.ContainsFunc(set, isTrusted) {
			set = slices.DeleteFunc(slices.Clone(set), isTrusted)
		}
		layer.xattrs[from] = a.number(set) + 1
	}
	return layer.xattrs[from] - 1
}

// isTrusted reports an attribute of the administrator's, which no image may
// set: overlayfs takes orders from those of its lower directories.
func isTrusted(x Xattr) bool { return strings.HasPrefix(x.Name, "trusted.") }

func (a *attrTable) number(set []Xattr) uint32 {
	key := a.digest(set)
	n, ok := a.numbers[key]
	if !ok {
		n = u32(len(a.sets))
		a.numbers[key] = n
		a.sets = append(a.sets, set)
		a.sizes = append(a.sizes, xattrBytes(set))
		a.places = append(a.places, 0)
	}
	return n
}

// xattrBytes is what a set takes in memory and to hash.
func xattrBytes(set []Xattr) uint64 {
	n := uint64(0)
	for _, x := range set {
		n += uint64(32 + len(x.Name) + len(x.Value)) // and two strings' headers
	}
	return n
}

// digest names a set without keeping another copy of it.
func (a *attrTable) digest(set []Xattr) (d Digest) {
	a.hash.Reset()
	var lengths [16]byte
	for _, x := range set {
		binary.LittleEndian.PutUint64(lengths[:8], uint64(len(x.Name)))
		binary.LittleEndian.PutUint64(lengths[8:], uint64(len(x.Value)))
		a.hash.Write(lengths[:])
		_, _ = io.WriteString(a.hash, x.Name)  // a hash never fails
		_, _ = io.WriteString(a.hash, x.Value) // nor here
	}
	a.hash.Sum(d[:0])
	return d
}

// union returns the set that has upper's attributes and those of lower that
// upper does not have.
func (a *attrTable) union(lower, upper uint32) (uint32, error) {
	if lower == 0 || lower == upper {
		return upper, nil
	}
	key := [2]uint32{lower, upper}
	if n, ok := a.unions[key]; ok {
		return n, nil
	}
	l, u := a.sets[lower], a.sets[upper]
	if size := a.sizes[lower] + a.sizes[upper]; a.room >= size {
		a.room -= size
	} else {
		return 0, fmt.Errorf("%w: the layers' directories have too many combinations of extended attributes", ErrInvalid)
	}
	set := make([]Xattr, 0, len(l)+len(u))
	for len(l) > 0 && len(u) > 0 {
		switch strings.Compare(l[0].Name, u[0].Name) {
		case -1:
			set, l = append(set, l[0]), l[1:]
		case 0:
			l = l[1:]
		case 1:
			set, u = append(set, u[0]), u[1:]
		}
	}
	n := a.number(append(append(set, l...), u...))
	a.unions[key] = n
	return n, nil
}

// keep returns the number of the set without what an inode cannot have: of a
// set that a hard link gives to an inode of kind k, or else of the set that the
// inode has before.
func (a *attrTable) keep(set uint32, k Kind, given bool) uint32 {
	key := keepKey{set, k, given}
	if n, ok := a.kept[key]; ok {
		return n
	}
	drop := func(x Xattr) bool {
		if given {
			return !linkTakes(k, x.Name)
		}
		return x.Name == capability
	}
	n := set
	if slices.ContainsFunc(a.sets[set], drop) {
		n = a.number(slices.DeleteFunc(slices.Clone(a.sets[set]), drop))
	}
	a.kept[key] = n
	return n
}

type keepKey struct {
	set   uint32
	kind  Kind
	given bool
}

// target returns the place of a symbolic link's target.
func (a *attrTable) target(layer *mergeLayer, inode uint32) uint32 {
	to := &layer.targets[layer.Inodes[inode].First]
	if *to == 0 {
		s := layer.Target(inode)
		place, ok := a.targets[s]
		if !ok {
			place = u32(len(a.m.out.Targets))
			a.targets[s] = place
			a.m.out.Targets = append(a.m.out.Targets, s)
		}
		*to = place + 1
	}
	return *to - 1
}
