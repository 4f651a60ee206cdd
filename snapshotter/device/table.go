package device

import (
	"fmt"
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
// bytes are proven. It does not change after it is made.
type Table struct {
	Key Key
	// Blob is the blob with its groups; never External.
	Blob chunkfmt.Blob
	// Checks are, of an Unproven blob, the chunks of each group; else nil.
	Checks [][]Check

	// extents are the parts of the device that groups fill, sorted by offset.
	extents []extent
}

// extent is a part of a device that is filled from one group.
type extent struct {
	off, end int64
	group    uint32
}

// NewTable returns the table of a blob of a tree.
func NewTable(t *chunkfmt.Tree, blob uint32) (*Table, error) {
	b := t.Blobs[blob]
	if b.External {
		return nil, fmt.Errorf("blob %s has no groups in this tree", b.Digest)
	}
	table := &Table{Key: t.DeviceKey(blob), Blob: b}
	if b.Unproven {
		table.Checks = make([][]Check, len(b.Groups))
		first := sort.Search(len(t.Chunks), func(i int) bool { return t.Chunks[i].Blob+1 >= blob+1 })
		for _, c := range t.Chunks[first:] {
			if c.Blob != blob {
				break
			}
			table.Checks[c.Group] = append(table.Checks[c.Group], Check{c.Offset, c.Length, c.Digest})
		}
	}
	table.index()
	return table, nil
}

// index makes extents.
func (t *Table) index() {
	for i, g := range t.Blob.Groups {
		for _, s := range Places(&g) {
			t.extents = append(t.extents, extent{s.Device, s.Device + int64(s.Length), uint32(i)}) // #nosec G115 -- the format has 32 bits
		}
	}
	sort.Slice(t.extents, func(i, j int) bool { return t.extents[i].off < t.extents[j].off })
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

// Groups returns the groups that fill some of the n bytes of the device at off,
// in the order of the device, each once.
func (t *Table) Groups(off, n int64) []int {
	i := sort.Search(len(t.extents), func(i int) bool { return t.extents[i].end > off })
	var groups []int
	for ; i < len(t.extents) && t.extents[i].off < off+n; i++ {
		g := int(t.extents[i].group)
		if len(groups) == 0 || groups[len(groups)-1] != g {
			groups = append(groups, g)
		}
	}
	return groups
}

// Decode proves the stored bytes of a group and returns the plain ones; it uses
// the memory of dst if that is large enough. Errors wrap content.ErrCorrupt.
func (t *Table) Decode(group int, stored, dst []byte) ([]byte, error) {
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
