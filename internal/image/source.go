package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// store is what the kinds of sources have in common. Nothing that it returns is
// verified. Errors for what it does not have wrap ErrNotFound.
type store interface {
	// manifest returns what a reference (a tag, a digest, or "" for the only
	// one) names, at most maxManifest bytes.
	manifest(ctx context.Context, reference string) ([]byte, v1.Descriptor, error)
	// blob opens n bytes at off of a blob; off+n is within its Size.
	blob(ctx context.Context, desc v1.Descriptor, off, n int64) (io.ReadCloser, error)
	// referrers returns at least the manifests of the given type (any if empty)
	// whose subject is the given one.
	referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]v1.Descriptor, error)
	close() error
}

// Source is where an image is read from.
type Source struct {
	// Set once.
	ref   Ref
	opts  *Options
	store store
}

// Open opens what a reference names. For a registry it logs in, and asks for
// nothing yet; a directory is read whole to learn the digest of its layer.
// Errors: ErrNotFound, ErrDenied, *origin.StatusError and those of the file
// system and the network. The caller closes the Source.
func Open(ctx context.Context, ref Ref, o Options) (*Source, error) {
	opts := o.withDefaults()
	s, err := openStore(ctx, ref, opts)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", ref, absent(err))
	}
	return &Source{ref: ref, opts: opts, store: s}, nil
}

func openStore(ctx context.Context, ref Ref, o *Options) (store, error) {
	switch ref.Kind {
	case KindRegistry:
		return dial(ctx, ref, o, transport.PullScope)
	case KindLayout:
		return openLayout(ref.Path)
	case KindArchive:
		return openArchive(ctx, ref.Path)
	case KindDirectory:
		return openDirectory(ctx, ref.Path, o)
	}
	return nil, fmt.Errorf("%w: reference of kind %s", ErrUnsupported, ref.Kind)
}

// Ref returns the reference that was opened.
func (s *Source) Ref() Ref { return s.ref }

// Close gives back files and idle connections. Readers got from the Source are
// of no use afterwards.
func (s *Source) Close() error { return s.store.close() }

// Manifest returns a manifest or an index by tag or digest; reference "" is
// what the Source was opened with. Content and descriptor match, and the
// descriptor has a media type that is known.
func (s *Source) Manifest(ctx context.Context, reference string) ([]byte, v1.Descriptor, error) {
	if reference == "" {
		reference = s.ref.identifier()
	}
	data, desc, err := s.store.manifest(ctx, reference)
	if err != nil {
		return nil, v1.Descriptor{}, fmt.Errorf("read manifest %s: %w", s.name(reference), absent(err))
	}
	if d := digest.Digest(reference); checkDigest(d) == nil && d != digest.FromBytes(data) {
		return nil, v1.Descriptor{}, fmt.Errorf("read manifest %s: %w: its content has digest %s", s.name(reference), ErrCorrupt, digest.FromBytes(data))
	}
	doc, err := parseDocument(data, desc.MediaType)
	if err != nil {
		return nil, v1.Descriptor{}, fmt.Errorf("manifest %s: %w", s.name(reference), err)
	}
	desc.MediaType = doc.MediaType
	desc.Digest, desc.Size = digest.FromBytes(data), int64(len(data))
	return data, desc, nil
}

// name is how messages call a manifest.
func (s *Source) name(reference string) string {
	switch d := digest.Digest(reference); {
	case reference == "":
		return s.ref.String()
	case checkDigest(d) == nil:
		return s.ref.WithDigest(d).String()
	}
	return s.ref.WithTag(reference).String()
}

// Blob opens a blob. Its reader resumes after failures, and returns io.EOF only
// if all that was read is what the descriptor says (else ErrCorrupt): until then
// nothing is proven, so read to the end.
func (s *Source) Blob(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	what := fmt.Sprintf("blob %s of %s", desc.Digest, s.ref)
	if err := checkDescriptor(desc); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	r, err := s.store.blob(ctx, desc, 0, desc.Size)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", what, absent(err))
	}
	return verify(r, desc, what), nil
}

// ReadBlobAt reads len(p) bytes of a blob at off, as io.ReaderAt does. Nothing
// is verified. ErrUnsupported for the layer of a directory. A registry without
// ranges sends all that comes before, each time.
func (s *Source) ReadBlobAt(ctx context.Context, desc v1.Descriptor, p []byte, off int64) (int, error) {
	what := fmt.Sprintf("blob %s of %s", desc.Digest, s.ref)
	if err := checkDescriptor(desc); err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	if off < 0 {
		return 0, fmt.Errorf("%s: negative offset %d", what, off)
	}
	n := min(int64(len(p)), desc.Size-off)
	if n <= 0 {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	r, err := s.store.blob(ctx, desc, off, n)
	if err != nil {
		return 0, fmt.Errorf("read %d bytes at %d of %s: %w", n, off, what, absent(err))
	}
	defer r.Close()
	got, err := io.ReadFull(r, p[:n])
	switch {
	case err != nil:
		return got, fmt.Errorf("read %d bytes at %d of %s: %w", n, off, what, err)
	case got < len(p):
		return got, io.EOF
	}
	return got, nil
}

// Referrers returns the manifests whose subject is the given one, of one
// artifact type, or of any if that is empty, and those whose type cannot be told
// because they cannot be read, with an empty ArtifactType. A registry is asked by the
// referrers API and, if it has none, by the fallback tag. No referrers is an
// empty list and no error.
func (s *Source) Referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]v1.Descriptor, error) {
	if err := checkDigest(subject); err != nil {
		return nil, err
	}
	list, err := s.store.referrers(ctx, subject, artifactType)
	if err == nil {
		list, err = s.filter(ctx, list, artifactType)
	}
	if err != nil {
		return nil, fmt.Errorf("list what refers to %s: %w", s.ref.WithDigest(subject), err)
	}
	return list, nil
}

// filter keeps each descriptor of the type once. Servers may ignore the filter,
// and some do not know the type, or take that of an empty configuration for it:
// then the manifest says. One that cannot be read is kept, of no type: it must
// not hide the others, nor be taken for one that is not there.
func (s *Source) filter(ctx context.Context, list []v1.Descriptor, artifactType string) ([]v1.Descriptor, error) {
	var kept []v1.Descriptor
	seen := map[digest.Digest]bool{}
	for _, desc := range list {
		if err := checkDescriptor(desc); err != nil {
			return nil, err
		}
		if seen[desc.Digest] {
			continue
		}
		seen[desc.Digest] = true
		if desc.ArtifactType == "" || desc.ArtifactType == v1.MediaTypeEmptyJSON {
			found, err := s.artifactType(ctx, desc)
			switch {
			case errors.Is(err, ErrNotFound):
				continue // listed, but gone
			case ctx.Err() != nil:
				return nil, err
			}
			desc.ArtifactType = found
			if err != nil {
				kept = append(kept, desc)
				continue
			}
		}
		if artifactType == "" || desc.ArtifactType == artifactType {
			kept = append(kept, desc)
		}
	}
	return kept, nil
}

func (s *Source) artifactType(ctx context.Context, desc v1.Descriptor) (string, error) {
	data, got, err := s.Manifest(ctx, desc.Digest.String())
	if err != nil {
		return "", err
	}
	doc, err := parseDocument(data, got.MediaType)
	if err != nil {
		return "", err
	}
	return doc.artifactType(), nil
}
