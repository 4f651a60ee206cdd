package indextest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// tocAnnotation binds the table of contents of an eStargz layer.
const tocAnnotation = "containerd.io/snapshot/stargz/toc.digest"

// EStargz returns an image for linux/amd64 of one eStargz layer, whose manifest
// binds the layer's table of contents. The files are regular ones.
func EStargz(t testing.TB, f Files) ggcr.Image {
	t.Helper()
	w := &estargzWriter{t: t}
	for _, path := range slices.Sorted(maps.Keys(f)) {
		w.file(path, []byte(f[path]))
	}
	stored, toc := w.close()
	layer := plainLayer{static.NewLayer(stored, types.OCILayer), w.plain.Bytes()}
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer: layer, MediaType: types.OCILayer, Annotations: map[string]string{tocAnnotation: fmt.Sprintf("sha256:%x", sha256.Sum256(toc))},
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// plainLayer is a compressed layer that knows its tar.
type plainLayer struct {
	ggcr.Layer
	plain []byte
}

// DiffID is the digest of the tar.
func (l plainLayer) DiffID() (ggcr.Hash, error) {
	h, _, err := ggcr.SHA256(bytes.NewReader(l.plain))
	return h, err
}

// Uncompressed returns the tar.
func (l plainLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.plain)), nil
}

// estargzWriter writes each header and each content as a gzip member.
type estargzWriter struct {
	t             testing.TB
	member        bytes.Buffer // plain, open
	plain, stored bytes.Buffer
	entries       []map[string]any
}

func (w *estargzWriter) file(path string, data []byte) {
	w.header(path, len(data))
	w.flush()
	w.entries = append(w.entries, map[string]any{
		"name": path, "type": "reg", "mode": 0o644, "size": len(data), "modtime": "1970-01-01T00:00:00Z",
		"offset": w.stored.Len(), "chunkDigest": fmt.Sprintf("sha256:%x", sha256.Sum256(data)), "digest": fmt.Sprintf("sha256:%x", sha256.Sum256(data)),
	})
	w.member.Write(data)
	w.flush()
	w.member.Write(make([]byte, -len(data)&511))
}

func (w *estargzWriter) header(path string, size int) {
	h := &tar.Header{Name: path, Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg}
	if err := tar.NewWriter(&w.member).WriteHeader(h); err != nil {
		w.t.Fatal(err)
	}
}

func (w *estargzWriter) flush() {
	if w.member.Len() == 0 {
		return
	}
	w.plain.Write(w.member.Bytes())
	z := gzip.NewWriter(&w.stored)
	if _, err := z.Write(w.member.Bytes()); err != nil {
		w.t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.member.Reset()
}

// close returns the layer and its table.
func (w *estargzWriter) close() (stored, toc []byte) {
	w.flush()
	toc, err := json.Marshal(map[string]any{"version": 1, "entries": w.entries})
	if err != nil {
		w.t.Fatal(err)
	}
	offset := w.stored.Len()
	w.header("stargz.index.json", len(toc))
	w.member.Write(toc)
	w.member.Write(make([]byte, -len(toc)&511+1024))
	w.flush()
	// An empty member with an extra field, uncompressed as its readers want it.
	const text = 22 // bytes of what follows
	w.stored.Write([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, text + 4, 0, 'S', 'G', text, 0})
	fmt.Fprintf(&w.stored, "%016xSTARGZ", offset)
	w.stored.Write([]byte{1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0})
	return w.stored.Bytes(), toc
}
