package chunkfmt_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// object is a file of a directory that layers are unpacked into one after
// another: the plainest thing that Merge can be compared with.
type object struct {
	chunkfmt.Attr // without Flags and Xattrs
	mtime         int64
	nsec          uint32
	size          int64
	target        string
	content       string
	xattrs        map[string]string
	names         map[string]*object
}

func newDir() *object {
	return &object{Attr: chunkfmt.Attr{Mode: 0o755}, xattrs: map[string]string{}, names: map[string]*object{}}
}

// unpack changes the directory root as a layer says.
func unpack(root *object, layer *chunkfmt.Tree) error {
	made := map[uint32]*object{}
	for p, i := range layer.Walk() {
		if layer.Kind(i) != chunkfmt.LinkOut || made[i] != nil {
			continue
		}
		o := root.find(layer.Target(i), 0)
		if o == nil || o.Kind == chunkfmt.Dir {
			return fmt.Errorf("%s is a link to %s", p, layer.Target(i))
		}
		made[i] = o
	}
	for i := range uint32(len(layer.Inodes)) {
		if o := made[i]; o != nil {
			o.give(layer, i)
		}
	}
	return root.unpackDir(layer, 0, made)
}

// errGraft says that a layer makes something in a directory that it does not
// list and that is none below. What to do about it depends on the order of the
// tar, which the layer does not have; the tests of graft have examples.
var errGraft = errors.New("the layer goes through what is no directory")

// find follows links in all but the last name.
func (o *object) find(name string, followed int) *object {
	at, done := o, ""
	for name != "" {
		first, rest, more := strings.Cut(name, "/")
		next := at.names[first]
		switch {
		case next == nil || !more:
			return next
		case next.Kind == chunkfmt.Symlink && followed < 255:
			target := next.target
			if !path.IsAbs(target) {
				target = path.Join("/", done, target)
			}
			return o.find(path.Join(target, rest)[1:], followed+1)
		case next.Kind != chunkfmt.Dir:
			return nil
		}
		at, done, name = next, path.Join(done, first), rest
	}
	return at
}

// files adds the paths of all that are no directories.
func (o *object) files(dir string, to []string) []string {
	for _, name := range slices.Sorted(maps.Keys(o.names)) {
		if child := o.names[name]; child.Kind == chunkfmt.Dir {
			to = child.files(dir+name+"/", to)
		} else {
			to = append(to, dir+name)
		}
	}
	return to
}

func (o *object) give(layer *chunkfmt.Tree, link uint32) {
	a, n := layer.Attr(link), &layer.Inodes[link]
	if o.Kind != chunkfmt.Symlink {
		o.Mode = a.Mode
	}
	o.UID, o.GID, o.mtime, o.nsec = a.UID, a.GID, n.Mtime, n.Nsec
	delete(o.xattrs, "security.capability")
	for _, x := range layer.XattrsOf(link) {
		if o.Kind == chunkfmt.File && x.Name != "trusted.c" || !strings.HasPrefix(x.Name, "user.") && x.Name != "trusted.c" {
			o.xattrs[x.Name] = x.Value
		}
	}
}

func (o *object) unpackDir(layer *chunkfmt.Tree, dir uint32, made map[uint32]*object) error {
	if flags := layer.Attr(dir).Flags; flags&chunkfmt.Opaque != 0 {
		clear(o.names)
	}
	if layer.Attr(dir).Flags&chunkfmt.Implied == 0 {
		o.set(layer, dir)
	}
	for _, e := range layer.Children(dir) {
		switch a := layer.Attr(e.Inode); a.Kind {
		case chunkfmt.Whiteout:
			delete(o.names, e.Name)
		case chunkfmt.Dir:
			old := o.names[e.Name]
			if old != nil && old.Kind != chunkfmt.Dir && a.Flags&(chunkfmt.Implied|chunkfmt.Replaced) == chunkfmt.Implied {
				return errGraft
			}
			if old == nil || old.Kind != chunkfmt.Dir || a.Flags&chunkfmt.Replaced != 0 {
				old = newDir()
				o.names[e.Name] = old
			}
			if err := old.unpackDir(layer, e.Inode, made); err != nil {
				return err
			}
		default:
			if made[e.Inode] == nil {
				made[e.Inode] = &object{xattrs: map[string]string{}}
				made[e.Inode].set(layer, e.Inode)
			}
			o.names[e.Name] = made[e.Inode]
		}
	}
	return nil
}

func (o *object) set(t *chunkfmt.Tree, inode uint32) {
	n := &t.Inodes[inode]
	o.Attr = *t.Attr(inode)
	o.Flags, o.Xattrs = 0, 0
	o.mtime, o.nsec, o.size, o.content = n.Mtime, n.Nsec, n.Size, contentOf(t, inode)
	if o.Kind == chunkfmt.Symlink {
		o.target = t.Target(inode)
	}
	for _, x := range t.XattrsOf(inode) {
		if !strings.HasPrefix(x.Name, "trusted.") {
			o.xattrs[x.Name] = x.Value
		}
	}
}

// contentOf names each chunk with its place.
func contentOf(t *chunkfmt.Tree, inode uint32) string {
	var s strings.Builder
	data, _ := t.InlineData(inode)
	s.Write(data)
	for at, c := range t.Content(inode) {
		fmt.Fprintf(&s, "%d:", at)
		if c.Blob != chunkfmt.Hole {
			fmt.Fprintf(&s, "%.4x/%d/%d", t.Blobs[c.Blob].Digest[:], c.Group, c.Offset)
		}
		fmt.Fprintf(&s, "=%.4x;", c.Digest[:])
	}
	return s.String()
}

// compare checks that a merged tree is the directory.
func compare(t *testing.T, root *object, tree *chunkfmt.Tree) {
	t.Helper()
	checkMerged(t, tree)
	inodes := map[*object]uint32{}
	links := map[*object]uint32{}
	var visit func(name string, o *object, inode uint32)
	visit = func(name string, o *object, inode uint32) {
		if first, ok := inodes[o]; ok && first != inode {
			t.Errorf("%s is inode %d and %d", name, first, inode)
		}
		inodes[o] = inode
		links[o]++
		got := object{xattrs: map[string]string{}}
		got.set(tree, inode)
		want := *o
		want.names = nil
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("%s is %+v, want %+v", name, got, want)
		}
		if o.Kind != chunkfmt.Dir {
			return
		}
		var names []string
		for _, e := range tree.Children(inode) {
			names = append(names, e.Name)
			if child := o.names[e.Name]; child != nil {
				visit(name+"/"+e.Name, child, e.Inode)
			}
		}
		if want := slices.Sorted(maps.Keys(o.names)); !slices.Equal(names, want) {
			t.Errorf("%s has %q, want %q", name, names, want)
		}
	}
	visit("", root, 0)
	if len(inodes) != len(tree.Inodes) {
		t.Errorf("%d inodes, want %d", len(tree.Inodes), len(inodes))
	}
	for o, n := range links {
		if i := inodes[o]; o.Kind != chunkfmt.Dir && tree.Inodes[i].Nlink != n {
			t.Errorf("inode %d has %d links, want %d", i, tree.Inodes[i].Nlink, n)
		}
	}
}

// script makes layers from bytes, so that a fuzzer can write them.
type script struct {
	rest []byte
	// files are the paths of what the layers so far make together.
	files []string
}

func (s *script) n(below int) int {
	if len(s.rest) == 0 {
		return 0
	}
	b := int(s.rest[0])
	s.rest = s.rest[1:]
	return b % below
}

func (s *script) path() string {
	p := string("abc"[s.n(3)])
	for range s.n(3) {
		p += "/" + string("abc"[s.n(3)])
	}
	return p
}

// target returns a path for a hard link, which mostly exists.
func (s *script) target() string {
	if len(s.files) == 0 || s.n(16) == 0 {
		return s.path()
	}
	return s.files[s.n(len(s.files))]
}

func (s *script) xattrs() (set []chunkfmt.Xattr) {
	for range s.n(3) {
		name := [...]string{"security.capability", "user.a", "user.b", "trusted.c"}[s.n(4)]
		set = append(set, chunkfmt.Xattr{Name: name, Value: string('0' + rune(s.n(3)))})
	}
	return set
}

const (
	scriptGroups = 3
	scriptChunks = 4 // of a group; the last is short
)

// layers makes at most five layers. Each has a blob, which those above may use.
func (s *script) layers(t testing.TB) []*chunkfmt.Tree {
	var layers []*chunkfmt.Tree
	root := newDir()
	for len(s.rest) > 0 && len(layers) < 5 {
		d := chunkfmt.NewDraft()
		var chunks []chunkfmt.Chunk
		for s.step(d, &chunks, len(layers)) {
		}
		var blobs []chunkfmt.Blob
		for i := range len(layers) + 1 {
			blobs = append(blobs, scriptBlob(i, i < len(layers)))
		}
		slices.Reverse(blobs)
		for i := range chunks {
			if chunks[i].Blob != chunkfmt.Hole {
				chunks[i].Blob = uint32(len(layers)) - chunks[i].Blob
			}
		}
		tree, err := d.Freeze(chunks, blobs)
		must2(t, err)
		must2(t, (&chunkfmt.Index{Tree: *tree}).Validate())
		layers = append(layers, tree)
		if unpack(root, tree) != nil {
			break
		}
		s.files = root.files("", nil)
	}
	return layers
}

// step does one thing to a layer. What the draft refuses is nothing to Merge.
func (s *script) step(d *chunkfmt.Draft, chunks *[]chunkfmt.Chunk, layer int) bool {
	n := &chunkfmt.Node{Mode: uint16(s.n(8)), UID: uint32(s.n(2)), Mtime: int64(s.n(3)), Xattrs: s.xattrs()}
	switch op := s.n(16); op {
	case 0, 1:
		return false
	case 2, 3:
		_ = d.Remove(s.path())
	case 4:
		_ = d.Hide(s.path())
	case 5, 6, 7:
		_ = d.LinkAs(s.path(), s.target(), n)
	case 8:
		n.Kind, n.Target = chunkfmt.Symlink, [...]string{"", "/", "../", "x/../"}[s.n(4)]+s.path()
		_ = d.Put(s.path(), n)
	case 9, 10:
		_ = d.Put(s.path(), n)
	case 11:
		_ = d.Put("/", n)
	case 12:
		n.Kind, n.Inline = chunkfmt.File, []byte(strings.Repeat("i", s.n(4)))
		n.Size = int64(len(n.Inline))
		_ = d.Put(s.path(), n)
	default:
		n.Kind = chunkfmt.File
		for range 1 + s.n(6) {
			c := s.chunk(layer)
			*chunks = append(*chunks, c)
			n.Chunks = append(n.Chunks, uint32(len(*chunks)-1))
			n.Size += int64(c.Length)
			if c.Length < chunkfmt.BlockSize {
				break
			}
		}
		_ = d.Put(s.path(), n)
	}
	return true
}

// chunk returns a hole or a chunk of a blob of this layer or one below.
func (s *script) chunk(layer int) chunkfmt.Chunk {
	c := chunkfmt.Chunk{Length: chunkfmt.BlockSize}
	blob, group, k := s.n(layer+2), s.n(scriptGroups), s.n(scriptChunks)
	if k == scriptChunks-1 {
		c.Length = 100
	}
	if blob > layer {
		c.Blob, c.Digest = chunkfmt.Hole, chunkfmt.Sum(make([]byte, c.Length))
		return c
	}
	c.Blob, c.Group, c.Offset = uint32(blob), uint32(group), uint32(k)*chunkfmt.BlockSize
	c.Digest = chunkfmt.Sum(fmt.Append(nil, blob, group, k))
	return c
}

func scriptBlob(i int, external bool) chunkfmt.Blob {
	b := chunkfmt.Blob{Digest: chunkfmt.Sum(fmt.Append(nil, i)), External: external}
	for g := range scriptGroups {
		group := chunkfmt.Group{
			Offset: b.Size, Stored: 10, Plain: (scriptChunks-1)*chunkfmt.BlockSize + 100, Codec: chunkfmt.Zstd,
			Digest: chunkfmt.Sum(fmt.Append(nil, i, g)), Device: b.DeviceSize,
		}
		b.Size += 10
		b.DeviceSize += scriptChunks * chunkfmt.BlockSize
		if !external {
			b.Groups = append(b.Groups, group)
		}
	}
	return b
}

// checkMerge compares Merge of each prefix of layers with the model.
func checkMerge(t *testing.T, layers []*chunkfmt.Tree) {
	root := newDir()
	for i := range layers {
		want := unpack(root, layers[i])
		got, err := chunkfmt.Merge(layers[:i+1]...)
		if errors.Is(want, errGraft) {
			if err == nil {
				checkMerged(t, got)
			}
			return
		}
		if (err != nil) != (want != nil) {
			t.Fatalf("layer %d: error %v, want %v", i, err, want)
		}
		if err != nil {
			return
		}
		compare(t, root, got)
	}
	all, err := chunkfmt.Merge(layers...)
	must2(t, err)
	for i := range layers {
		part, err := chunkfmt.Merge(layers[:i+1]...)
		must2(t, err)
		again, err := chunkfmt.Merge(append([]*chunkfmt.Tree{part}, layers[i+1:]...)...)
		if err != nil {
			// A merged tree lacks the blobs that nothing in it uses.
			if !strings.Contains(err.Error(), "defines blob") {
				t.Fatal(err)
			}
			continue
		}
		if a, b := list(all), list(again); !slices.Equal(a, b) {
			t.Errorf("merged at once\n%q, after the first %d\n%q", a, i+1, b)
		}
	}
}

func TestMergeIsUnpacking(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		data := make([]byte, 50+r.IntN(400))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		if checkMerge(t, (&script{rest: data}).layers(t)); t.Failed() {
			t.Fatalf("script %x", data)
		}
	}
}

func FuzzMerge(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for n := 20; n < 500; n += 60 {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		checkMerge(t, (&script{rest: data}).layers(t))
	})
}
