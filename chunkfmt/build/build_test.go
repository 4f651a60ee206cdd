package build_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
)

// small makes many chunks and groups of little content.
var small = build.Options{ChunkSize: 4096, GroupSize: 16384, InlineMax: 100}

// tree is a tar with files of all sizes around the limits of small.
func tree(t testing.TB) []byte {
	t.Helper()
	entries := []header{dir("d/"), file("d/empty", nil)}
	for i, n := range []int{1, 99, 100, 101, 4095, 4096, 4097, 8192, 16383, 16384, 16385, 50000, 70000} {
		entries = append(entries,
			file(fmt.Sprintf("d/words%d", n), words(uint64(i), n)),
			file(fmt.Sprintf("d/random%d", n), random(uint64(i), n)))
	}
	holes := make([]byte, 40000)
	copy(holes[20000:], "in the middle")
	entries = append(entries, file("holes", holes), file("zeros", make([]byte, 30001)), file("again", random(12, 70000)))
	return makeTar(t, entries...)
}

func TestFormats(t *testing.T) {
	plain := tree(t)
	half := len(plain) / 2
	for _, format := range []string{"tar", "gzip", "zstd"} {
		for name, parts := range map[string][][]byte{
			"one": {plain}, "two": {plain[:half], plain[half:]},
		} {
			t.Run(format+"/"+name, func(t *testing.T) {
				b := mustBuild(t, small, layer(compress(t, format, parts...), plain))
				b.wantFiles(t, plain)
				if b.Layers[0].InPlace {
					t.Error("was indexed in place")
				}
			})
		}
	}
}

func TestDefaults(t *testing.T) {
	plain := makeTar(t, file("large", words(1, 5<<20)), file("incompressible", random(1, 3<<20)), file("x", words(2, 1000)))
	l := gzipped(t, plain)
	for _, o := range []build.Options{{}, {Codec: build.Plain}, {Level: 3}, {InlineMax: -1}, {GroupSize: 65536}, {ChunkSize: 4 << 20}} {
		mustBuild(t, o, l).wantFiles(t, plain)
	}
}

// acl is a POSIX ACL with a mask: what chmod of 0644 changes.
func acl(mask byte) string {
	return "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x06\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00" + string(mask) + "\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
}

func TestEntries(t *testing.T) {
	head := func(h tar.Header) header {
		h.ModTime, h.Format = someTime, tar.FormatPAX
		return header{h, nil}
	}
	owned := file("owned", []byte("x"))
	owned.Uid, owned.Gid, owned.Mode = 70000, 4000000000, 0o6755
	linked := hardlink("h", "owned")
	linked.Uid, linked.Gid, linked.Mode = owned.Uid, owned.Gid, owned.Mode
	const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	attrs := file("attrs", []byte("y"))
	attrs.PAXRecords = map[string]string{
		"SCHILY.xattr.user.a":                  "1",
		"SCHILY.xattr.security.capability":     capability,
		"SCHILY.xattr.trusted.overlay.opaque":  "y",
		"SCHILY.xattr.system.posix_acl_access": acl(6),
		"SCHILY.xattr.system.nfs4_acl":         "no",
	}
	old := file("old", []byte("z"))
	old.ModTime = time.Unix(-5, 0)
	plain := makeTar(t,
		dir("./"), dir("d"), owned, attrs, old,
		head(tar.Header{Typeflag: tar.TypeChar, Name: "c", Mode: 0o600, Devmajor: 5, Devminor: 1000000}),
		head(tar.Header{Typeflag: tar.TypeBlock, Name: "b", Mode: 0o660, Devmajor: 259, Devminor: 3}),
		head(tar.Header{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o622}),
		symlink("s", "../../owned"), linked, hardlink("out", "/lower/file"),
		dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", []byte("aufs")), file("d/.wh..wh.aufs", nil),
		file("d/.wh.gone", nil), file("e/.wh..wh..opq", nil),
		file("stargz.index.json", []byte("{}")), file(".no.prefetch.landmark", []byte("\x0f")),
	)
	lower := makeTar(t, file("lower/file", []byte("l")))
	b := mustBuild(t, build.Options{}, gzipped(t, lower), gzipped(t, plain))
	const at = "1700000000.123456789"
	want := strings.Join([]string{
		`d 0755 0:0 0.000000000 n4 s0 "" flags 2`,
		`f 0644 0:0 ` + at + ` n1 s1 ".no.prefetch.landmark"`,
		`f 0644 0:0 ` + at + ` n1 s1 "attrs" security.capability=` + fmt.Sprintf("%q", capability) +
			` system.posix_acl_access=` + fmt.Sprintf("%q", acl(4)) + ` trusted.overlay.opaque="y" user.a="1"`,
		`b 0660 0:0 ` + at + ` n1 s1112396529667 "b"`,
		`c 0600 0:0 ` + at + ` n1 s21475836480 "c"`,
		`d 0755 0:0 ` + at + ` n2 s0 "d"`,
		`d 0755 0:0 0.000000000 n2 s0 "e" flags 3`,
		`f 6755 70000:4000000000 ` + at + ` n2 s1 "h"`,
		`f 0644 0:0 0.000000000 n1 s1 "old"`,
		`h 0644 0:0 ` + at + ` n1 s0 "out" -> "lower/file"`,
		`f 6755 70000:4000000000 ` + at + ` n2 s1 "owned"`,
		`p 0622 0:0 ` + at + ` n1 s0 "p"`,
		`l 0777 0:0 1700000000.000000000 n1 s0 "s" -> "../../owned"`,
		`f 0644 0:0 ` + at + ` n1 s2 "stargz.index.json"`,
		`w 0000 0:0 0.000000000 n1 s0 "d/gone"`,
	}, "\n") + "\n"
	if have := list(&b.Layers[1].Index.Tree); have != want {
		t.Errorf("have\n%swant\n%s", have, want)
	}
	if w := b.Layers[1].Warnings; len(w) != 1 || !strings.Contains(w[0], "nfs4_acl") {
		t.Errorf("warnings %q", w)
	}
}

// A hard link's header has the inode's attributes, which unpacking sets.
func TestLinkOwner(t *testing.T) {
	h := hardlink("h", "f")
	h.Uid, h.Gid, h.ModTime = 7, 8, time.Unix(99, 5)
	b := mustBuild(t, build.Options{}, gzipped(t, makeTar(t, file("f", []byte("x")), h)))
	if have, want := list(&b.Layers[0].Index.Tree), `f 0644 7:8 99.000000005 n2 s1 "f"`; !strings.Contains(have, want) {
		t.Errorf("have\n%swant %s", have, want)
	}
}

func TestNames(t *testing.T) {
	long := strings.Repeat("n", 255)
	deep := strings.Repeat("d/", 2000) + long[:90]
	gnu := file(strings.Repeat("g/", 100)+"x", []byte("gnu"))
	gnu.Format, gnu.ModTime = tar.FormatGNU, time.Unix(5, 0)
	big := gnu
	big.Name, big.Uid = "base256", 1<<30
	plain := makeTar(t, file(long, []byte("long")), file(deep, []byte("deep")), gnu, big,
		file("../../up", []byte("up")), file("/abs/./x//y/../z", []byte("abs")))
	b := mustBuild(t, build.Options{}, gzipped(t, plain))
	have := b.files(t)
	for name, want := range map[string]string{
		long: "long", deep: "deep", strings.TrimSuffix(gnu.Name, "/"): "gnu", "base256": "gnu", "up": "up", "abs/x/z": "abs",
	} {
		if string(have[name]) != want {
			t.Errorf("%.20s…: %q, want %q", name, have[name], want)
		}
	}
}

func TestReplaced(t *testing.T) {
	a, b := words(1, 30000), words(2, 20000)
	plain := makeTar(t,
		file("twice", a), file("twice", b),
		file("becomes-dir", a), dir("becomes-dir"), file("becomes-dir/x", b),
		dir("becomes-file"), file("becomes-file/x", a), file("becomes-file", b),
		symlink("link", "d"), dir("d"), file("link/x", b),
		file("kept", a), hardlink("name", "kept"), file("kept", b),
	)
	built := mustBuild(t, small, gzipped(t, plain))
	have := built.files(t)
	for name, want := range map[string][]byte{
		"twice": b, "becomes-dir/x": b, "becomes-file": b, "d/x": b, "kept": b, "name": a,
	} {
		if !bytes.Equal(have[name], want) {
			t.Errorf("%s has %d bytes, want %d", name, len(have[name]), len(want))
		}
		delete(have, name)
	}
	if len(have) != 0 {
		t.Errorf("too many files: %d", len(have))
	}
}

func TestSparse(t *testing.T) {
	data := words(3, 5000)
	const size = 3 << 20
	plain := sparse(t, "sparse", size, []int64{100, 1 << 20, 2<<20 + 12345}, data)
	for _, mode := range []build.Mode{build.Auto, build.AsImage} {
		o := small
		o.Mode = mode
		b := mustBuild(t, o, gzipped(t, plain))
		b.wantFiles(t, plain)
		if s := b.Layers[0].Stats; s.Holes < size-6*3*4096 || s.Content != size {
			t.Errorf("%+v", s)
		}
	}
}

// A great deal of nothing must cost neither memory nor much of an index.
func TestHugeHole(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 1 GiB of zeros")
	}
	plain := sparse(t, "sparse", 1<<30, []int64{0}, []byte("x"))
	b := mustBuild(t, build.Options{}, gzipped(t, plain))
	if n := len(b.Layers[0].Encoded); n > 1000 {
		t.Errorf("the index has %d bytes", n)
	}
}

func TestReuse(t *testing.T) {
	a, c := random(1, 20000), random(2, 12288)
	lower := makeTar(t, file("a", a), file("b", a))
	upper := makeTar(t, file("c", a), file("d", append(bytes.Clone(c), a[:4096]...)))
	b := mustBuild(t, small, gzipped(t, lower), gzipped(t, upper))
	b.wantFiles(t, lower, upper)
	s0, s1 := b.Layers[0].Stats, b.Layers[1].Stats
	if s0.New != 20000 || s0.FromLayer != 20000 {
		t.Errorf("lower: %+v", s0)
	}
	if s1.New != 12288 || s1.FromImage != 24096 {
		t.Errorf("upper: %+v", s1)
	}
	if x := b.Layers[1].Index; len(x.Blobs) != 2 {
		t.Errorf("upper has %d blobs", len(x.Blobs))
	}
	// The same layer twice has nothing new.
	b = mustBuild(t, small, gzipped(t, lower), gzipped(t, lower))
	if l := b.Layers[1]; len(l.Blobs) != 0 || l.Stats.New != 0 || !l.Index.Blobs[0].External {
		t.Errorf("twice: %+v", l)
	}
}

func TestDictionary(t *testing.T) {
	a, c := random(1, 40000), random(2, 12288)
	base := makeTar(t, file("a", a))
	first := mustBuild(t, small, gzipped(t, base), gzipped(t, makeTar(t, file("other", random(3, 5000)))))
	o := small
	for _, l := range first.Layers {
		o.Dictionary = append(o.Dictionary, l.Index)
	}
	changed := bytes.Clone(a)
	changed[10000]++
	lower, upper := makeTar(t, file("a", changed)), makeTar(t, file("c", c), file("copy", a))
	next := &built{dir: first.dir, stored: first.stored}
	var err error
	next.Result, err = build.Build(t.Context(), []build.Layer{gzipped(t, lower), gzipped(t, upper)}, first.dir, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range next.Layers {
		for _, f := range l.Blobs {
			if first.stored[f.Digest], err = os.ReadFile(f.Path); err != nil {
				t.Fatal(err)
			}
		}
	}
	next.wantFiles(t, lower, upper)
	s0, s1 := next.Layers[0].Stats, next.Layers[1].Stats
	if s0.New != 4096 || s0.FromDictionary != 40000-4096 || s1.New != 12288 || s1.FromDictionary != 40000 {
		t.Errorf("lower %+v\nupper %+v", s0, s1)
	}
	of := func(x *chunkfmt.Index, d chunkfmt.Digest) *chunkfmt.Blob {
		for i := range x.Blobs {
			if x.Blobs[i].Digest == d {
				return &x.Blobs[i]
			}
		}
		return nil
	}
	d := first.Layers[0].Index.Blobs[0].Digest
	if b := of(next.Layers[0].Index, d); b == nil || b.External || len(b.Groups) == 0 {
		t.Errorf("lower has the dictionary's blob as %+v", b)
	}
	if b := of(next.Layers[1].Index, d); b == nil || !b.External {
		t.Errorf("upper has the dictionary's blob as %+v", b)
	}
}

func TestTrace(t *testing.T) {
	a, c, d := random(1, 20000), random(2, 20000), random(3, 3000)
	plain := makeTar(t, file("a", a), file("c", c), file("d", d), file("e", random(4, 30000)))
	trace, err := build.ParseTrace(strings.NewReader("/d\n\n{\"path\":\"c\",\"offset\":5000,\"length\":1}\na\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []build.Options{
		{ChunkSize: 4096, GroupSize: 16384, Trace: trace},
		{ChunkSize: 4096, GroupSize: 16384, Trace: trace, MemoryLimit: 32 << 20},
	} {
		b := mustBuild(t, o, gzipped(t, plain))
		b.wantFiles(t, plain)
		x := b.Layers[0].Index
		var order []string
		for i := len(x.Chunks) - 7; i < len(x.Chunks); i++ {
			for _, f := range []struct {
				name string
				body []byte
			}{{"a", a}, {"c", c}, {"d", d}} {
				for at := 0; at < len(f.body); at += 4096 {
					if chunkfmt.Sum(f.body[at:min(at+4096, len(f.body))]) == x.Chunks[i].Digest {
						order = append(order, fmt.Sprint(f.name, at))
					}
				}
			}
		}
		if have := strings.Join(order, " "); have != "d0 c4096 a0 a4096 a8192 a12288 a16384" {
			t.Errorf("the last chunks are %s", have)
		}
	}
}

func TestReproducible(t *testing.T) {
	lower, upper := tree(t), makeTar(t, file("x", words(12, 70000)), file("y", random(99, 100000)), file("z", words(98, 9)))
	for _, mode := range []build.Mode{build.NewBlob, build.AsImage} {
		var want *built
		for _, workers := range []int{1, 2, 7} {
			o := small
			o.Mode, o.Workers = mode, workers
			b := mustBuild(t, o, gzipped(t, lower), layer(upper, upper), gzipped(t, lower), layer(compress(t, "zstd", upper), upper))
			b.wantFiles(t, lower, upper)
			if want == nil {
				want = b
				continue
			}
			for i := range b.Layers {
				if !bytes.Equal(b.Layers[i].Encoded, want.Layers[i].Encoded) {
					t.Errorf("mode %d, %d workers: layer %d differs", mode, workers, i)
				}
			}
			if b.Root != want.Root {
				t.Errorf("mode %d, %d workers: root %s, want %s", mode, workers, b.Root, want.Root)
			}
		}
	}
}

// A blob that is there already stays when a later build fails.
func TestKeepsOldBlobs(t *testing.T) {
	plain := tree(t)
	b := mustBuild(t, small, gzipped(t, plain))
	bad := gzipped(t, plain)
	bad.DiffID[0]++
	if _, err := build.Build(t.Context(), []build.Layer{gzipped(t, plain), bad}, b.dir, small); err == nil {
		t.Fatal("no error")
	}
	if have := entriesOf(t, b.dir); len(have) != 1 || have[0] != filepath.Base(b.Layers[0].Blobs[0].Path) {
		t.Errorf("left: %v", have)
	}
	if _, err := os.Stat(b.Layers[0].Blobs[0].Path); err != nil {
		t.Error(err)
	}
}

// More is listed than may be held in memory.
func TestTraceSpills(t *testing.T) {
	plain := makeTar(t, file("a", random(1, 6<<20)), file("b", random(2, 6<<20)))
	l := layer(plain, plain)
	o := build.Options{Trace: []build.Access{{Path: "b"}, {Path: "a", Offset: 1 << 20, Length: 3 << 20}}}
	want := mustBuild(t, o, l)
	o.MemoryLimit = 32 << 20
	b := mustBuild(t, o, l)
	b.wantFiles(t, plain)
	if !bytes.Equal(b.Layers[0].Encoded, want.Layers[0].Encoded) {
		t.Error("with less memory something else is built")
	}
}
