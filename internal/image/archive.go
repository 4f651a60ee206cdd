package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxArchiveEntries = 1 << 16
	maxLinks          = 16
	manifestJSON      = "manifest.json"
)

// openArchive opens what docker save or skopeo wrote. If there is an OCI layout
// in it (docker since 25, oci-archive) that is read: its manifest is the
// image's own.
func openArchive(ctx context.Context, name string) (store, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	s, err := readArchive(ctx, f)
	if err != nil {
		_ = f.Close() // only read from
		return nil, err
	}
	return s, nil
}

func readArchive(ctx context.Context, f *os.File) (store, error) {
	t, err := scanTar(ctx, f)
	if err != nil {
		return nil, err
	}
	if t.has(v1.ImageLayoutFile) && t.has(v1.ImageIndexFile) {
		l := &layout{files: t}
		return l, l.checkVersion()
	}
	if !t.has(manifestJSON) {
		return nil, fmt.Errorf("%w: neither %s nor %s in it: not what docker save writes", ErrUnsupported, manifestJSON, v1.ImageIndexFile)
	}
	return t.dockerImage(ctx)
}

// tarFiles are the files in a plain tar, read in place.
type tarFiles struct {
	f       *os.File
	entries map[string]tarEntry
}

type tarEntry struct {
	off, size int64
	link      string // to another entry
}

// scanTar finds where the files of a tar are.
func scanTar(ctx context.Context, f *os.File) (*tarFiles, error) {
	if err := refuseCompressed(f); err != nil {
		return nil, err
	}
	t := &tarFiles{f: f, entries: map[string]tarEntry{}}
	r := tar.NewReader(f)
	for ctx.Err() == nil {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return t, t.checkBounds()
		}
		if err != nil {
			return nil, fmt.Errorf("%w: not a tar, or cut off: %w", ErrCorrupt, err)
		}
		if len(t.entries) == maxArchiveEntries {
			return nil, fmt.Errorf("%w: more than %d files", ErrUnsupported, maxArchiveEntries)
		}
		// The reader takes whole headers and nothing beyond, so that the content
		// begins where the file is read next.
		off, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		t.add(h, off)
	}
	return nil, ctx.Err()
}

func (t *tarFiles) add(h *tar.Header, off int64) {
	name := path.Clean("/" + h.Name)
	switch h.Typeflag {
	case tar.TypeReg:
		t.entries[name] = tarEntry{off: off, size: h.Size}
	case tar.TypeSymlink:
		link := h.Linkname
		if !strings.HasPrefix(link, "/") {
			link = path.Join(path.Dir(name), link) //nolint:gosec // G305: a key of a map, no path
		}
		t.entries[name] = tarEntry{link: path.Clean("/" + link)}
	case tar.TypeLink:
		t.entries[name] = tarEntry{link: path.Clean("/" + h.Linkname)}
	}
}

// checkBounds finds an archive whose last file is cut off: the reader seeks over
// contents.
func (t *tarFiles) checkBounds() error {
	info, err := t.f.Stat()
	if err != nil {
		return err
	}
	for name, e := range t.entries {
		if e.off > info.Size() || e.size > info.Size()-e.off {
			return fmt.Errorf("%w: the archive ends in %s", ErrCorrupt, name)
		}
	}
	return nil
}

func refuseCompressed(f *os.File) error {
	head := make([]byte, 4)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch compression(head[:n]) {
	case gzipMagic:
		return fmt.Errorf("%w: the archive is compressed as a whole: unpack it with gunzip", ErrUnsupported)
	case zstdMagic:
		return fmt.Errorf("%w: the archive is compressed as a whole: unpack it with unzstd", ErrUnsupported)
	}
	return nil
}

const (
	gzipMagic = "\x1f\x8b"
	zstdMagic = "\x28\xb5\x2f\xfd"
)

// compression returns the magic that content begins with, "" for none.
func compression(head []byte) string {
	for _, magic := range []string{gzipMagic, zstdMagic} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return magic
		}
	}
	return ""
}

func (t *tarFiles) find(name string) (tarEntry, bool) {
	name = path.Clean("/" + name)
	for range maxLinks {
		e, ok := t.entries[name]
		if !ok || e.link == "" {
			return e, ok
		}
		name = e.link
	}
	return tarEntry{}, false
}

func (t *tarFiles) has(name string) bool {
	_, ok := t.find(name)
	return ok
}

func (t *tarFiles) open(name string) (file, error) {
	e, ok := t.find(name)
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: t.f.Name() + ":" + name, Err: fs.ErrNotExist}
	}
	return inTar{io.NewSectionReader(t.f, e.off, e.size)}, nil
}

func (t *tarFiles) close() error { return t.f.Close() }

// inTar is a file within the tar, which stays open.
type inTar struct{ *io.SectionReader }

func (f inTar) size() (int64, error) { return f.Size(), nil }
func (f inTar) Close() error         { return nil }

// dockerImage reads the image that manifest.json describes.
func (t *tarFiles) dockerImage(ctx context.Context) (*parts, error) {
	l := &layout{files: t}
	data, err := l.read(manifestJSON, maxManifest)
	if err != nil {
		return nil, err
	}
	var images []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(data, &images); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", manifestJSON, ErrCorrupt, err)
	}
	if len(images) != 1 {
		var names []string
		for _, img := range images {
			names = append(names, img.RepoTags...)
		}
		return nil, fmt.Errorf("%w: %d images in the archive (%s): save one by itself", ErrUnsupported, len(images), oneLine(strings.Join(names, ", "), 400))
	}
	config, err := l.read(images[0].Config, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	layers, blobs, err := t.dockerLayers(ctx, config, images[0].Layers)
	if err != nil {
		return nil, err
	}
	return assemble(config, layers, blobs, t.close)
}

func (t *tarFiles) dockerLayers(ctx context.Context, config []byte, names []string) ([]v1.Descriptor, map[digest.Digest]opener, error) {
	var parsed v1.Image
	if err := json.Unmarshal(config, &parsed); err != nil {
		return nil, nil, fmt.Errorf("configuration: %w: %w", ErrCorrupt, err)
	}
	if len(names) != len(parsed.RootFS.DiffIDs) {
		return nil, nil, fmt.Errorf("%w: %s has %d layers, the configuration %d", ErrCorrupt, manifestJSON, len(names), len(parsed.RootFS.DiffIDs))
	}
	blobs := map[digest.Digest]opener{}
	layers := make([]v1.Descriptor, len(names))
	for i, name := range names {
		desc, err := t.dockerLayer(ctx, name, parsed.RootFS.DiffIDs[i])
		if err != nil {
			return nil, nil, fmt.Errorf("layer %d: %w", i, err)
		}
		layers[i] = desc
		blobs[desc.Digest] = inFile(func() (file, error) { return t.open(name) })
	}
	return layers, blobs, nil
}

// dockerLayer describes a layer. Docker saves them unpacked, when their digest
// is the diff ID; others are read once to learn it.
func (t *tarFiles) dockerLayer(ctx context.Context, name string, diffID digest.Digest) (v1.Descriptor, error) {
	if err := checkDigest(diffID); err != nil {
		return v1.Descriptor{}, err
	}
	e, ok := t.find(name)
	if !ok {
		return v1.Descriptor{}, fmt.Errorf("%w: the archive lacks %s", ErrCorrupt, oneLine(name, 200))
	}
	content := io.NewSectionReader(t.f, e.off, e.size)
	head := make([]byte, 4)
	n, err := content.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return v1.Descriptor{}, err
	}
	desc := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: diffID, Size: e.size}
	switch compression(head[:n]) {
	case gzipMagic:
		desc.MediaType = v1.MediaTypeImageLayerGzip
	case zstdMagic:
		desc.MediaType = v1.MediaTypeImageLayerZstd
	default:
		return desc, nil
	}
	desc.Digest, err = digest.SHA256.FromReader(&ctxReader{ctx, content})
	return desc, err
}

// ctxReader ends a long reading with the context.
type ctxReader struct {
	ctx context.Context //nolint:containedctx // of one call
	r   io.Reader
}

// Read implements io.Reader.
func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
