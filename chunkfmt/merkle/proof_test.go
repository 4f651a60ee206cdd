package merkle_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
)

// recode sends a proof through its encoding.
func recode(t *testing.T, p *merkle.Proof) *merkle.Proof {
	t.Helper()
	data, err := p.MarshalBinary()
	mustErr(t, err)
	var back merkle.Proof
	mustErr(t, back.UnmarshalBinary(data))
	if !reflect.DeepEqual(p, &back) {
		t.Errorf("encoded %+v, decoded %+v", p, &back)
	}
	return &back
}

func TestProveEveryPath(t *testing.T) {
	d := sample(t)
	for i := range 70 {
		d.inline(fmt.Sprintf("many/%d", i), strings.Repeat("x", i))
	}
	tree := merkle.Hash(d.tree())
	for name, inode := range tree.Walk() {
		p, err := tree.Prove("/" + name)
		mustErr(t, err)
		p = recode(t, p)
		mustErr(t, p.Verify(tree.Root()))
		if p.Path != name || p.Node.Digest() != tree.Digests[inode] {
			t.Errorf("%s: %+v", name, p)
		}
		if err := p.Verify(chunkfmt.Sum(nil)); !errors.Is(err, merkle.ErrMismatch) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if _, err := tree.Prove("bin/sh"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestProveRange(t *testing.T) {
	tree := merkle.Hash(sample(t).tree())
	files := map[string]string{
		"usr/bin/sh":   "onetwothreefourfive",
		"var/sparse":   "head\x00\x00\x00\x00\x00\x00\x00\x00\x00tail",
		"etc/hostname": "box\n",
	}
	for name, content := range files {
		for off := range int64(len(content)) {
			for n := int64(1); off+n <= int64(len(content)); n++ {
				p, err := tree.ProveRange(name, off, n)
				mustErr(t, err)
				p = recode(t, p)
				mustErr(t, p.Verify(tree.Root()))
				leaves := p.Range.Leaves
				first, last := leaves[0], leaves[len(leaves)-1]
				end := last.Offset + int64(last.Length)*int64(last.Count)
				if first.Offset > off || end < off+n {
					t.Fatalf("%s: %d bytes at %d: leaves %+v", name, n, off, leaves)
				}
				data := []byte(content[first.Offset:end])
				mustErr(t, p.VerifyData(first.Offset, data))
				data[len(data)-1]++
				if err := p.VerifyData(first.Offset, data); !errors.Is(err, merkle.ErrMismatch) {
					t.Errorf("error %v", err)
				}
				if err := p.VerifyData(first.Offset, append(data[:len(data)-1], content[end-1], 'x')); err == nil {
					t.Error("accepted a byte too many")
				}
			}
		}
	}
	for _, bad := range []struct {
		name   string
		off, n int64
	}{{"usr/bin/sh", 0, 20}, {"usr/bin/sh", -1, 2}, {"usr/bin/sh", 3, 0}, {"usr/bin/sh", 1 << 62, 1 << 62}, {"etc", 0, 1}, {"none", 0, 1}} {
		if _, err := tree.ProveRange(bad.name, bad.off, bad.n); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: error %v", bad, err)
		}
	}
}

// A proof that is changed anywhere is refused.
func TestForgedProofs(t *testing.T) {
	tree := merkle.Hash(sample(t).tree())
	good, err := tree.ProveRange("usr/bin/sh", 4, 4)
	mustErr(t, err)
	data, err := good.MarshalBinary()
	mustErr(t, err)
	for i := range data {
		for _, flip := range []byte{1, 0x80} {
			forged := bytes.Clone(data)
			forged[i] ^= flip
			var p merkle.Proof
			if p.UnmarshalBinary(forged) == nil && p.Verify(tree.Root()) == nil {
				t.Errorf("byte %d of %d changed: accepted", i, len(data))
			}
		}
		var p merkle.Proof
		if err := p.UnmarshalBinary(data[:i]); !errors.Is(err, chunkfmt.ErrInvalid) {
			t.Errorf("the first %d bytes: %v", i, err)
		}
	}
	mutations := map[string]func(p *merkle.Proof){
		"no range":        func(p *merkle.Proof) { p.Range.Leaves = nil },
		"range of nobody": func(p *merkle.Proof) { p.Range.First = 1 << 63 },
		"overflow":        func(p *merkle.Proof) { p.Range.First = ^uint64(0) },
		"long leaf":       func(p *merkle.Proof) { p.Range.Leaves[0].Count = 1 << 60 },
		"empty leaf":      func(p *merkle.Proof) { p.Range.Leaves[0].Length = 0 },
		"gap":             func(p *merkle.Proof) { p.Range.Leaves[1].Offset++ },
		"sibling more":    func(p *merkle.Proof) { p.Range.Siblings = append(p.Range.Siblings, chunkfmt.Digest{}) },
		"step less":       func(p *merkle.Proof) { p.Dirs = p.Dirs[1:] },
		"file on the way": func(p *merkle.Proof) { p.Dirs[1].Node.Kind = chunkfmt.Fifo },
		"path":            func(p *merkle.Proof) { p.Path = "usr/bin/dash" },
		"range of a directory": func(p *merkle.Proof) {
			p.Path, p.Node, p.Dirs = "usr/bin", p.Dirs[2].Node, p.Dirs[:2]
		},
	}
	for name, change := range mutations {
		p := recode(t, good)
		change(p)
		if err := p.Verify(tree.Root()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	without, err := tree.Prove("usr/bin/sh")
	mustErr(t, err)
	if err := without.VerifyData(0, []byte("one")); err == nil {
		t.Error("checked data without a range")
	}
	if err := good.VerifyData(4, []byte("wothree")); err == nil {
		t.Error("checked data from inside a chunk")
	}
}

// The encoding is given to others, so it must stay.
func TestProofEncodingStays(t *testing.T) {
	tree := merkle.Hash(newDrafter(t).file("a/f", "ab", "c").tree())
	p, err := tree.ProveRange("a/f", 2, 1)
	mustErr(t, err)
	data, err := p.MarshalBinary()
	mustErr(t, err)
	if got := hex.EncodeToString(data); got != goldenProof {
		t.Errorf("proof\n%s, want\n%s", got, goldenProof)
	}
}

const goldenProof = "" +
	"646d736c7072660100000003612f66000000020000005102000201ed0000000000000000000000000000000000000000" +
	"000000000000000000000000000000000000000000000001b42ac0b921ec9c67d4153ae96736c3469a7bdb49848ce1c7" +
	"14e308af65b2baab0000000000000000000000000000005102000201ed00000000000000000000000000000000000000" +
	"000000000000000000000000000000000000000000000000012a0043cde754295a4a5e3c2177cee2dfa75058db77e065" +
	"6143d8b4bd3c47f0f90000000000000000000000000000005102010001a00000000b0000000c000000000000000d0000" +
	"000e000000000000000300000001000000000000000000000002c1036851a69369c7c12e7d1e54dc65986926d0c512a5" +
	"5563eb78de0432951cd70100000000000000010000000100000000000000020000000100000000000000012e7d2c03a9" +
	"507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc600000001d72440a177bc1fae529323eca2a47c7696" +
	"25f7590c76928b6213e6f74c67c021"

func FuzzProof(f *testing.F) {
	tree := merkle.Hash(sample(f).tree())
	for _, name := range []string{"", "etc", "bin", "dev/null"} {
		p, err := tree.Prove(name)
		mustErr(f, err)
		data, err := p.MarshalBinary()
		mustErr(f, err)
		f.Add(data)
	}
	p, err := tree.ProveRange("usr/bin/sh", 1, 7)
	mustErr(f, err)
	good, err := p.MarshalBinary()
	mustErr(f, err)
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		var p merkle.Proof
		if p.UnmarshalBinary(data) != nil {
			return
		}
		again, err := p.MarshalBinary()
		mustErr(t, err)
		if !bytes.Equal(again, data) {
			t.Fatalf("decoded %x, encoded %x", data, again)
		}
		if p.Verify(tree.Root()) != nil {
			return
		}
		// Nobody can make a proof of what is not there.
		inode, err := tree.Lookup(p.Path)
		if err != nil || tree.Digests[inode] != p.Node.Digest() {
			t.Fatalf("accepted %+v", p)
		}
	})
}
