package merkle_test

import (
	"fmt"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
)

// manyFiles has n files of two chunks each, 50 in a directory.
func manyFiles(b *testing.B, n int) *chunkfmt.Tree {
	b.Helper()
	d := chunkfmt.NewDraft()
	chunks := make([]chunkfmt.Chunk, 2*n)
	for i := range n {
		for j := range 2 {
			chunks[2*i+j] = chunkfmt.Chunk{Group: uint32(i), Offset: uint32(j) * 4096, Length: 4096, Digest: chunkfmt.Digest{byte(i), byte(i >> 8), byte(j)}}
		}
		name := fmt.Sprintf("usr/lib/package%03d/sub%d/file-number-%d.so", i/500, i/50%10, i)
		node := &chunkfmt.Node{Kind: chunkfmt.File, Mode: 0o644, Mtime: int64(i), Size: 8192, Chunks: []uint32{uint32(2 * i), uint32(2*i + 1)}}
		if err := d.Put(name, node); err != nil {
			b.Fatal(err)
		}
		if i%100 == 0 {
			if err := d.Link(name+".link", name); err != nil {
				b.Fatal(err)
			}
		}
	}
	tree, err := d.Freeze(chunks, []chunkfmt.Blob{{}})
	if err != nil {
		b.Fatal(err)
	}
	return tree
}

func BenchmarkRoot100k(b *testing.B) {
	tree := manyFiles(b, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		merkle.Root(tree)
	}
}

func BenchmarkDiff100k(b *testing.B) {
	older := merkle.Hash(manyFiles(b, 100_000))
	tree := manyFiles(b, 100_000)
	tree.Inodes[len(tree.Inodes)/2].Mtime++
	newer := merkle.Hash(tree)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for range merkle.Diff(older, newer) {
			n++
		}
		if n != 1 {
			b.Fatalf("%d changes", n)
		}
	}
}
