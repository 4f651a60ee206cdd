package build

import (
	"io"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// imageContents cuts the whole tar into groups: no chunk lies in two of them,
// and a large file begins one.
type imageContents struct {
	*walk
	data   *dataContents
	slab   *slab
	used   int
	pieces []piece
}

func newImageContents(w *walk, d *dataContents) *imageContents {
	c := &imageContents{walk: w, data: d}
	w.tap.keep = c.keep
	return c
}

// keep adds bytes that are no content, or that of a sparse file.
func (c *imageContents) keep(p []byte) error {
	for len(p) > 0 {
		buf, err := c.room(1)
		if err != nil {
			return err
		}
		n := copy(buf, p)
		c.used += n
		p = p[n:]
	}
	return nil
}

// room returns the rest of the group if it has n bytes, or else a new one.
func (c *imageContents) room(n int) ([]byte, error) {
	if c.slab != nil && c.used+n > int(c.b.o.GroupSize) {
		if err := c.flush(); err != nil {
			return nil, err
		}
	}
	if c.slab == nil {
		s, err := c.b.budget.get(c.ctx, c.at)
		if err != nil {
			return nil, err
		}
		c.slab, c.used = s, 0
	}
	return c.slab.buf[c.used:c.b.o.GroupSize], nil
}

func (c *imageContents) flush() error {
	if c.slab == nil {
		return nil
	}
	out := batch{slab: c.slab, pieces: c.pieces, raw: &rawGroup{plain: c.used}}
	c.slab, c.used, c.pieces = nil, 0, nil
	return c.send(c.ctx, out)
}

func (c *imageContents) file(n *chunkfmt.Node, r *ranks, linear bool) error {
	if !linear {
		return c.data.file(n, r, linear)
	}
	if n.Size >= c.b.o.GroupSize && c.used > 0 {
		if err := c.flush(); err != nil {
			return err
		}
	}
	c.tap.keep = nil // content goes where it belongs without a copy
	defer func() { c.tap.keep = c.keep }()
	for at := int64(0); at < n.Size; {
		length := int(min(c.b.o.ChunkSize, n.Size-at))
		buf, err := c.room(length)
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(c.tar, buf[:length]); err != nil {
			return err
		}
		c.add(n, at, buf[:length])
		at += int64(length)
	}
	return nil
}

func (c *imageContents) add(n *chunkfmt.Node, at int64, data []byte) {
	p := piece{node: n, at: at, offset: uint32(c.used), length: uint32(len(data))} //nolint:gosec // G115: within a slab
	if isZero(data) {
		p.digest, p.holes = c.b.zeros.digest(len(data)), 1
	} else {
		p.digest = chunkfmt.Sum(data)
	}
	c.pieces = append(c.pieces, p)
	c.used += len(data)
}

func (c *imageContents) end() error {
	if err := c.flush(); err != nil {
		return err
	}
	return c.data.end()
}
