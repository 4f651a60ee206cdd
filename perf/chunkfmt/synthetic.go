package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"path"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// The shape of synthetic images is that of Debian images with the run-time of a
// language: ten files in a directory, half of them below 5 kB, with a long
// tail; now and then a symbolic link. The upper of two layers replaces files of
// the lower and removes others.
const (
	filesPerDir   = 10
	medianSize    = 5000
	sizeSpread    = 1.9 // standard deviation of the size's natural logarithm
	largestFile   = 256 << 20
	linkEvery     = 20
	upperPercent  = 10
	removedInTen  = 1
	inlineSize    = 64
	storedPercent = 30 // of the plain bytes

	syntheticLayers = 2
)

// synthesis makes layers whose blobs exist only as tables.
type synthesis struct {
	random    *rand.ChaCha8
	chunkSize int64
	groupSize int64
}

func newSynthesis(chunkSize, groupSize int64) *synthesis {
	return &synthesis{random: rand.NewChaCha8([32]byte{1}), chunkSize: chunkSize, groupSize: groupSize}
}

// image returns the two layers of an image with about this many files.
func (s *synthesis) image(files int) ([]*chunkfmt.Index, error) {
	upper := files * upperPercent / 100
	lowerLayer, err := s.layer(0, files-upper/2, 0)
	if err != nil {
		return nil, err
	}
	upperLayer, err := s.layer(files-upper, files, upper*removedInTen/10)
	if err != nil {
		return nil, err
	}
	return []*chunkfmt.Index{lowerLayer, upperLayer}, nil
}

// filePath spreads files over directories, as packages do.
func filePath(i int) string {
	dir := i / filesPerDir
	return path.Join(
		fmt.Sprintf("usr/lib/runtime-%d", dir/1000),
		fmt.Sprintf("package-%02d", dir/25%40),
		fmt.Sprintf("module_%05d", dir),
		fmt.Sprintf("source-file-%d.py", i),
	)
}

// layer has the files [first, end) and whiteouts of some before first.
func (s *synthesis) layer(first, end, removed int) (*chunkfmt.Index, error) {
	d := chunkfmt.NewDraft()
	b := &blobTable{groupSize: s.groupSize, digest: s.digest}
	for i := first; i < end; i++ {
		if err := s.addFile(d, b, i); err != nil {
			return nil, err
		}
	}
	for i := range removed {
		if err := d.Remove(filePath(i * 3)); err != nil {
			return nil, err
		}
	}
	tree, err := d.Freeze(b.chunks, []chunkfmt.Blob{b.finish()})
	if err != nil {
		return nil, err
	}
	return &chunkfmt.Index{Tree: *tree, DiffID: s.digest()}, nil
}

func (s *synthesis) addFile(d *chunkfmt.Draft, b *blobTable, i int) error {
	name := filePath(i)
	dir := path.Dir(name)
	// Packages have one time for many files.
	mtime := int64(1_700_000_000 + i/200*3600)
	if d.Find(dir) == nil {
		if err := d.Put(dir, &chunkfmt.Node{Kind: chunkfmt.Dir, Mode: 0o755, Mtime: mtime}); err != nil {
			return err
		}
	}
	n := &chunkfmt.Node{Kind: chunkfmt.File, Mode: 0o644, Mtime: mtime, Size: s.size()}
	switch {
	case i%linkEvery == 0:
		n = &chunkfmt.Node{Kind: chunkfmt.Symlink, Mode: 0o777, Mtime: mtime, Target: path.Base(name) + ".1"}
	case n.Size <= inlineSize:
		n.Inline = make([]byte, n.Size)
	default:
		for left := n.Size; left > 0; left -= s.chunkSize {
			n.Chunks = append(n.Chunks, b.add(min(left, s.chunkSize)))
		}
	}
	return d.Put(name, n)
}

// size draws from a log-normal distribution.
func (s *synthesis) size() int64 {
	normal := rand.New(s.random).NormFloat64() //nolint:gosec // no secret
	return min(int64(medianSize*math.Exp(sizeSpread*normal)), largestFile)
}

func (s *synthesis) digest() (d chunkfmt.Digest) {
	for i := 0; i < len(d); i += 8 {
		binary.LittleEndian.PutUint64(d[i:], s.random.Uint64())
	}
	return d
}

// blobTable places chunks in groups as the builder does.
type blobTable struct {
	groupSize int64
	digest    func() chunkfmt.Digest
	blob      chunkfmt.Blob
	chunks    []chunkfmt.Chunk
	plain     int64 // bytes in the open group
}

// add returns the number of the new chunk.
func (b *blobTable) add(length int64) uint32 {
	at := alignUp(b.plain)
	if at > 0 && at+length > b.groupSize {
		b.closeGroup()
		at = 0
	}
	b.chunks = append(b.chunks, chunkfmt.Chunk{
		Group: narrow(len(b.blob.Groups)), Offset: narrow(at), Length: narrow(length), Digest: b.digest(),
	})
	b.plain = at + length
	return narrow(len(b.chunks) - 1)
}

func (b *blobTable) closeGroup() {
	if b.plain == 0 {
		return
	}
	g := chunkfmt.Group{
		Offset: b.blob.Size, Stored: narrow(b.plain*storedPercent/100 + 1), Plain: narrow(b.plain),
		Codec: chunkfmt.Zstd, Digest: b.digest(), Device: b.blob.DeviceSize,
	}
	b.blob.Groups = append(b.blob.Groups, g)
	b.blob.Size += int64(g.Stored)
	b.blob.DeviceSize += alignUp(b.plain)
	b.plain = 0
}

func (b *blobTable) finish() chunkfmt.Blob {
	b.closeGroup()
	b.blob.Digest = b.digest()
	return b.blob
}

func alignUp(n int64) int64 {
	return (n + chunkfmt.BlockSize - 1) / chunkfmt.BlockSize * chunkfmt.BlockSize
}

// narrow is for numbers that fit: those within a group, and counts of what is in
// memory.
func narrow[N int | int64](n N) uint32 {
	return uint32(n)
}
