package fuse

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// origin is where a byte of a file is.
type origin struct {
	blob uint32
	at   int64
}

// randomTree returns a tree with one file of many kinds of runs, and what its
// bytes are.
func randomTree(t *testing.T, seed uint64) (*chunkfmt.Tree, []origin) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	tree := &chunkfmt.Tree{
		Attrs:   []chunkfmt.Attr{{Kind: chunkfmt.Dir}, {Kind: chunkfmt.File}},
		Xattrs:  [][]chunkfmt.Xattr{nil},
		Entries: []chunkfmt.Entry{{Name: "file", Inode: 1}},
		Chunks:  []chunkfmt.Chunk{{Blob: chunkfmt.Hole, Length: 10}, {Blob: chunkfmt.Hole, Length: 3}},
	}
	for blob := range uint32(2) {
		b := chunkfmt.Blob{Digest: chunkfmt.Sum([]byte{byte(blob)}), DeviceSize: 1 << 20}
		for g := range uint32(5) {
			b.Groups = append(b.Groups, chunkfmt.Group{Plain: 4096, Device: int64(g) * 4096 * int64(1+random.IntN(2))})
			for off := uint32(0); off < 40; {
				n := 1 + random.Uint32N(10)
				tree.Chunks = append(tree.Chunks, chunkfmt.Chunk{Blob: blob, Group: g, Offset: off, Length: n})
				off += n + random.Uint32N(2)
			}
		}
		tree.Blobs = append(tree.Blobs, b)
	}
	var want []origin
	for range 1 + random.IntN(20) {
		r := chunkfmt.Run{Chunk: random.Uint32N(uint32(len(tree.Chunks) - 4)), Count: 1 + random.Uint32N(4), Repeat: random.IntN(2) == 0}
		tree.Runs = append(tree.Runs, r)
	}
	tree.Inodes = []chunkfmt.Inode{
		{Nlink: 2, Count: 1},
		{Attr: 1, Nlink: 1, Count: uint32(len(tree.Runs))},
	}
	for _, c := range tree.Content(1) {
		at, _ := tree.DeviceOffset(c)
		for i := range int64(c.Length) {
			o := origin{c.Blob, at + i}
			if c.Blob == chunkfmt.Hole {
				o.at = 0
			}
			want = append(want, o)
		}
	}
	tree.Inodes[1].Size = int64(len(want))
	return tree, want
}

func TestPiecesAreWhereTheChunksAre(t *testing.T) {
	for seed := range uint64(300) {
		tree, want := randomTree(t, seed)
		v, err := newView(tree)
		if err != nil {
			t.Fatal(err)
		}
		random := rand.New(rand.NewPCG(seed, 2))
		for range 20 {
			off := random.IntN(len(want))
			n := 1 + random.IntN(len(want)-off)
			at := off
			v.pieces(1, int64(off), int64(n), func(p piece) bool {
				for i := range p.length {
					got := origin{chunkfmt.Hole, 0}
					if p.dev != hole {
						got = origin{blobOf(tree, v, p.dev), p.at + i}
					}
					if got != want[at] {
						t.Fatalf("tree %d: byte %d is at %v, want %v", seed, at, got, want[at])
					}
					at++
				}
				return true
			})
			if at != off+n {
				t.Fatalf("tree %d: %d bytes at %d have pieces of %d", seed, n, off, at-off)
			}
		}
	}
}

func blobOf(t *chunkfmt.Tree, v *view, dev uint32) uint32 {
	for i := range t.Blobs {
		if t.DeviceKey(uint32(i)) == v.devices[dev] {
			return uint32(i)
		}
	}
	return chunkfmt.Hole - 1
}

func TestExtentsJoin(t *testing.T) {
	tree := &chunkfmt.Tree{
		Attrs: []chunkfmt.Attr{{Kind: chunkfmt.File}}, Xattrs: [][]chunkfmt.Xattr{nil},
		Blobs:  []chunkfmt.Blob{{DeviceSize: 1 << 20, Groups: []chunkfmt.Group{{Plain: 4096}, {Plain: 4096, Device: 4096}}}},
		Chunks: []chunkfmt.Chunk{{Blob: chunkfmt.Hole, Length: 1 << 30}, {Length: 4096}, {Group: 1, Length: 4096}},
		Runs:   []chunkfmt.Run{{Chunk: 1, Count: 2}, {Chunk: 0, Count: 1000, Repeat: true}, {Chunk: 1, Count: 100, Repeat: true}},
		Inodes: []chunkfmt.Inode{{Size: 8192 + 1000<<30 + 100*4096, Count: 3, Nlink: 1}},
	}
	v, err := newView(tree)
	if err != nil {
		t.Fatal(err)
	}
	want := []extent{{0, 0, 0, 0}, {8192, 0, hole, 0}, {8192 + 1000<<30, 0, 0, 4096}}
	if len(v.extents) != len(want) {
		t.Fatalf("extents are %v, want %v", v.extents, want)
	}
	for i := range want {
		if v.extents[i] != want[i] {
			t.Errorf("extent %d is %v, want %v", i, v.extents[i], want[i])
		}
	}
}

func TestViewRefuses(t *testing.T) {
	for name, change := range map[string]func(*chunkfmt.Tree){
		"a whiteout":           func(t *chunkfmt.Tree) { t.Attrs[1].Kind = chunkfmt.Whiteout },
		"a wrong size":         func(t *chunkfmt.Tree) { t.Inodes[1].Size++ },
		"a chunk on no device": func(t *chunkfmt.Tree) { t.Blobs[0].DeviceSize, t.Blobs[1].DeviceSize = 0, 0 },
	} {
		tree, _ := randomTree(t, 1)
		change(tree)
		if _, err := newView(tree); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestShapeTellsTreesApart(t *testing.T) {
	shape := func(change func(*chunkfmt.Tree)) chunkfmt.Digest {
		tree, _ := randomTree(t, 1)
		change(tree)
		v, err := newView(tree)
		if err != nil {
			t.Fatal(err)
		}
		return v.shape
	}
	same := func(*chunkfmt.Tree) {}
	if first, second := shape(same), shape(same); first != second {
		t.Error("equal trees have two shapes")
	}
	for name, change := range map[string]func(*chunkfmt.Tree){
		"name":  func(t *chunkfmt.Tree) { t.Entries[0].Name = "other" },
		"mtime": func(t *chunkfmt.Tree) { t.Inodes[1].Mtime++ },
		"entry": func(t *chunkfmt.Tree) { t.Entries[0].Inode = 0 },
	} {
		if shape(same) == shape(change) {
			t.Errorf("another %s has the same shape", name)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"/plain": "/plain", `/a\040b`: "/a b", `/a\134b`: `/a\b`, `/end\04`: `/end\04`, `/\999`: `/\999`,
	} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzRecord(f *testing.F) {
	r := record{Image: "i", Dir: "/d", Shape: chunkfmt.Sum(nil), Init: []byte{1, 2, 3}}
	p, err := r.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, p []byte) {
		got, err := decodeRecord(p)
		if err != nil {
			return
		}
		again, err := got.encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeRecord(again); err != nil || back.Image != got.Image || !bytes.Equal(back.Init, got.Init) {
			t.Errorf("%q comes back as %q (%v)", p, again, err)
		}
	})
}
