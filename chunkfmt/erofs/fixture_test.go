package erofs_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

const block = chunkfmt.BlockSize

// fixture is a tree in the making with the content of its devices.
type fixture struct {
	t       testing.TB
	draft   *chunkfmt.Draft
	chunks  []chunkfmt.Chunk
	blobs   []chunkfmt.Blob
	devices [][]byte
	plains  map[chunkfmt.GroupRef][]byte
	rand    *rand.ChaCha8
}

func newFixture(t testing.TB) *fixture {
	return &fixture{
		t: t, draft: chunkfmt.NewDraft(), rand: rand.NewChaCha8([32]byte{1}),
		plains: map[chunkfmt.GroupRef][]byte{},
	}
}

func (f *fixture) put(name string, n *chunkfmt.Node) {
	f.t.Helper()
	if err := f.draft.Put(name, n); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) link(name, target string) {
	f.t.Helper()
	if err := f.draft.Link(name, target); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) blob() int {
	i := len(f.blobs)
	f.blobs = append(f.blobs, chunkfmt.Blob{Digest: chunkfmt.Sum(fmt.Append(nil, "blob ", i))})
	f.devices = append(f.devices, nil)
	return i
}

// random returns n bytes that no other call returns.
func (f *fixture) random(n int) []byte {
	b := make([]byte, n)
	_, _ = f.rand.Read(b)
	return b
}

// group adds a group whose plain bytes are the parts, each at a multiple of
// 4096, and returns their chunks.
func (f *fixture) group(blob int, parts ...[]byte) []uint32 {
	b := &f.blobs[blob]
	g := chunkfmt.Group{Device: int64(len(f.devices[blob])), Offset: b.Size, Stored: 1}
	var plain []byte
	var added []uint32
	for _, p := range parts {
		plain = append(plain, make([]byte, -len(plain)&(block-1))...)
		added = append(added, uint32(len(f.chunks)))
		f.chunks = append(f.chunks, chunkfmt.Chunk{
			Blob: uint32(blob), Group: uint32(len(b.Groups)),
			Offset: uint32(len(plain)), Length: uint32(len(p)), Digest: chunkfmt.Sum(p),
		})
		plain = append(plain, p...)
	}
	g.Plain = uint32(len(plain))
	f.plains[chunkfmt.GroupRef{Blob: uint32(blob), Group: uint32(len(b.Groups))}] = plain
	b.Groups = append(b.Groups, g)
	b.Size++
	dev := append(f.devices[blob], plain...)
	f.devices[blob] = append(dev, make([]byte, -len(dev)&(block-1))...)
	b.DeviceSize = int64(len(f.devices[blob]))
	return added
}

func (f *fixture) hole(n uint32) uint32 {
	f.chunks = append(f.chunks, chunkfmt.Chunk{Blob: chunkfmt.Hole, Length: n})
	return uint32(len(f.chunks) - 1)
}

// sparse adds a group as layers with content-defined chunks have them, with the
// pieces of one file and other bytes between. The file lies on the device as it
// is, holes included: every other length is that of a hole.
func (f *fixture) sparse(blob int, lengths ...int) *chunkfmt.Node {
	b := &f.blobs[blob]
	ref := chunkfmt.GroupRef{Blob: uint32(blob), Group: uint32(len(b.Groups))}
	g := chunkfmt.Group{Offset: b.Size, Stored: 1, Segments: []chunkfmt.Segment{}}
	var plain []byte
	var chunks []uint32
	dev := f.devices[blob]
	for i, n := range lengths {
		if i%2 == 1 {
			chunks = append(chunks, f.hole(uint32(n)))
			dev = append(dev, make([]byte, n)...)
			continue
		}
		plain = append(plain, f.random(512)...)
		data := f.random(n)
		at := uint32(len(plain))
		g.Segments = append(g.Segments, chunkfmt.Segment{Offset: at, Length: uint32(n), Device: int64(len(dev))})
		chunks = append(chunks, uint32(len(f.chunks)))
		f.chunks = append(f.chunks, chunkfmt.Chunk{
			Blob: ref.Blob, Group: ref.Group, Offset: at, Length: uint32(n), Digest: chunkfmt.Sum(data),
		})
		plain = append(plain, data...)
		dev = append(dev, data...)
	}
	g.Plain = uint32(len(plain))
	f.plains[ref] = plain
	b.Groups = append(b.Groups, g)
	b.Size++
	f.devices[blob] = append(dev, make([]byte, -len(dev)&(block-1))...)
	b.DeviceSize = int64(len(f.devices[blob]))
	return f.file(chunks...)
}

// file is a node of the given chunks.
func (f *fixture) file(chunks ...uint32) *chunkfmt.Node {
	n := &chunkfmt.Node{Kind: chunkfmt.File, Mode: 0o644, Chunks: chunks}
	for _, c := range chunks {
		n.Size += int64(f.chunks[c].Length)
	}
	return n
}

func (f *fixture) tree() *chunkfmt.Tree {
	f.t.Helper()
	t, err := f.draft.Freeze(f.chunks, f.blobs)
	if err != nil {
		f.t.Fatal(err)
	}
	return t
}

// read is what Export reads groups with. It fails the test when a group is read
// twice.
func (f *fixture) read() func(context.Context, chunkfmt.GroupRef) ([]byte, error) {
	seen := map[chunkfmt.GroupRef]bool{}
	return func(_ context.Context, r chunkfmt.GroupRef) ([]byte, error) {
		if seen[r] {
			return nil, fmt.Errorf("group %v is read twice", r)
		}
		seen[r] = true
		return bytes.Clone(f.plains[r]), nil
	}
}

func dir() *chunkfmt.Node { return &chunkfmt.Node{Kind: chunkfmt.Dir, Mode: 0o755} }

func inline(content string) *chunkfmt.Node {
	return &chunkfmt.Node{Kind: chunkfmt.File, Mode: 0o644, Size: int64(len(content)), Inline: []byte(content)}
}

func symlink(target string) *chunkfmt.Node {
	return &chunkfmt.Node{Kind: chunkfmt.Symlink, Mode: 0o777, Target: target}
}

func device(kind chunkfmt.Kind, major, minor int64) *chunkfmt.Node {
	return &chunkfmt.Node{Kind: kind, Mode: 0o600, Size: major<<32 | minor}
}

func xattrs(pairs ...string) []chunkfmt.Xattr {
	var set []chunkfmt.Xattr
	for i := 0; i < len(pairs); i += 2 {
		set = append(set, chunkfmt.Xattr{Name: pairs[i], Value: pairs[i+1]})
	}
	return set
}

// acl is a POSIX access control list as xattrs have it: user::rw-,
// user:1234:r--, group::r--, mask::r--, other::---.
const acl = "\x02\x00\x00\x00" +
	"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xd2\x04\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" +
	"\x20\x00\x00\x00\xff\xff\xff\xff"

// capability is a file's cap_net_raw+ep.
const capability = "\x01\x00\x00\x02" + "\x00\x20\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00"

type testTree struct {
	name string
	make func(f *fixture)
}

// trees are what is written, read and mounted by the tests.
var trees = []testTree{
	{"empty", func(*fixture) {}},
	{"kinds", kinds},
	{"names", names},
	{"directories", directories},
	{"contents", contents},
	{"holes amid pages", holesAmidPages},
	{"inline tails", inlineTails},
	{"xattrs", manyXattrs},
	{"devices", manyDevices},
	{"deep", func(f *fixture) { deep(f, 200) }},
	{"links", manyLinks},
}

func kinds(f *fixture) {
	b := f.blob()
	f.put("", &chunkfmt.Node{Kind: chunkfmt.Dir, Mode: 0o1777, UID: 1, GID: 2, Mtime: 1e9, Nsec: 1})
	f.put("file", &chunkfmt.Node{
		Kind: chunkfmt.File, Mode: 0o4755, UID: 70000, GID: 4294967294, Mtime: -1234567, Nsec: 999999999,
		Size: 5000, Chunks: f.group(b, f.random(5000)), Xattrs: xattrs("user.a", "1"),
	})
	f.link("also/file", "file")
	f.put("empty", &chunkfmt.Node{Kind: chunkfmt.File, Mode: 0o2000, Mtime: 1 << 33})
	f.put("tiny", inline("hello"))
	f.put("link", symlink("../../nowhere/\xff"))
	f.put("long link", symlink(strings.Repeat("x/", 2047)+"y"))
	f.put("longest inline link", symlink(strings.Repeat("l", block-64)))
	f.put("shortest other link", symlink(strings.Repeat("l", block-63)))
	f.link("link 2", "link")
	f.put("chr", device(chunkfmt.CharDevice, 4095, 1048575))
	f.put("blk", device(chunkfmt.BlockDevice, 8, 257))
	f.put("whiteout-like", device(chunkfmt.CharDevice, 0, 0))
	f.put("fifo", &chunkfmt.Node{Kind: chunkfmt.Fifo, Mode: 0o622, Mtime: 1 << 31})
	f.put("socket", &chunkfmt.Node{Kind: chunkfmt.Socket, Mode: 0o700})
	f.link("fifo 2", "fifo")
}

func names(f *fixture) {
	for _, name := range []string{
		"!", "-", "+", "%", "\x01", "-dash", ".-a", ".\x01", ".!", "...", "..a", ".a", "....", ".\xff", "a", "a ", "~",
		"\xff", "\xc3\x28", "caf\u00e9", "new\nline", strings.Repeat("n", 255), strings.Repeat("\xff", 255),
	} {
		f.put("d/"+name, inline(name))
		f.put("dirs/"+name+"/x", inline(name))
	}
	for _, name := range []string{"!", "-", ",", ".+", "..", "...x"} {
		if name != ".." {
			f.put("only"+fmt.Sprint(len(name), name[len(name)-1])+"/"+name, inline("1"))
		}
	}
}

func directories(f *fixture) {
	for i := range 10000 {
		f.put(fmt.Sprintf("10k/entry %d", i*7919%10000), &chunkfmt.Node{Kind: chunkfmt.Fifo, Mode: 0o600})
	}
	// A block of 4096 bytes is full with "." and ".." (27 bytes) and 15 names
	// of 255 (267 bytes each) and one of 52.
	for _, last := range []int{51, 52, 53} {
		d := fmt.Sprintf("full %d/", last)
		for i := range 15 {
			f.put(d+fmt.Sprintf("%0255d", i), dir())
		}
		f.put(d+strings.Repeat("z", last), dir())
	}
	// And with one more block, exactly full: 15 names of 255 and one of 79.
	for i := range 15 {
		f.put(fmt.Sprintf("two/%0255d", i), dir())
	}
	f.put("two/"+strings.Repeat("a", 52), dir())
	for i := range 15 {
		f.put(fmt.Sprintf("two/b%0254d", i), dir())
	}
	f.put("two/"+strings.Repeat("z", 79), dir())
	for i := range 3 {
		f.put(fmt.Sprintf("same/%d/same/%d", i, i), dir())
	}
}

func contents(f *fixture) {
	a, b := f.blob(), f.blob()
	unused := f.blob()
	f.group(unused, f.random(10))
	big := f.group(a, f.random(64<<10), f.random(64<<10), f.random(64<<10), f.random(777))
	f.put("contiguous", f.file(big...))
	f.put("two groups", f.file(append(f.group(a, f.random(8*block)), f.group(a, f.random(100))...)...))
	x := f.group(b, f.random(4*block), f.random(4*block), f.random(4*block))
	f.put("reversed", f.file(x[2], x[1], x[0]))
	f.put("repeated", f.file(x[1], x[1], x[1], x[1]))
	f.put("across devices", f.file(x[0], big[0], x[1], big[2], x[2], big[3]))
	f.put("shared tail", f.file(big[3]))
	hole, odd, huge := f.hole(4*block), f.hole(3*block+5), f.hole(1<<30)
	f.put("hole first", f.file(hole, x[0], big[3]))
	f.put("hole amid", f.file(x[0], hole, hole, x[1]))
	f.put("hole last", f.file(x[0], odd))
	f.put("all hole", f.file(odd))
	f.put("hole and data", f.file(hole, x[2], hole, x[2], hole))
	sparse := make([]uint32, 0, 1024)
	for range 1023 {
		sparse = append(sparse, huge)
	}
	f.put("one TB", f.file(append(sparse, huge, f.group(a, f.random(1<<20-9))[0])...))
	f.put("one TB of nothing", f.file(append(sparse, huge)...))
	for _, n := range []int{1, block - 1, block, block + 1, 3 * block} {
		f.put(fmt.Sprintf("size %d", n), f.file(f.group(b, f.random(n))...))
	}
}

func holesAmidPages(f *fixture) {
	b, c := f.blob(), f.blob()
	f.put("hole", f.sparse(b, 5000, 10000, 5000))
	f.put("short hole", f.sparse(b, 5000, 100, 5000))
	f.put("holes in a page", f.sparse(b, 10, 10, 10, 10, 10, 10, 10, 10, 10))
	f.put("hole to the end of a page", f.sparse(b, 100, block-100, 100, 2*block-100, 100))
	f.put("hole at the end", f.sparse(b, 5000, 5000))
	f.put("long hole at the end", f.sparse(b, 5000, 50000))
	n := f.sparse(c, 3*block+7, 3*block, 1, 2*block)
	f.put("other device", n)
	f.put("part of another", f.file(n.Chunks[0], n.Chunks[1]))
	// Its first page begins in a hole.
	f.put("behind a hole", f.file(f.hole(4*block), f.hole(7), n.Chunks[2]))
}

func inlineTails(f *fixture) {
	for n := 1; n <= block; n++ {
		f.put(fmt.Sprintf("%d/%d", n/100, n), inline(string(f.random(n))))
	}
	f.put("more", inline(string(f.random(3*block+100))))
	f.put("whole blocks", inline(string(f.random(3*block))))
	f.put("no room", inline(string(f.random(3*block+block-1))))
	withXattrs := inline(string(f.random(4000)))
	withXattrs.Xattrs = xattrs("user.x", strings.Repeat("v", 100))
	f.put("no room for xattrs", withXattrs)
}

func manyXattrs(f *fixture) {
	b := f.blob()
	data := f.group(b, f.random(block+1))
	for size := range 70 {
		set := xattrs("user.v", strings.Repeat("v", size), "security.capability", capability)
		name := fmt.Sprint("size ", size)
		n := f.file(data...)
		n.Xattrs = set
		f.put(name+" chunked", n)
		d := dir()
		d.Xattrs = set
		f.put(name+" dir", d)
		d = inline("x")
		d.Xattrs = set
		f.put(name+" inline", d)
	}
	n := inline("all")
	n.Xattrs = xattrs("user.u", "1", "trusted.overlay.redirect", "/x", "trusted.t", "", "security.selinux", "system_u:object_r:x:s0\x00",
		"user."+strings.Repeat("n", 250), "long", "system.posix_acl_access", acl)
	f.put("classes", n)
	d := dir()
	d.Xattrs = xattrs("system.posix_acl_default", acl, "trusted.overlay.opaque", "y")
	f.put("acl", d)
	l := symlink("target")
	l.Xattrs = xattrs("trusted.on", "link", "security.x", strings.Repeat("s", 4090))
	f.put("link", l)
	n = inline("largest")
	n.Xattrs = xattrs("user.1", strings.Repeat("1", 65535), "user.2", strings.Repeat("2", 65535),
		"user.3", strings.Repeat("3", 65535), "trusted.4", strings.Repeat("4", 65484))
	f.put("largest", n)
	n = inline("most")
	for i := range 1000 {
		n.Xattrs = append(n.Xattrs, chunkfmt.Xattr{Name: fmt.Sprintf("user.%d", i), Value: fmt.Sprint(i)})
	}
	f.put("most", n)
	dev := device(chunkfmt.CharDevice, 1, 3)
	dev.Xattrs = xattrs("trusted.d", "1")
	f.put("null", dev)
}

func manyDevices(f *fixture) {
	var all []uint32
	for i := range 200 {
		c := f.group(f.blob(), f.random(block*(1+i%3)))
		f.put(fmt.Sprintf("%d", i), f.file(c...))
		all = append(all, c...)
	}
	f.put("all", f.file(all...))
}

func deep(f *fixture, levels int) {
	f.put(strings.Repeat("d/", levels)+"f", inline("deep"))
}

func manyLinks(f *fixture) {
	f.put("first", inline("linked"))
	for i := range 66000 {
		f.link(fmt.Sprintf("links/%d", i), "first")
	}
	for i := range 66000 {
		f.put(fmt.Sprintf("dirs/%d", i), dir())
	}
}
