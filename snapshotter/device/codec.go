package device

import (
	"encoding/binary"
	"math/bits"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// tableMagic opens an encoded table; the last byte is the version.
const tableMagic = "DFTABLE\x01"

const (
	flagUnproven = 1 << iota
	tableFlags   = 1<<iota - 1
)

// segmented is set in the codec byte of a group with Segments.
const segmented = 0x80

// Encode returns the bytes of a table, from which DecodeTable makes an equal
// one. Equal tables have equal bytes.
func (t *Table) Encode() []byte {
	b := &t.Blob
	p := make([]byte, 0, len(tableMagic)+96+48*len(b.Groups))
	p = append(p, tableMagic...)
	p = append(p, t.Key[:]...)
	p = append(p, b.Digest[:]...)
	flags := byte(0)
	if b.Unproven {
		flags = flagUnproven
	}
	p = append(p, flags)
	p = appendInt(p, b.Size)
	p = appendInt(p, b.DeviceSize)
	p = appendInt(p, int64(len(b.Groups)))
	end := int64(0)
	for i := range b.Groups {
		p, end = appendGroup(p, &b.Groups[i], end)
		if b.Unproven {
			p = appendChecks(p, t.Checks[i])
		} else {
			p = append(p, b.Groups[i].Digest[:]...)
		}
	}
	sum := chunkfmt.Sum(p)
	return append(p, sum[:]...)
}

func appendInt(p []byte, v int64) []byte {
	return binary.AppendUvarint(p, uint64(v)) // #nosec G115 -- never negative in a valid table
}

// appendGroup writes all of a group but its digest. Places are written as
// distances from the end of the one before.
func appendGroup(p []byte, g *chunkfmt.Group, end int64) ([]byte, int64) {
	codec := byte(g.Codec)
	if g.Segments != nil {
		codec |= segmented
	}
	p = append(p, codec)
	p = appendInt(p, int64(g.Stored))
	p = appendInt(p, int64(g.Plain))
	switch {
	case g.Segments != nil:
		p = appendInt(p, int64(len(g.Segments)))
		plain := uint32(0)
		for _, s := range g.Segments {
			p = appendInt(p, int64(s.Offset-plain))
			p = appendInt(p, int64(s.Length))
			p = appendInt(p, s.Device-end)
			plain, end = s.Offset+s.Length, s.Device+int64(s.Length)
		}
	case g.Codec != chunkfmt.Filler:
		p = appendInt(p, g.Device-end)
		end = g.Device + int64(g.Plain)
	}
	return p, end
}

func appendChecks(p []byte, checks []Check) []byte {
	p = appendInt(p, int64(len(checks)))
	plain := uint32(0)
	for _, c := range checks {
		p = appendInt(p, int64(c.Offset-plain))
		p = appendInt(p, int64(c.Length))
		p = append(p, c.Digest[:]...)
		plain = c.Offset + c.Length
	}
	return p
}

// DecodeTable is the inverse of Encode. It accepts only what Encode writes, and
// proves it: the key is that of the content. Errors wrap ErrTable.
func DecodeTable(p []byte) (*Table, error) {
	if len(p) < len(tableMagic)+len(chunkfmt.Digest{}) || string(p[:len(tableMagic)]) != tableMagic {
		return nil, invalid("no table of this version")
	}
	body := p[:len(p)-len(chunkfmt.Digest{})]
	if chunkfmt.Sum(body) != chunkfmt.Digest(p[len(body):]) {
		return nil, invalid("wrong checksum")
	}
	r := &tableReader{p: body[len(tableMagic):]}
	t := r.table()
	if r.err == nil && len(r.p) > 0 {
		r.fail("%d bytes too many", len(r.p))
	}
	if r.err != nil {
		return nil, r.err
	}
	if err := t.validate(); err != nil {
		return nil, err
	}
	if key := t.tree().DeviceKey(0); key != t.Key {
		return nil, invalid("key %s of the table of device %s", t.Key, key)
	}
	t.index()
	return t, nil
}

// tree returns as much of a tree as its DeviceKey depends on.
func (t *Table) tree() *chunkfmt.Tree {
	tree := &chunkfmt.Tree{Blobs: []chunkfmt.Blob{t.Blob}}
	for i, checks := range t.Checks {
		for _, c := range checks {
			tree.Chunks = append(tree.Chunks, chunkfmt.Chunk{
				Group: uint32(i), Offset: c.Offset, Length: c.Length, Digest: c.Digest, // #nosec G115 -- at most maxGroups
			})
		}
	}
	return tree
}

// tableReader reads an encoded table. After the first error it reads zeros.
type tableReader struct {
	p     []byte
	err   error
	parts int64
}

func (r *tableReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = invalid(format, args...)
	}
	r.p = nil
}

// atMost reads a number in its shortest form.
func (r *tableReader) atMost(limit int64) int64 {
	v, n := binary.Uvarint(r.p)
	if n <= 0 || n > 1 && n != (bits.Len64(v)+6)/7 || v > uint64(limit) { // #nosec G115 -- limits are positive
		r.fail("a number that is cut short, too long or above %d", limit)
		return 0
	}
	r.p = r.p[n:]
	return int64(v) // #nosec G115 -- at most limit
}

func (r *tableReader) u32(limit uint32) uint32 {
	return uint32(r.atMost(int64(limit))) // #nosec G115 -- bounded
}

// count reads how many things follow of which each takes some bytes.
func (r *tableReader) count(limit, bytes int64) int64 {
	n := r.atMost(limit)
	if n*bytes > int64(len(r.p)) {
		r.fail("%d things in %d bytes", n, len(r.p))
		return 0
	}
	return n
}

func (r *tableReader) digest() (d chunkfmt.Digest) {
	if len(r.p) < len(d) {
		r.fail("cut short")
		return d
	}
	r.p = r.p[copy(d[:], r.p):]
	return d
}

func (r *tableReader) byte() byte {
	if len(r.p) == 0 {
		r.fail("cut short")
		return 0
	}
	b := r.p[0]
	r.p = r.p[1:]
	return b
}

func (r *tableReader) table() *Table {
	t := &Table{Key: r.digest()}
	b := &t.Blob
	b.Digest = r.digest()
	flags := r.byte()
	if flags > tableFlags {
		r.fail("flags %#x", flags)
	}
	b.Unproven = flags&flagUnproven != 0
	b.Size = r.atMost(1 << 62)
	b.DeviceSize = r.atMost(chunkfmt.MaxFileSize)
	n := r.count(maxGroups, 4)
	if n > 0 {
		b.Groups = make([]chunkfmt.Group, n)
	}
	if b.Unproven {
		t.Checks = make([][]Check, n)
	}
	offset, end := int64(0), int64(0)
	for i := range b.Groups {
		g := &b.Groups[i]
		g.Offset = offset
		end = r.group(g, end)
		offset += int64(g.Stored)
		if b.Unproven {
			t.Checks[i] = r.checks()
		} else {
			g.Digest = r.digest()
		}
		if r.err != nil {
			return nil
		}
	}
	return t
}

// group is the inverse of appendGroup.
func (r *tableReader) group(g *chunkfmt.Group, end int64) int64 {
	codec := r.byte()
	g.Codec = chunkfmt.Codec(codec &^ segmented)
	g.Stored = r.u32(chunkfmt.MaxGroupStored)
	g.Plain = r.u32(chunkfmt.MaxGroupPlain)
	switch {
	case codec&segmented != 0:
		n := r.count(chunkfmt.MaxGroupPlain, 3)
		r.take(n)
		g.Segments = make([]chunkfmt.Segment, n)
		plain := uint32(0)
		for i := range g.Segments {
			s := &g.Segments[i]
			s.Offset = plain + r.u32(chunkfmt.MaxGroupPlain)
			s.Length = r.u32(chunkfmt.MaxGroupPlain)
			s.Device = end + r.atMost(chunkfmt.MaxFileSize)
			if plain = s.Offset + s.Length; plain > chunkfmt.MaxGroupPlain || s.Device > chunkfmt.MaxFileSize {
				r.fail("a segment of %d bytes at %d, place %d", s.Length, s.Offset, s.Device)
				return 0
			}
			end = s.Device + int64(s.Length)
		}
	case g.Codec != chunkfmt.Filler:
		if g.Device = end + r.atMost(chunkfmt.MaxFileSize); g.Device > chunkfmt.MaxFileSize {
			r.fail("place %d", g.Device)
			return 0
		}
		end = g.Device + int64(g.Plain)
	}
	return end
}

// take counts segments and checks, whose number is bounded in all.
func (r *tableReader) take(n int64) {
	if r.parts += n; r.parts > maxParts {
		r.fail("more than %d parts of groups", maxParts)
	}
}

// checks is the inverse of appendChecks.
func (r *tableReader) checks() []Check {
	n := r.count(chunkfmt.MaxGroupPlain, int64(len(chunkfmt.Digest{}))+2)
	r.take(n)
	if n == 0 {
		return nil
	}
	checks := make([]Check, n)
	plain := uint32(0)
	for i := range checks {
		c := &checks[i]
		c.Offset = plain + r.u32(chunkfmt.MaxGroupPlain)
		c.Length = r.u32(chunkfmt.MaxGroupPlain)
		c.Digest = r.digest()
		if plain = c.Offset + c.Length; plain > chunkfmt.MaxGroupPlain {
			r.fail("a chunk of %d bytes at %d", c.Length, c.Offset)
			return nil
		}
	}
	return checks
}
