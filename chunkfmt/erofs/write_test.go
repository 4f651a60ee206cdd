package erofs_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
)

// write returns the image of a tree and the content of its devices.
func write(t testing.TB, f *fixture, tree *chunkfmt.Tree) (image []byte, devices [][]byte) {
	t.Helper()
	var b bytes.Buffer
	im, err := erofs.Write(&b, tree, erofs.Options{Root: chunkfmt.Sum([]byte("root"))})
	if err != nil {
		t.Fatal(err)
	}
	if im.Size != int64(b.Len()) || im.Size%block != 0 || im.Meta != im.Size {
		t.Errorf("%d bytes written, image is %+v", b.Len(), im)
	}
	for _, blob := range im.Devices {
		devices = append(devices, f.devices[blob])
	}
	return b.Bytes(), devices
}

func TestReaderSeesTree(t *testing.T) {
	for _, tt := range trees {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			tt.make(f)
			tree := f.tree()
			image, devices := write(t, f, tree)
			compare(t, tree, newGoView(t, image, devices))
		})
	}
}

func TestWriteIsDeterministic(t *testing.T) {
	image := func() []byte {
		f := newFixture(t)
		contents(f)
		names(f)
		b, _ := write(t, f, f.tree())
		return b
	}
	if !bytes.Equal(image(), image()) {
		t.Error("two images of one tree differ")
	}
}

func TestWriteNamesDevices(t *testing.T) {
	f := newFixture(t)
	contents(f)
	tree := f.tree()
	var b bytes.Buffer
	im, err := erofs.Write(&b, tree, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want := []uint32{0, 1}; !slices.Equal(im.Devices, want) {
		t.Errorf("devices %v, want %v: the third has nothing in use", im.Devices, want)
	}
	options := im.MountOptions(func(blob uint32) string { return string('a' + rune(blob)) })
	if want := []string{"device=a", "device=b"}; !slices.Equal(options, want) {
		t.Errorf("options %q, want %q", options, want)
	}
	got, err := erofs.Devices(bytes.NewReader(b.Bytes()))
	want := []erofs.Device{
		{Digest: f.blobs[0].Digest, Size: f.blobs[0].DeviceSize},
		{Digest: f.blobs[1].Digest, Size: f.blobs[1].DeviceSize},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("the image names %v, %v, want %v", got, err, want)
	}
}

// A contiguous file takes one chunk, however large it is.
func TestChunksAreLarge(t *testing.T) {
	size := func(make func(f *fixture) []uint32) int {
		f := newFixture(t)
		f.put("f", f.file(make(f)...))
		b, _ := write(t, f, f.tree())
		return len(b)
	}
	whole := size(func(f *fixture) []uint32 { return f.group(f.blob(), f.random(4<<20), f.random(4<<20)) })
	if want := 3 * block; whole > want {
		t.Errorf("image of %d bytes for a contiguous file, want %d", whole, want)
	}
	parts := size(func(f *fixture) []uint32 {
		c := f.group(f.blob(), f.random(4<<20), f.random(block), f.random(4<<20))
		return []uint32{c[2], c[0]}
	})
	if parts > 3*block {
		t.Errorf("image of %d bytes for a file of two 4 MiB extents", parts)
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(f *fixture)
		want string
	}{
		{"extent off the file's blocks", func(f *fixture) {
			c := f.group(f.blob(), f.random(100), f.random(100))
			f.put("a/b", f.file(c...))
		}, "write /a/b to an EROFS image: content cannot be mapped: what is at byte 100 of the file is at byte 4096"},
		{"extent off the device's blocks", func(f *fixture) {
			c := f.group(f.blob(), f.random(block+1))
			f.chunks[c[0]].Offset, f.chunks[c[0]].Length = 1, block
			f.put("a", f.file(c...))
		}, "byte 1 of its device"},
		{"repeated short chunk", func(f *fixture) {
			c := f.group(f.blob(), f.random(100))
			f.put("a", f.file(c[0], c[0]))
		}, "byte 100 of the file is at byte 0"},
		{"page in two places", func(f *fixture) {
			a, b := f.sparse(f.blob(), 100, 3996), f.sparse(f.blob(), 50, 50, 100)
			f.put("a", f.file(a.Chunks[0], b.Chunks[2]))
		}, "the page at byte 0 has content in two places"},
		{"hole over content", func(f *fixture) {
			n := f.sparse(f.blob(), 100, 0, 100)
			f.put("b", f.file(n.Chunks[0], n.Chunks[2]))
			f.put("a", f.file(n.Chunks[0], f.hole(1000)))
		}, "a hole beside byte 0"},
		{"hole over content before", func(f *fixture) {
			n := f.sparse(f.blob(), 100, 0, 100)
			f.put("b", f.file(n.Chunks[0], n.Chunks[2]))
			f.put("a", f.file(f.hole(100), n.Chunks[2]))
		}, "a hole beside byte 100"},
		{"external blob", func(f *fixture) {
			c := f.group(f.blob(), f.random(100))
			f.blobs[0].External, f.blobs[0].Groups = true, nil
			f.put("a", f.file(c...))
		}, "in no group of this tree"},
		{"chunk between segments", func(f *fixture) {
			c := f.group(f.blob(), f.random(100))
			f.blobs[0].Groups[0].Device, f.blobs[0].Groups[0].Segments = 0, []chunkfmt.Segment{}
			f.put("a", f.file(c...))
		}, "in no group of this tree"},
		{"beyond the device", func(f *fixture) {
			c := f.group(f.blob(), f.random(2*block))
			f.blobs[0].DeviceSize = block
			f.put("a", f.file(c...))
		}, "beyond the 4096 bytes of device"},
		{"device of 16 TiB", func(f *fixture) {
			c := f.group(f.blob(), f.random(block))
			f.blobs[0].DeviceSize = 1 << 44
			f.put("a", f.file(c...))
		}, "32-bit numbers"},
		{"size is not that of the chunks", func(f *fixture) {
			n := f.file(f.group(f.blob(), f.random(block))...)
			n.Size++
			f.put("a", n)
		}, "chunks of 4096 bytes make up a file of 4097"},
		{"file too large", func(f *fixture) {
			h := f.hole(1 << 31)
			chunks := make([]uint32, 1<<14)
			for i := range chunks {
				chunks[i] = h
			}
			f.put("a", f.file(chunks...))
		}, "the file has more than"},
		{"major number", func(f *fixture) { f.put("a", device(chunkfmt.CharDevice, 4096, 0)) }, "device number 4096:0"},
		{"minor number", func(f *fixture) { f.put("a", device(chunkfmt.BlockDevice, 0, 1<<20)) }, "device number 0:1048576"},
		{"whiteout", func(f *fixture) { f.put("a", &chunkfmt.Node{Kind: chunkfmt.Whiteout}) }, "must be merged"},
		{"link out", func(f *fixture) { f.link("a", "b") }, "must be merged"},
		{"empty target", func(f *fixture) { f.put("a", symlink("")) }, "target"},
		{"long target", func(f *fixture) { f.put("a", symlink(strings.Repeat("x", 4096))) }, "target"},
		{"NUL in target", func(f *fixture) { f.put("a", symlink("a\x00")) }, "target"},
		{"xattrs", func(f *fixture) {
			n := inline("x")
			for _, name := range []string{"user.1", "user.2", "user.3", "user.4", "user.5"} {
				n.Xattrs = append(n.Xattrs, xattrs(name, strings.Repeat("v", 65535))...)
			}
			f.put("a", n)
		}, "write /a to an EROFS image: extended attributes take"},
		{"xattr value", func(f *fixture) {
			n := inline("x")
			n.Xattrs = xattrs("user.1", strings.Repeat("v", 65536))
			f.put("a", n)
		}, "value of 65536"},
		{"sparse bomb", func(f *fixture) {
			h, d := f.hole(1<<30), f.group(f.blob(), f.random(block))
			chunks := []uint32{f.hole(block), d[0]}
			for range 1024 {
				chunks = append(chunks, h)
			}
			f.put("a", f.file(chunks...))
		}, erofs.ErrTooLarge.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			tt.make(f)
			_, err := erofs.Write(io.Discard, f.tree(), erofs.Options{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// A run may claim four billion repetitions in a few bytes.
func TestRepeatBomb(t *testing.T) {
	f := newFixture(t)
	f.put("a", f.file(f.group(f.blob(), f.random(block))...))
	tree := f.tree()
	tree.Runs[0] = chunkfmt.Run{Count: 1<<32 - 1, Repeat: true}
	tree.Inodes[1].Size = (1<<32 - 1) * block
	if _, err := erofs.Write(io.Discard, tree, erofs.Options{MaxBytes: 1 << 20}); !errors.Is(err, erofs.ErrTooLarge) {
		t.Errorf("error %v, want %v", err, erofs.ErrTooLarge)
	}
}

func TestWriteLimit(t *testing.T) {
	f := newFixture(t)
	inlineTails(f)
	tree := f.tree()
	im, err := erofs.Write(io.Discard, tree, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := erofs.Write(io.Discard, tree, erofs.Options{MaxBytes: im.Size}); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	if _, err := erofs.Write(io.Discard, tree, erofs.Options{MaxBytes: im.Size - 2*block}); !errors.Is(err, erofs.ErrTooLarge) {
		t.Errorf("error %v, want %v", err, erofs.ErrTooLarge)
	}
}

func TestUnknownXattrsAreDropped(t *testing.T) {
	f := newFixture(t)
	n := inline("x")
	n.Xattrs = xattrs("com.apple.provenance", "1", "user.", "2", "user.kept", "3", "system.nfs4_acl", "4", "lustre.lov", "5")
	f.put("a", n)
	tree := f.tree()
	var b bytes.Buffer
	im, err := erofs.Write(&b, tree, erofs.Options{})
	if err != nil || im.Dropped != 4 {
		t.Fatalf("%+v, %v, want 4 dropped", im, err)
	}
	s, err := newGoView(t, b.Bytes(), nil).stat("a")
	if err != nil || len(s.xattrs) != 1 || s.xattrs["user.kept"] != "3" {
		t.Errorf("attributes %q, %v", s.xattrs, err)
	}
}

// failing is a writer that takes some bytes.
type failing struct{ left int }

var errFull = errors.New("disk full")

func (w *failing) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriteReportsWriter(t *testing.T) {
	f := newFixture(t)
	inlineTails(f)
	tree := f.tree()
	for _, n := range []int{0, 1 << 20, 3 << 20} {
		if _, err := erofs.Write(&failing{n}, tree, erofs.Options{}); !errors.Is(err, errFull) {
			t.Errorf("after %d bytes: error %v, want %v", n, err, errFull)
		}
	}
}
