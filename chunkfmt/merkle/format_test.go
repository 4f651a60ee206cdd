package merkle_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
)

// What follows computes roots and verifies proofs by what FORMAT.md says, not
// by what the package does.

func hash(parts ...any) []byte {
	h := sha256.Sum256(join(parts...))
	return h[:]
}

// join puts integers, bytes and strings (with their lengths) together.
func join(parts ...any) []byte {
	var p []byte
	for _, part := range parts {
		switch v := part.(type) {
		case []byte:
			p = append(p, v...)
		case string:
			p = append(binary.BigEndian.AppendUint32(p, uint32(len(v))), v...)
		default:
			p, _ = binary.Append(p, binary.BigEndian, v)
		}
	}
	return p
}

// hashTreeByText is RFC 6962, section 2.1, of leaves with their first byte.
func hashTreeByText(leaves [][]byte) []byte {
	switch len(leaves) {
	case 0:
		return hash()
	case 1:
		return hash(byte(0), leaves[0])
	}
	k := 1
	for 2*k < len(leaves) {
		k *= 2
	}
	return hash(byte(1), hashTreeByText(leaves[:k]), hashTreeByText(leaves[k:]))
}

func contentByText(t *chunkfmt.Tree, inode uint32) (leaves [][]byte) {
	type chunk struct {
		length uint32
		digest chunkfmt.Digest
	}
	var chunks []chunk
	if data, ok := t.InlineData(inode); ok && len(data) > 0 {
		chunks = []chunk{{uint32(len(data)), chunkfmt.Sum(data)}}
	}
	for _, c := range t.Content(inode) {
		chunks = append(chunks, chunk{c.Length, c.Digest})
	}
	offset := uint64(0)
	for len(chunks) > 0 {
		n := 1
		for n < len(chunks) && chunks[n] == chunks[0] {
			n++
		}
		leaves = append(leaves, join([]byte("c"), offset, chunks[0].length, uint64(n), chunks[0].digest[:]))
		offset += uint64(n) * uint64(chunks[0].length)
		chunks = chunks[n:]
	}
	return leaves
}

// inodeByText returns the digest of an inode.
func inodeByText(t *chunkfmt.Tree, inode uint32) []byte {
	n, a := &t.Inodes[inode], t.Attr(inode)
	links, first := uint32(0), ""
	if a.Kind != chunkfmt.Dir {
		for name, at := range t.Walk() {
			if at != inode {
				continue
			}
			if links++; links == 1 {
				first = name
			}
		}
	}
	p := join(byte(2), uint8(a.Kind), uint8(a.Flags), a.Mode, a.UID, a.GID, uint64(n.Mtime), n.Nsec, uint64(n.Size),
		links, uint32(len(t.XattrsOf(inode))))
	for _, x := range t.XattrsOf(inode) {
		p = append(p, join(x.Name, x.Value)...)
	}
	if links > 1 {
		p = append(p, join(first)...)
	}
	switch a.Kind {
	case chunkfmt.File:
		leaves := contentByText(t, inode)
		p = append(p, join(uint64(len(leaves)), hashTreeByText(leaves))...)
	case chunkfmt.Dir:
		var leaves [][]byte
		for _, e := range t.Children(inode) {
			leaves = append(leaves, join([]byte("e"), []byte(e.Name), inodeByText(t, e.Inode)))
		}
		p = append(p, join(uint64(len(leaves)), hashTreeByText(leaves))...)
	case chunkfmt.Symlink, chunkfmt.LinkOut:
		p = append(p, join(t.Target(inode))...)
	}
	return hash(p)
}

func treesForText(t *testing.T) map[string]*chunkfmt.Tree {
	layer := sample(t)
	mustErr(t, errors.Join(layer.Remove("usr/gone"), layer.Hide("run"), layer.Link("out", "lower/file")))
	trees := map[string]*chunkfmt.Tree{"empty": newDrafter(t).tree(), "sample": sample(t).tree(), "layer": layer.tree()}
	files, err := filepath.Glob("../testdata/*.idx")
	mustErr(t, err)
	for _, file := range files {
		p, err := os.ReadFile(file)
		mustErr(t, err)
		x, err := chunkfmt.Decode(p, chunkfmt.Limits{})
		mustErr(t, err)
		trees[filepath.Base(file)] = &x.Tree
	}
	return trees
}

func TestRootsByText(t *testing.T) {
	for name, tree := range treesForText(t) {
		got := merkle.Root(tree)
		if want := inodeByText(tree, 0); hex.EncodeToString(got[:]) != hex.EncodeToString(want) {
			t.Errorf("%s: root %s, want %x", name, got, want)
		}
	}
}

// proofReader takes a proof apart.
type proofReader struct{ p []byte }

func (r *proofReader) take(n uint64) []byte {
	p := r.p[:n]
	r.p = r.p[n:]
	return p
}
func (r *proofReader) u32() uint32    { return binary.BigEndian.Uint32(r.take(4)) }
func (r *proofReader) u64() uint64    { return binary.BigEndian.Uint64(r.take(8)) }
func (r *proofReader) string() []byte { return r.take(uint64(r.u32())) }
func (r *proofReader) digests() (out [][]byte) {
	for range r.u32() {
		out = append(out, r.take(32))
	}
	return out
}

// rootOfByText is the root of a hash tree of n leaves, of which the digests of
// those from first on are known; others come from siblings. All must be used.
func rootOfByText(t *testing.T, n, first uint64, known, siblings [][]byte) []byte {
	t.Helper()
	var root func(from, to uint64) []byte
	root = func(from, to uint64) []byte {
		if to <= first || from >= first+uint64(len(known)) {
			d := siblings[0]
			siblings = siblings[1:]
			return d
		}
		if to-from == 1 {
			return known[from-first]
		}
		k := uint64(1)
		for 2*k < to-from {
			k *= 2
		}
		left := root(from, from+k)
		return hash(byte(1), left, root(from+k, to))
	}
	d := root(0, n)
	if len(siblings) > 0 {
		t.Errorf("%d siblings are left", len(siblings))
	}
	return d
}

// hashTreeOf returns the last fields of the encoding of a file or directory.
func hashTreeOf(inode []byte) (leaves uint64, root string) {
	p := inode[len(inode)-40:]
	return binary.BigEndian.Uint64(p), string(p[8:])
}

// proofByText returns the Merkle root that a proof leads to.
func proofByText(t *testing.T, p []byte) []byte {
	t.Helper()
	r := &proofReader{p}
	if string(r.take(8)) != "dmslprf\x01" {
		t.Fatal("no proof")
	}
	path := string(r.string())
	type step struct {
		inode    []byte
		place    uint64
		siblings [][]byte
	}
	steps := make([]step, r.u32())
	for i := range steps {
		steps[i] = step{r.string(), r.u64(), r.digests()}
	}
	inode := r.string()
	if r.take(1)[0] == 1 {
		first := r.u64()
		var known [][]byte
		for range r.u32() {
			known = append(known, hash(byte(0), byte(0x63), r.take(8+4+8+32)))
		}
		if n, want := hashTreeOf(inode); string(rootOfByText(t, n, first, known, r.digests())) != want {
			t.Errorf("%s: the range does not fit", path)
		}
	}
	if len(r.p) > 0 {
		t.Errorf("%s: %d bytes are left", path, len(r.p))
	}
	d := hash(inode)
	names := strings.Split(path, "/")
	for i := len(steps) - 1; i >= 0; i-- {
		n, want := hashTreeOf(steps[i].inode)
		leaf := hash(byte(0), byte(0x65), []byte(names[i]), d)
		if string(rootOfByText(t, n, steps[i].place, [][]byte{leaf}, steps[i].siblings)) != want {
			t.Errorf("%s: the step of %s does not fit", path, names[i])
		}
		d = hash(steps[i].inode)
	}
	return d
}

func TestProofsByText(t *testing.T) {
	for name, tree := range treesForText(t) {
		m := merkle.Hash(tree)
		root := m.Root()
		for path, inode := range tree.Walk() {
			p, err := m.Prove(path)
			mustErr(t, err)
			proofs := []*merkle.Proof{p}
			for off := int64(0); tree.Kind(inode) == chunkfmt.File && off < tree.Inodes[inode].Size; off += 1 + tree.Inodes[inode].Size/3 {
				p, err := m.ProveRange(path, off, 1)
				mustErr(t, err)
				proofs = append(proofs, p)
			}
			for _, p := range proofs {
				data, err := p.MarshalBinary()
				mustErr(t, err)
				if got := proofByText(t, data); string(got) != string(root[:]) {
					t.Errorf("%s: the proof of %s leads to %x, not %s", name, path, got, root)
				}
			}
		}
	}
}
