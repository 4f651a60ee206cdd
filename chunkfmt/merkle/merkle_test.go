package merkle_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
)

// drafter makes trees whose files have chunks.
type drafter struct {
	t testing.TB
	*chunkfmt.Draft
	chunks []chunkfmt.Chunk
}

func newDrafter(t testing.TB) *drafter { return &drafter{t: t, Draft: chunkfmt.NewDraft()} }

func (d *drafter) put(name string, n chunkfmt.Node) *drafter {
	d.t.Helper()
	if err := d.Put(name, &n); err != nil {
		d.t.Fatal(err)
	}
	return d
}

func (d *drafter) link(name, target string) *drafter {
	d.t.Helper()
	if err := d.Link(name, target); err != nil {
		d.t.Fatal(err)
	}
	return d
}

// file has the given chunks' content; "\x00…" becomes a hole.
func (d *drafter) file(name string, chunks ...string) *drafter {
	d.t.Helper()
	n := chunkfmt.Node{Kind: chunkfmt.File, Mode: 0o640, UID: 11, GID: 12, Mtime: 13, Nsec: 14}
	for _, c := range chunks {
		at := slices.IndexFunc(d.chunks, func(k chunkfmt.Chunk) bool { return k.Digest == chunkfmt.Sum([]byte(c)) })
		if at < 0 {
			at = len(d.chunks)
			chunk := chunkfmt.Chunk{Offset: uint32(at) * 4096, Length: uint32(len(c)), Digest: chunkfmt.Sum([]byte(c))}
			if strings.Trim(c, "\x00") == "" {
				chunk.Blob, chunk.Offset = chunkfmt.Hole, 0
			}
			d.chunks = append(d.chunks, chunk)
		}
		n.Chunks = append(n.Chunks, uint32(at))
		n.Size += int64(len(c))
	}
	return d.put(name, n)
}

func (d *drafter) inline(name, content string) *drafter {
	d.t.Helper()
	return d.put(name, chunkfmt.Node{
		Kind: chunkfmt.File, Mode: 0o640, UID: 11, GID: 12, Mtime: 13, Nsec: 14,
		Size: int64(len(content)), Inline: []byte(content),
	})
}

func (d *drafter) tree() *chunkfmt.Tree {
	d.t.Helper()
	tree, err := d.Freeze(d.chunks, []chunkfmt.Blob{{Size: 1 << 20}})
	if err != nil {
		d.t.Fatal(err)
	}
	return tree
}

// sample has something of everything that a merged tree can have.
func sample(t testing.TB) *drafter {
	return newDrafter(t).
		put("/", chunkfmt.Node{Kind: chunkfmt.Dir, Mode: 0o755, Mtime: 1700000000, Nsec: 999999999}).
		put("etc", chunkfmt.Node{Kind: chunkfmt.Dir, Mode: 0o1777, UID: 1, GID: 1 << 20, Mtime: -5, Xattrs: []chunkfmt.Xattr{
			{Name: "user.b", Value: "\x00\xff"}, {Name: "security.capability", Value: "cap"},
		}}).
		inline("etc/hostname", "box\n").
		inline("etc/empty", "").
		put("bin", chunkfmt.Node{Kind: chunkfmt.Symlink, Mode: 0o777, Target: "usr/bin"}).
		put("dev/null", chunkfmt.Node{Kind: chunkfmt.CharDevice, Mode: 0o666, Size: 1<<32 | 3}).
		put("dev/sda", chunkfmt.Node{Kind: chunkfmt.BlockDevice, Mode: 0o660, Size: 8 << 32}).
		put("run/fifo", chunkfmt.Node{Kind: chunkfmt.Fifo, Mode: 0o600}).
		put("run/socket", chunkfmt.Node{Kind: chunkfmt.Socket, Mode: 0o600}).
		file("usr/bin/sh", "one", "two", "three", "four", "five").
		link("usr/bin/dash", "usr/bin/sh").
		file("var/sparse", "head", "\x00\x00\x00", "\x00\x00\x00", "\x00\x00\x00", "tail")
}

func TestRootsStay(t *testing.T) {
	layer := sample(t)
	if err := errors.Join(layer.Remove("usr/gone"), layer.Hide("run"), layer.Link("out", "lower/file")); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		tree *chunkfmt.Tree
		want string
	}{
		"empty":  {newDrafter(t).tree(), "2afbd87cf62edc88c2e1bedd0b218339ad5e44a0d23572b672d55c1f8079daca"},
		"sample": {sample(t).tree(), "c62af70e9ab01dc6b14ac9f5aeb88019e628ed7a4c3c895dad9dcc7e7d1f937e"},
		"layer":  {layer.tree(), "feefe80849d99fbd39cb721879c3a016ccc874ee7370c6d9ce54b9be11ac97a5"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			root := merkle.Root(tt.tree)
			if got := hex.EncodeToString(root[:]); got != tt.want {
				t.Errorf("root %s, want %s", got, tt.want)
			}
		})
	}
}

// The digest of a file, written down by hand from FORMAT.md.
func TestNodeByHand(t *testing.T) {
	tree := newDrafter(t).file("f", "ab", "c").tree()
	leaf := func(offset, length, count uint64, content string) chunkfmt.Digest {
		d := chunkfmt.Sum([]byte(content))
		return sumHex(t, fmt.Sprintf("00 63 %016x %08x %016x %x", offset, length, count, d[:]))
	}
	l, r := leaf(0, 2, 1, "ab"), leaf(2, 1, 1, "c")
	content := sumHex(t, fmt.Sprintf("01 %x %x", l[:], r[:]))
	want := sumHex(t, "02 01 00 01a0 0000000b 0000000c 000000000000000d 0000000e 0000000000000003 00000001 00000000"+
		fmt.Sprintf("0000000000000002 %x", content[:]))
	digests := merkle.Digests(tree)
	if digests[1] != want {
		t.Errorf("file %s, want %s", digests[1], want)
	}
	entry := sumHex(t, fmt.Sprintf("00 65 66 %x", want[:]))
	root := sumHex(t, "02 00 02 01ed 00000000 00000000 0000000000000000 00000000 0000000000000000 00000000 00000000"+
		fmt.Sprintf("0000000000000001 %x", entry[:]))
	if digests[0] != root {
		t.Errorf("root %s, want %s", digests[0], root)
	}
}

func sumHex(t *testing.T, s string) chunkfmt.Digest {
	t.Helper()
	p, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return chunkfmt.Sum(p)
}

// What a user of the files can tell apart has another root.
func TestRootCovers(t *testing.T) {
	node := func(change func(n *chunkfmt.Node)) func(d *drafter) *drafter {
		return func(d *drafter) *drafter {
			n := chunkfmt.Node{Kind: chunkfmt.Dir, Mode: 1, UID: 2, GID: 3, Mtime: 4, Nsec: 5, Xattrs: []chunkfmt.Xattr{{Name: "a", Value: "b"}}}
			change(&n)
			return d.put("new", n)
		}
	}
	changes := map[string]func(d *drafter) *drafter{
		"nothing":     func(d *drafter) *drafter { return d },
		"node":        node(func(*chunkfmt.Node) {}),
		"kind":        node(func(n *chunkfmt.Node) { n.Kind = chunkfmt.File }),
		"fifo":        node(func(n *chunkfmt.Node) { n.Kind = chunkfmt.Fifo }),
		"mode":        node(func(n *chunkfmt.Node) { n.Mode++ }),
		"uid":         node(func(n *chunkfmt.Node) { n.UID++ }),
		"gid":         node(func(n *chunkfmt.Node) { n.GID++ }),
		"mtime":       node(func(n *chunkfmt.Node) { n.Mtime++ }),
		"nsec":        node(func(n *chunkfmt.Node) { n.Nsec++ }),
		"no xattr":    node(func(n *chunkfmt.Node) { n.Xattrs = nil }),
		"xattr name":  node(func(n *chunkfmt.Node) { n.Xattrs[0] = chunkfmt.Xattr{Name: "ab"} }),
		"xattr value": node(func(n *chunkfmt.Node) { n.Xattrs[0].Value = "c" }),
		"device":      node(func(n *chunkfmt.Node) { n.Kind = chunkfmt.CharDevice }),
		"number":      node(func(n *chunkfmt.Node) { n.Kind, n.Size = chunkfmt.CharDevice, 1 }),
		"target":      func(d *drafter) *drafter { return d.put("bin", chunkfmt.Node{Kind: chunkfmt.Symlink, Target: "b"}) },
		"content":     func(d *drafter) *drafter { return d.file("usr/bin/sh", "one", "two", "three", "four", "six") },
		"order":       func(d *drafter) *drafter { return d.file("usr/bin/sh", "two", "one", "three", "four", "five") },
		"chunking":    func(d *drafter) *drafter { return d.file("usr/bin/sh", "onetwo", "three", "four", "five") },
		"cut":         func(d *drafter) *drafter { return d.file("usr/bin/sh", "one", "two", "three", "four") },
		"hole":        func(d *drafter) *drafter { return d.file("var/sparse", "head", "\x00\x00\x00", "\x00\x00\x00", "tail") },
		"inline":      func(d *drafter) *drafter { return d.inline("etc/hostname", "bay\n") },
		"copy":        func(d *drafter) *drafter { return d.file("usr/bin/dash", "one", "two", "three", "four", "five") },
		"other link":  func(d *drafter) *drafter { return d.link("usr/bin/tash", "usr/bin/sh") },
		"link first":  func(d *drafter) *drafter { return d.link("ash", "usr/bin/sh") },
		"name": func(d *drafter) *drafter {
			return d.put("run/fifp", chunkfmt.Node{Kind: chunkfmt.Fifo, Mode: 0o600})
		},
		"whiteout": func(d *drafter) *drafter { mustErr(d.t, d.Remove("gone")); return d },
		"link out": func(d *drafter) *drafter { return d.link("out", "gone") },
		"opaque":   func(d *drafter) *drafter { mustErr(d.t, d.Hide("usr")); return d },
	}
	seen := map[chunkfmt.Digest]string{}
	for name, change := range changes {
		root := merkle.Root(change(sample(t)).tree())
		if other, ok := seen[root]; ok {
			t.Errorf("%q and %q have one root", name, other)
		}
		seen[root] = name
	}
}

func mustErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// How content is stored does not matter.
func TestRootIgnores(t *testing.T) {
	inline := newDrafter(t).inline("f", "abc").tree()
	chunked := newDrafter(t).file("f", "abc").tree()
	if merkle.Root(inline) != merkle.Root(chunked) {
		t.Error("inline content counts")
	}
	d := newDrafter(t).file("a", "x").file("f", "abc")
	d.chunks[1].Group, d.chunks[1].Offset = 3, 17
	moved := d.tree()
	if merkle.Root(moved) != merkle.Root(newDrafter(t).file("f", "abc").file("a", "x").tree()) {
		t.Error("the place of chunks counts")
	}
	holes := newDrafter(t).file("f", "\x00\x00", "\x00\x00", "\x00\x00").tree()
	holes.Runs = []chunkfmt.Run{{Count: 1}, {Count: 1}, {Count: 1}}
	holes.Inodes[1].Count = 3
	if merkle.Root(holes) != merkle.Root(newDrafter(t).file("f", "\x00\x00", "\x00\x00", "\x00\x00").tree()) {
		t.Error("how runs are cut counts")
	}
}

func TestCheck(t *testing.T) {
	x := &chunkfmt.Index{Tree: *sample(t).tree()}
	x.Root = merkle.Root(&x.Tree)
	if err := merkle.Check(x); err != nil {
		t.Fatal(err)
	}
	good := merkle.Digests(&x.Tree)
	inode, err := x.Lookup("etc/hostname")
	mustErr(t, err)
	x.Inodes[inode].Mtime++
	if err := merkle.Check(x); !errors.Is(err, merkle.ErrMismatch) || !strings.Contains(err.Error(), x.Root.String()) {
		t.Errorf("error %v", err)
	}
	err = merkle.CheckDigests(merkle.Hash(&x.Tree), good)
	if !errors.Is(err, merkle.ErrMismatch) || !strings.Contains(err.Error(), " /etc/hostname ") {
		t.Errorf("error %v", err)
	}
	if err := merkle.CheckDigests(merkle.Hash(&x.Tree), good[1:]); !errors.Is(err, merkle.ErrMismatch) {
		t.Errorf("error %v", err)
	}
	x.Inodes[inode].Mtime--
	mustErr(t, merkle.CheckDigests(merkle.Hash(&x.Tree), good))
}

// A chain of directories as deep as paths can be, and hard links in it.
func TestDeep(t *testing.T) {
	d := newDrafter(t)
	name := "d" + strings.Repeat("/d", chunkfmt.MaxPath/2-1)
	d.put(name, chunkfmt.Node{Kind: chunkfmt.File}).link("z", name)
	tree := merkle.Hash(d.tree())
	p, err := tree.Prove(name)
	mustErr(t, err)
	mustErr(t, p.Verify(tree.Root()))
	if p.Node.First != "z" || p.Node.Links != 2 {
		t.Errorf("%+v", p.Node)
	}
	n := 0
	for range merkle.Diff(merkle.Hash(newDrafter(t).tree()), tree) {
		n++
	}
	if n != chunkfmt.MaxPath/2+1 {
		t.Errorf("%d changes", n)
	}
}
