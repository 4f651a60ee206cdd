package chunkfmt

import (
	"encoding/binary"
)

// Decode returns the index that Encode made p of. It checks the checksum, the
// limits and everything that Validate checks, and accepts one body only for
// each index. Errors wrap ErrInvalid. The index does not refer to p.
func Decode(p []byte, l Limits) (*Index, error) {
	h, err := DecodeHeader(p)
	if err != nil {
		return nil, err
	}
	if sumOf(p) != h.Sum {
		return nil, invalid("wrong checksum")
	}
	l = l.withDefaults()
	if h.Body > l.Body {
		return nil, invalid("a body of %d bytes, at most %d are accepted", h.Body, l.Body)
	}
	body, err := decompress(p[HeaderSize:], h.Body)
	if err != nil {
		return nil, err
	}
	d := decoder{limits: l, x: &Index{DiffID: h.DiffID, Root: h.Root}}
	if err := d.body(body); err != nil {
		return nil, err
	}
	return d.x, nil
}

// decoder makes an index of a body. Each step checks what the steps after it
// rely on; what nothing relies on is left to Validate.
type decoder struct {
	limits Limits
	x      *Index
	n      counts
	// blobChunks has the number of chunks of each blob.
	blobChunks []uint64
	// skipped reports that the body has sections which are not known.
	skipped bool
}

// body reads a whole body and validates what it makes of it.
func (d *decoder) body(p []byte) error {
	for _, s := range []struct {
		id   uint16
		name string
		read func(r *reader) error
	}{
		{secCounts, "counts", d.counts},
		{secBlobs, "blobs", d.blobs},
		{secChunks, "chunks", d.chunks},
		{secRuns, "runs", d.runs},
		{secAttrs, "attributes", d.attrs},
		{secTargets, "targets", d.targets},
		{secInodes, "inodes", d.inodes},
		{secEntries, "entries", d.entries},
		{secInline, "inline", d.inline},
	} {
		content, rest, err := section(p, s.id)
		if err != nil {
			return err
		}
		p = rest
		r := &reader{section: s.name, p: content}
		if err := s.read(r); err != nil {
			return err
		}
		if err := r.end(); err != nil {
			return err
		}
	}
	if err := d.unknown(p); err != nil {
		return err
	}
	if err := d.x.Validate(); err != nil {
		return err
	}
	return d.limits.checkMetadata(&d.x.Tree)
}

// section cuts the section of the given number off p.
func section(p []byte, id uint16) (content, rest []byte, err error) {
	got, flags, content, rest, err := anySection(p)
	switch {
	case err != nil:
		return nil, nil, err
	case got != id || flags != 0:
		return nil, nil, invalid("section %d with flags %#x where %d is expected", got, flags, id)
	}
	return content, rest, nil
}

func anySection(p []byte) (id, flags uint16, content, rest []byte, err error) {
	if len(p) < sectionHeaderSize {
		return 0, 0, nil, nil, invalid("the body ends in the header of a section")
	}
	id = binary.LittleEndian.Uint16(p)
	flags = binary.LittleEndian.Uint16(p[2:])
	size := binary.LittleEndian.Uint64(p[4:])
	p = p[sectionHeaderSize:]
	if size > uint64(len(p)) {
		return 0, 0, nil, nil, invalid("section %d has %d bytes of %d", id, size, len(p))
	}
	return id, flags, p[:size], p[size:], nil
}

// unknown skips the sections after the known ones.
func (d *decoder) unknown(p []byte) error {
	for last := secInline; len(p) > 0; {
		id, flags, _, rest, err := anySection(p)
		switch {
		case err != nil:
			return err
		case id <= last:
			return invalid("section %d after section %d", id, last)
		case flags != sectionIgnorable:
			return invalid("unknown section %d with flags %#x", id, flags)
		}
		last, p, d.skipped = id, rest, true
	}
	return nil
}

func (d *decoder) counts(r *reader) error {
	for _, v := range d.n.fields() {
		*v = r.uvarint()
	}
	if r.err != nil {
		return r.err
	}
	if d.n.inline > uint64(d.limits.Inline) { //nolint:gosec // limits are positive
		return invalid("%d inline bytes, at most %d are accepted", d.n.inline, d.limits.Inline)
	}
	return d.limits.check(&d.n)
}

// runs also bounds what Content would yield in all.
func (d *decoder) runs(r *reader) error {
	t := &d.x.Tree
	r.room(d.n.runs, 2, "runs")
	if r.err != nil {
		return r.err
	}
	t.Runs = sized[Run](d.n.runs)
	for i := range t.Runs {
		t.Runs[i].Chunk = r.u32() // still relative
	}
	expected := uint32(d.n.holes) //nolint:gosec // limits are below 2^32
	chunks, total := uint64(len(t.Chunks)), uint64(0)
	for i := range t.Runs {
		run := &t.Runs[i]
		run.Chunk = expected + unzigzag(run.Chunk)
		v := r.uvarint()
		run.Repeat = v&1 != 0
		count := v>>1 + 1
		total += count
		if count > 1<<32-1 || total > uint64(d.limits.Content) { //nolint:gosec // limits are positive
			r.fail("files have more than %d chunks", d.limits.Content)
			return r.err
		}
		run.Count = uint32(count)
		last := uint64(run.Chunk)
		if !run.Repeat {
			last += count - 1
		}
		if last >= chunks {
			r.fail("run %d ends at chunk %d of %d", i, last, chunks)
			return r.err
		}
		expected = run.next()
	}
	return r.err
}

func (d *decoder) inline(r *reader) error {
	if uint64(r.rest()) != d.n.inline { //nolint:gosec // rest is never negative
		r.fail("%d bytes, not %d", r.rest(), d.n.inline)
		return r.err
	}
	if d.n.inline > 0 {
		d.x.Inline = append([]byte(nil), r.take(r.rest())...)
	}
	return nil
}

// sized returns a table of n items, nil if there are none.
func sized[T any](n uint64) []T {
	if n == 0 {
		return nil
	}
	return make([]T, n)
}
