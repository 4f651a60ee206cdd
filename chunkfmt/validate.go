package chunkfmt

import (
	"fmt"
	"strings"
)

// Validate checks that an index is what the format allows, which Encode and
// Decode do too: everything that the model states, tables without anything
// unused or twice, and every table in the order that FORMAT.md gives. Of chunks
// in External blobs it checks what can be checked without the blob's groups.
// Errors wrap ErrInvalid and name the path of the entry where there is one.
func (x *Index) Validate() error { return x.validate(true) }

// ValidateMerged checks that a tree is what Merge may return: what Validate
// checks of an index except the order and the economy of tables, and no
// Whiteout, LinkOut, AttrFlags or External.
func (t *Tree) ValidateMerged() error { return t.validate(false) }

func (t *Tree) validate(layer bool) error {
	v := &validator{Tree: t, layer: layer, spans: map[uint32][]span{}}
	for _, check := range []func() error{
		v.lengths,
		v.checkXattrs,
		v.checkAttrs,
		v.checkTargets,
		v.checkBlobs,
		v.checkChunks,
		v.checkNumbers,
		v.checkInodes,
		v.checkNames,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// validator checks a tree. The checks run in the order above, and each relies
// on those before it.
type validator struct {
	*Tree
	layer bool
	// devices has the place of each chunk in the device of its blob, or
	// nowhere.
	devices []int64
	// used marks the chunks that files have.
	used []bool
	// spans has what is taken in the devices of the blobs where it was asked
	// for.
	spans map[uint32][]span
}

// nowhere is the place of holes and of chunks in External blobs.
const nowhere = -1

func (v *validator) lengths() error {
	const limit = 1<<32 - 1
	for _, n := range []int{
		len(v.Inodes), len(v.Entries), len(v.Attrs), len(v.Xattrs), len(v.Targets),
		len(v.Runs), len(v.Chunks), len(v.Blobs), len(v.Inline),
	} {
		if int64(n) > limit {
			return invalid("a table of %d items, at most %d are possible", n, int64(limit))
		}
	}
	if len(v.Inodes) == 0 || len(v.Xattrs) == 0 || len(v.Xattrs[0]) != 0 {
		return invalid("no root, or no empty set of extended attributes")
	}
	return nil
}

func (v *validator) checkXattrs() error {
	for i, set := range v.Xattrs[1:] {
		if len(set) == 0 {
			return invalid("xattr set %d is empty", i+1)
		}
		for j, x := range set {
			switch {
			case x.Name == "" || len(x.Name) > MaxName || strings.IndexByte(x.Name, 0) >= 0:
				return invalid("xattr set %d has the name %.300q", i+1, x.Name)
			case len(x.Value) > MaxXattrValue:
				return invalid("xattr set %d: %s has %d bytes, at most %d are possible", i+1, x.Name, len(x.Value), MaxXattrValue)
			case j > 0 && set[j-1].Name >= x.Name:
				return invalid("xattr set %d: %q after %q", i+1, x.Name, set[j-1].Name)
			}
		}
	}
	if !v.layer {
		return nil
	}
	seen := make(map[string]bool, len(v.Xattrs))
	for i, set := range v.Xattrs {
		key := xattrKey(set)
		if seen[key] {
			return invalid("xattr set %d is there twice", i)
		}
		seen[key] = true
	}
	return nil
}

// xattrKey tells sets apart: names have no NUL, and lengths say where values
// end.
func xattrKey(set []Xattr) string {
	var b strings.Builder
	for _, x := range set {
		fmt.Fprintf(&b, "%s\x00%d:%s", x.Name, len(x.Value), x.Value)
	}
	return b.String()
}

func (v *validator) checkAttrs() error {
	sets := firstUse{what: "xattr set", next: 1, length: len(v.Xattrs)}
	for i := range v.Attrs {
		a := &v.Attrs[i]
		if err := v.checkAttr(a); err != nil {
			return fmt.Errorf("attributes %d: %w", i, err)
		}
		if v.layer {
			if err := sets.use(a.Xattrs); err != nil {
				return fmt.Errorf("attributes %d: %w", i, err)
			}
		}
	}
	if !v.layer {
		return nil
	}
	seen := make(map[Attr]bool, len(v.Attrs))
	for i, a := range v.Attrs {
		if seen[a] {
			return invalid("attributes %d are there twice", i)
		}
		seen[a] = true
	}
	return sets.end()
}

func (v *validator) checkAttr(a *Attr) error {
	switch {
	case a.Kind >= kinds:
		return invalid("unknown kind %d", a.Kind)
	case a.Flags&^attrFlags != 0:
		return invalid("unknown flags %#x", a.Flags)
	case a.Flags != 0 && a.Kind != Dir:
		return invalid("flags %#x of what is no directory", a.Flags)
	case a.Mode > 0o7777:
		return invalid("mode %#o", a.Mode)
	case int64(a.Xattrs) >= int64(len(v.Xattrs)):
		return invalid("xattr set %d of %d", a.Xattrs, len(v.Xattrs))
	case !v.layer && (a.Flags != 0 || a.Kind == Whiteout || a.Kind == LinkOut):
		return invalid("kind %d with flags %#x in a merged tree", a.Kind, a.Flags)
	case a.Flags&Opaque != 0 && a.Flags&Replaced != 0:
		return invalid("a directory is both opaque and a replacement")
	case a.Kind == Whiteout:
		if *a != (Attr{Kind: Whiteout}) {
			return invalid("a whiteout has attributes of its own")
		}
	case a.Flags&Implied != 0:
		if *a != (Attr{Kind: Dir, Flags: a.Flags, Mode: 0o755}) {
			return invalid("an implied directory has attributes of its own")
		}
	}
	return nil
}

func (v *validator) checkTargets() error {
	for i, s := range v.Targets {
		if s == "" || len(s) > MaxPath || strings.IndexByte(s, 0) >= 0 {
			return invalid("target %d is %.80q", i, s)
		}
	}
	if !v.layer {
		return nil
	}
	seen := make(map[string]bool, len(v.Targets))
	for i, s := range v.Targets {
		if seen[s] {
			return invalid("target %d is there twice", i)
		}
		seen[s] = true
	}
	return nil
}

// firstUse checks that the items of a table are in the order of their first
// use and that all are used.
type firstUse struct {
	what   string
	next   int64
	length int
}

func (f *firstUse) use(at uint32) error {
	if int64(at) > f.next {
		return invalid("%s %d is used before %d", f.what, at, f.next)
	}
	if int64(at) == f.next {
		f.next++
	}
	return nil
}

func (f *firstUse) end() error {
	if f.next != int64(f.length) {
		return invalid("%s %d is not used", f.what, f.next)
	}
	return nil
}
