package build

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
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
// out impossible. The packer gets to know of the layer only at its end.
func (s *scan) readInPlace(ctx context.Context, src *source, rest io.Reader, format frames.Format) (bool, error) {
	m, err := newMembers(rest, format, int(s.b.o.GroupSize))
	if err != nil {
		return false, err
	}
	w := newWalk(ctx, s, newTap(m, s.b.o.MaxPlain))
	w.to = &placeContents{walk: w, m: m, scratch: make([]byte, s.b.o.ChunkSize)}
	err = w.all()
	if errors.Is(err, frames.ErrTooLarge) || errors.Is(err, errNotInPlace) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := s.done(src, rest, w.tap); err != nil {
		return false, err
	}
	s.inPlace = true
	for _, b := range m.batches {
		if err := s.send(ctx, b); err != nil {
			return false, err
		}
	}
	return true, nil
}

// members reads a stream of frames and joins neighbours into groups.
type members struct {
	fr     *frames.Reader
	codec  chunkfmt.Codec
	target int

	next    frames.Frame // read but in no group yet, if ahead
	ahead   bool
	plain   []byte // of the last group
	pos     int
	batches []batch // one for each group
}

func newMembers(r io.Reader, format frames.Format, target int) (*members, error) {
	fr, err := frames.NewReader(r, format, chunkfmt.MaxGroupPlain, chunkfmt.MaxGroupStored)
	if err != nil {
		return nil, err
	}
	codec := chunkfmt.Gzip
	if format == frames.Zstd {
		codec = chunkfmt.Zstd
	}
	return &members{fr: fr, codec: codec, target: target}, nil
}

func (m *members) left() int { return len(m.plain) - m.pos }

// Read never returns bytes of two groups at once.
func (m *members) Read(p []byte) (int, error) {
	if err := m.fill(); err != nil {
		return 0, err
	}
	n := copy(p, m.plain[m.pos:])
	m.pos += n
	return n, nil
}

// fill makes sure that there is something left of the last group.
func (m *members) fill() error {
	for m.left() == 0 {
		if err := m.load(); err != nil {
			return err
		}
	}
	return nil
}

// load makes the next group: of frames that have content until the target is
// reached, or of frames that have none.
func (m *members) load() error {
	if err := m.peek(); err != nil {
		return err
	}
	g := &chunkfmt.Group{Offset: m.next.Offset, Codec: m.codec, Segments: []chunkfmt.Segment{}}
	if len(m.next.Plain) == 0 {
		g.Codec = chunkfmt.Filler
	}
	h := sha256.New()
	m.plain, m.pos = m.plain[:0], 0
	for {
		m.take(g, h)
		err := m.peek()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if (len(m.next.Plain) == 0) != (g.Codec == chunkfmt.Filler) ||
			len(m.plain)+len(m.next.Plain) > m.target ||
			int(g.Stored)+len(m.next.Stored) > chunkfmt.MaxGroupStored {
			break
		}
	}
	g.Plain, g.Digest = uint32(len(m.plain)), sum(h) //nolint:gosec // G115: at most MaxGroupPlain
	m.batches = append(m.batches, batch{raw: &rawGroup{plain: len(m.plain), stored: g}})
	return nil
}

func (m *members) take(g *chunkfmt.Group, h hash.Hash) {
	h.Write(m.next.Stored)
	g.Stored += uint32(len(m.next.Stored)) //nolint:gosec // G115: at most MaxGroupStored
	m.plain = append(m.plain, m.next.Plain...)
	m.ahead = false
}

func (m *members) peek() error {
	if m.ahead {
		return nil
	}
	f, err := m.fr.Next()
	if err != nil {
		return err
	}
	m.next, m.ahead = f, true
	return nil
}

// placeContents finds content in the groups that it lies in already. Chunks end
// at multiples of the chunk size in the file and where groups end.
type placeContents struct {
	*walk
	m       *members
	scratch []byte
}

func (c *placeContents) file(n *chunkfmt.Node, _ ranks, linear bool) error {
	if !linear {
		return errNotInPlace
	}
	size := c.b.o.ChunkSize
	for at := int64(0); at < n.Size; {
		if err := c.m.fill(); err != nil {
			return err
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

func (c *placeContents) end() error { return nil }
