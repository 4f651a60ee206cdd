package merkle

import (
	"encoding/binary"
	"fmt"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// proofMagic begins an encoded proof; the last byte is the version.
const proofMagic = "dmslprf\x01"

// MarshalBinary returns the proof as FORMAT.md, "Merkle tree", specifies. It
// never fails.
func (p *Proof) MarshalBinary() ([]byte, error) {
	out := appendString([]byte(proofMagic), p.Path)
	out = appendLength(out, len(p.Dirs))
	for i := range p.Dirs {
		out = appendNode(out, &p.Dirs[i].Node)
		out = binary.BigEndian.AppendUint64(out, p.Dirs[i].Index)
		out = appendDigests(out, p.Dirs[i].Siblings)
	}
	out = appendNode(out, &p.Node)
	if p.Range == nil {
		return append(out, 0), nil
	}
	out = append(out, 1)
	out = binary.BigEndian.AppendUint64(out, p.Range.First)
	out = appendLength(out, len(p.Range.Leaves))
	for i := range p.Range.Leaves {
		out = p.Range.Leaves[i].append(out)
	}
	return appendDigests(out, p.Range.Siblings), nil
}

func appendLength(p []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(p, uint32(n)) //nolint:gosec // memory is smaller
}

func appendNode(p []byte, n *Node) []byte {
	at := len(p)
	p = n.append(append(p, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(p[at:], uint32(len(p)-at-4)) //nolint:gosec // memory is smaller
	return p
}

func appendDigests(p []byte, digests []chunkfmt.Digest) []byte {
	p = appendLength(p, len(digests))
	for i := range digests {
		p = append(p, digests[i][:]...)
	}
	return p
}

// UnmarshalBinary is the inverse of MarshalBinary. It accepts one encoding of
// each proof only, needs memory in proportion to data, and leaves it to Verify
// to find out whether the proof is good. Its errors wrap chunkfmt.ErrInvalid.
func (p *Proof) UnmarshalBinary(data []byte) error {
	r := reader{rest: data}
	if string(r.take(uint64(len(proofMagic)))) != proofMagic {
		return fmt.Errorf("%w: not a proof, or one of another version", chunkfmt.ErrInvalid)
	}
	out := Proof{Path: r.string()}
	for range r.count(minStep) {
		out.Dirs = append(out.Dirs, Step{Node: r.node(), Index: r.uint64(), Siblings: r.digests()})
	}
	out.Node = r.node()
	switch r.byte() {
	case 0:
	case 1:
		out.Range = r.contentRange()
	default:
		r.fail("unknown flag")
	}
	if err := r.end(); err != nil {
		return fmt.Errorf("decode proof: %w", err)
	}
	*p = out
	return nil
}

// minStep is the least that a Step takes.
const minStep = 4 + minNode + 8 + 4

// reader takes a proof apart. After the first error all values are zero.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", chunkfmt.ErrInvalid, what)
	}
	r.rest = nil
}

// end returns the first error; bytes that are left over are one.
func (r *reader) end() error {
	if len(r.rest) > 0 {
		r.fail(fmt.Sprintf("%d bytes too many", len(r.rest)))
	}
	return r.err
}

// take returns the next n bytes, or n zero bytes up to 32 after an error.
func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.rest)) {
		r.fail("it ends too soon")
		return make([]byte, min(n, 32))
	}
	p := r.rest[:n]
	r.rest = r.rest[n:]
	return p
}

func (r *reader) byte() byte     { return r.take(1)[0] }
func (r *reader) uint16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) uint64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

func (r *reader) digest() chunkfmt.Digest { return chunkfmt.Digest(r.take(32)) }

func (r *reader) string() string {
	n := r.uint32()
	p := r.take(uint64(n))
	if r.err != nil {
		return ""
	}
	return string(p)
}

// count returns how many items of at least size bytes follow.
func (r *reader) count(size uint64) uint32 {
	n := r.uint32()
	if uint64(n)*size > uint64(len(r.rest)) {
		r.fail("it ends too soon")
		return 0
	}
	return n
}

func (r *reader) digests() []chunkfmt.Digest {
	n := r.count(32)
	if n == 0 {
		return nil
	}
	out := make([]chunkfmt.Digest, n)
	for i := range out {
		out[i] = r.digest()
	}
	return out
}

func (r *reader) node() Node {
	p := r.take(uint64(r.uint32()))
	if r.err != nil {
		return Node{}
	}
	n, err := parseNode(p)
	if err != nil {
		r.err = err
		r.rest = nil
	}
	return n
}

func (r *reader) contentRange() *Range {
	out := &Range{First: r.uint64()}
	for range r.count(leafSize) {
		out.Leaves = append(out.Leaves, Leaf{
			Offset: int64(r.uint64()), //nolint:gosec // two's complement
			Length: r.uint32(),
			Count:  r.uint64(),
			Digest: r.digest(),
		})
	}
	out.Siblings = r.digests()
	return out
}
