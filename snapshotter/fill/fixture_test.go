package fill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

// random returns bytes that a group of them does not get much smaller by
// compression.
func random(seed int64, n int) []byte {
	p := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(p)
	return p
}

// fixture is a blob with groups of equal plain size, each a chunk. Without
// compression, as zstd's decoders are shared by tests with clocks of their own,
// which may not be.
type fixture struct {
	table  *device.Table
	stored []byte
	plain  [][]byte
}

func newFixture(t testing.TB, groups, size int) *fixture {
	t.Helper()
	return makeFixture(t, groups, func(i int) ([]byte, []byte, chunkfmt.Codec) {
		plain := random(int64(i), size)
		return plain, plain, chunkfmt.Plain
	})
}

// newZstdFixture is a fixture that is compressed to about half its size.
func newZstdFixture(t testing.TB, groups, size int) *fixture {
	t.Helper()
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	return makeFixture(t, groups, func(i int) ([]byte, []byte, chunkfmt.Codec) {
		plain := append(random(int64(i), size/2), make([]byte, size-size/2)...)
		return plain, z.EncodeAll(plain, nil), chunkfmt.Zstd
	})
}

func makeFixture(t testing.TB, groups int, content func(i int) (plain, stored []byte, codec chunkfmt.Codec)) *fixture {
	t.Helper()
	x := &fixture{}
	blob := chunkfmt.Blob{}
	var chunks []chunkfmt.Chunk
	places := make([]uint32, groups)
	for i := range groups {
		plain, stored, codec := content(i)
		size := len(plain)
		blob.Groups = append(blob.Groups, chunkfmt.Group{
			Offset: int64(len(x.stored)), Stored: uint32(len(stored)), Plain: uint32(size),
			Codec: codec, Digest: chunkfmt.Sum(stored), Device: int64(i) * int64(size),
		})
		chunks = append(chunks, chunkfmt.Chunk{Group: uint32(i), Length: uint32(size), Digest: chunkfmt.Sum(plain)})
		places[i] = uint32(i)
		x.stored = append(x.stored, stored...)
		x.plain = append(x.plain, plain)
	}
	blob.Digest, blob.Size, blob.DeviceSize = chunkfmt.Sum(x.stored), int64(len(x.stored)), int64(groups)*int64(len(x.plain[0]))
	draft := chunkfmt.NewDraft()
	if err := draft.Put("file", &chunkfmt.Node{Kind: chunkfmt.File, Mode: 0o644, Size: blob.DeviceSize, Chunks: places}); err != nil {
		t.Fatal(err)
	}
	tree, err := draft.Freeze(chunks, []chunkfmt.Blob{blob})
	if err != nil {
		t.Fatal(err)
	}
	if x.table, err = device.NewTable(tree, 0); err != nil {
		t.Fatal(err)
	}
	return x
}

// memory is a device in memory.
type memory struct {
	x       *fixture
	repos   []string
	full    error // of Write
	onWrite func(group int)

	mu      sync.Mutex
	written map[int][]byte
	writes  int
}

func (x *fixture) device() *memory {
	return &memory{x: x, repos: []string{"registry.test/app"}, written: map[int][]byte{}}
}

func (m *memory) Table() *device.Table { return m.x.table }
func (m *memory) Origins() []string    { return m.repos }

func (m *memory) Has(g int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.written[g] != nil
}

func (m *memory) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.written)
}

func (m *memory) Complete() bool { return m.count() == len(m.x.plain) }

func (m *memory) Write(g int, plain []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full != nil {
		return m.full
	}
	m.writes++
	m.written[g] = append([]byte{}, plain...)
	if m.onWrite != nil {
		m.onWrite(g)
	}
	return nil
}

// check compares what is there.
func (m *memory) check(t *testing.T, groups ...int) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range groups {
		if string(m.written[g]) != string(m.x.plain[g]) {
			t.Errorf("group %d: %d bytes, not those of the blob", g, len(m.written[g]))
		}
	}
}

// read is one read of a fetcher.
type read struct {
	first, end int // groups
	repo       string
	priority   node.Priority
}

// fetcher serves a fixture's blob. Hooks run in the reads' goroutines.
type fetcher struct {
	x *fixture
	// before, if set, is called with each read's number; its error is the
	// read's.
	before func(ctx context.Context, n int, r read) error
	// bytes, if set, returns what is sent for a group.
	bytes func(n, group int, stored []byte) []byte
	// between, if set, is called before a group is sent.
	between func(ctx context.Context, n, group int) error

	mu        sync.Mutex
	reads     []read
	discarded int
}

func (f *fetcher) Discard(context.Context, node.Blob) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.discarded++
	return nil
}

func (f *fetcher) log() []read {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]read{}, f.reads...)
}

func (f *fetcher) Stream(ctx context.Context, b node.Blob, off, n int64, p node.Priority, w io.Writer) error {
	groups := f.x.table.Blob.Groups
	r := read{first: -1, repo: b.Repo, priority: p}
	for i := range groups {
		if groups[i].Offset == off {
			r.first = i
		}
		if end(&groups[i]) == off+n {
			r.end = i + 1
		}
	}
	if r.first < 0 || r.end <= r.first || b.Digest != f.x.table.Blob.Digest || len(b.Ends) != len(groups) {
		return fmt.Errorf("read of %d bytes at %d of %+v", n, off, b)
	}
	f.mu.Lock()
	f.reads = append(f.reads, r)
	number := len(f.reads) - 1
	f.mu.Unlock()
	if f.before != nil {
		if err := f.before(ctx, number, r); err != nil {
			return err
		}
	}
	for g := r.first; g < r.end; g++ {
		if f.between != nil {
			if err := f.between(ctx, number, g); err != nil {
				return err
			}
		}
		p := f.x.stored[groups[g].Offset:end(&groups[g])]
		if f.bytes != nil {
			p = f.bytes(number, g, p)
		}
		for len(p) > 0 { // in parts that are not the groups'
			if err := ctx.Err(); err != nil {
				return err
			}
			part := p[:min(len(p), 1000)]
			if _, err := w.Write(part); err != nil {
				return err
			}
			p = p[len(part):]
		}
	}
	return nil
}

func newFiller(t testing.TB, o Options) *Filler {
	t.Helper()
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// group fills one group.
func (f *Filler) group(ctx context.Context, d *memory, g int) error {
	size := int64(d.x.table.Blob.Groups[g].Plain)
	return f.fill(ctx, d, int64(g)*size+size/2, 1)
}

var errTest = errors.New("not today")
