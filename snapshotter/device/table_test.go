package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
)

func TestTableCodec(t *testing.T) {
	for seed := range int64(40) {
		x := some(t, seed, seed%2 == 1)
		p := x.table.Encode()
		got, err := DecodeTable(p)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, x.table) {
			t.Fatalf("seed %d: the table changed:\n%+v\n%+v", seed, got, x.table)
		}
		if !bytes.Equal(got.Encode(), p) {
			t.Fatalf("seed %d: the bytes changed", seed)
		}
	}
}

// seal gives a changed table the checksum that it needs to be looked at.
func seal(p []byte) []byte {
	body := p[:len(p)-sumSize]
	sum := chunkfmt.Sum(body)
	return append(bytes.Clone(body), sum[:]...)
}

func TestDecodeTableRefuses(t *testing.T) {
	good := some(t, 1, true).table
	encoded := good.Encode()
	for i := range encoded { // every byte matters
		bad := bytes.Clone(encoded)
		bad[i] ^= 0x01
		if _, err := DecodeTable(bad); !errors.Is(err, ErrTable) {
			t.Fatalf("byte %d: error %v", i, err)
		}
		if _, err := DecodeTable(seal(bad)); i < len(encoded)-sumSize && !errors.Is(err, ErrTable) {
			t.Fatalf("byte %d, with checksum: error %v", i, err)
		}
	}
	for n := range len(encoded) {
		if _, err := DecodeTable(encoded[:n]); !errors.Is(err, ErrTable) {
			t.Fatalf("%d bytes: error %v", n, err)
		}
	}
	if _, err := DecodeTable(seal(append(bytes.Clone(encoded), 0))); !errors.Is(err, ErrTable) {
		t.Errorf("a byte too many: error %v", err)
	}
	for name, change := range map[string]func(*Table){
		"key":                 func(x *Table) { x.Key[0]++ },
		"digest":              func(x *Table) { x.Blob.Digest[0]++ },
		"size":                func(x *Table) { x.Blob.Size++ },
		"device size":         func(x *Table) { x.Blob.DeviceSize += chunkfmt.BlockSize },
		"odd device size":     func(x *Table) { x.Blob.DeviceSize++ },
		"small device":        func(x *Table) { x.Blob.DeviceSize = chunkfmt.BlockSize },
		"place":               func(x *Table) { x.Blob.Groups[0].Device++ },
		"codec":               func(x *Table) { x.Blob.Groups[0].Codec = 9 },
		"check beyond":        func(x *Table) { x.Checks[0][0].Length = x.Blob.Groups[0].Plain + 1 },
		"empty check":         func(x *Table) { x.Checks[0][0].Length = 0 },
		"digest of the check": func(x *Table) { x.Checks[0][0].Digest[5]++ },
		"segment beyond":      func(x *Table) { x.Blob.Groups[1].Segments[0].Length += 1 << 20 },
	} {
		bad, err := DecodeTable(encoded)
		if err != nil {
			t.Fatal(err)
		}
		change(bad)
		if _, err := DecodeTable(bad.Encode()); !errors.Is(err, ErrTable) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// A few bytes that announce much must not cost much.
func TestDecodeTableBoundsMemory(t *testing.T) {
	p := append([]byte(tableMagic), make([]byte, 64)...)
	p = append(p, 0)
	for _, n := range []uint64{1, 0, maxGroups, 1 << 40} {
		p = binary.AppendUvarint(p, n)
	}
	p = seal(append(p, make([]byte, sumSize)...))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := DecodeTable(p); err == nil {
		t.Error("no error")
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
		t.Errorf("%d bytes for a table of %d", n, len(p))
	}
}

func FuzzDecodeTable(f *testing.F) {
	for seed := range int64(4) {
		f.Add(some(f, seed, seed%2 == 1).table.Encode())
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) < sumSize {
			return
		}
		p = seal(p)
		table, err := DecodeTable(p)
		if err != nil {
			if !errors.Is(err, ErrTable) {
				t.Errorf("error %v", err)
			}
			return
		}
		if !bytes.Equal(table.Encode(), p) {
			t.Error("another encoding of the same table")
		}
		for g := range table.Blob.Groups {
			table.parts(g)
		}
		table.Groups(0, math.MaxInt64)
	})
}

// FuzzRekeyedTable gives changed tables the right key too, so that more than
// the key decides.
func FuzzRekeyedTable(f *testing.F) {
	for seed := range int64(4) {
		f.Add(some(f, seed, seed%2 == 1).table.Encode())
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) < len(tableMagic)+2*sumSize || string(p[:len(tableMagic)]) != tableMagic {
			return
		}
		r := &tableReader{p: p[len(tableMagic) : len(p)-sumSize]}
		table := r.table()
		if r.err != nil || table.validate() != nil {
			return
		}
		table.Key = table.tree().DeviceKey(0)
		table.index()
		got, err := DecodeTable(table.Encode())
		if err != nil || !reflect.DeepEqual(got, table) {
			t.Fatalf("%+v: %v: %+v", table, err, got)
		}
		for g := range table.Blob.Groups {
			for _, part := range table.parts(g) {
				if part.Device < 0 || part.Device+int64(part.Length) > table.Blob.DeviceSize ||
					int64(part.Offset)+int64(part.Length) > int64(table.Blob.Groups[g].Plain) {
					t.Errorf("group %d: part %+v", g, part)
				}
			}
		}
	})
}

// FuzzPresence gives a slot any bytes: what is believed has the right digest.
func FuzzPresence(f *testing.F) {
	p := presence{key: Key{7}, groups: 70, seq: 3, durable: make([]uint64, 2), file: identity{1, 2}}
	p.durable.Add(69)
	f.Add(p.encode())
	f.Fuzz(func(t *testing.T, slot []byte) {
		got := presence{key: Key{7}, groups: 70, durable: make([]uint64, 2), file: identity{1, 2}}
		got.decode(slot)
		if got.seq > 0 && !bytes.HasPrefix(slot, got.encode()) {
			t.Errorf("took over %+v from other bytes", got)
		}
	})
}

func TestGroupsLikeBruteForce(t *testing.T) {
	r := rand.New(rand.NewSource(1)) // #nosec G404 -- test data
	for seed := range int64(30) {
		x := some(t, seed, seed%2 == 1)
		size := x.table.Blob.DeviceSize
		for range 200 {
			off, n := r.Int63n(size+5000)-100, r.Int63n(30000)
			if r.Intn(3) == 0 {
				n = r.Int63n(3)
			}
			var want []int
			for g := range x.table.Blob.Groups {
				if slices.ContainsFunc(Places(&x.table.Blob.Groups[g]), func(s chunkfmt.Segment) bool {
					return s.Device < off+n && s.Device+int64(s.Length) > off && n > 0
				}) {
					want = append(want, g)
				}
			}
			if got := x.table.Groups(off, n); !slices.Equal(got, want) {
				t.Fatalf("seed %d: %d bytes at %d: groups %v, want %v", seed, n, off, got, want)
			}
		}
	}
	x := some(t, 1, false)
	for _, c := range [][2]int64{{0, 0}, {0, -1}, {math.MaxInt64, 1}, {math.MaxInt64, math.MaxInt64}, {-5, 3}} {
		if got := x.table.Groups(c[0], c[1]); got != nil {
			t.Errorf("%v: groups %v", c, got)
		}
	}
	if got := x.table.Groups(0, math.MaxInt64); len(got) != len(x.table.placed) {
		t.Errorf("all: groups %v", got)
	}
}

// What is written is what has both a place and a digest.
func TestPartsLikeBruteForce(t *testing.T) {
	for seed := range int64(30) {
		x := some(t, seed, seed%3 > 0)
		for g := range x.table.Blob.Groups {
			want := map[int64]uint32{} // place to offset
			for _, s := range Places(&x.table.Blob.Groups[g]) {
				for i := range s.Length {
					if !x.table.Blob.Unproven || checked(x.table.Checks[g], s.Offset+i) {
						want[s.Device+int64(i)] = s.Offset + i
					}
				}
			}
			n := 0
			for _, p := range x.table.parts(g) {
				for i := range p.Length {
					if off, ok := want[p.Device+int64(i)]; !ok || off != p.Offset+i {
						t.Fatalf("seed %d: group %d: part %+v", seed, g, p)
					}
					n++
				}
			}
			if n != len(want) || x.table.empty(g) != (n == 0) {
				t.Fatalf("seed %d: group %d: %d bytes, want %d", seed, g, n, len(want))
			}
		}
	}
}

func checked(checks []Check, off uint32) bool {
	return slices.ContainsFunc(checks, func(c Check) bool { return c.Offset <= off && off < c.Offset+c.Length })
}

func TestDecodeProves(t *testing.T) {
	for name, unproven := range map[string]bool{"proven": false, "unproven": true} {
		x := some(t, 3, unproven)
		for _, g := range x.groups() {
			plain, err := x.table.Decode(g, x.stored[g], nil)
			if err != nil || !bytes.Equal(plain, x.plain[g]) {
				t.Fatalf("%s: group %d: %v", name, g, err)
			}
			bad := bytes.Clone(x.stored[g])
			bad[x.table.parts(g)[0].Offset] ^= 1
			if _, err := x.table.Decode(g, bad, nil); !errors.Is(err, content.ErrCorrupt) {
				t.Errorf("%s: group %d: a changed byte: error %v", name, g, err)
			}
		}
		for _, g := range []int{-1, len(x.table.Blob.Groups)} {
			if _, err := x.table.Decode(g, nil, nil); err == nil {
				t.Errorf("%s: group %d was decoded", name, g)
			}
		}
	}
}

func TestNewTableRefuses(t *testing.T) {
	external := &chunkfmt.Tree{Blobs: []chunkfmt.Blob{{Digest: chunkfmt.Digest{1}, Size: 1, External: true}}}
	for _, blob := range []uint32{0, 1, chunkfmt.Hole} {
		if _, err := NewTable(external, blob); err == nil {
			t.Errorf("a table of blob %d", blob)
		}
	}
}

// A table does not keep the tree alive that it was made from.
func TestNewTableCopies(t *testing.T) {
	x := some(t, 1, false)
	tree := &chunkfmt.Tree{Blobs: []chunkfmt.Blob{x.table.Blob}}
	table, err := NewTable(tree, 0)
	if err != nil {
		t.Fatal(err)
	}
	if &table.Blob.Groups[0] == &tree.Blobs[0].Groups[0] || &table.Blob.Groups[1].Segments[0] == &tree.Blobs[0].Groups[1].Segments[0] {
		t.Error("memory is shared")
	}
}
