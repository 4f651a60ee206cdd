package erofs_test

import (
	"fmt"
	"io"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
)

// imageLike returns a tree of n inodes as images have them: one directory for
// fourteen files, a tenth of these symbolic links, a fifth tiny and inline, the
// rest of one to four chunks in 40 blobs, every hundredth with a capability.
func imageLike(t testing.TB, n int) *chunkfmt.Tree {
	f := newFixture(t)
	const blobs, perGroup = 40, 64
	for range blobs {
		f.blob()
	}
	kinds := []int64{300, 3000, 9000, 40000}
	for i := 0; i < n; {
		dir := fmt.Sprintf("usr/lib/part%d/package-%d/sub%d/", i/20000, i/500, i/15)
		for range min(15, n-i) {
			name := fmt.Sprintf("%smodule_number_%d.so", dir, i)
			var node *chunkfmt.Node
			switch {
			case i%10 == 0:
				node = symlink("module_number_1.so")
			case i%5 == 1:
				node = inline("tiny content of a file, as __init__.py has it\n")
			default:
				node = f.file(f.fakeChunk(i%blobs, kinds[i%4], perGroup))
			}
			if i%100 == 7 {
				node.Xattrs = xattrs("security.capability", capability)
			}
			node.Mtime, node.Nsec = int64(1700000000+i), uint32(i)
			f.put(name, node)
			i++
		}
	}
	return f.tree()
}

// fakeChunk adds a chunk whose content is nowhere.
func (f *fixture) fakeChunk(blob int, size int64, perGroup int) uint32 {
	b := &f.blobs[blob]
	at := len(f.chunks)
	if len(b.Groups) == 0 || at%perGroup == 0 {
		b.Groups = append(b.Groups, chunkfmt.Group{Device: b.DeviceSize, Offset: b.Size, Stored: 1})
		b.Size++
	}
	g := &b.Groups[len(b.Groups)-1]
	f.chunks = append(f.chunks, chunkfmt.Chunk{
		Blob: uint32(blob), Group: uint32(len(b.Groups) - 1), Offset: uint32(b.DeviceSize - g.Device),
		Length: uint32(size), Digest: chunkfmt.Sum(fmt.Append(nil, at)),
	})
	b.DeviceSize += (size + block - 1) / block * block
	g.Plain = uint32(b.DeviceSize - g.Device)
	return uint32(at)
}

func BenchmarkWrite(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprintf("files=%d", n), func(b *testing.B) {
			tree := imageLike(b, n)
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				im, err := erofs.Write(io.Discard, tree, erofs.Options{})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(im.Size)/float64(len(tree.Inodes)), "image-B/inode")
			}
		})
	}
}
