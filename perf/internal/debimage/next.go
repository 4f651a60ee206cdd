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
	if _, err := os.Stat(filepath.Join(to, v1.ImageIndexFile)); err == nil {
		return nil
	}
	manifest, err := readManifest(layout)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(to), ".next-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }() // gone already, or of no use
	w, err := newWriter(filepath.Join(work, "layout"))
	if err != nil {
		return err
	}
	for _, layer := range manifest.Layers {
		from := filepath.Join(layout, "blobs", "sha256", layer.Digest.Encoded())
		if err := w.stream(ctx, func(out io.Writer) error { return rebuild(from, out, percent) }); err != nil {
			return fmt.Errorf("rebuild layer %s: %w", layer.Digest, err)
		}
	}
	if err := w.finish(); err != nil {
		return err
	}
	return os.Rename(w.dir, to)
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
	return m, readJSON(filepath.Join(layout, "blobs", "sha256", index.Manifests[0].Digest.Encoded()), m)
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

func rebuild(layer string, to io.Writer, percent uint32) (err error) {
	f, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	unzip, err := gzip.NewReader(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return err
	}
	in, out := tar.NewReader(unzip), tar.NewWriter(to)
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
