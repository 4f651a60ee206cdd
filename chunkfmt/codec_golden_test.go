package chunkfmt

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

func sum(s string) Digest { return Sum([]byte(s)) }

// goldenIndexes are small and have, together, every feature of the format.
func goldenIndexes(tb testing.TB) map[string]*Index {
	return map[string]*Index{
		"empty":    goldenEmpty(tb),
		"kinds":    goldenKinds(tb),
		"packed":   goldenPacked(tb),
		"inplace":  goldenInPlace(tb),
		"external": goldenExternal(tb),
	}
}

func frozen(tb testing.TB, d *Draft, chunks []Chunk, blobs []Blob, errs ...error) *Index {
	tb.Helper()
	for _, err := range errs {
		if err != nil {
			tb.Fatal(err)
		}
	}
	t, err := d.Freeze(chunks, blobs)
	if err != nil {
		tb.Fatal(err)
	}
	return &Index{Tree: *t, DiffID: sum("diff"), Root: sum("root")}
}

// goldenEmpty has a root that the layer does not list, and nothing else.
func goldenEmpty(tb testing.TB) *Index {
	x := frozen(tb, NewDraft(), nil, nil)
	x.DiffID = Digest{}
	return x
}

// goldenKinds has every kind of inode, flag and extended attribute, and inline
// content.
func goldenKinds(tb testing.TB) *Index {
	d := NewDraft()
	acl := []Xattr{{"user.a", ""}, {"security.capability", "\x01\x00\x00\x02\x00\x04"}}
	return frozen(tb, d, nil, nil,
		d.Put("", &Node{Kind: Dir, Mode: 0o755, Mtime: 1700000000}),
		d.Put("a", &Node{Kind: Dir, Mode: 0o1777, UID: 70000, GID: 1 << 31, Mtime: -1, Nsec: 999999999}),
		d.Hide("a"),
		d.Put("implied/parent/file", &Node{
			Kind: File, Mode: 0o4755, Mtime: 1 << 40, Nsec: 5, Size: 5, Inline: []byte("tiny\n"), Xattrs: acl,
		}),
		d.Link("a/link", "implied/parent/file"),
		d.Put("a/empty", &Node{Kind: File, Mode: 0o600, Xattrs: []Xattr{{"user.a", "1"}}}),
		d.Put("a/more", &Node{Kind: File, Mode: 0o600, Size: 3, Inline: []byte("abc")}),
		d.Put("a/symlink", &Node{Kind: Symlink, Mode: 0o777, Target: "/implied/parent/file"}),
		d.Put("a/symlink2", &Node{Kind: Symlink, Mode: 0o777, Target: "../x"}),
		d.Put("a/symlink3", &Node{Kind: Symlink, Mode: 0o777, Target: "/implied/parent/file"}),
		d.Put("dev/null", &Node{Kind: CharDevice, Mode: 0o666, Size: 1<<32 | 3}),
		d.Put("dev/sda", &Node{Kind: BlockDevice, Mode: 0o660, GID: 6, Size: 4095<<32 | 1<<20 - 1}),
		d.Put("dev/fifo", &Node{Kind: Fifo, Mode: 0o644}),
		d.Put("dev/socket", &Node{Kind: Socket, Mode: 0o644}),
		d.Remove("gone"),
		d.Put("replaced", &Node{Kind: File}),
		d.Put("replaced", &Node{Kind: Dir, Mode: 0o711}),
		d.LinkAs("below", "/lower/file", &Node{Mode: 0o640, UID: 5, Mtime: 77, Xattrs: acl}),
		d.Link("below2", "below"),
		d.Put(strings.Repeat("n", MaxName), &Node{Kind: Dir, Mode: 0o700}),
	)
}

// goldenPacked has two blobs as chunkfmt builds them, chunks in a row, repeated
// and out of order, and holes.
func goldenPacked(tb testing.TB) *Index {
	d := NewDraft()
	chunks := []Chunk{
		{Blob: 0, Group: 0, Offset: 0, Length: 4096, Digest: sum("0")},
		{Blob: 0, Group: 0, Offset: 4096, Length: 100, Digest: sum("1")},
		{Blob: 0, Group: 0, Offset: 16384, Length: 4097, Digest: sum("2")},
		{Blob: 0, Group: 2, Offset: 0, Length: 8192, Digest: sum("3")},
		{Blob: 1, Group: 0, Offset: 0, Length: 7, Digest: sum("4")},
		{Blob: Hole, Length: 4096, Digest: Sum(make([]byte, 4096))},
		{Blob: Hole, Length: 10, Digest: Sum(make([]byte, 10))},
	}
	blobs := []Blob{
		{Digest: sum("a"), Size: 9000, DeviceSize: 24576 + 4096 + 8192, Groups: []Group{
			{Stored: 5000, Plain: 20481, Codec: Zstd, Digest: sum("a0")},
			{Offset: 5000, Stored: 1000, Plain: 1000, Codec: Plain, Digest: sum("a1"), Device: 24576},
			{Offset: 6000, Stored: 3000, Plain: 8192, Codec: Gzip, Digest: sum("a2"), Device: 28672},
		}},
		{Digest: sum("b"), Size: 20, DeviceSize: 8192, Groups: []Group{
			{Stored: 20, Plain: 7, Codec: Zstd, Digest: sum("b0"), Device: 4096},
		}},
	}
	put := func(name string, size int64, chunks ...uint32) error {
		return d.Put(name, &Node{Kind: File, Mode: 0o644, Mtime: 1600000000, Size: size, Chunks: chunks})
	}
	return frozen(tb, d, chunks, blobs,
		put("a", 4196, 0, 1),
		put("b", 4097, 2),
		put("b2", 4097, 2),
		put("sparse", 4*4096+4096+8192+10, 5, 5, 5, 5, 0, 3, 6),
		put("repeat", 3*8192, 3, 3, 3),
		put("z", 7, 4),
	)
}

// goldenInPlace has the blob of a layer that was there before: files between
// headers, one that goes on in the next group, one with a hole that begins and
// ends inside of pages, and filler.
func goldenInPlace(tb testing.TB) *Index {
	d := NewDraft()
	chunks := []Chunk{
		{Group: 0, Offset: 512, Length: 600, Digest: sum("0")},
		{Group: 0, Offset: 2048, Length: 5000, Digest: sum("1")},
		{Group: 1, Offset: 0, Length: 1000, Digest: sum("2")},
		{Group: 1, Offset: 1536, Length: 100, Digest: sum("3")},
		{Blob: Hole, Length: 1500, Digest: Sum(make([]byte, 1500))},
		{Group: 3, Offset: 512, Length: 700, Digest: sum("4")},
		{Group: 3, Offset: 1212, Length: 30, Digest: sum("5")},
	}
	blobs := []Blob{{Digest: sum("a"), Size: 3300, DeviceSize: 20480, Unproven: true, Groups: []Group{
		{Stored: 1000, Plain: 7048, Codec: Gzip, Segments: []Segment{
			{Offset: 512, Length: 600, Device: 0}, {Offset: 2048, Length: 5000, Device: 4096},
		}},
		{Offset: 1000, Stored: 1000, Plain: 2048, Codec: Gzip, Segments: []Segment{
			{Offset: 0, Length: 1000, Device: 9096}, {Offset: 1536, Length: 100, Device: 12288},
		}},
		{Offset: 2000, Stored: 500, Codec: Filler},
		{Offset: 2500, Stored: 500, Plain: 2048, Codec: Gzip, Segments: []Segment{
			{Offset: 512, Length: 730, Device: 12288 + 1600},
		}},
		{Offset: 3000, Stored: 249, Plain: 1024, Codec: Zstd, Segments: []Segment{}},
		{Offset: 3249, Stored: 51, Codec: Filler},
	}}}
	put := func(name string, size int64, chunks ...uint32) error {
		return d.Put(name, &Node{Kind: File, Mode: 0o644, Mtime: 1600000000, Size: size, Chunks: chunks})
	}
	return frozen(tb, d, chunks, blobs,
		put("a", 600, 0),
		put("b", 6000, 1, 2),
		put("c", 100+1500+730, 3, 4, 5, 6),
	)
}

// goldenExternal refers to two blobs of lower layers.
func goldenExternal(tb testing.TB) *Index {
	d := NewDraft()
	chunks := []Chunk{
		{Blob: 0, Group: 3, Offset: 0, Length: 4096, Digest: sum("0")},
		{Blob: 0, Group: 3, Offset: 8192, Length: 1, Digest: sum("1")},
		{Blob: 0, Group: 70000, Offset: 513, Length: 99, Digest: sum("2")},
		{Blob: 1, Group: 0, Offset: 0, Length: 1 << 20, Digest: sum("3")},
	}
	blobs := []Blob{
		{Digest: sum("a"), Size: 1 << 33, DeviceSize: 1 << 34, External: true},
		{Digest: sum("b"), Size: 1, DeviceSize: 1 << 20, External: true, Unproven: true},
	}
	return frozen(tb, d, chunks, blobs,
		d.Put("a", &Node{Kind: File, Mode: 0o644, Size: 4097, Chunks: []uint32{0, 1}}),
		d.Put("b", &Node{Kind: File, Mode: 0o644, Size: 99, Chunks: []uint32{2}}),
		d.Put("c", &Node{Kind: File, Mode: 0o644, Size: 1 << 20, Chunks: []uint32{3}}),
	)
}

const sums = "testdata/SHA256SUMS"

// TestGolden fails when the format changes. Files that readers in the field
// have must be read for ever: a change needs a new version, see FORMAT.md.
func TestGolden(t *testing.T) {
	golden := goldenIndexes(t)
	if *update {
		writeGolden(t, golden)
	}
	table, err := os.ReadFile(sums)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(table)), "\n")
	if len(lines) != len(golden) {
		t.Errorf("%s has %d lines, want %d", sums, len(lines), len(golden))
	}
	for _, line := range lines {
		digest, file, _ := strings.Cut(line, "  ")
		t.Run(file, func(t *testing.T) {
			p, err := os.ReadFile(filepath.Join("testdata", file))
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%x", sha256.Sum256(p)); got != digest {
				t.Errorf("the file has the digest %s, not %s", got, digest)
			}
			checkGolden(t, p, golden[strings.TrimSuffix(file, ".idx")])
		})
	}
}

func checkGolden(t *testing.T, p []byte, want *Index) {
	got, err := Decode(p, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("decoded index differs: %s", firstDifference(got, want))
	}
	now := mustEncode(t, want)
	switch {
	case bytes.Equal(now, p):
	case bytes.Equal(bodyOf(t, now), bodyOf(t, p)):
		t.Error("the compressor gives other bytes; the format has not changed")
	default:
		t.Error("the encoding has changed")
	}
}

func writeGolden(t *testing.T, golden map[string]*Index) {
	var table strings.Builder
	for _, name := range slices.Sorted(maps.Keys(golden)) {
		p := mustEncode(t, golden[name])
		fmt.Fprintf(&table, "%x  %s.idx\n", sha256.Sum256(p), name)
		if err := os.WriteFile(filepath.Join("testdata", name+".idx"), p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(sums, []byte(table.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestDecodeRefusesEveryFlippedBitOfGoldens covers all of the format's
// features.
func TestDecodeRefusesEveryFlippedBitOfGoldens(t *testing.T) {
	for name, x := range goldenIndexes(t) {
		p := mustEncode(t, x)
		for i := range p {
			for bit := range 8 {
				p[i] ^= 1 << bit
				if _, err := Decode(p, Limits{}); err == nil {
					t.Fatalf("%s: bit %d of byte %d flipped: no error", name, bit, i)
				}
				p[i] ^= 1 << bit
			}
		}
	}
}

// TestDecodeOfEveryChangedByte changes the bodies under a correct checksum:
// what is accepted must be another valid index.
func TestDecodeOfEveryChangedByte(t *testing.T) {
	for name, x := range goldenIndexes(t) {
		body := bodyOf(t, mustEncode(t, x))
		for i := range body {
			old := body[i]
			for _, b := range []byte{0, 1, 0x7f, 0x80, 0xff, old + 1, old - 1, old ^ 0x80, old ^ 0x40, old ^ 2} {
				body[i] = b
				checkBody(t, body)
			}
			body[i] = old
			checkBody(t, body[:i])
			if t.Failed() {
				t.Fatalf("%s: byte %d", name, i)
			}
		}
	}
}

// checkBody decodes a body. What comes out must be valid and give the same
// bytes again.
func checkBody(t *testing.T, body []byte) {
	t.Helper()
	d := decoder{limits: Limits{Content: 1 << 16}.withDefaults(), x: &Index{}}
	if err := d.body(body); err != nil || d.skipped {
		return
	}
	n := countsOf(&d.x.Tree)
	if again := encodeBody(&d.x.Tree, &n); !bytes.Equal(again, body) {
		t.Errorf("decoded and encoded, the body differs\n%x\n%x", body, again)
	}
}
