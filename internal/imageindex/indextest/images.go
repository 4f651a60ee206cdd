package indextest

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Files are the entries of a layer: content by path; a path that ends in "/" is
// a directory.
type Files map[string]string

// Tar returns the entries as a tar, sorted by path.
func (f Files) Tar(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, path := range slices.Sorted(maps.Keys(f)) {
		data := f[path]
		h := &tar.Header{Name: path, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}
		if strings.HasSuffix(path, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Layer returns a layer of a tar, plain or compressed.
func Layer(t testing.TB, data []byte) ggcr.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Image returns an image for linux and an architecture.
func Image(t testing.TB, arch string, layers ...Files) ggcr.Image {
	t.Helper()
	var all []ggcr.Layer
	for _, f := range layers {
		all = append(all, Layer(t, f.Tar(t)))
	}
	return ImageOf(t, ggcr.ConfigFile{OS: "linux", Architecture: arch}, all...)
}

// ImageOf returns an image with a configuration.
func ImageOf(t testing.TB, c ggcr.ConfigFile, layers ...ggcr.Layer) ggcr.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config = c.OS, c.Architecture, c.Config
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// Index returns an index of images for linux by architecture.
func Index(images map[string]ggcr.Image) ggcr.ImageIndex {
	var index ggcr.ImageIndex = empty.Index
	for _, arch := range slices.Sorted(maps.Keys(images)) {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: images[arch], Descriptor: ggcr.Descriptor{Platform: &ggcr.Platform{OS: "linux", Architecture: arch}},
		})
	}
	return index
}

// Noise returns n bytes that do not compress away, different for each seed.
func Noise(seed uint32, n int) string {
	p := make([]byte, n)
	x := seed*2654435761 + 1
	for i := range p {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		p[i] = byte(x & 0xff)
	}
	return string(p)
}
