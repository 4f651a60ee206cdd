package chunkfmt

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// imageIndex returns an index of the shape of an image's: dirs directories
// with files between them, in path order in the blob, as packages install
// them.
func imageIndex(tb testing.TB, dirs, files int) *Index {
	tb.Helper()
	l := &layouter{Rand: rand.New(rand.NewPCG(1, 2))}
	for range files {
		l.packed1(1 + int(l.ExpFloat64()*9000))
	}
	l.closeBlob()
	d := NewDraft()
	paths := []string{""}
	for i := range dirs {
		parent := paths[l.IntN(len(paths))]
		name := fmt.Sprintf("%s/%s%d", parent, words[l.IntN(len(words))], i)
		if err := d.Put(name, &Node{Kind: Dir, Mode: 0o755, Mtime: 1700000000 + int64(l.IntN(1000))}); err != nil {
			tb.Fatal(err)
		}
		paths = append(paths, name)
	}
	for i, f := range l.files {
		dir := paths[i*len(paths)/len(l.files)]
		name := fmt.Sprintf("%s/%s_%s%x.py", dir, words[l.IntN(len(words))], words[l.IntN(len(words))], l.IntN(4096)+4096*(i%16))
		if d.Find(name) != nil {
			name += "c"
		}
		n := &Node{
			Kind: File, Mode: 0o644, Mtime: 1600000000 + int64(i*len(paths)/len(l.files)/8*997),
			Size: f.size, Chunks: f.chunks,
		}
		if err := d.Put(name, n); err != nil {
			tb.Fatal(err)
		}
	}
	t, err := d.Freeze(l.chunks, l.blobs)
	if err != nil {
		tb.Fatal(err)
	}
	return &Index{Tree: *t, DiffID: l.digest(), Root: l.digest()}
}

var words = []string{"test", "base", "core", "lib", "util", "config", "http", "client", "server", "parser", "model", "__init__", "data", "setup"}

// packed1 adds one file to the blob that closeBlob finishes, in groups of about
// 1 MiB and chunks of up to 256 KiB.
func (l *layouter) packed1(size int) {
	if len(l.blobs) == 0 {
		l.blobs = []Blob{{Digest: l.digest()}}
	}
	b := &l.blobs[0]
	var chunks []uint32
	for left := size; left > 0; {
		if n := len(b.Groups); n == 0 || b.Groups[n-1].Plain > 1<<20 {
			l.closeGroup()
			b.Groups = append(b.Groups, Group{Codec: Zstd, Digest: l.digest(), Device: b.DeviceSize, Offset: b.Size})
		}
		g := &b.Groups[len(b.Groups)-1]
		c := Chunk{Group: uint32(len(b.Groups) - 1), Offset: uint32(alignUp(int64(g.Plain))), Length: uint32(min(left, 256<<10))}
		left -= int(c.Length)
		g.Plain = c.Offset + c.Length
		chunks = append(chunks, l.chunk(c))
	}
	l.file(chunks...)
}

func (l *layouter) closeGroup() {
	b := &l.blobs[0]
	if n := len(b.Groups); n > 0 {
		g := &b.Groups[n-1]
		g.Stored = 1 + g.Plain/3 + l.Uint32N(1000)
		b.Size += int64(g.Stored)
		b.DeviceSize += alignUp(int64(g.Plain))
	}
}

func (l *layouter) closeBlob() { l.closeGroup() }

func BenchmarkDecode100k(b *testing.B) {
	x := imageIndex(b, 10_000, 100_000)
	p := mustEncode(b, x)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(p, Limits{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(p))/100_000, "index-B/file")
}

func BenchmarkValidate100k(b *testing.B) {
	x := imageIndex(b, 10_000, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		if err := x.Validate(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode100k(b *testing.B) {
	x := imageIndex(b, 10_000, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		mustEncode(b, x)
	}
}
