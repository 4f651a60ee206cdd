package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/klauspost/compress/zstd"
)

// cut splits a tar as the tools for eStargz do: each file's content begins a
// member, and so does each further size bytes of it.
func cut(t testing.TB, plain []byte, size int) [][]byte {
	t.Helper()
	var cuts []int
	counter := &countingReader{r: bytes.NewReader(plain)}
	r := tar.NewReader(counter)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < int(h.Size); at += size {
			cuts = append(cuts, counter.n+at)
		}
	}
	var parts [][]byte
	last := 0
	for _, c := range append(cuts, len(plain)) {
		if c > last {
			parts = append(parts, plain[last:c])
		}
		last = c
	}
	return parts
}

type countingReader struct {
	r io.Reader
	n int
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

var skippable = []byte{0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0, 'h', 'e', 'l', 'l', 'o'}

func TestInPlace(t *testing.T) {
	plain := tree(t)
	for _, size := range []int{4096, 5000, 16384, 65536, 1000} {
		for _, format := range []string{"gzip", "zstd"} {
			t.Run(fmt.Sprintf("%s/%d", format, size), func(t *testing.T) {
				stored := compress(t, format, cut(t, plain, size)...)
				if format == "gzip" {
					stored = append(stored, compress(t, "gzip", nil)...) // a footer
				} else {
					stored = append(stored, skippable...)
				}
				b := mustBuild(t, small, layer(stored, plain))
				b.wantFiles(t, plain)
				l := b.Layers[0]
				if !l.InPlace || len(l.Blobs) != 0 {
					t.Fatalf("in place %v, blobs %v", l.InPlace, l.Blobs)
				}
				x := l.Index.Blobs[0]
				if x.Digest != chunkfmt.Sum(stored) || x.Size != int64(len(stored)) || x.Unproven {
					t.Errorf("blob %s of %d bytes, unproven %v", x.Digest, x.Size, x.Unproven)
				}
				if last := x.Groups[len(x.Groups)-1]; last.Codec != chunkfmt.Filler {
					t.Errorf("the last group is %+v", last)
				}
				for _, g := range x.Groups {
					if g.Plain > 70000 {
						t.Errorf("a group has %d bytes", g.Plain)
					}
				}
			})
		}
	}
}

// Layers above and below share chunks with one in place.
func TestInPlaceReuse(t *testing.T) {
	body := random(1, 100000)
	plain := makeTar(t, file("a", body), file("b", body), file("c", words(1, 100)))
	stored := compress(t, "gzip", cut(t, plain, 8192)...)
	lower, upper := makeTar(t, file("l", body[:50000])), makeTar(t, file("u", body))
	b := mustBuild(t, small, gzipped(t, lower), layer(stored, plain), gzipped(t, upper))
	b.wantFiles(t, lower, plain, upper)
	s := b.Layers[1].Stats
	if !b.Layers[1].InPlace || s.FromImage != 2*49152 || s.FromLayer != 100000-49152 {
		t.Errorf("in place: %+v", s)
	}
	if s := b.Layers[2].Stats; s.New != 0 || len(b.Layers[2].Blobs) != 0 {
		t.Errorf("above: %+v", s)
	}
}

// A layer in place occurs twice, and once more in the dictionary, cut in
// another way: it is still one blob.
func TestInPlaceTwice(t *testing.T) {
	plain := tree(t)
	l := layer(compress(t, "zstd", cut(t, plain, 5000)...), plain)
	other := small
	other.ChunkSize = 8192
	o := small
	o.Dictionary = []*chunkfmt.Index{mustBuild(t, other, l).Layers[0].Index}
	b := mustBuild(t, o, l, l)
	b.wantFiles(t, plain)
	if !b.Layers[0].InPlace || b.Layers[1].InPlace {
		t.Errorf("in place: %v, %v", b.Layers[0].InPlace, b.Layers[1].InPlace)
	}
	// Without the digest nobody can tell in time.
	l.Digest = chunkfmt.Digest{}
	b = mustBuild(t, small, l)
	b.wantFiles(t, plain)
	if b.Layers[0].InPlace {
		t.Error("a layer of unknown digest is in place")
	}
}

// What begins like a layer of many members and cannot be used as one.
func TestNotInPlace(t *testing.T) {
	few := makeTar(t, file("a", words(1, 100)))
	begin := makeTar(t, file("a", words(1, 20000)))
	begin = begin[:len(begin)-1024] // without the end of the tar
	giant := makeTar(t, file("z", make([]byte, chunkfmt.MaxGroupPlain+1)))
	odd := sparse(t, "s", 1<<20, []int64{5000}, []byte("data"))
	for name, parts := range map[string][][]byte{
		"few":    {few[:512], few[512:1024], few[1024:]},
		"inside": append(cut(t, begin, 4096), giant[:1536+5], giant[1536+5:]),
		"sparse": append(cut(t, begin, 4096), odd),
	} {
		t.Run(name, func(t *testing.T) {
			plain := bytes.Join(parts, nil)
			b := mustBuild(t, small, layer(compress(t, "gzip", parts...), plain))
			if b.Layers[0].InPlace {
				t.Error("was indexed in place")
			}
			b.wantFiles(t, plain)
		})
	}
	t.Run("trace", func(t *testing.T) {
		plain := tree(t)
		o := small
		o.Trace = []build.Access{{Path: "holes"}}
		b := mustBuild(t, o, layer(compress(t, "gzip", cut(t, plain, 4096)...), plain))
		if b.Layers[0].InPlace {
			t.Error("was indexed in place")
		}
	})
}

// A frame that is too large for a group, and what is behind it, is stored again:
// the table of contents of an eStargz layer may be such a one.
func TestInPlaceTail(t *testing.T) {
	begin := makeTar(t, file("a", words(1, 20000)))
	begin = begin[:len(begin)-1024]
	giant := makeTar(t, file("z", random(7, chunkfmt.MaxGroupPlain+10000)), file("last", words(8, 500)))
	for name, parts := range map[string][][]byte{
		"before a file": append(cut(t, begin, 4096), giant),
		"in a file":     append(cut(t, begin, 4096), giant[:1536+4096], giant[1536+4096:]),
	} {
		for _, format := range []string{"gzip", "zstd"} {
			t.Run(name+"/"+format, func(t *testing.T) {
				plain := bytes.Join(parts, nil)
				stored := append(compress(t, format, parts...), compress(t, format, nil)...)
				b := mustBuild(t, small, layer(stored, plain))
				b.wantFiles(t, plain)
				l := b.Layers[0]
				if !l.InPlace || len(l.Blobs) != 1 || len(l.Index.Blobs) != 2 {
					t.Errorf("in place %v, new blobs %d, blobs %d", l.InPlace, len(l.Blobs), len(l.Index.Blobs))
				}
			})
		}
	}
}

func TestAsImage(t *testing.T) {
	lower := tree(t)
	upper := append(makeTar(t, file("x", words(12, 70000)), file("twice", random(12, 70000))), "behind the end"...)
	empty := makeTar(t)
	o := small
	o.Mode = build.AsImage
	b := mustBuild(t, o, gzipped(t, lower), gzipped(t, upper), gzipped(t, empty), gzipped(t, empty))
	b.wantFiles(t, lower, upper)
	for i, plain := range [][]byte{lower, upper, empty, empty} {
		l := b.Layers[i]
		stored, err := os.ReadFile(l.Image.Path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(stored, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
			t.Errorf("layer %d begins with %x", i, stored[:4])
		}
		d, err := zstd.NewReader(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		have, err := d.DecodeAll(stored, nil)
		if err != nil || !bytes.Equal(have, plain) {
			t.Errorf("layer %d decodes to %d bytes, want %d: %v", i, len(have), len(plain), err)
		}
		if l.Index.DiffID != chunkfmt.Sum(plain) || l.InPlace || len(l.Blobs) != 0 {
			t.Errorf("layer %d: %+v", i, l)
		}
		for _, x := range l.Index.Blobs {
			if x.Digest == l.Image.Digest && x.Size != l.Image.Size {
				t.Errorf("layer %d: the index says %d bytes, the layer has %d", i, x.Size, l.Image.Size)
			}
		}
	}
	if s := b.Layers[1].Stats; s.FromImage < 70000 {
		t.Errorf("upper: %+v", s)
	}
	// What was made is a layer in place for the next one.
	image := b.Layers[0].Image
	again := mustBuild(t, small, build.Layer{
		Digest: image.Digest, Size: image.Size, DiffID: chunkfmt.Sum(lower),
		Open: func(context.Context) (io.ReadCloser, error) { return os.Open(image.Path) },
	})
	again.wantFiles(t, lower)
	if !again.Layers[0].InPlace {
		t.Error("a layer of many frames was not indexed in place")
	}
}

// The content of a sparse file goes into a blob of its own.
func TestAsImageSparse(t *testing.T) {
	plain := sparse(t, "sparse", 1<<20, []int64{100, 500000}, random(1, 10000))
	o := small
	o.Mode = build.AsImage
	b := mustBuild(t, o, gzipped(t, plain))
	b.wantFiles(t, plain)
	if l := b.Layers[0]; len(l.Blobs) != 1 || l.Image == nil {
		t.Errorf("%+v", l)
	}
}
