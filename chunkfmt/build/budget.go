package build

import (
	"context"
	"sync"
)

// slab is a buffer on its way from a scanner to the packer.
type slab struct {
	buf []byte
	of  *budget
}

// release gives the buffer back. A nil slab has none.
func (s *slab) release() {
	if s != nil && s.of != nil {
		s.of.put(s)
	}
}

// budget hands out a fixed number of slabs to the scanners. The last few are
// kept for the layer that the packer is at, without whose progress no slab of
// any other layer would ever come back.
type budget struct {
	size    int64
	reserve int

	mu      sync.Mutex
	free    int
	lowest  int
	idle    []*slab
	changed chan struct{} // closed when free or lowest changes
}

func newBudget(s *settings) *budget {
	return &budget{size: s.slabSize(), reserve: s.reserve, free: s.slabs, changed: make(chan struct{})}
}

// get waits until the layer may have a slab.
func (b *budget) get(ctx context.Context, layer int) (*slab, error) {
	for {
		s, changed := b.try(layer)
		if s != nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (b *budget) try(layer int) (*slab, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.free == 0 || layer > b.lowest && b.free <= b.reserve {
		return nil, b.changed
	}
	b.free--
	if n := len(b.idle); n > 0 {
		s := b.idle[n-1]
		b.idle = b.idle[:n-1]
		return s, nil
	}
	return &slab{buf: make([]byte, b.size), of: b}, nil
}

func (b *budget) put(s *slab) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free++
	b.idle = append(b.idle, s)
	b.wake()
}

// advance makes a layer the one that may have the last slabs.
func (b *budget) advance(layer int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lowest = layer
	b.wake()
}

func (b *budget) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}
