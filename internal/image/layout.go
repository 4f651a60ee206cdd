package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// files are those of an OCI layout, in a directory or in a tar.
type files interface {
	// open returns a file by its slash-separated name. fs.ErrNotExist if there
	// is none.
	open(name string) (file, error)
	close() error
}

// file is open for reading.
type file interface {
	io.ReaderAt
	io.Closer
	size() (int64, error)
}

// layout is the store over an OCI layout.
type layout struct{ files files }

// absent makes the file system's word for it ours.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

func openLayout(dir string) (*layout, error) {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, fmt.Errorf("%s is not a directory", dir)
	}
	l := &layout{files: dirFiles(dir)}
	if err := l.checkVersion(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is no OCI layout: %w", dir, err)
		}
		return nil, err
	}
	return l, nil
}

func (l *layout) checkVersion() error {
	data, err := l.read(v1.ImageLayoutFile, maxManifest)
	if err != nil {
		return err
	}
	var header v1.ImageLayout
	if err := json.Unmarshal(data, &header); err != nil {
		return fmt.Errorf("%s: %w: %w", v1.ImageLayoutFile, ErrCorrupt, err)
	}
	if !strings.HasPrefix(header.Version, "1.") {
		return fmt.Errorf("%w: OCI layout of version %q, want 1.x", ErrUnsupported, oneLine(header.Version, 50))
	}
	return nil
}

func blobName(d digest.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

func (l *layout) read(name string, limit int64) ([]byte, error) {
	f, err := l.files.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read from
	n, err := f.size()
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("%s: %w: %d bytes, at most %d", name, ErrUnsupported, n, limit)
	}
	return io.ReadAll(io.NewSectionReader(f, 0, n))
}

func (l *layout) index() (*v1.Index, error) {
	data, err := l.read(v1.ImageIndexFile, maxIndex)
	if err != nil {
		return nil, err
	}
	index := &v1.Index{}
	if err := json.Unmarshal(data, index); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", v1.ImageIndexFile, ErrCorrupt, err)
	}
	return index, nil
}

// manifest implements store.
func (l *layout) manifest(_ context.Context, reference string) ([]byte, v1.Descriptor, error) {
	if d := digest.Digest(reference); checkDigest(d) == nil {
		data, err := l.read(blobName(d), maxManifest)
		return data, v1.Descriptor{Digest: d}, err
	}
	index, err := l.index()
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	desc, err := l.choose(index, reference)
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	if err := checkDescriptor(desc); err != nil {
		return nil, v1.Descriptor{}, fmt.Errorf("%s: %w", v1.ImageIndexFile, err)
	}
	data, err := l.read(blobName(desc.Digest), maxManifest)
	if err == nil && digest.FromBytes(data) != desc.Digest {
		err = fmt.Errorf("%w: the content of %s has digest %s", ErrCorrupt, desc.Digest, digest.FromBytes(data))
	}
	return data, desc, err
}

// choose finds an entry of index.json by its name, or the only image.
func (l *layout) choose(index *v1.Index, tag string) (v1.Descriptor, error) {
	var names []string
	var images []v1.Descriptor
	for _, desc := range index.Manifests {
		name := desc.Annotations[v1.AnnotationRefName]
		if tag != "" && name == tag {
			return desc, nil
		}
		if l.isReferrer(desc) {
			continue
		}
		if name != "" {
			names = append(names, oneLine(name, 100))
		}
		if !slices.ContainsFunc(images, func(d v1.Descriptor) bool { return d.Digest == desc.Digest }) {
			images = append(images, desc)
		}
	}
	has := "it has no names"
	if len(names) > 0 {
		has = "it has " + strings.Join(names[:min(len(names), 20)], ", ")
	}
	switch {
	case tag != "":
		return v1.Descriptor{}, fmt.Errorf("%w: no image %q in %s: %s", ErrNotFound, tag, v1.ImageIndexFile, has)
	case len(images) == 0:
		return v1.Descriptor{}, fmt.Errorf("%w: no image in %s", ErrNotFound, v1.ImageIndexFile)
	case len(images) > 1:
		return v1.Descriptor{}, fmt.Errorf("%d images in %s, name one: %s", len(images), v1.ImageIndexFile, has)
	}
	return images[0], nil
}

// isReferrer reports entries that say something of an image rather than being
// one. What cannot be read is left for the caller to find.
func (l *layout) isReferrer(desc v1.Descriptor) bool {
	if desc.ArtifactType != "" {
		return true
	}
	doc, err := l.document(desc)
	return err == nil && (doc.Subject != nil || !doc.index() && doc.checkImage() != nil)
}

func (l *layout) document(desc v1.Descriptor) (*document, error) {
	if err := checkDescriptor(desc); err != nil {
		return nil, err
	}
	data, err := l.read(blobName(desc.Digest), maxManifest)
	if err != nil {
		return nil, err
	}
	return parseDocument(data, desc.MediaType)
}

// blob implements store.
func (l *layout) blob(_ context.Context, desc v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	f, err := l.files.open(blobName(desc.Digest))
	if err != nil {
		return nil, err
	}
	size, err := f.size()
	if err == nil && size != desc.Size {
		err = fmt.Errorf("%w: %s has %d bytes, its descriptor says %d", ErrCorrupt, blobName(desc.Digest), size, desc.Size)
	}
	if err != nil {
		_ = f.Close() // only opened
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, off, n), f}, nil
}

// referrers implements store. It looks at every manifest that index.json or an
// index in it lists.
func (l *layout) referrers(ctx context.Context, subject digest.Digest, _ string) ([]v1.Descriptor, error) {
	index, err := l.index()
	if err != nil {
		return nil, err
	}
	s := &layoutSearch{l: l, subject: subject, seen: map[digest.Digest]bool{}}
	err = s.search(ctx, index.Manifests, 0)
	return s.found, err
}

type layoutSearch struct {
	l       *layout
	subject digest.Digest
	seen    map[digest.Digest]bool
	found   []v1.Descriptor
}

func (s *layoutSearch) search(ctx context.Context, list []v1.Descriptor, depth int) error {
	for _, desc := range list {
		if s.seen[desc.Digest] {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if len(s.seen) == maxReferrers {
			return fmt.Errorf("%w: more than %d manifests", ErrUnsupported, maxReferrers)
		}
		s.seen[desc.Digest] = true
		doc, err := s.l.document(desc)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrUnsupported):
			continue // a layout may list what is kept elsewhere, or of other kinds
		case err != nil:
			return fmt.Errorf("manifest %s: %w", desc.Digest, err)
		}
		if doc.Subject != nil && doc.Subject.Digest == s.subject {
			s.found = append(s.found, describe(desc, doc))
		}
		if doc.index() && depth < maxDepth {
			if err := s.search(ctx, doc.Manifests, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// describe is the descriptor of a referrer as a registry lists it.
func describe(desc v1.Descriptor, doc *document) v1.Descriptor {
	return v1.Descriptor{
		MediaType: doc.MediaType, Digest: desc.Digest, Size: desc.Size,
		ArtifactType: doc.artifactType(), Annotations: doc.Annotations,
	}
}

func (l *layout) close() error { return l.files.close() }

// dirFiles are the files of a directory.
type dirFiles string

func (d dirFiles) open(name string) (file, error) {
	f, err := os.Open(filepath.Join(string(d), filepath.FromSlash(name)))
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

func (d dirFiles) close() error { return nil }

type diskFile struct{ *os.File }

func (f diskFile) size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%w: %s is not a regular file", ErrCorrupt, f.Name())
	}
	return info.Size(), nil
}

// memory are bytes in place of a file.
type memory struct{ *bytes.Reader }

func newMemory(data []byte) memory { return memory{bytes.NewReader(data)} }

func (m memory) size() (int64, error) { return m.Size(), nil }
func (m memory) Close() error         { return nil }
