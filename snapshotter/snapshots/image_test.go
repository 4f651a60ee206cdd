package snapshots_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// layer is a layer of an image.
type layer struct {
	diff, chain, parent digest.Digest // parent is the chain ID below, or ""
	files               map[string]string
	tar                 []byte
}

// image is an image in a registry.
type image struct {
	layers           []layer
	config, manifest []byte
	blobs            map[digest.Digest][]byte
}

const (
	imageName      = "registry.example/app:1"
	whiteoutPrefix = ".wh."
)

// newImage makes an image. Each layer has a file of its own, one that all have,
// and deletes the own file of the layer two below it. The lowest ones can be lazy.
func newImage(t testing.TB, im *images, name string, layers, lazy int) *image {
	t.Helper()
	out := &image{blobs: map[digest.Digest][]byte{}}
	var parent digest.Digest
	for i := range layers {
		l := layer{parent: parent, files: map[string]string{
			fmt.Sprintf("file-%d", i): fmt.Sprintf("%s %d", name, i), "top": fmt.Sprintf("%s %d", name, i),
		}}
		if i >= 2 {
			l.files[fmt.Sprintf("%sfile-%d", whiteoutPrefix, i-2)] = ""
		}
		l.tar = tarOf(t, l.files)
		l.diff = digest.FromBytes(l.tar)
		l.chain = l.diff
		if parent != "" {
			l.chain = identity.ChainID([]digest.Digest{parent, l.diff})
		}
		parent = l.chain
		if i < lazy {
			im.lazy[l.chain.String()] = true
			l.write(t, im.layerDir(l.chain.String()))
		}
		out.layers = append(out.layers, l)
	}
	out.describe(t)
	return out
}

// top is the chain ID of the topmost layer.
func (im *image) top() string { return im.layers[len(im.layers)-1].chain.String() }

// files is the content of the whole image.
func (im *image) files() map[string]string {
	out := map[string]string{}
	for _, l := range im.layers {
		for name, content := range l.files {
			if gone, ok := strings.CutPrefix(name, whiteoutPrefix); ok {
				delete(out, gone)
			} else {
				out[name] = content
			}
		}
	}
	return out
}

// describe writes the image's config and manifest.
func (im *image) describe(t testing.TB) {
	config := ocispec.Image{Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for _, l := range im.layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diff)
		m.Layers = append(m.Layers, im.blob(ocispec.MediaTypeImageLayer, l.tar))
	}
	im.config = mustJSON(t, config)
	m.Config = im.blob(ocispec.MediaTypeImageConfig, im.config)
	im.manifest = mustJSON(t, m)
	im.blob(m.MediaType, im.manifest)
}

func (im *image) blob(mediaType string, data []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	im.blobs[d.Digest] = data
	return d
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Name: name, Size: int64(len(files[name])), Mode: 0o644, Typeflag: tar.TypeReg}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// write writes the layer as a lower directory of an overlay.
func (l layer) write(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range l.files {
		var err error
		if gone, ok := strings.CutPrefix(name, whiteoutPrefix); ok {
			if os.Geteuid() == 0 {
				err = unix.Mknod(filepath.Join(dir, gone), unix.S_IFCHR, 0)
			}
		} else {
			err = os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// labels are what containerd says of the layer when it unpacks it.
func (l layer) labels() map[string]string {
	out := map[string]string{
		"containerd.io/snapshot.ref":           l.chain.String(),
		"containerd.io/snapshot/diff-id":       l.diff.String(),
		"containerd.io/snapshot/cri.image-ref": imageName,
	}
	if l.parent != "" {
		out["containerd.io/snapshot/parent-chain-id"] = l.parent.String()
	}
	return out
}
