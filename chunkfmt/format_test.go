package chunkfmt_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/klauspost/compress/zstd"
)

// These tests read golden files by what FORMAT.md says, not by what the package
// does. textReader is a reader as somebody might write it from that text, less
// the checks: it gets valid files only.

func TestGoldensByText(t *testing.T) {
	files, err := filepath.Glob("testdata/*.idx")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			p, err := os.ReadFile(file)
			must(t, err)
			want, err := chunkfmt.Decode(p, chunkfmt.Limits{})
			must(t, err)
			got := readByText(t, p)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got\n%+v\nwant\n%+v", got, want)
			}
		})
	}
}

func readByText(t *testing.T, p []byte) *chunkfmt.Index {
	t.Helper()
	le := binary.LittleEndian
	sum := sha256.Sum256(append(bytes.Clone(p[:96]), p[128:]...))
	if hex.EncodeToString(p[:8]) != "894446580d0a1a0a" || le.Uint16(p[8:]) != 1 || le.Uint32(p[12:]) != 0 ||
		le.Uint32(p[20:]) != 0 || !bytes.Equal(sum[:], p[96:128]) {
		t.Fatalf("header %x", p[:128])
	}
	x := &chunkfmt.Index{DiffID: chunkfmt.Digest(p[32:64]), Root: chunkfmt.Digest(p[64:96])}
	dec, err := zstd.NewReader(nil)
	must(t, err)
	defer dec.Close()
	body, err := dec.DecodeAll(p[128:], nil)
	must(t, err)
	if uint64(len(body)) != le.Uint64(p[24:]) {
		t.Fatalf("a body of %d bytes", len(body))
	}
	r := &textReader{t: t, x: x}
	for i, read := range []func(){r.counts, r.blobs, r.chunks, r.runs, r.attrs, r.targets, r.inodes, r.entries, r.inline} {
		if int(le.Uint16(body)) != i+1 || le.Uint16(body[2:]) != 0 {
			t.Fatalf("section header %x", body[:12])
		}
		size := le.Uint64(body[4:])
		r.p, body = body[12:12+size], body[12+size:]
		if read(); len(r.p) != 0 {
			t.Fatalf("section %d: %d bytes are left", i+1, len(r.p))
		}
	}
	if len(body) != 0 {
		t.Fatalf("%d bytes after the sections", len(body))
	}
	return x
}

type textReader struct {
	t *testing.T
	p []byte
	x *chunkfmt.Index
	n [12]int
	// inBlob has the numbers of chunks in the blobs.
	inBlob []int
}

// The counts, by their order in section 1.
const (
	nInodes = iota
	nEntries
	nAttrs
	nXattrs
	nTargets
	nRuns
	nHoles
	nChunks
	nBlobs
	nGroups
	nSegments
	nInline
)

func (r *textReader) take(n int) []byte {
	p := r.p[:n]
	r.p = r.p[n:]
	return p
}

func (r *textReader) byte() byte { return r.take(1)[0] }

func (r *textReader) digest() chunkfmt.Digest { return chunkfmt.Digest(r.take(32)) }

func (r *textReader) uvarint() (v uint64) {
	for shift := 0; ; shift += 7 {
		b := r.byte()
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
}

func (r *textReader) int() int { return int(r.uvarint()) }

func (r *textReader) u32() uint32 { return uint32(r.uvarint()) }

func (r *textReader) varint() int64 {
	v := r.uvarint()
	if v%2 == 0 {
		return int64(v / 2)
	}
	return -int64(v/2) - 1
}

func (r *textReader) counts() {
	for i := range r.n {
		r.n[i] = r.int()
	}
}

// table returns n items, nil if there are none.
func table[T any](n int) []T {
	if n == 0 {
		return nil
	}
	return make([]T, n)
}

func (r *textReader) blobs() {
	blobs := table[chunkfmt.Blob](r.n[nBlobs])
	r.x.Blobs = blobs
	var groups []*chunkfmt.Group
	for i := range blobs {
		b := &blobs[i]
		b.Digest = r.digest()
		flags := r.byte()
		b.External, b.Unproven = flags&1 != 0, flags&2 != 0
		b.Size, b.DeviceSize = int64(r.uvarint()), int64(r.uvarint())*4096
		b.Groups = table[chunkfmt.Group](r.int())
		for j := range b.Groups {
			groups = append(groups, &b.Groups[j])
		}
		r.inBlob = append(r.inBlob, r.int())
	}
	if len(groups) != r.n[nGroups] {
		r.t.Fatalf("%d groups", len(groups))
	}
	for _, g := range groups {
		g.Codec = chunkfmt.Codec(r.byte())
	}
	for _, g := range groups {
		g.Stored = r.u32()
	}
	for _, g := range groups {
		g.Plain = r.u32()
	}
	for _, g := range groups {
		if n := r.int(); n > 0 {
			g.Segments = make([]chunkfmt.Segment, n-1)
		}
	}
	r.segments(groups)
	for i := range blobs {
		r.places(&blobs[i])
	}
	for i := range blobs {
		for j := range blobs[i].Groups {
			if !blobs[i].Unproven {
				blobs[i].Groups[j].Digest = r.digest()
			}
		}
	}
}

func (r *textReader) segments(groups []*chunkfmt.Group) {
	total := 0
	for _, g := range groups {
		for i := range g.Segments {
			g.Segments[i].Offset = r.u32() // from the end of the one before
			total++
		}
	}
	if total != r.n[nSegments] {
		r.t.Fatalf("%d segments", total)
	}
	for _, g := range groups {
		end := uint32(0)
		for i := range g.Segments {
			s := &g.Segments[i]
			s.Length = r.u32()
			s.Offset += end
			end = s.Offset + s.Length
		}
	}
}

func roundUp(n int64) int64 { return (n + 4095) / 4096 * 4096 }

func (r *textReader) places(b *chunkfmt.Blob) {
	offset, end := int64(0), int64(0)
	for i := range b.Groups {
		g := &b.Groups[i]
		g.Offset = offset
		offset += int64(g.Stored)
		if g.Segments == nil && g.Codec != 3 {
			g.Device = roundUp(end) + r.varint()*4096
			end = g.Device + int64(g.Plain)
		}
		for j := range g.Segments {
			s := &g.Segments[j]
			s.Device = roundUp(end) + r.varint()
			end = s.Device + int64(s.Length)
		}
	}
}

func (r *textReader) chunks() {
	r.x.Chunks = table[chunkfmt.Chunk](r.n[nHoles] + r.n[nChunks])
	length := uint32(0)
	for i := range r.n[nHoles] {
		length += r.u32()
		r.x.Chunks[i] = chunkfmt.Chunk{Blob: chunkfmt.Hole, Length: length, Digest: chunkfmt.Sum(make([]byte, length))}
	}
	stored := r.x.Chunks[r.n[nHoles]:]
	at := 0
	for blob, n := range r.inBlob {
		group := uint32(0)
		for range n {
			group += r.u32()
			stored[at].Blob, stored[at].Group = uint32(blob), group
			at++
		}
	}
	deltas := make([]int64, len(stored))
	for i := range deltas {
		deltas[i] = r.varint()
	}
	for i := range stored {
		c, end := &stored[i], uint32(0)
		if i > 0 && stored[i-1].Blob == c.Blob && stored[i-1].Group == c.Group {
			end = stored[i-1].Offset + stored[i-1].Length
		}
		r.chunk(c, end, deltas[i])
	}
	for i := range stored {
		stored[i].Digest = r.digest()
	}
}

// chunk reads column 3 of a chunk; the one before it in the group ends at end.
func (r *textReader) chunk(c *chunkfmt.Chunk, end uint32, delta int64) {
	b := &r.x.Blobs[c.Blob]
	if b.External || b.Groups[c.Group].Segments == nil {
		c.Offset = uint32(roundUp(int64(end)) + delta)
		c.Length = r.u32()
		return
	}
	segments := b.Groups[c.Group].Segments
	for _, s := range segments {
		if s.Offset+s.Length > end {
			c.Offset = uint32(int64(max(end, s.Offset)) + delta)
			break
		}
	}
	for _, s := range segments {
		if s.Offset <= c.Offset && c.Offset < s.Offset+s.Length {
			c.Length = s.Offset + s.Length - c.Offset - r.u32()
		}
	}
}

func (r *textReader) runs() {
	runs := table[chunkfmt.Run](r.n[nRuns])
	r.x.Runs = runs
	deltas := make([]int64, len(runs))
	for i := range deltas {
		deltas[i] = r.varint()
	}
	next := uint32(r.n[nHoles])
	for i := range runs {
		v := r.uvarint()
		runs[i] = chunkfmt.Run{Chunk: uint32(int64(next) + deltas[i]), Count: uint32(v/2) + 1, Repeat: v%2 == 1}
		if next = runs[i].Chunk + 1; !runs[i].Repeat {
			next = runs[i].Chunk + runs[i].Count
		}
	}
}

func (r *textReader) attrs() {
	sets := make([][]chunkfmt.Xattr, 1+r.n[nXattrs])
	var lengths []int
	for i := range sets[1:] {
		sets[1+i] = make([]chunkfmt.Xattr, r.int())
		for range sets[1+i] {
			lengths = append(lengths, r.int(), r.int())
		}
	}
	r.x.Attrs = table[chunkfmt.Attr](r.n[nAttrs])
	for i := range r.x.Attrs {
		r.x.Attrs[i] = chunkfmt.Attr{
			Kind: chunkfmt.Kind(r.byte()), Flags: chunkfmt.AttrFlags(r.byte()), Mode: uint16(r.uvarint()),
			UID: r.u32(), GID: r.u32(), Xattrs: r.u32(),
		}
	}
	for _, set := range sets[1:] {
		for i := range set {
			set[i] = chunkfmt.Xattr{Name: string(r.take(lengths[0])), Value: string(r.take(lengths[1]))}
			lengths = lengths[2:]
		}
	}
	r.x.Xattrs = sets
}

func (r *textReader) targets() {
	r.x.Targets = table[string](r.n[nTargets])
	lengths := make([]int, r.n[nTargets])
	for i := range lengths {
		lengths[i] = r.int()
	}
	for i := range lengths {
		r.x.Targets[i] = string(r.take(lengths[i]))
	}
}

func (r *textReader) inodes() {
	inodes := make([]chunkfmt.Inode, r.n[nInodes])
	r.x.Inodes = inodes
	for i := range inodes {
		inodes[i].Attr = r.u32()
	}
	last := int64(0)
	for i := range inodes {
		last += r.varint()
		inodes[i].Mtime = last
	}
	for i := range inodes {
		inodes[i].Nsec = r.u32()
	}
	var entries, runs, targets uint32
	for i := range inodes {
		n := &inodes[i]
		switch r.x.Attrs[n.Attr].Kind {
		case 0: // directory
			n.First, n.Count = entries, r.u32()
			entries += n.Count
		case 1: // file
			if n.Count = r.u32(); n.Count > 0 {
				n.First = runs
				runs += n.Count
			}
		case 2, 8: // symbolic link, link out
			n.First = targets - r.u32()
			targets = max(targets, n.First+1)
		case 3, 4: // devices
			n.Size = int64(r.uvarint())
		}
	}
	inline := uint32(0)
	for i := range inodes {
		n := &inodes[i]
		switch {
		case r.x.Attrs[n.Attr].Kind != 1:
		case n.Count > 0:
			n.Size = r.sizeOf(r.x.Runs[n.First : n.First+n.Count])
		default:
			if n.Size = int64(r.uvarint()); n.Size > 0 {
				n.First = inline
				inline += uint32(n.Size)
			}
		}
	}
}

func (r *textReader) sizeOf(runs []chunkfmt.Run) (size int64) {
	for _, run := range runs {
		for i := range run.Count {
			at := run.Chunk
			if !run.Repeat {
				at += i
			}
			size += int64(r.x.Chunks[at].Length)
		}
	}
	return size
}

func (r *textReader) entries() {
	r.x.Entries = table[chunkfmt.Entry](r.n[nEntries])
	lengths := r.take(r.n[nEntries])
	next := uint32(1)
	for i := range r.x.Entries {
		if back := r.u32(); back > 0 {
			r.x.Entries[i].Inode = next - back
		} else {
			r.x.Entries[i].Inode = next
			next++
		}
	}
	for i := range lengths {
		r.x.Entries[i].Name = string(r.take(int(lengths[i])))
	}
	inodes := r.x.Inodes
	inodes[0].Nlink = 2
	for dir := range inodes {
		if r.x.Attrs[inodes[dir].Attr].Kind != 0 {
			continue
		}
		for _, e := range r.x.Entries[inodes[dir].First:][:inodes[dir].Count] {
			n := &inodes[e.Inode]
			if n.Nlink == 0 {
				n.Parent = uint32(dir)
			}
			n.Nlink++
			if r.x.Attrs[n.Attr].Kind == 0 {
				n.Nlink++
				inodes[dir].Nlink++
			}
		}
	}
}

func (r *textReader) inline() {
	if p := r.take(r.n[nInline]); len(p) > 0 {
		r.x.Inline = bytes.Clone(p)
	}
}
