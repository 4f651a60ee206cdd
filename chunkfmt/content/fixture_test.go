package content_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"sync/atomic"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// memory is a Source of blobs in memory that counts its reads.
type memory struct {
	blobs map[chunkfmt.Digest][]byte
	reads atomic.Int64
}

var errNoBlob = errors.New("no such blob")

func (m *memory) ReadAt(ctx context.Context, b *chunkfmt.Blob, p []byte, off int64) error {
	m.reads.Add(1)
	if err := ctx.Err(); err != nil {
		return err
	}
	blob, ok := m.blobs[b.Digest]
	if !ok {
		return errNoBlob
	}
	if off+int64(len(p)) > int64(len(blob)) {
		return fmt.Errorf("blob %s: %w", b.Digest, io.ErrUnexpectedEOF)
	}
	copy(p, blob[off:])
	return nil
}

// sized is a memory that knows its blobs' lengths.
type sized struct{ *memory }

func (m sized) Size(_ context.Context, b *chunkfmt.Blob) (int64, error) {
	blob, ok := m.blobs[b.Digest]
	if !ok {
		return 0, errNoBlob
	}
	return int64(len(blob)), nil
}

func random(seed int64, n int) []byte {
	p := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(p)
	return p
}

func compress(t testing.TB, codec chunkfmt.Codec, plain []byte) []byte {
	t.Helper()
	switch codec {
	case chunkfmt.Zstd:
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		return z.EncodeAll(plain, nil)
	case chunkfmt.Gzip:
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	return bytes.Clone(plain)
}

// image makes a tree and its blobs.
type image struct {
	t      testing.TB
	draft  *chunkfmt.Draft
	chunks []chunkfmt.Chunk
	blobs  []chunkfmt.Blob
	data   [][]byte
}

func newImage(t testing.TB) *image { return &image{t: t, draft: chunkfmt.NewDraft()} }

// blob begins a blob; groups go into the last one.
func (m *image) blob(unproven bool) {
	m.blobs = append(m.blobs, chunkfmt.Blob{Unproven: unproven})
	m.data = append(m.data, nil)
}

// group adds a group with chunks at block boundaries, and trailing bytes that
// no chunk has. It returns the chunks' places.
func (m *image) group(codec chunkfmt.Codec, trailing int, contents ...[]byte) []uint32 {
	m.t.Helper()
	b := &m.blobs[len(m.blobs)-1]
	data := &m.data[len(m.blobs)-1]
	g := chunkfmt.Group{Codec: codec, Offset: int64(len(*data)), Device: b.DeviceSize}
	var plain []byte
	var places []uint32
	for _, c := range contents {
		plain = append(plain, make([]byte, -len(plain)&(chunkfmt.BlockSize-1))...)
		places = append(places, uint32(len(m.chunks)))
		m.chunks = append(m.chunks, chunkfmt.Chunk{
			Blob: uint32(len(m.blobs) - 1), Group: uint32(len(b.Groups)),
			Offset: uint32(len(plain)), Length: uint32(len(c)), Digest: chunkfmt.Sum(c),
		})
		plain = append(plain, c...)
	}
	g.Plain = uint32(len(plain))
	b.DeviceSize += (int64(len(plain)) + chunkfmt.BlockSize - 1) &^ (chunkfmt.BlockSize - 1)
	if codec == chunkfmt.Filler {
		g.Plain, g.Device = 0, 0
	}
	stored := compress(m.t, codec, append(plain, random(99, trailing)...))
	if !b.Unproven {
		g.Digest = chunkfmt.Sum(stored)
	}
	g.Stored = uint32(len(stored))
	b.Groups = append(b.Groups, g)
	*data = append(*data, stored...)
	return places
}

func (m *image) hole(n int) uint32 {
	m.chunks = append(m.chunks, chunkfmt.Chunk{Blob: chunkfmt.Hole, Length: uint32(n), Digest: chunkfmt.Sum(make([]byte, n))})
	return uint32(len(m.chunks) - 1)
}

func (m *image) file(name string, chunks ...uint32) {
	m.t.Helper()
	size := int64(0)
	for _, c := range chunks {
		size += int64(m.chunks[c].Length)
	}
	m.put(name, &chunkfmt.Node{Kind: chunkfmt.File, Mode: 0o644, Size: size, Chunks: chunks})
}

func (m *image) put(name string, n *chunkfmt.Node) {
	m.t.Helper()
	if err := m.draft.Put(name, n); err != nil {
		m.t.Fatal(err)
	}
}

func (m *image) freeze() (*chunkfmt.Tree, *memory) {
	m.t.Helper()
	src := &memory{blobs: map[chunkfmt.Digest][]byte{}}
	for i := range m.blobs {
		m.blobs[i].Digest = chunkfmt.Sum(m.data[i])
		m.blobs[i].Size = int64(len(m.data[i]))
		src.blobs[m.blobs[i].Digest] = m.data[i]
	}
	tree, err := m.draft.Freeze(m.chunks, m.blobs)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := (&chunkfmt.Index{Tree: *tree}).Validate(); err != nil {
		m.t.Fatal(err)
	}
	return tree, src
}

// sample is a tree with files of all sorts, and their contents.
func sample(t testing.TB) (*chunkfmt.Tree, *memory, map[string][]byte) {
	t.Helper()
	m := newImage(t)
	m.blob(false)
	a, b, c := random(1, 8192), random(2, 5000), bytes.Repeat([]byte("text "), 20_000)
	z := m.group(chunkfmt.Zstd, 0, a, b)
	g := m.group(chunkfmt.Gzip, 0, c)
	m.group(chunkfmt.Filler, 0, []byte("filler"))
	p := m.group(chunkfmt.Plain, 0, a, random(3, 4096))
	m.blob(true)
	u := m.group(chunkfmt.Zstd, 300_000, random(4, 9000))
	v := m.group(chunkfmt.Gzip, 300_000, random(5, 9000), random(6, 10))
	h, h2 := m.hole(4096), m.hole(10_000)

	contents := map[string][]byte{}
	add := func(name string, chunks ...uint32) {
		m.file(name, chunks...)
		contents[name] = nil
		for _, c := range chunks {
			contents[name] = append(contents[name], m.plain(c)...)
		}
	}
	add("zstd/ab", z[0], z[1])
	add("zstd/b", z[1])
	add("gzip", g[0])
	add("plain", p[0], p[1])
	add("unproven/zstd", u[0])
	add("unproven/gzip", v[0])
	add("unproven/small", v[1])
	add("sparse", h, z[0], h, h, h, p[1], h2)
	add("repeats", p[1], p[1], p[1], p[1], p[1], z[0])
	m.put("inline", &chunkfmt.Node{Kind: chunkfmt.File, Mode: 0o600, Size: 5, Inline: []byte("tiny\n")})
	contents["inline"] = []byte("tiny\n")
	m.put("empty", &chunkfmt.Node{Kind: chunkfmt.File})
	contents["empty"] = nil
	tree, src := m.freeze()
	return tree, src, contents
}

// plain decodes a chunk with the libraries alone.
func (m *image) plain(at uint32) []byte {
	m.t.Helper()
	c := m.chunks[at]
	if c.Blob == chunkfmt.Hole {
		return make([]byte, c.Length)
	}
	g := m.blobs[c.Blob].Groups[c.Group]
	stored := m.data[c.Blob][g.Offset : g.Offset+int64(g.Stored)]
	var r io.Reader = bytes.NewReader(stored)
	var err error
	switch g.Codec {
	case chunkfmt.Zstd:
		r, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	case chunkfmt.Gzip:
		r, err = gzip.NewReader(r)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	all, err := io.ReadAll(r)
	if err != nil {
		m.t.Fatal(err)
	}
	return all[c.Offset : c.Offset+c.Length]
}
