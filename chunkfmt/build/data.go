package build

import (
	"bytes"
	"io"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// dataContents copies content into slabs, for blobs that have nothing else.
type dataContents struct {
	*walk
	zeros  *zeros
	slab   *slab
	used   int
	pieces []piece
}

// maxPieces bounds the pieces of a batch.
const maxPieces = 4096

func (d *dataContents) file(n *chunkfmt.Node, r *ranks, _ bool) error { return d.rest(n, r, 0) }

// rest takes the content of a file from a block on.
func (d *dataContents) rest(n *chunkfmt.Node, r *ranks, from int64) error {
	large := n.Size >= d.b.o.GroupSize
	size := d.b.o.ChunkSize
	for at := from; at < n.Size; {
		length := int(min(size-at%size, n.Size-at))
		buf, err := d.room(length)
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(d.tar, buf); err != nil {
			return err
		}
		p := piece{
			node: n, at: at, offset: uint32(d.used), length: uint32(length), //nolint:gosec // G115: within a slab
			rank: r.at(at, int64(length)), large: large && at == from,
		}
		if isZero(buf) {
			d.hole(p)
		} else {
			p.digest = chunkfmt.Sum(buf)
			d.pieces = append(d.pieces, p)
			d.used += length
		}
		at += int64(length)
	}
	return nil
}

// hole adds a piece of zeros, to the last one if that is alike.
func (d *dataContents) hole(p piece) {
	if n := len(d.pieces); n > 0 {
		last := &d.pieces[n-1]
		if last.holes > 0 && last.node == p.node && last.length == p.length {
			last.holes++
			return
		}
	}
	p.digest, p.holes = d.zeros.digest(int(p.length)), 1
	d.pieces = append(d.pieces, p)
}

// room returns space in a slab, which is d.used bytes in.
func (d *dataContents) room(n int) ([]byte, error) {
	if d.slab != nil && (d.used+n > len(d.slab.buf) || len(d.pieces) >= maxPieces) {
		if err := d.end(); err != nil {
			return nil, err
		}
	}
	if d.slab == nil {
		s, err := d.b.budget.get(d.ctx, d.at)
		if err != nil {
			return nil, err
		}
		d.slab, d.used = s, 0
	}
	return d.slab.buf[d.used : d.used+n], nil
}

// end hands over what is left.
func (d *dataContents) end() error {
	if d.slab == nil {
		return nil
	}
	out := batch{slab: d.slab, pieces: d.pieces}
	d.slab, d.used, d.pieces = nil, 0, nil
	return d.send(d.ctx, out)
}

// isZero reports that a non-empty p is all zeros.
func isZero(p []byte) bool { return p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) }
