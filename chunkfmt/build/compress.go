package build

import (
	"context"
	"fmt"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/klauspost/compress/zstd"
)

// task is a group on its way to a blob, or the end of a layer.
type task struct {
	blob *blob
	// group has what the packer knows: where the plain bytes lie in the device
	// and, in place, everything else.
	group chunkfmt.Group
	// filler groups are stored but have no content.
	filler bool
	plain  []byte
	slab   *slab // whose bytes plain are, or nil: then they are a pooled buffer
	// stored is what goes into the blob; nil in place.
	stored []byte
	pooled bool // stored is a pooled buffer, and plain was given back
	// done is closed when stored is there; nil if there is nothing to wait for.
	done chan struct{}

	end *layerEnd
}

// minSaving is how much of its size, in 1/32, a group must lose to be stored
// compressed: decoding costs time on every node.
const minSaving = 1

// compressor is one of the goroutines that compress.
type compressor struct {
	b   *builder
	enc *zstd.Encoder
}

func newCompressor(b *builder) (*compressor, error) {
	c := &compressor{b: b}
	if b.o.Codec == Plain {
		return c, nil
	}
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(b.o.level),
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), // the digest of the group covers more
		zstd.WithSingleSegment(true),
		zstd.WithWindowSize(windowSize(b.o.GroupSize)),
	)
	if err != nil {
		return nil, fmt.Errorf("making a zstd encoder: %w", err)
	}
	c.enc = enc
	return c, nil
}

// windowSize is the smallest window that has a whole group in it.
func windowSize(group int64) int {
	size := zstd.MinWindowSize
	for int64(size) < group {
		size *= 2
	}
	return size
}

// run works until there are no more jobs.
func (c *compressor) run(ctx context.Context) error {
	for {
		select {
		case t, more := <-c.b.jobs:
			if !more {
				return nil
			}
			c.work(t)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (c *compressor) work(t *task) {
	defer close(t.done)
	t.group.Codec = chunkfmt.Plain
	t.stored = t.plain
	if c.enc != nil {
		out := c.enc.EncodeAll(t.plain, c.b.outputs.get())
		// An image's layer must be zstd all over.
		if t.slab != nil || len(out) <= len(t.plain)-len(t.plain)*minSaving/32 {
			t.group.Codec = chunkfmt.Zstd
			t.stored, t.pooled = out, true
			c.b.giveBack(t)
		} else {
			c.b.outputs.put(out)
		}
	}
	t.group.Stored = uint32(len(t.stored)) //nolint:gosec // G115: at most MaxGroupStored
	t.group.Digest = chunkfmt.Sum(t.stored)
}

// giveBack returns the buffer of the plain bytes.
func (b *builder) giveBack(t *task) {
	if t.slab != nil {
		t.slab.release()
	} else {
		b.buffers.put(t.plain)
	}
	t.plain = nil
}

// pool keeps buffers of one capacity for reuse.
type pool struct {
	size int
	idle chan []byte
}

func newPool(size, n int) *pool { return &pool{size: size, idle: make(chan []byte, n)} }

// get returns an empty buffer.
func (p *pool) get() []byte {
	select {
	case b := <-p.idle:
		return b[:0]
	default:
		return make([]byte, 0, p.size)
	}
}

func (p *pool) put(b []byte) {
	select {
	case p.idle <- b:
	default:
	}
}
