package build

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/frames"
)

// A layer is read in place when it begins with probeFrames frames of at most
// probePlain decoded bytes each. More than two, for what an ordinary tool makes
// of two concatenated files is no eStargz.
const (
	probeFrames = 4
	probePlain  = 4 << 20
)

// errNotInPlace says that a layer that was begun in place cannot be finished so.
var errNotInPlace = errors.New("layer cannot be indexed in place")

// probe tells whether a layer is worth reading in place, and returns its stream
// from the start again.
func probe(br *bufio.Reader, format frames.Format) (io.Reader, bool, error) {
	if format == frames.Tar {
		return br, false, nil
	}
	fr, err := frames.NewReader(br, format, probePlain, probePlain)
	if err != nil {
		return nil, false, err
	}
	var kept []byte
	for n := 0; n < probeFrames; {
		f, err := fr.Next()
		if err != nil {
			// What is wrong will be found again by who reads the stream.
			return io.MultiReader(bytes.NewReader(kept), fr.Rest()), false, nil //nolint:nilerr // see above
		}
		kept = append(kept, f.Stored...)
		if len(f.Plain) > 0 {
			n++
		}
	}
	return io.MultiReader(bytes.NewReader(kept), fr.Rest()), true, nil
}

// readInPlace reads a layer of many frames. It reports false when that turned
// out impossible.
func (s *scan) readInPlace(ctx context.Context, src *source, rest io.Reader, format frames.Format) (bool, error) {
	m, err := newMembers(rest, format, int(s.b.o.GroupSize))
	if err != nil {
		return false, err
	}
	defer m.close()
	w := newWalk(ctx, s, newTap(m, s.b.o.MaxPlain))
	c := &placeContents{walk: w, m: m, data: &dataContents{walk: w, zeros: s.b.zeros}, scratch: make([]byte, s.b.o.ChunkSize)}
	w.to = c
	err = w.all()
	if errors.Is(err, errNotInPlace) && !c.sent {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s.inPlace = true
	return true, s.done(src, rest, w.tap)
}

// placeContents finds content in the groups that it lies in already. Chunks end
// at multiples of the chunk size in the file and where groups end.
//
// The packer gets to know of the groups only at the end, or when a frame comes
// that is too large to be a group: what lies in that and behind it is stored
// once more.
type placeContents struct {
	*walk
	m       *members
	data    *dataContents
	scratch []byte
	sent    bool
}

func (c *placeContents) file(n *chunkfmt.Node, r *ranks, linear bool) error {
	if !linear && !c.sent {
		return errNotInPlace
	}
	size := c.b.o.ChunkSize
	for at := int64(0); at < n.Size; {
		if err := c.m.fill(); err != nil {
			return err
		}
		if c.m.tail != nil {
			return c.behind(n, r, at)
		}
		length := int(min(size-at%size, n.Size-at, int64(c.m.left())))
		c.add(n, at, c.m.plain[c.m.pos:c.m.pos+length])
		if _, err := io.ReadFull(c.tar, c.scratch[:length]); err != nil {
			return err
		}
		at += int64(length)
	}
	return nil
}

// behind takes the content of a file, from some place on, that is in no group.
func (c *placeContents) behind(n *chunkfmt.Node, r *ranks, at int64) error {
	if at%chunkfmt.BlockSize != 0 {
		return errNotInPlace // a page cannot lie half here and half there
	}
	if err := c.flush(); err != nil {
		return err
	}
	return c.data.rest(n, r, at)
}

func (c *placeContents) add(n *chunkfmt.Node, at int64, data []byte) {
	p := piece{node: n, at: at, offset: uint32(c.m.pos), length: uint32(len(data))} //nolint:gosec // G115: within a group
	end := at + int64(len(data))
	p.fixed = at%chunkfmt.BlockSize != 0 || end%chunkfmt.BlockSize != 0 && end < n.Size
	if !p.fixed && isZero(data) {
		p.digest, p.holes = c.b.zeros.digest(len(data)), 1
	} else {
		p.digest = chunkfmt.Sum(data)
	}
	to := &c.m.batches[len(c.m.batches)-1]
	to.pieces = append(to.pieces, p)
}

// flush sends the groups so far.
func (c *placeContents) flush() error {
	c.sent = true
	for _, b := range c.m.batches {
		if err := c.send(c.ctx, b); err != nil {
			return err
		}
	}
	c.m.batches = nil
	return nil
}

func (c *placeContents) end() error {
	if err := c.m.finish(); err != nil {
		return err
	}
	if err := c.flush(); err != nil {
		return err
	}
	return c.data.end()
}
