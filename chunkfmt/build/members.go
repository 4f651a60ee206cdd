package build

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/frames"
)

// members reads the plain bytes of a stream of frames and joins neighbours into
// groups.
type members struct {
	fr     *frames.Reader
	format frames.Format
	codec  chunkfmt.Codec
	target int

	next    frames.Frame // read but in no group yet, if ahead
	ahead   bool
	offset  int64 // where the last group ends in the stream
	plain   []byte
	pos     int     // in plain, which is the last group's
	batches []batch // one for each group

	// tail is the stream from the first frame on that is too large.
	tail *tail
}

// tail is stored bytes that are not decoded group by group.
type tail struct {
	*filler
	plain io.ReadCloser
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
	return &members{fr: fr, format: format, codec: codec, target: target}, nil
}

func (m *members) close() {
	if m.tail != nil {
		_ = m.tail.plain.Close() // has nothing to flush
	}
}

// left is how much of the last group has not been read.
func (m *members) left() int { return len(m.plain) - m.pos }

// Read never returns bytes of two groups at once.
func (m *members) Read(p []byte) (int, error) {
	if err := m.fill(); err != nil {
		return 0, err
	}
	if m.tail != nil {
		return m.tail.plain.Read(p)
	}
	n := copy(p, m.plain[m.pos:])
	m.pos += n
	return n, nil
}

// fill makes sure that there is something left of the last group, or a tail.
func (m *members) fill() error {
	for m.left() == 0 && m.tail == nil {
		if err := m.load(); err != nil {
			return err
		}
	}
	return nil
}

// load makes the next group: of frames that have content until the target is
// reached, or of frames that have none.
func (m *members) load() error {
	err := m.peek()
	if errors.Is(err, frames.ErrTooLarge) {
		return m.openTail()
	}
	if err != nil {
		return err
	}
	g := &chunkfmt.Group{Offset: m.next.Offset, Codec: m.codec}
	if len(m.next.Plain) == 0 {
		g.Codec = chunkfmt.Filler
	}
	h := sha256.New()
	m.plain, m.pos = m.plain[:0], 0
	for joins := true; joins; {
		m.take(g, h)
		err := m.peek()
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, frames.ErrTooLarge) {
			return err
		}
		joins = err == nil && m.joins(g)
	}
	g.Plain, g.Digest = uint32(len(m.plain)), sum(h) //nolint:gosec // G115: at most MaxGroupPlain
	m.add(g)
	return nil
}

// joins reports that the next frame may be in the same group.
func (m *members) joins(g *chunkfmt.Group) bool {
	return (len(m.next.Plain) == 0) == (g.Codec == chunkfmt.Filler) &&
		len(m.plain)+len(m.next.Plain) <= m.target &&
		int(g.Stored)+len(m.next.Stored) <= chunkfmt.MaxGroupStored
}

func (m *members) add(g *chunkfmt.Group) {
	m.offset = g.Offset + int64(g.Stored)
	m.batches = append(m.batches, batch{raw: &rawGroup{plain: int(g.Plain), stored: g}})
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

func (m *members) openTail() error {
	f := &filler{r: m.fr.Rest(), hash: sha256.New(), offset: m.offset}
	plain, err := frames.NewPlainReader(f, m.format)
	if err != nil {
		return err
	}
	m.plain, m.pos = nil, 0
	m.tail = &tail{filler: f, plain: plain}
	return nil
}

// finish makes groups of the tail.
func (m *members) finish() error {
	if m.tail == nil {
		return nil
	}
	if _, err := io.Copy(io.Discard, m.tail.filler); err != nil {
		return err
	}
	m.tail.cut()
	for i := range m.tail.groups {
		m.add(&m.tail.groups[i])
	}
	return nil
}

// filler makes groups without content of what it reads.
type filler struct {
	r      io.Reader
	hash   hash.Hash
	offset int64
	n      int
	groups []chunkfmt.Group
}

func (f *filler) Read(p []byte) (int, error) {
	n, err := f.r.Read(p[:min(len(p), chunkfmt.MaxGroupPlain-f.n)])
	f.hash.Write(p[:n])
	if f.n += n; f.n == chunkfmt.MaxGroupPlain {
		f.cut()
	}
	return n, err
}

func (f *filler) cut() {
	if f.n == 0 {
		return
	}
	f.groups = append(f.groups, chunkfmt.Group{
		Offset: f.offset, Stored: uint32(f.n), Codec: chunkfmt.Filler, Digest: sum(f.hash), //nolint:gosec // G115: at most MaxGroupPlain
	})
	f.offset += int64(f.n)
	f.n = 0
	f.hash.Reset()
}
