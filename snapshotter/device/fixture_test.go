package device

import (
	"bytes"
	"math/rand"
	"slices"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// blob is a blob with what its groups decode to.
type blob struct {
	table  *Table
	stored [][]byte
	plain  [][]byte
	device []byte // what a complete device holds
}

// some returns a blob with all kinds of groups: linear ones, segments close to
// each other and far apart, a group without a place, and a filler.
func some(t testing.TB, seed int64, unproven bool) *blob {
	t.Helper()
	r := rand.New(rand.NewSource(seed)) // #nosec G404 -- test data
	var tree chunkfmt.Tree
	b := chunkfmt.Blob{Digest: chunkfmt.Sum([]byte{byte(seed), 1}), Unproven: unproven}
	x := &blob{}
	place := int64(0)
	align := func() { place = (place + chunkfmt.BlockSize - 1) / chunkfmt.BlockSize * chunkfmt.BlockSize }
	for i := range 9 + r.Intn(5) {
		plain := make([]byte, 1+r.Intn(40000))
		r.Read(plain)
		g := chunkfmt.Group{Offset: b.Size, Stored: uint32(len(plain)), Plain: uint32(len(plain))}
		if !unproven {
			g.Digest = chunkfmt.Sum(plain)
		}
		align()
		switch i % 5 {
		case 0, 4:
			if r.Intn(2) == 0 {
				place += 3 * chunkfmt.BlockSize
			}
			g.Device = place
			place += int64(g.Plain)
		case 1:
			g.Segments = []chunkfmt.Segment{}
			for off := uint32(r.Intn(200)); off < g.Plain; {
				n := min(g.Plain-off, uint32(1+r.Intn(7000)))
				g.Segments = append(g.Segments, chunkfmt.Segment{Offset: off, Length: n, Device: place})
				place += int64(n)
				if r.Intn(4) > 0 {
					align()
				}
				if r.Intn(4) == 0 {
					align()
					place += 2 * chunkfmt.BlockSize
				}
				off += n + uint32(r.Intn(600))
			}
		case 2:
			g.Segments = []chunkfmt.Segment{}
		case 3:
			g = chunkfmt.Group{Offset: b.Size, Stored: uint32(len(plain)), Codec: chunkfmt.Filler, Digest: g.Digest}
			plain = plain[:0]
		}
		x.stored = append(x.stored, plain)
		x.plain = append(x.plain, plain)
		b.Size += int64(g.Stored)
		b.Groups = append(b.Groups, g)
	}
	align()
	b.DeviceSize = place + chunkfmt.BlockSize
	x.device = make([]byte, b.DeviceSize)
	for i := range b.Groups {
		for _, s := range Places(&b.Groups[i]) {
			part := x.plain[i][s.Offset : s.Offset+s.Length]
			if unproven {
				n := (len(part) + 1) / 2
				tree.Chunks = append(tree.Chunks, chunkfmt.Chunk{
					Group: uint32(i), Offset: s.Offset, Length: uint32(n), Digest: chunkfmt.Sum(part[:n]),
				})
				part = part[:n]
			}
			copy(x.device[s.Device:], part)
		}
	}
	tree.Blobs = []chunkfmt.Blob{b}
	table, err := NewTable(&tree, 0)
	if err != nil {
		t.Fatal(err)
	}
	x.table = table
	return x
}

// groups are those that have something on the device.
func (x *blob) groups() []int {
	var all []int
	for g := range x.table.Blob.Groups {
		if !x.table.empty(g) {
			all = append(all, g)
		}
	}
	return all
}

func openStore(t testing.TB, o Options) *Store {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	s.Recovered()
	return s
}

// still is a timer that never ends: only Sync and Close sync.
func still(time.Duration) <-chan time.Time { return nil }

func get(t testing.TB, s *Store, x *blob) *Device {
	t.Helper()
	d, err := s.Get(x.table)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func fill(t testing.TB, d *Device, x *blob, groups ...int) {
	t.Helper()
	if groups == nil {
		groups = x.groups()
	}
	for _, g := range groups {
		if err := d.Write(g, x.plain[g]); err != nil {
			t.Fatal(err)
		}
	}
}

// check compares the present groups, and all of a complete device.
func check(t testing.TB, d *Device, x *blob) {
	t.Helper()
	got := make([]byte, d.Size())
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if d.Complete() && !bytes.Equal(got, x.device) {
		t.Errorf("the complete device has wrong bytes")
	}
	for _, g := range x.groups() {
		if d.Has(g) && !x.holds(g, got) {
			t.Errorf("group %d is present and has wrong bytes", g)
		}
	}
}

// holds reports that a device's bytes have a group.
func (x *blob) holds(g int, device []byte) bool {
	return !slices.ContainsFunc(x.table.parts(g), func(p chunkfmt.Segment) bool {
		end := p.Device + int64(p.Length)
		return end > int64(len(device)) || !bytes.Equal(device[p.Device:end], x.device[p.Device:end])
	})
}
