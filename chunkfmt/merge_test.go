package chunkfmt_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// step is something that a layer's tar does.
type step func(d *chunkfmt.Draft) error

func put(name string, n chunkfmt.Node) step {
	return func(d *chunkfmt.Draft) error { return d.Put(name, &n) }
}
func putFile(name, content string) step { return put(name, *file(content)) }
func putDir(name string, mode uint16, xattrs ...chunkfmt.Xattr) step {
	return put(name, chunkfmt.Node{Kind: chunkfmt.Dir, Mode: mode, Mtime: int64(mode), UID: 7, Xattrs: xattrs})
}
func putLink(name, target string) step {
	return putLinkAs(name, target, chunkfmt.Node{Mode: 0o644})
}
func putLinkAs(name, target string, header chunkfmt.Node) step {
	return func(d *chunkfmt.Draft) error { return d.LinkAs(name, target, &header) }
}
func remove(name string) step { return func(d *chunkfmt.Draft) error { return d.Remove(name) } }
func hide(name string) step   { return func(d *chunkfmt.Draft) error { return d.Hide(name) } }

// layer makes a layer's tree.
func layer(t testing.TB, steps ...step) *chunkfmt.Tree {
	t.Helper()
	d := chunkfmt.NewDraft()
	for _, s := range steps {
		if err := s(d); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := d.Freeze(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// list describes every path of a tree but the root. Hard links name the first
// path of their inode.
func list(tree *chunkfmt.Tree) []string {
	var lines []string
	first := map[uint32]string{}
	for p, i := range tree.Walk() {
		if f, ok := first[i]; ok {
			lines = append(lines, fmt.Sprintf("%s = %s %d", p, f, tree.Inodes[i].Nlink))
			continue
		}
		first[i] = p
		if p == "" {
			continue
		}
		line := fmt.Sprintf("%s %s", p, describe(tree, i))
		if n := tree.Inodes[i].Nlink; tree.Kind(i) != chunkfmt.Dir && n > 1 {
			line += fmt.Sprintf(" links=%d", n)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

// describe is short for what tests leave at its default.
func describe(tree *chunkfmt.Tree, inode uint32) string {
	n, a := &tree.Inodes[inode], tree.Attr(inode)
	s := [...]string{"dir", "file", "symlink", "char", "block", "fifo", "socket", "whiteout", "linkout"}[a.Kind]
	switch a.Kind {
	case chunkfmt.Dir:
		s += fmt.Sprintf(" %o@%d uid=%d", a.Mode, n.Mtime, a.UID)
	case chunkfmt.File:
		data, _ := tree.InlineData(inode)
		s += fmt.Sprintf(" %q", data)
	case chunkfmt.Symlink, chunkfmt.LinkOut:
		s += " -> " + tree.Target(inode)
	}
	if a.Kind != chunkfmt.Dir && (a.UID != 0 || a.GID != 0) {
		s += fmt.Sprintf(" mode=%o uid=%d", a.Mode, a.UID)
		if a.GID != 0 {
			s += fmt.Sprintf(" gid=%d mtime=%d.%d", a.GID, n.Mtime, n.Nsec)
		}
	}
	for _, x := range tree.XattrsOf(inode) {
		s += fmt.Sprintf(" %s=%s", x.Name, x.Value)
	}
	if a.Flags != 0 {
		s += fmt.Sprintf(" flags=%d", a.Flags)
	}
	return s
}

func xattr(name, value string) chunkfmt.Xattr {
	return chunkfmt.Xattr{Name: "user." + name, Value: value}
}

func TestMerge(t *testing.T) {
	type layers = [][]step
	tests := map[string]struct {
		layers layers
		want   []string
	}{
		"nothing": {nil, nil},
		"one layer": {
			layers{{putDir("d", 0o700), putFile("d/f", "1"), remove("gone"), hide("d")}},
			[]string{"d dir 700@448 uid=7", `d/f file "1"`},
		},
		"one layer, flags only": {
			layers{{putDir("d", 0o700), putFile("d/f", "1"), putFile("e/f", "1"), hide("d")}},
			[]string{"d dir 700@448 uid=7", `d/f file "1"`, "e dir 755@0 uid=0", `e/f file "1"`},
		},
		"file over file": {
			layers{{putFile("f", "1")}, {putFile("f", "2")}},
			[]string{`f file "2"`},
		},
		"union of directories": {
			layers{
				{putDir("d", 0o700), putFile("d/a", "1"), putFile("d/c", "1")},
				{putDir("d", 0o711), putFile("d/b", "2")},
				{putDir("d", 0o755), putFile("d/c", "3")},
			},
			[]string{"d dir 755@493 uid=7", `d/a file "1"`, `d/b file "2"`, `d/c file "3"`},
		},
		"implied directory over a listed one": {
			layers{{putDir("d", 0o700, xattr("a", "1"))}, {putFile("d/f", "2")}},
			[]string{"d dir 700@448 uid=7 user.a=1", `d/f file "2"`},
		},
		"implied directories only": {
			layers{{putFile("d/e", "1")}, {putFile("d/f", "2")}},
			[]string{"d dir 755@0 uid=0", `d/e file "1"`, `d/f file "2"`},
		},
		"extended attributes of directories add up": {
			layers{
				{putDir("d", 0o700, xattr("a", "1"), xattr("b", "1"), xattr("d", "1"))},
				{putFile("d/f", "")},
				{putDir("d", 0o711, xattr("b", "2"), xattr("c", "2"))},
				{putDir("d", 0o755)},
			},
			[]string{"d dir 755@493 uid=7 user.a=1 user.b=2 user.c=2 user.d=1", `d/f file ""`},
		},
		"a file between directories stops their attributes": {
			layers{{putDir("d", 0o700, xattr("a", "1"))}, {putFile("d", "2")}, {putDir("d", 0o711, xattr("b", "2"))}},
			[]string{"d dir 711@457 uid=7 user.b=2"},
		},
		"extended attributes of files do not add up": {
			layers{
				{put("f", chunkfmt.Node{Kind: chunkfmt.File, Xattrs: []chunkfmt.Xattr{xattr("a", "1")}})},
				{put("f", chunkfmt.Node{Kind: chunkfmt.File, Xattrs: []chunkfmt.Xattr{xattr("b", "1")}})},
			},
			[]string{`f file "" user.b=1`},
		},
		"whiteout": {
			layers{{putFile("a", "1"), putFile("d/b", "1"), putFile("d/c", "1")}, {remove("a"), remove("d/b"), remove("d/none"), remove("none/x")}},
			[]string{"d dir 755@0 uid=0", `d/c file "1"`, "none dir 755@0 uid=0"},
		},
		"whiteout of a directory": {
			layers{{putFile("d/e/f", "1")}, {remove("d")}, {putFile("d/g", "3")}},
			[]string{"d dir 755@0 uid=0", `d/g file "3"`},
		},
		"whiteout and directory in one layer": {
			layers{{putDir("d", 0o700), putFile("d/f", "1")}, {remove("d"), putFile("d/g", "2")}},
			[]string{"d dir 755@0 uid=0", `d/g file "2"`},
		},
		"replaced directory": {
			layers{
				{putDir("d", 0o700, xattr("a", "1")), putFile("d/f", "1")},
				{putDir("d", 0o700, xattr("b", "1"))},
				{putFile("d", "2"), putDir("d", 0o711, xattr("c", "1")), hide("d")},
				{putDir("d", 0o755, xattr("d", "1"))},
			},
			[]string{"d dir 755@493 uid=7 user.c=1 user.d=1"},
		},
		"opaque": {
			layers{
				{putDir("d", 0o700, xattr("a", "1")), putFile("d/f", "1"), putFile("d/g/h", "1")},
				{putDir("d", 0o711), hide("d"), putFile("d/g/i", "2")},
				{putFile("d/j", "3")},
			},
			[]string{"d dir 711@457 uid=7 user.a=1", "d/g dir 755@0 uid=0", `d/g/i file "2"`, `d/j file "3"`},
		},
		"opaque and implied": {
			layers{{putDir("d", 0o700), putFile("d/f", "1")}, {hide("d"), putFile("d/g", "2")}},
			[]string{"d dir 700@448 uid=7", `d/g file "2"`},
		},
		"opaque root": {
			layers{{putFile("d/f", "1")}, {hide("/"), putFile("g", "2")}},
			[]string{`g file "2"`},
		},
		"file over directory": {
			layers{{putFile("d/e/f", "1")}, {putFile("d", "2")}},
			[]string{`d file "2"`},
		},
		"symbolic link over directory": {
			layers{{putFile("d/e/f", "1")}, {put("d", *symlink("x"))}},
			[]string{"d symlink -> x"},
		},
		"directory over file": {
			layers{{putFile("d", "1")}, {putDir("d", 0o700), putFile("d/f", "2")}},
			[]string{"d dir 700@448 uid=7", `d/f file "2"`},
		},
		"directory over symbolic link to a directory": {
			layers{{putFile("usr/lib/a", "1"), put("lib", *symlink("usr/lib"))}, {putDir("lib", 0o700), putFile("lib/b", "2")}},
			[]string{"lib dir 700@448 uid=7", `lib/b file "2"`, "usr dir 755@0 uid=0", "usr/lib dir 755@0 uid=0", `usr/lib/a file "1"`},
		},
		"names of an inode go one by one": {
			layers{
				{putFile("a/x", "1"), putLink("b/x", "a/x"), putLink("c/x", "a/x"), putLink("d/x", "a/x")},
				{remove("a"), putFile("b/x", "2"), hide("d")},
			},
			[]string{"b dir 755@0 uid=0", `b/x file "2"`, "c dir 755@0 uid=0", `c/x file "1"`, "d dir 755@0 uid=0"},
		},
		"numbers follow the first visible name": {
			layers{{putFile("a/x", "1"), putLink("z", "a/x"), putFile("b", "")}, {remove("z")}, {putLink("a/w", "a/x")}},
			[]string{"a dir 755@0 uid=0", `a/w file "1" links=2`, "a/x = a/w 2", `b file ""`},
		},
		"link to a lower file": {
			layers{{putFile("d/f", "1")}, {putLink("g", "d/f")}},
			[]string{"d dir 755@0 uid=0", "d/f = g 2", `g file "1" links=2`},
		},
		"link joins a linked inode": {
			layers{{putFile("f", "1"), putLink("g", "f")}, {putLink("h", "g"), remove("f")}, {putLink("i", "h")}},
			[]string{`g file "1" links=3`, "h = g 3", "i = g 3"},
		},
		"link to a name that the layer removes afterwards": {
			layers{{putFile("f", "1")}, {putLink("g", "f"), remove("f")}},
			[]string{`g file "1"`},
		},
		"link to a name that the layer replaces afterwards": {
			layers{{putFile("f", "1")}, {putLink("g", "f"), putFile("f", "2")}},
			[]string{`f file "2"`, `g file "1"`},
		},
		"link outlives the directory": {
			layers{{putFile("d/f", "1")}, {putLink("g", "d/f")}, {remove("d")}},
			[]string{`g file "1"`},
		},
		"link to a symbolic link": {
			layers{{put("s", *symlink("x"))}, {putLink("g", "s")}},
			[]string{"g symlink -> x links=2", "s = g 2"},
		},
		"link through symbolic links": {
			layers{
				{putFile("usr/lib/a", "1"), put("lib", *symlink("usr/lib")), put("usr/up", *symlink("../lib"))},
				{putLink("g", "usr/up/a")},
			},
			[]string{
				`g file "1" links=2`, "lib symlink -> usr/lib", "usr dir 755@0 uid=0", "usr/lib dir 755@0 uid=0",
				"usr/lib/a = g 2", "usr/up symlink -> ../lib",
			},
		},
		"link gives attributes": {
			layers{
				{put("f", chunkfmt.Node{Kind: chunkfmt.File, Mode: 0o644, Xattrs: []chunkfmt.Xattr{
					{Name: "security.capability", Value: "cap"}, xattr("a", "1"), xattr("b", "1"),
				}}), put("s", *symlink("x")), put("p", chunkfmt.Node{Kind: chunkfmt.Fifo})},
				{
					putLinkAs("g", "f", chunkfmt.Node{Mode: 0o600, UID: 1, GID: 2, Mtime: 3, Nsec: 4, Xattrs: []chunkfmt.Xattr{xattr("b", "2"), xattr("c", "2")}}),
					putLinkAs("t", "s", chunkfmt.Node{Mode: 0o600, UID: 1, Xattrs: []chunkfmt.Xattr{xattr("b", "2"), {Name: "security.x", Value: "2"}}}),
					putLinkAs("q", "p", chunkfmt.Node{Mode: 0o600, UID: 1}),
				},
				// What a link has given stays when the link goes.
				{remove("g"), remove("t")},
			},
			[]string{
				`f file "" mode=600 uid=1 gid=2 mtime=3.4 user.a=1 user.b=2 user.c=2`,
				"p fifo mode=600 uid=1 links=2", "q = p 2",
				"s symlink -> x mode=777 uid=1 security.x=2",
			},
		},
		"link in a lower layer below a replaced one": {
			layers{{putFile("f", "1")}, {putLink("g", "f")}, {putFile("f", "3")}, {putLink("h", "g")}},
			[]string{`f file "3"`, `g file "1" links=2`, "h = g 2"},
		},
		"devices": {
			layers{{put("c", chunkfmt.Node{Kind: chunkfmt.CharDevice, Size: 5<<32 | 1}), put("p", chunkfmt.Node{Kind: chunkfmt.Fifo})}, {put("c", chunkfmt.Node{Kind: chunkfmt.BlockDevice, Size: 8 << 32})}},
			[]string{"c block", "p fifo"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var layers []*chunkfmt.Tree
			for _, steps := range tt.layers {
				layers = append(layers, layer(t, steps...))
			}
			got, err := chunkfmt.Merge(layers...)
			must(t, err)
			if lines := list(got); !slices.Equal(lines, tt.want) {
				t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(lines, "\n\t"), strings.Join(tt.want, "\n\t"))
			}
			checkMerged(t, got)
		})
	}
}

func TestMergeRefuses(t *testing.T) {
	type layers = [][]step
	tests := map[string]struct {
		layers layers
		// words must occur in the message.
		words []string
	}{
		"link to nowhere": {
			layers{{putFile("f", "")}, {putLink("d/g", "no/where")}},
			[]string{"layer 1", "d/g", "no/where", "does not exist"},
		},
		"link in the lowest layer": {layers{{putLink("g", "f")}}, []string{"layer 0", "g", "f", "does not exist"}},
		"link to an upper layer":   {layers{{putLink("g", "f")}, {putFile("f", "")}}, []string{"layer 0", "does not exist"}},
		"link to a directory": {
			layers{{putFile("d/f", "")}, {putLink("e/g", "d")}},
			[]string{"e/g", "d is a directory"},
		},
		"link ahead of its target": {
			layers{{}, {putLink("g", "f"), putFile("f", "")}},
			[]string{"hard link g to f", "does not exist"},
		},
		"hidden link to nowhere": {
			layers{{}, {putLink("d/g", "f")}, {remove("d")}},
			[]string{"layer 1: hard link d/g to f", "does not exist"},
		},
		"link to a removed file": {
			layers{{putFile("f", "")}, {remove("f")}, {putLink("g", "f")}},
			[]string{"layer 2", "hard link g to f", "does not exist"},
		},
		"link to a whiteout": {
			layers{{}, {putLink("g", "f"), remove("f")}},
			[]string{"hard link g to f", "does not exist"},
		},
		"link below a file":            {layers{{putFile("f", "")}, {putLink("g", "f/x")}}, []string{"f/x does not exist"}},
		"link into a hidden directory": {layers{{putFile("d/f", "")}, {hide("d")}, {putLink("g", "d/f")}}, []string{"d/f does not exist"}},
		"loop of symbolic links": {
			layers{{put("a", *symlink("b")), put("b", *symlink("a"))}, {putLink("g", "a/x")}},
			[]string{"too many symbolic links at"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var layers []*chunkfmt.Tree
			for _, steps := range tt.layers {
				layers = append(layers, layer(t, steps...))
			}
			_, err := chunkfmt.Merge(layers...)
			if !errors.Is(err, chunkfmt.ErrInvalid) {
				t.Fatalf("error %v", err)
			}
			for _, w := range tt.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
}

func TestMergeOfOneSettledLayerIsTheLayer(t *testing.T) {
	one := layer(t, putDir("/", 0o755), putDir("d", 0o755), putFile("d/f", "1"))
	got, err := chunkfmt.Merge(one)
	must(t, err)
	if got != one {
		t.Error("the layer was copied")
	}
}

// checkMerged says more than ValidateMerged does: Merge's tables are in order.
func checkMerged(t testing.TB, tree *chunkfmt.Tree) {
	t.Helper()
	must2(t, tree.ValidateMerged())
	must2(t, (&chunkfmt.Index{Tree: *tree}).Validate())
}

func must2(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMergeDropsTrusted(t *testing.T) {
	trusted := chunkfmt.Xattr{Name: "trusted.overlay.opaque", Value: "y"}
	kept := chunkfmt.Xattr{Name: "user.a", Value: "1"}
	f := file("")
	f.Xattrs = []chunkfmt.Xattr{trusted, kept}
	lower := layer(t, put("f", *f), putDir("d", 0o700, trusted))
	for _, trees := range [][]*chunkfmt.Tree{{lower}, {lower, layer(t, putDir("d", 0o700, trusted, kept))}} {
		tree, err := chunkfmt.Merge(trees...)
		must(t, err)
		for name, i := range tree.Walk() {
			if set := tree.XattrsOf(i); slices.Contains(set, trusted) || name == "f" && !slices.Contains(set, kept) {
				t.Errorf("%d layers: %s has %v", len(trees), name, set)
			}
		}
	}
}
