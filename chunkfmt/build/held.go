package build

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// held keeps the chunks that the trace lists until the end of their layer: in
// memory as long as there is room, then in a file.
type held struct {
	list  []heldChunk
	used  int64 // bytes in memory
	limit int64
	dir   string
	file  *os.File
	size  int64 // of the file
}

type heldChunk struct {
	chunk  uint32 // in packer.chunks
	rank   uint32
	length uint32
	data   []byte // nil: in the file
	at     int64  // in the file
}

func (h *held) reset(b *builder) {
	h.list, h.used, h.size = nil, 0, 0
	h.limit, h.dir = b.o.held, b.dir
}

// add keeps a copy of data.
func (h *held) add(c heldChunk, data []byte) error {
	c.length = uint32(len(data)) //nolint:gosec // G115: at most a group
	if h.used+int64(len(data)) <= h.limit {
		c.data = bytes.Clone(data)
		h.used += int64(len(data))
	} else {
		if err := h.spill(data); err != nil {
			return err
		}
		c.at = h.size
		h.size += int64(len(data))
	}
	h.list = append(h.list, c)
	return nil
}

func (h *held) spill(data []byte) error {
	if h.file == nil {
		f, err := os.CreateTemp(h.dir, ".trace-*")
		if err != nil {
			return fmt.Errorf("making a file for chunks of the trace: %w", err)
		}
		h.file = f
	}
	if _, err := h.file.WriteAt(data, h.size); err != nil {
		return fmt.Errorf("keeping a chunk of the trace: %w", err)
	}
	return nil
}

func (h *held) read(c *heldChunk, buf []byte) ([]byte, error) {
	if c.data != nil {
		return c.data, nil
	}
	buf = buf[:c.length]
	if _, err := io.ReadFull(io.NewSectionReader(h.file, c.at, int64(c.length)), buf); err != nil {
		return nil, fmt.Errorf("reading a chunk of the trace back: %w", err)
	}
	return buf, nil
}

func (h *held) close() {
	if h.file != nil {
		_ = h.file.Close()
		_ = os.Remove(h.file.Name()) // a temporary file of ours
	}
}

// hold records a chunk whose place is not known yet.
func (p *packer) hold(piece *piece, data []byte) error {
	if p.data == nil {
		p.data = p.newBlob()
	}
	at := p.add(piece, chunkfmt.Chunk{Blob: p.data.number})
	return p.held.add(heldChunk{chunk: at, rank: piece.rank}, data)
}

// packHeld gives the chunks of the trace their places, in the order of their
// first accesses.
func (p *packer) packHeld(ctx context.Context) error {
	h := &p.held
	if len(h.list) == 0 {
		return nil
	}
	if err := p.seal(ctx); err != nil {
		return err
	}
	slices.SortStableFunc(h.list, func(a, b heldChunk) int { return cmp.Compare(a.rank, b.rank) })
	buf := make([]byte, p.b.o.ChunkSize)
	for i := range h.list {
		c := &h.list[i]
		data, err := h.read(c, buf)
		if err != nil {
			return err
		}
		group, offset, err := p.store(ctx, data, false)
		if err != nil {
			return err
		}
		to := &p.chunks[c.chunk].chunk
		to.Group, to.Offset = group, offset
	}
	return nil
}
