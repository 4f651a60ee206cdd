package image

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Layer is one layer of an Image.
type Layer struct {
	// Descriptor of the blob, which is compressed as its media type says.
	Descriptor v1.Descriptor
	// DiffID is the digest of the tar in it, as the configuration says.
	DiffID digest.Digest

	s *Source
}

// layers joins the layers of a manifest with what the configuration says.
func (s *Source) layers(doc *document, diffIDs []digest.Digest) ([]Layer, error) {
	if len(doc.Layers) != len(diffIDs) {
		return nil, fmt.Errorf("%w: the manifest has %d layers, the configuration %d", ErrCorrupt, len(doc.Layers), len(diffIDs))
	}
	layers := make([]Layer, len(diffIDs))
	for i, desc := range doc.Layers {
		if err := checkDescriptor(desc); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		if err := checkDigest(diffIDs[i]); err != nil {
			return nil, fmt.Errorf("diff ID of layer %d: %w", i, err)
		}
		layers[i] = Layer{Descriptor: desc, DiffID: diffIDs[i], s: s}
	}
	return layers, nil
}

// Foreign reports layers that registries do not keep, with parts of Windows in
// them. They cannot be read.
func (l *Layer) Foreign() bool {
	switch l.Descriptor.MediaType {
	case string(types.DockerForeignLayer),
		string(types.OCIRestrictedLayer), string(types.OCIUncompressedRestrictedLayer),
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd":
		return true
	}
	return false
}

func (l *Layer) check() error {
	if l.Foreign() {
		return fmt.Errorf("layer %s of %s: %w: a foreign layer (%s), which its registry does not distribute; only images without such layers can be read",
			l.Descriptor.Digest, l.s.ref, ErrUnsupported, l.Descriptor.MediaType)
	}
	return nil
}

// Open reads the blob as Source.Blob does: its end is reported only after digest
// and length have been found right. ErrUnsupported for a foreign layer. The
// layer of a directory fails with ErrCorrupt if that has changed since Open.
func (l *Layer) Open(ctx context.Context) (io.ReadCloser, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	return l.s.Blob(ctx, l.Descriptor)
}

// ReadAt reads a part of the blob, unverified, as Source.ReadBlobAt does.
func (l *Layer) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := l.check(); err != nil {
		return 0, err
	}
	return l.s.ReadBlobAt(ctx, l.Descriptor, p, off)
}
