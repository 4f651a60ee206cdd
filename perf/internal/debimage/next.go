package debimage

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Next makes, from the layout of an image, that of its next version: the same
// layers built again, with percent of the regular files changed in every byte:
// inverted, so that they compress as before. Which files is decided by a hash
// of the path, so that every run gives the same image. A layout that is there
// already is kept.
func Next(ctx context.Context, layout, to string, percent uint32) error {
	return revise(layout, to, func(w *writer, tarball io.Reader) error {
		return w.stream(ctx, func(out io.Writer) error { return rebuild(tarball, out, percent) })
	})
}

// Plain makes, from the layout of an image, that of the same image with layers
// that are not compressed. A layout that is there already is kept.
func Plain(layout, to string) error {
	return revise(layout, to, func(w *writer, tarball io.Reader) error {
		return w.plain(func(out io.Writer) error {
			_, err := io.Copy(out, tarball)
			return err
		})
	})
}

// revise makes a layout whose layers are what add makes of those of another,
// which must be compressed by gzip.
func revise(layout, to string, add func(*writer, io.Reader) error) error {
	if _, err := os.Stat(filepath.Join(to, v1.ImageIndexFile)); err == nil {
		return nil
	}
	manifest, err := readManifest(layout)
	if err != nil {
		return err
	}
	var config v1.Image
	if err := readJSON(blobPath(layout, manifest.Config), &config); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(to), ".revised-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }() // gone already, or of no use
	w, err := newWriter(filepath.Join(work, "layout"), config)
	if err != nil {
		return err
	}
	for _, layer := range manifest.Layers {
		if err := unzip(layout, layer, func(r io.Reader) error { return add(w, r) }); err != nil {
			return fmt.Errorf("make layer %s again: %w", layer.Digest, err)
		}
	}
	if err := w.finish(); err != nil {
		return err
	}
	return os.Rename(w.dir, to)
}

func blobPath(layout string, d v1.Descriptor) string {
	return filepath.Join(layout, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded())
}

// unzip calls use with a layer's tar.
func unzip(layout string, layer v1.Descriptor, use func(io.Reader) error) error {
	f, err := os.Open(blobPath(layout, layer))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read from
	r, err := gzip.NewReader(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return fmt.Errorf("layer of type %s: %w", layer.MediaType, err)
	}
	return use(r)
}

func readManifest(layout string) (*v1.Manifest, error) {
	var index v1.Index
	if err := readJSON(filepath.Join(layout, v1.ImageIndexFile), &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("layout %s has %d images, want 1", layout, len(index.Manifests))
	}
	m := &v1.Manifest{}
	return m, readJSON(blobPath(layout, index.Manifests[0]), m)
}

func readJSON(path string, v any) error {
	p, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(p, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// rebuild copies a tar and changes percent of its files.
func rebuild(from io.Reader, to io.Writer, percent uint32) error {
	in, out := tar.NewReader(from), tar.NewWriter(to)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return err
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if err := copyContent(out, in, h, percent); err != nil {
			return fmt.Errorf("copy %s: %w", h.Name, err)
		}
	}
}

// copyContent copies a file, inverted if it is one of those that change.
func copyContent(to io.Writer, from io.Reader, h *tar.Header, percent uint32) error {
	name := fnv.New32a()
	_, _ = name.Write([]byte(h.Name)) // a hash never fails
	if h.Typeflag != tar.TypeReg || name.Sum32()%100 >= percent {
		_, err := io.Copy(to, from)
		return err
	}
	_, err := io.Copy(inverter{to}, from)
	return err
}

type inverter struct{ to io.Writer }

func (w inverter) Write(p []byte) (int, error) {
	inverted := make([]byte, len(p))
	for i, b := range p {
		inverted[i] = ^b
	}
	return w.to.Write(inverted)
}
