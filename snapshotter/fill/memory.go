package fill

import (
	"context"
	"math/bits"
	"sync"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

const (
	// decodeSlack is what decoders want behind the plain bytes, to be fast and
	// to copy nothing: see content.Decode.
	decodeSlack   = 64
	unprovenSlack = 128<<10 + decodeSlack
)

// allocate returns memory for a group, and waits until there is some.
func (f *Filler) allocate(ctx context.Context, c class, unproven bool, g *chunkfmt.Group) (*load, error) {
	plain := int(g.Plain) + decodeSlack
	if unproven {
		plain = int(g.Plain) + unprovenSlack
	}
	stored, decoded := sizeOf(int(g.Stored)), sizeOf(plain)
	l := &load{weight: int64(stored.bytes() + decoded.bytes())}
	if c != demand {
		if err := f.background.Acquire(ctx, f.backgroundShare(l.weight)); err != nil {
			return nil, err
		}
	}
	if err := f.memory.Acquire(ctx, min(l.weight, f.o.MemoryBudget)); err != nil {
		if c != demand {
			f.background.Release(f.backgroundShare(l.weight))
		}
		return nil, err
	}
	l.stored, l.plain = f.buffers.get(stored), f.buffers.get(decoded)
	return l, nil
}

// free takes back what allocate returned.
func (f *Filler) free(c class, l *load) {
	f.buffers.put(l.stored)
	f.buffers.put(l.plain)
	f.memory.Release(min(l.weight, f.o.MemoryBudget))
	if c != demand {
		f.background.Release(f.backgroundShare(l.weight))
	}
}

func (f *Filler) backgroundShare(weight int64) int64 { return min(weight, max(f.o.MemoryBudget/2, 1)) }

// size is a class of buffers: of (4 + size%4) << (size/4) KiB. At most a fifth of
// a buffer is not needed.
type size int

const minBuffer = 4 << 10

func (s size) bytes() int { return (4 + int(s)%4) << (int(s) / 4) * (minBuffer / 4) }

// sizeOf returns the smallest class of at least n bytes.
func sizeOf(n int) size {
	if n <= minBuffer {
		return 0
	}
	power := bits.Len(uint(n-1)) - bits.Len(minBuffer) // #nosec G115 -- n > minBuffer
	step := minBuffer / 4 << power                     // distance of classes
	s := size(4*power + (n+step-1)/step - 4)           // n in (4·step, 8·step]
	return s
}

// buffers keeps memory for the next group. The zero value is ready.
type buffers struct {
	mu    sync.Mutex
	pools map[size]*sync.Pool
}

func (b *buffers) pool(s size) *sync.Pool {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.pools[s]
	if p == nil {
		if b.pools == nil {
			b.pools = map[size]*sync.Pool{}
		}
		p = &sync.Pool{New: func() any { buf := make([]byte, 0, s.bytes()); return &buf }}
		b.pools[s] = p
	}
	return p
}

func (b *buffers) get(s size) []byte {
	return (*b.pool(s).Get().(*[]byte))[:0] //nolint:errcheck // nothing else is put there
}

func (b *buffers) put(p []byte) {
	p = p[:0]
	b.pool(sizeOf(cap(p))).Put(&p)
}
