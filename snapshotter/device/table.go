package device

import (
	"fmt"
	"math"
	"slices"
	"sort"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
)

// Key names a device: chunkfmt's Tree.DeviceKey.
type Key = chunkfmt.Digest

// Check is a part of a group's plain bytes whose digest is known.
type Check struct {
	Offset, Length uint32
	Digest         chunkfmt.Digest
}

// Table says what is on a device: where each group of a blob goes, and how its
// bytes are proven. It does not change after it is made and shares no memory
// with the tree that it was made from.
type Table struct {
	Key Key
	// Blob is the blob with its groups; never External.
	Blob chunkfmt.Blob
	// Checks are, of an Unproven blob, the chunks of each group; else nil.
	Checks [][]Check

	// placed are the groups with a place in the device, which have the order of
	// their places.
	placed []uint32
}

// NewTable returns the table of a blob of a tree that passed chunkfmt's checks.
func NewTable(t *chunkfmt.Tree, blob uint32) (*Table, error) {
	if int64(blob) >= int64(len(t.Blobs)) {
		return nil, fmt.Errorf("blob %d of a tree with %d", blob, len(t.Blobs))
	}
	b := t.Blobs[blob]
	if b.External {
		return nil, fmt.Errorf("blob %s has no groups in this tree", b.Digest)
	}
	b.Groups = slices.Clone(b.Groups)
	for i := range b.Groups {
		b.Groups[i].Segments = slices.Clone(b.Groups[i].Segments)
	}
	table := &Table{Key: t.DeviceKey(blob), Blob: b}
	if b.Unproven {
		table.Checks = checksOf(t, blob)
	}
	if err := table.validate(); err != nil {
		return nil, fmt.Errorf("blob %s: %w", b.Digest, err)
	}
	table.index()
	return table, nil
}

// checksOf returns the chunks in each group of a blob.
func checksOf(t *chunkfmt.Tree, blob uint32) [][]Check {
	checks := make([][]Check, len(t.Blobs[blob].Groups))
	// Holes come first, and Hole plus one is 0.
	first := sort.Search(len(t.Chunks), func(i int) bool { return t.Chunks[i].Blob+1 >= blob+1 })
	for _, c := range t.Chunks[first:] {
		if c.Blob != blob || int64(c.Group) >= int64(len(checks)) {
			break
		}
		checks[c.Group] = append(checks[c.Group], Check{c.Offset, c.Length, c.Digest})
	}
	for i := range checks {
		checks[i] = slices.Clip(checks[i])
	}
	return checks
}

// index makes placed.
func (t *Table) index() {
	n := 0
	for i := range t.Blob.Groups {
		if hasPlace(&t.Blob.Groups[i]) {
			n++
		}
	}
	t.placed = make([]uint32, 0, n)
	for i := range t.Blob.Groups {
		if hasPlace(&t.Blob.Groups[i]) {
			t.placed = append(t.placed, uint32(i)) // #nosec G115 -- at most maxGroups
		}
	}
}

func hasPlace(g *chunkfmt.Group) bool {
	return g.Codec != chunkfmt.Filler && (g.Segments == nil || len(g.Segments) > 0)
}

// Places returns where the plain bytes of a group lie in the device.
func Places(g *chunkfmt.Group) []chunkfmt.Segment {
	switch {
	case g.Codec == chunkfmt.Filler:
		return nil
	case g.Segments != nil:
		return g.Segments
	default:
		return []chunkfmt.Segment{{Offset: 0, Length: g.Plain, Device: g.Device}}
	}
}

// span returns where the places of a group that has one begin and end.
func span(g *chunkfmt.Group) (first, end int64) {
	if g.Segments == nil {
		return g.Device, g.Device + int64(g.Plain)
	}
	last := &g.Segments[len(g.Segments)-1]
	return g.Segments[0].Device, last.Device + int64(last.Length)
}

// Groups returns the groups that fill some of the n bytes of the device at off,
// in the order of the device, each once.
func (t *Table) Groups(off, n int64) []int {
	if n <= 0 || off > math.MaxInt64-n {
		return nil
	}
	i := sort.Search(len(t.placed), func(i int) bool {
		_, end := span(&t.Blob.Groups[t.placed[i]])
		return end > off
	})
	var groups []int
	for _, number := range t.placed[i:] {
		g := &t.Blob.Groups[number]
		if first, _ := span(g); first >= off+n {
			break
		}
		if touches(g, off, off+n) {
			groups = append(groups, int(number))
		}
	}
	return groups
}

// touches reports that a group, whose span overlaps the bytes from off to end,
// has a place there too.
func touches(g *chunkfmt.Group, off, end int64) bool {
	if g.Segments == nil {
		return true
	}
	i := sort.Search(len(g.Segments), func(i int) bool {
		return g.Segments[i].Device+int64(g.Segments[i].Length) > off
	})
	return i < len(g.Segments) && g.Segments[i].Device < end
}

// Decode proves the stored bytes of a group and returns the plain ones; it uses
// the memory of dst if that is large enough. Errors wrap content.ErrCorrupt.
func (t *Table) Decode(group int, stored, dst []byte) ([]byte, error) {
	if group < 0 || group >= len(t.Blob.Groups) {
		return nil, t.noGroup(group)
	}
	plain, err := content.Decode(&t.Blob.Groups[group], !t.Blob.Unproven, stored, dst)
	if err != nil {
		return nil, fmt.Errorf("group %d of %s: %w", group, t.Blob.Digest, err)
	}
	if !t.Blob.Unproven {
		return plain, nil
	}
	for _, c := range t.Checks[group] {
		if chunkfmt.Sum(plain[c.Offset:c.Offset+c.Length]) != c.Digest {
			return nil, fmt.Errorf("group %d of %s: %w: the chunk at %d has another digest", group, t.Blob.Digest, content.ErrCorrupt, c.Offset)
		}
	}
	return plain, nil
}

func (t *Table) noGroup(group int) error {
	return fmt.Errorf("no group %d: blob %s has %d", group, t.Blob.Digest, len(t.Blob.Groups))
}

// parts returns which of a group's plain bytes are written to the device: those
// with a place and, of an Unproven blob, with a digest. They are in the order of
// both, and neighbours are joined.
func (t *Table) parts(group int) []chunkfmt.Segment {
	places := Places(&t.Blob.Groups[group])
	if !t.Blob.Unproven {
		return places
	}
	var parts []chunkfmt.Segment
	checks := t.Checks[group]
	for len(places) > 0 && len(checks) > 0 {
		p, c := places[0], checks[0]
		first, end := max(p.Offset, c.Offset), min(p.Offset+p.Length, c.Offset+c.Length)
		if first < end {
			parts = join(parts, chunkfmt.Segment{Offset: first, Length: end - first, Device: p.Device + int64(first-p.Offset)})
		}
		if p.Offset+p.Length <= end {
			places = places[1:]
		}
		if c.Offset+c.Length <= end {
			checks = checks[1:]
		}
	}
	return parts
}

func join(parts []chunkfmt.Segment, s chunkfmt.Segment) []chunkfmt.Segment {
	if n := len(parts); n > 0 {
		last := &parts[n-1]
		if last.Offset+last.Length == s.Offset && last.Device+int64(last.Length) == s.Device {
			last.Length += s.Length
			return parts
		}
	}
	return append(parts, s)
}

// empty reports that nothing of a group is ever written.
func (t *Table) empty(group int) bool {
	if !hasPlace(&t.Blob.Groups[group]) {
		return true
	}
	return t.Blob.Unproven && len(t.parts(group)) == 0
}
