package backendtest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// File is an entry of a layer: a header, whose Size and Format need not be set,
// and content.
type File struct {
	tar.Header
	Content []byte
}

// Layer is a layer of an image. A parent comes before its children.
type Layer []File

// modified is when the files of the functions below were, to the nanosecond.
var modified = time.Unix(1700000000, 123456789)

// Regular returns a file.
func Regular(name string, content []byte) File {
	return File{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: modified}, content}
}

// Directory returns a directory.
func Directory(name string) File {
	return File{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: modified}, nil}
}

// Symlink returns a symbolic link.
func Symlink(name, target string) File {
	return File{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: modified}, nil}
}

// Hardlink returns a further name of a file of the same layer.
func Hardlink(name, target string) File {
	return File{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644, ModTime: modified}, nil}
}

// Special returns a device or a fifo.
func Special(kind byte, name string, major, minor int64) File {
	return File{tar.Header{Typeflag: kind, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor, ModTime: modified}, nil}
}

// WithXattrs adds extended attributes: names and values in turn.
func (f File) WithXattrs(pairs ...string) File {
	f.PAXRecords = map[string]string{}
	for i := 0; i+1 < len(pairs); i += 2 {
		f.PAXRecords[paxXattr+pairs[i]] = pairs[i+1]
	}
	return f
}

const paxXattr = "SCHILY.xattr."

// Noise returns n bytes that do not compress, and are others for each seed.
func Noise(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 0xd5}) // #nosec G115,G404 -- test data
	p := make([]byte, n)
	_, _ = r.Read(p) // never fails
	return p
}

// tar returns the layer as a tar.
func (l Layer) tar(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range l {
		h := f.Header
		h.Size, h.Format = int64(len(f.Content)), tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("write %s to a tar: %v", h.Name, err)
		}
		if _, err := w.Write(f.Content); err != nil {
			t.Fatalf("write %s to a tar: %v", h.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Want is what the kernel is to show: files by path.
type Want map[string]*File

// apply unpacks a layer as the OCI specification has it.
func (w Want) apply(l Layer) {
	for i := range l {
		f := &l[i]
		name := path.Clean(f.Name)
		dir, base := path.Split(name)
		switch {
		case base == ".wh..wh..opq":
			w.removeBelow(strings.TrimSuffix(dir, "/"))
		case strings.HasPrefix(base, ".wh."):
			hidden := dir + strings.TrimPrefix(base, ".wh.")
			delete(w, hidden)
			w.removeBelow(hidden)
		default:
			if old := w[name]; old != nil && (old.Typeflag != tar.TypeDir || f.Typeflag != tar.TypeDir) {
				w.removeBelow(name)
			}
			w[name] = f
		}
	}
}

func (w Want) removeBelow(dir string) {
	for name := range w {
		if strings.HasPrefix(name, dir+"/") {
			delete(w, name)
		}
	}
}

// content returns what a name is to read as.
func (w Want) content(name string) []byte {
	f := w[name]
	if f.Typeflag == tar.TypeLink {
		return w[path.Clean(f.Linkname)].Content
	}
	return f.Content
}

// Image is an image on a node.
type Image struct {
	backend.Image
	Want Want
}

// Image makes an image of layers, the lowest first, and everything that the
// node needs of it.
func (n *Node) Image(t testing.TB, layers ...Layer) *Image {
	t.Helper()
	want := Want{}
	var in []build.Layer
	for i, l := range layers {
		want.apply(l)
		data := l.tar(t)
		in = append(in, build.Layer{
			Name: fmt.Sprintf("layer %d", i), Size: int64(len(data)),
			Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		})
	}
	// Small groups, so that files have many.
	built, err := build.Build(t.Context(), in, n.Blobs, build.Options{ChunkSize: 32 << 10, GroupSize: 64 << 10, Level: 1})
	if err != nil {
		t.Fatalf("build the image: %v", err)
	}
	var trees []*chunkfmt.Tree
	for i := range built.Layers {
		trees = append(trees, &built.Layers[i].Index.Tree)
	}
	tree, err := chunkfmt.Merge(trees...)
	if err != nil {
		t.Fatalf("merge the layers: %v", err)
	}
	im := n.imageOf(t, tree, hex.EncodeToString(built.Root[:]))
	im.Want = want
	return im
}

// imageOf makes what a backend needs of a tree.
func (n *Node) imageOf(t testing.TB, tree *chunkfmt.Tree, id string) *Image {
	t.Helper()
	meta, err := os.Create(filepath.Join(n.Dir, id+".erofs")) // #nosec G304 -- a test's directory
	if err != nil {
		t.Fatal(err)
	}
	written, err := erofs.Write(meta, tree, erofs.Options{})
	if err != nil {
		t.Fatalf("write the EROFS image: %v", err)
	}
	if err := meta.Close(); err != nil {
		t.Fatal(err)
	}
	byKey := map[device.Key]*device.Device{}
	im := &Image{Image: backend.Image{
		ID: id, Meta: meta.Name(),
		Tree:   func(context.Context) (*chunkfmt.Tree, error) { return tree, nil },
		Device: func(key device.Key) *device.Device { return byKey[key] },
	}}
	for _, blob := range written.Devices {
		table, err := device.NewTable(tree, blob)
		if err != nil {
			t.Fatal(err)
		}
		d, err := n.Store.Get(table)
		if err != nil {
			t.Fatalf("open the device of %s: %v", table.Blob.Digest, err)
		}
		n.release = append(n.release, d.Release)
		byKey[d.Key()] = d
		im.Devices = append(im.Devices, d)
	}
	return im
}
