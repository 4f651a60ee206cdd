package chunkfmt

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// imageLayers returns the layers of an image: most files in the lowest, fewer
// in each one above, some of which replace or remove lower ones.
func imageLayers(tb testing.TB, files int) []*Tree {
	tb.Helper()
	layers := []*Tree{&imageIndex(tb, files/10, files*6/10).Tree}
	var names []string
	for name, inode := range layers[0].Walk() {
		if layers[0].Kind(inode) == File {
			names = append(names, name)
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 8 {
		d := NewDraft()
		for j := range files / 20 {
			name := names[(i*files/20+j)%len(names)]
			var err error
			switch r.IntN(10) {
			case 0:
				err = d.Remove(name)
			case 1:
				err = d.Put(name, &Node{Kind: File, Mode: 0o600, Size: 3, Inline: []byte("new")})
			default:
				err = d.Put(fmt.Sprintf("%s.%d", name, i), &Node{Kind: File, Mode: 0o644, Mtime: int64(i), Size: 3, Inline: []byte("new")})
			}
			if err != nil {
				tb.Fatal(err)
			}
		}
		t, err := d.Freeze(nil, nil)
		if err != nil {
			tb.Fatal(err)
		}
		layers = append(layers, t)
	}
	return layers
}

func benchmarkMerge(b *testing.B, layers []*Tree) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Merge(layers...); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMerge100k(b *testing.B) { benchmarkMerge(b, imageLayers(b, 100_000)) }

func BenchmarkMerge1M(b *testing.B) { benchmarkMerge(b, imageLayers(b, 1_000_000)) }

func BenchmarkMergeOneLayer100k(b *testing.B) {
	benchmarkMerge(b, []*Tree{&imageIndex(b, 10_000, 100_000).Tree})
}
