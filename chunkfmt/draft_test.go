package chunkfmt_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

func dir(mode uint16) *chunkfmt.Node { return &chunkfmt.Node{Kind: chunkfmt.Dir, Mode: mode} }

func file(content string) *chunkfmt.Node {
	return &chunkfmt.Node{Kind: chunkfmt.File, Mode: 0o644, Size: int64(len(content)), Inline: []byte(content)}
}

func symlink(target string) *chunkfmt.Node {
	return &chunkfmt.Node{Kind: chunkfmt.Symlink, Mode: 0o777, Target: target}
}

func freeze(t *testing.T, d *chunkfmt.Draft) *chunkfmt.Tree {
	t.Helper()
	tree, err := d.Freeze(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func paths(tree *chunkfmt.Tree) []string {
	var all []string
	for p := range tree.Walk() {
		all = append(all, p)
	}
	return all
}

func TestDraftNumbersInLevelOrder(t *testing.T) {
	d := chunkfmt.NewDraft()
	must(t,
		d.Put("b/x", file("1")),
		d.Put("./a/y/", dir(0o700)),
		d.Link("/c", "b/x"),
		d.Put("a/y/z", symlink("/nowhere")),
	)
	tree := freeze(t, d)
	want := []string{"", "a", "b", "c", "a/y", "b/x", "a/y/z"}
	if got := paths(tree); !slices.Equal(got, want) {
		t.Errorf("paths %q, want %q", got, want)
	}
	x, err := tree.Lookup("b/x")
	if c, err2 := tree.Lookup("/c"); err != nil || err2 != nil || c != x || tree.Inodes[c].Nlink != 2 || c != 3 {
		t.Errorf("c is inode %d, b/x %d (%v, %v), nlink %d", c, x, err, err2, tree.Inodes[c].Nlink)
	}
	if n := tree.Inodes[0].Nlink; n != 4 {
		t.Errorf("the root has %d links, want 4", n)
	}
	if y, _ := tree.Lookup("a/y"); tree.Attr(y).Mode != 0o700 || tree.Inodes[y].Nlink != 2 {
		t.Errorf("a/y: %+v, nlink %d", tree.Attr(y), tree.Inodes[y].Nlink)
	}
	if data, ok := tree.InlineData(x); !ok || string(data) != "1" {
		t.Errorf("b/x has %q, %v", data, ok)
	}
}

func TestDraftPathsStayInside(t *testing.T) {
	d := chunkfmt.NewDraft()
	must(t,
		d.Put("/abs", file("1")),
		d.Put("../../up", file("2")),
		d.Put("lib", symlink("usr/lib")),
		d.Put("lib/so", file("3")),
		d.Put("out", symlink("../../../etc")),
		d.Put("out/passwd", file("4")),
	)
	want := []string{"", "abs", "etc", "lib", "out", "up", "usr", "etc/passwd", "usr/lib", "usr/lib/so"}
	if got := paths(freeze(t, d)); !slices.Equal(got, want) {
		t.Errorf("paths %q, want %q", got, want)
	}
}

func TestDraftReplaces(t *testing.T) {
	tests := map[string]struct {
		make func(d *chunkfmt.Draft) error
		want []string
		kind chunkfmt.Kind
		flag chunkfmt.AttrFlags
	}{
		"directory by directory keeps children": {
			func(d *chunkfmt.Draft) error { return errors.Join(d.Put("x/y", file("")), d.Put("x", dir(0o700))) },
			[]string{"", "x", "x/y"}, chunkfmt.Dir, 0,
		},
		"directory by file": {
			func(d *chunkfmt.Draft) error { return errors.Join(d.Put("x/y", file("")), d.Put("x", file(""))) },
			[]string{"", "x"}, chunkfmt.File, 0,
		},
		"file by directory": {
			func(d *chunkfmt.Draft) error { return errors.Join(d.Put("x", file("")), d.Put("x", dir(0o700))) },
			[]string{"", "x"}, chunkfmt.Dir, chunkfmt.Replaced,
		},
		"implied parent": {
			func(d *chunkfmt.Draft) error { return d.Put("x/y", file("")) },
			[]string{"", "x", "x/y"}, chunkfmt.Dir, chunkfmt.Implied,
		},
		"whiteout alone": {
			func(d *chunkfmt.Draft) error { return d.Remove("x") },
			[]string{"", "x"}, chunkfmt.Whiteout, 0,
		},
		"whiteout, then directory": {
			func(d *chunkfmt.Draft) error { return errors.Join(d.Remove("x"), d.Put("x", dir(0o700)), d.Hide("x")) },
			[]string{"", "x"}, chunkfmt.Dir, chunkfmt.Replaced,
		},
		"directory, then whiteout": {
			func(d *chunkfmt.Draft) error { return errors.Join(d.Put("x/y", file("")), d.Remove("x")) },
			[]string{"", "x", "x/y"}, chunkfmt.Dir, chunkfmt.Replaced | chunkfmt.Implied,
		},
		"whiteout, then implied parent": {
			func(d *chunkfmt.Draft) error { return errors.Join(d.Remove("x"), d.Put("x/y", file(""))) },
			[]string{"", "x", "x/y"}, chunkfmt.Dir, chunkfmt.Replaced | chunkfmt.Implied,
		},
		"file, then whiteout": {
			func(d *chunkfmt.Draft) error { return errors.Join(d.Put("x", file("")), d.Remove("x")) },
			[]string{"", "x"}, chunkfmt.File, 0,
		},
		"opaque": {
			func(d *chunkfmt.Draft) error { return errors.Join(d.Hide("x"), d.Put("x", dir(0o700))) },
			[]string{"", "x"}, chunkfmt.Dir, chunkfmt.Opaque,
		},
		"link out": {
			func(d *chunkfmt.Draft) error { return d.Link("x", "/lower/../below") },
			[]string{"", "x"}, chunkfmt.LinkOut, 0,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := chunkfmt.NewDraft()
			must(t, tt.make(d))
			tree := freeze(t, d)
			if got := paths(tree); !slices.Equal(got, tt.want) {
				t.Errorf("paths %q, want %q", got, tt.want)
			}
			x, err := tree.Lookup("x")
			must(t, err)
			if a := tree.Attr(x); a.Kind != tt.kind || a.Flags != tt.flag {
				t.Errorf("x is %+v", a)
			}
		})
	}
}

func TestDraftRefuses(t *testing.T) {
	long := string(make([]byte, 256))
	tests := map[string]func(d *chunkfmt.Draft) error{
		"long name":               func(d *chunkfmt.Draft) error { return d.Put("a/"+string(slices.Repeat([]byte("n"), 256)), file("")) },
		"long path":               func(d *chunkfmt.Draft) error { return d.Put(string(slices.Repeat([]byte("n/"), 2049))+"x", file("")) },
		"NUL":                     func(d *chunkfmt.Draft) error { return d.Put(long, file("")) },
		"root is a file":          func(d *chunkfmt.Draft) error { return d.Put("/", file("")) },
		"root is a link":          func(d *chunkfmt.Draft) error { return d.Link(".", "a") },
		"root is removed":         func(d *chunkfmt.Draft) error { return d.Remove("..") },
		"link to root":            func(d *chunkfmt.Draft) error { return d.Link("a", "/") },
		"link to directory":       func(d *chunkfmt.Draft) error { return errors.Join(d.Put("d", dir(0)), d.Link("a", "d")) },
		"file as parent":          func(d *chunkfmt.Draft) error { return errors.Join(d.Put("f", file("")), d.Put("f/x", file(""))) },
		"link to itself":          func(d *chunkfmt.Draft) error { return errors.Join(d.Put("a", file("")), d.Link("a", "./a")) },
		"link to itself below":    func(d *chunkfmt.Draft) error { return d.Link("d/a", "d/a") },
		"link over its directory": func(d *chunkfmt.Draft) error { return errors.Join(d.Put("d/a", file("")), d.Link("d", "d/a")) },
		"link to removed":         func(d *chunkfmt.Draft) error { return errors.Join(d.Remove("f"), d.Link("a", "f")) },
		"link into removed":       func(d *chunkfmt.Draft) error { return errors.Join(d.Remove("d"), d.Link("a", "d/e/f")) },
		"link into hidden": func(d *chunkfmt.Draft) error {
			return errors.Join(d.Hide("d"), d.Put("d/e", dir(0)), d.Link("a", "d/e/f"))
		},
		"link into replaced": func(d *chunkfmt.Draft) error { return errors.Join(d.Put("d", file("")), d.Link("a", "d/f")) },
		"link through own symlink": func(d *chunkfmt.Draft) error {
			return errors.Join(d.Put("s", symlink("d")), d.Put("d/f", file("")), d.Link("s/f", "d/f"))
		},
		"loop of links": func(d *chunkfmt.Draft) error {
			return errors.Join(d.Put("a", symlink("b")), d.Put("b", symlink("a")), d.Put("a/x", file("")))
		},
	}
	for name, do := range tests {
		t.Run(name, func(t *testing.T) {
			if err := do(chunkfmt.NewDraft()); !errors.Is(err, chunkfmt.ErrInvalid) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// Few bytes of a layer must not make many directories or long walks.
func TestDraftIsBounded(t *testing.T) {
	deep := strings.Repeat("/d", 2000)
	tests := map[string]func(d *chunkfmt.Draft, i int) error{
		"implied directories": func(d *chunkfmt.Draft, i int) error { return d.Hide(fmt.Sprint(i) + deep) },
		"implied behind links": func(d *chunkfmt.Draft, i int) error {
			return errors.Join(d.Put(fmt.Sprint(i), symlink("/x"+fmt.Sprint(i)+deep)), d.Hide(fmt.Sprint(i)))
		},
		"links": func(d *chunkfmt.Draft, i int) error {
			if i > 250 {
				return d.Remove(fmt.Sprintf("1/%d", i))
			}
			return d.Put(fmt.Sprint(i), symlink(strings.Repeat("./", 1000)+fmt.Sprint(i+1)))
		},
	}
	for name, do := range tests {
		t.Run(name, func(t *testing.T) {
			d := chunkfmt.NewDraft()
			var err error
			n := 1
			for ; err == nil && n < 10000; n++ {
				err = do(d, n)
			}
			if !errors.Is(err, chunkfmt.ErrInvalid) {
				t.Errorf("after %d calls: error %v", n, err)
			}
		})
	}
	// Many usual paths are none too many.
	d := chunkfmt.NewDraft()
	if err := d.Put("lib", symlink("usr/lib")); err != nil {
		t.Fatal(err)
	}
	for i := range 100000 {
		if err := d.Put(fmt.Sprintf("lib/x86_64-linux-gnu/%d/%d", i%5000, i), file("")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLinkAs(t *testing.T) {
	x := func(name, value string) chunkfmt.Xattr { return chunkfmt.Xattr{Name: name, Value: value} }
	d := chunkfmt.NewDraft()
	f := file("data")
	f.Xattrs = []chunkfmt.Xattr{x("security.capability", "1"), x("user.a", "1"), x("user.b", "1")}
	header := &chunkfmt.Node{Mode: 0o4711, UID: 1, GID: 2, Mtime: 3, Nsec: 4, Xattrs: []chunkfmt.Xattr{x("user.b", "2"), x("security.x", "2")}}
	must(t,
		d.Put("f", f),
		d.LinkAs("g", "f", header),
		d.Put("s", symlink("f")),
		d.LinkAs("t", "s", header),
		d.LinkAs("low", "below", header),
		d.LinkAs("low2", "./below", header),
	)
	tree := freeze(t, d)
	for name, want := range map[string]struct {
		mode  uint16
		set   []chunkfmt.Xattr
		nlink uint32
	}{
		"f":   {0o4711, []chunkfmt.Xattr{x("security.x", "2"), x("user.a", "1"), x("user.b", "2")}, 2},
		"s":   {0o777, []chunkfmt.Xattr{x("security.x", "2")}, 2},
		"low": {0o4711, []chunkfmt.Xattr{x("security.x", "2"), x("user.b", "2")}, 2},
	} {
		i, err := tree.Lookup(name)
		must(t, err)
		n, a := &tree.Inodes[i], tree.Attr(i)
		if a.Mode != want.mode || a.UID != 1 || a.GID != 2 || n.Mtime != 3 || n.Nsec != 4 || n.Nlink != want.nlink || !slices.Equal(tree.XattrsOf(i), want.set) {
			t.Errorf("%s is %+v %+v %v", name, n, a, tree.XattrsOf(i))
		}
	}
}

func TestFreezeSortsChunks(t *testing.T) {
	d := chunkfmt.NewDraft()
	chunks := []chunkfmt.Chunk{
		{Blob: 0, Group: 1, Offset: 0, Length: 10},
		{Blob: 0, Group: 0, Offset: 4096, Length: 4096},
		{Blob: 0, Group: 0, Offset: 0, Length: 4096},
		{Blob: chunkfmt.Hole, Length: 4096},
		{Blob: 0, Group: 9, Length: 1}, // unused
	}
	must(t, d.Put("f", &chunkfmt.Node{Kind: chunkfmt.File, Size: 5*4096 + 10, Chunks: []uint32{2, 1, 3, 3, 3, 0}}))
	tree, err := d.Freeze(chunks, []chunkfmt.Blob{{}})
	must(t, err)
	if want := []chunkfmt.Chunk{chunks[3], chunks[2], chunks[1], chunks[0]}; !slices.Equal(tree.Chunks, want) {
		t.Errorf("chunks %+v", tree.Chunks)
	}
	want := []chunkfmt.Run{{Chunk: 1, Count: 2}, {Chunk: 0, Count: 3, Repeat: true}, {Chunk: 3, Count: 1}}
	if !slices.Equal(tree.Runs, want) {
		t.Errorf("runs %+v, want %+v", tree.Runs, want)
	}
	var offsets []int64
	for at := range tree.Content(1) {
		offsets = append(offsets, at)
	}
	if !slices.Equal(offsets, []int64{0, 4096, 8192, 12288, 16384, 20480}) {
		t.Errorf("offsets %v", offsets)
	}
	used := []chunkfmt.GroupRef{{Blob: 0, Group: 0}, {Blob: 0, Group: 1}}
	if got := slices.Collect(tree.UsedGroups()); !slices.Equal(got, used) {
		t.Errorf("used groups %v", got)
	}
	if got := tree.GroupsOf(1, 4095, 2); !slices.Equal(got, []chunkfmt.GroupRef{{Blob: 0, Group: 0}}) {
		t.Errorf("groups %v", got)
	}
}

func TestResolveFollowsLinks(t *testing.T) {
	d := chunkfmt.NewDraft()
	must(t,
		d.Put("usr/bin/dash", file("1")),
		d.Put("usr/bin/sh", symlink("dash")),
		d.Put("bin", symlink("usr/bin")),
		d.Put("abs", symlink("/../bin/sh")),
		d.Put("loop", symlink("loop")),
		d.Put("dangling", symlink("nowhere/x")),
	)
	tree := freeze(t, d)
	want, err := tree.Lookup("usr/bin/dash")
	must(t, err)
	for _, name := range []string{"/bin/sh", "abs", "usr/bin/../bin/sh", "bin/dash"} {
		if got, err := tree.Resolve(name); err != nil || got != want {
			t.Errorf("%s is inode %d (%v), want %d", name, got, err, want)
		}
	}
	for _, name := range []string{"loop", "dangling", "bin/none", "bin/sh/x"} {
		if _, err := tree.Resolve(name); !errors.Is(err, chunkfmt.ErrNotExist) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
