package chunkfmt

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// layouter makes blobs and chunks that fit together, and remembers the chunks
// of files to hand out.
type layouter struct {
	*rand.Rand
	chunks []Chunk
	blobs  []Blob
	files  []fileContent
}

type fileContent struct {
	chunks []uint32
	size   int64
}

func (l *layouter) digest() (d Digest) {
	for i := range d {
		d[i] = byte(l.Uint32())
	}
	d[0] |= 1 // never zero
	return d
}

func (l *layouter) chunk(c Chunk) uint32 {
	c.Digest = l.digest()
	l.chunks = append(l.chunks, c)
	return uint32(len(l.chunks) - 1)
}

func (l *layouter) file(chunks ...uint32) {
	f := fileContent{chunks: chunks}
	for _, c := range chunks {
		f.size += int64(l.chunks[c].Length)
	}
	l.files = append(l.files, f)
}

func (l *layouter) add(b Blob) {
	b.Digest = l.digest()
	end := int64(0)
	for i := range b.Groups {
		g := &b.Groups[i]
		g.Offset = b.Size
		b.Size += int64(g.Stored)
		if !b.Unproven {
			g.Digest = l.digest()
		}
		if g.linear() {
			end = g.Device + int64(g.Plain)
		}
		for _, s := range g.Segments {
			end = s.Device + int64(s.Length)
		}
	}
	b.DeviceSize = alignUp(end)
	l.blobs = append(l.blobs, b)
}

// packed adds a blob as chunkfmt builds them: files in aligned chunks, groups
// of up to perGroup chunks.
func (l *layouter) packed(files, chunkSize, perGroup int) {
	var b Blob
	blob, device := uint32(len(l.blobs)), int64(0)
	g, n := Group{Codec: Zstd}, 0
	closeGroup := func() {
		g.Stored = 1 + g.Plain/2
		g.Device = device
		device += alignUp(int64(g.Plain))
		b.Groups = append(b.Groups, g)
		g, n = Group{Codec: Zstd}, 0
	}
	for range files {
		var chunks []uint32
		for left := 1 + l.IntN(chunkSize*5/4); left > 0; {
			c := Chunk{Blob: blob, Group: uint32(len(b.Groups)), Offset: uint32(alignUp(int64(g.Plain)))}
			c.Length = uint32(min(left, chunkSize))
			left -= int(c.Length)
			g.Plain = c.Offset + c.Length
			chunks = append(chunks, l.chunk(c))
			if n++; n == perGroup {
				closeGroup()
			}
		}
		l.file(chunks...)
	}
	if n > 0 {
		closeGroup()
	}
	l.add(b)
}

// inPlace adds a blob with headers between files, files that go on from one
// group to the next, and filler.
func (l *layouter) inPlace(files int, unproven bool) {
	b := Blob{Unproven: unproven}
	blob, device := uint32(len(l.blobs)), int64(0)
	g := Group{Codec: Gzip, Segments: []Segment{}}
	put := func(n uint32) uint32 { // one chunk of a segment of its own
		g.Segments = append(g.Segments, Segment{Offset: g.Plain, Length: n, Device: device})
		c := l.chunk(Chunk{Blob: blob, Group: uint32(len(b.Groups)), Offset: g.Plain, Length: n})
		g.Plain += n
		device += int64(n)
		return c
	}
	closeGroup := func() {
		g.Stored = 1 + g.Plain/3
		b.Groups = append(b.Groups, g)
		g = Group{Codec: Gzip, Segments: []Segment{}}
	}
	for i := range files {
		device = alignUp(device)
		g.Plain += 512
		first := put(1 + l.Uint32N(9000))
		if i%3 != 1 {
			l.file(first)
			g.Plain = (g.Plain + 511) &^ 511
			continue
		}
		closeGroup()
		l.file(first, put(1+l.Uint32N(5000)))
	}
	closeGroup()
	b.Groups = append(b.Groups,
		Group{Codec: Gzip, Stored: 40, Plain: 1024, Segments: []Segment{}},
		Group{Codec: Filler, Stored: 51})
	l.add(b)
}

// external adds a blob of a lower layer.
func (l *layouter) external(files int) {
	blob := uint32(len(l.blobs))
	for i := range files {
		group := uint32(i / 3 * 7)
		l.file(
			l.chunk(Chunk{Blob: blob, Group: group, Offset: uint32(i%3) * 16384, Length: 8192}),
			l.chunk(Chunk{Blob: blob, Group: group, Offset: uint32(i%3)*16384 + 8192, Length: 77}))
	}
	l.blobs = append(l.blobs, Blob{
		Digest: l.digest(), Size: 1 << 20, DeviceSize: 1 << 22, External: true, Unproven: l.IntN(2) == 0,
	})
}

// sparse adds files with holes and repeated chunks.
func (l *layouter) sparse() {
	z := zeroHash{h: newHash()}
	hole := func(n uint32) uint32 {
		l.chunks = append(l.chunks, Chunk{Blob: Hole, Length: n, Digest: z.sum(int64(n))})
		return uint32(len(l.chunks) - 1)
	}
	tail, block := hole(100), hole(8192)
	blob := uint32(len(l.blobs))
	data := l.chunk(Chunk{Blob: blob, Length: 8192})
	more := l.chunk(Chunk{Blob: blob, Offset: 8192, Length: 4096})
	l.add(Blob{Groups: []Group{{Codec: Plain, Stored: 12288, Plain: 12288}}})
	l.file(block, block, block, data, more, data, data, block, tail)
	l.file(block)
	l.file(data, data, block, block)
}

// draft makes a tree with every kind of inode; files take what the layouter
// has, or are inline.
func (l *layouter) draft(tb testing.TB, entries int) *Index {
	tb.Helper()
	d := NewDraft()
	dirs := []string{""}
	var names []string
	for len(l.files) > 0 || entries > 0 {
		entries--
		name := strings.TrimPrefix(dirs[l.IntN(len(dirs))]+"/"+l.name(), "/")
		if d.Find(name) != nil {
			continue
		}
		n := &Node{
			Kind: File, Mode: uint16(l.IntN(0o10000)), UID: l.Uint32() >> l.IntN(33), GID: uint32(l.IntN(3)),
			Mtime: l.Int64N(1<<33) - 1<<31, Nsec: l.Uint32N(1e9) * uint32(l.IntN(2)),
			Xattrs: l.xattrs(),
		}
		var err error
		switch kind := l.IntN(16); kind {
		case 0, 1:
			n.Kind = Dir
			err = d.Put(name, n)
			dirs = append(dirs, name)
		case 2:
			n.Kind, n.Target = Symlink, []string{"/nowhere", "a\n\xff", l.name()}[l.IntN(3)]
			err = d.Put(name, n)
		case 3:
			n.Kind, n.Size = CharDevice+Kind(l.IntN(2)), int64(l.IntN(4096))<<32|int64(l.IntN(1<<20))
			err = d.Put(name, n)
		case 4:
			n.Kind = Fifo + Kind(l.IntN(2))
			err = d.Put(name, n)
		case 5:
			err = d.Remove(name)
		case 6:
			err = link(d, name, "lower/"+l.name())
		case 7:
			err = d.Hide(dirs[l.IntN(len(dirs))])
		case 8:
			err = link(d, name, "file") // sometimes there, sometimes below
		default:
			if len(l.files) > 0 {
				n.Chunks, n.Size = l.files[0].chunks, l.files[0].size
				l.files = l.files[1:]
			} else if n.Size = int64(l.IntN(3) * l.IntN(40)); n.Size > 0 {
				n.Inline = []byte(strings.Repeat("x", int(n.Size)))
			}
			if l.IntN(50) == 0 && d.Find("file") == nil {
				name = "file"
			}
			err = d.Put(name, n)
			names = append(names, name)
			if l.IntN(8) == 0 {
				err = link(d, name+".link", names[l.IntN(len(names))])
			}
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	t, err := d.Freeze(l.chunks, l.blobs)
	if err != nil {
		tb.Fatal(err)
	}
	return &Index{Tree: *t, DiffID: l.digest(), Root: l.digest()}
}

// link makes a hard link unless the draft hides what it would lead to.
func link(d *Draft, name, target string) error {
	if err := d.Link(name, target); !errors.Is(err, ErrInvalid) {
		return err
	}
	return nil
}

func (l *layouter) name() string {
	return fmt.Sprintf("%s%x", []string{"", "lib", ".", "ü"}[l.IntN(4)], l.Uint32()>>l.IntN(30))
}

func (l *layouter) xattrs() []Xattr {
	switch l.IntN(20) {
	case 0:
		return []Xattr{{"user.a", "1"}, {"security.capability", string([]byte{1, 0, 0, 2})}}
	case 1:
		return []Xattr{{"user.empty", ""}, {"user.b", l.name()}}
	}
	return nil
}

// randomIndex returns an index with some of everything.
func randomIndex(tb testing.TB, seed uint64, scale int) *Index {
	l := &layouter{Rand: rand.New(rand.NewPCG(seed, 1))}
	parts := []func(){
		func() { l.packed(1+l.IntN(scale), 8192, 1+l.IntN(5)) },
		func() { l.packed(1+l.IntN(scale), 4096, 3) },
		func() { l.inPlace(1+l.IntN(scale), false) },
		func() { l.inPlace(1+l.IntN(scale), true) },
		func() { l.external(1 + l.IntN(scale)) },
		l.sparse,
	}
	l.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	for _, part := range parts[:l.IntN(len(parts)+1)] {
		part()
	}
	return l.draft(tb, l.IntN(2*scale))
}
