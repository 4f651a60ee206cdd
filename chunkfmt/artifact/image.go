package artifact

import (
	"fmt"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// Image is what the artifact of an image says.
type Image struct {
	// Subject is the manifest of the image: media type, digest and size.
	Subject v1.Descriptor
	// Root is the Merkle root of the merged tree.
	Root chunkfmt.Digest
	// Layers are those of the image, lowest first.
	Layers []Layer
	// Blobs hold the data, besides layers that are read in place.
	Blobs []Object
}

// Layer is a layer of the image and its index.
type Layer struct {
	// Index is the encoded chunkfmt.Index. Layers may share one.
	Index Object
	// Digest of the layer as the image's manifest has it.
	Digest chunkfmt.Digest
	// DiffID and Root repeat those of the index: see Check.
	DiffID chunkfmt.Digest
	Root   chunkfmt.Digest
}

// Object is a blob in a registry.
type Object struct {
	Digest chunkfmt.Digest
	Size   int64 // in bytes
}

// Descriptor returns the descriptor of an object.
func (o Object) Descriptor(mediaType string) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digest.Digest(o.Digest.String()), Size: o.Size}
}

// Manifest returns the bytes of the artifact's manifest and its descriptor.
// Equal images have equal bytes. The error wraps ErrInvalid if Parse would not
// accept them.
func (a *Image) Manifest() ([]byte, v1.Descriptor, error) {
	if err := a.check(); err != nil {
		return nil, v1.Descriptor{}, err
	}
	m := v1.Manifest{
		ArtifactType: ArtifactType,
		Subject:      &v1.Descriptor{MediaType: a.Subject.MediaType, Digest: a.Subject.Digest, Size: a.Subject.Size},
		Annotations:  map[string]string{AnnotationRoot: a.Root.String()},
	}
	for _, l := range a.Layers {
		d := l.Index.Descriptor(IndexType)
		d.Annotations = map[string]string{
			AnnotationLayerDigest: l.Digest.String(),
			AnnotationLayerDiffID: l.DiffID.String(),
			AnnotationRoot:        l.Root.String(),
		}
		m.Layers = append(m.Layers, d)
	}
	for _, b := range a.Blobs {
		m.Layers = append(m.Layers, b.Descriptor(DataType))
	}
	return Encode(m)
}

// Parse returns what the manifest of an artifact says. Errors wrap ErrInvalid.
func Parse(data []byte) (*Image, error) {
	m, err := Decode(data, ArtifactType)
	if err != nil {
		return nil, err
	}
	a := &Image{Subject: v1.Descriptor{MediaType: m.Subject.MediaType, Digest: m.Subject.Digest, Size: m.Subject.Size}}
	if a.Root, err = annotated(m.Annotations, AnnotationRoot); err != nil {
		return nil, err
	}
	for i, d := range m.Layers {
		if err := a.add(d); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if err := a.check(); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Image) add(d v1.Descriptor) error {
	id, err := chunkfmt.ParseDigest(string(d.Digest))
	if err != nil {
		return invalid("%w", err)
	}
	object := Object{Digest: id, Size: d.Size}
	switch d.MediaType {
	case DataType:
		a.Blobs = append(a.Blobs, object)
		return nil
	case IndexType:
	default:
		return invalid("media type is %.80q, neither %q nor %q", d.MediaType, IndexType, DataType)
	}
	if len(a.Blobs) > 0 {
		return invalid("index after a data blob")
	}
	l := Layer{Index: object}
	for _, field := range []struct {
		name string
		to   *chunkfmt.Digest
	}{{AnnotationLayerDigest, &l.Digest}, {AnnotationLayerDiffID, &l.DiffID}, {AnnotationRoot, &l.Root}} {
		if *field.to, err = annotated(d.Annotations, field.name); err != nil {
			return err
		}
	}
	a.Layers = append(a.Layers, l)
	return nil
}

func annotated(annotations map[string]string, name string) (chunkfmt.Digest, error) {
	text, ok := annotations[name]
	if !ok {
		return chunkfmt.Digest{}, invalid("no annotation %s", name)
	}
	d, err := chunkfmt.ParseDigest(text)
	if err != nil {
		return d, invalid("annotation %s: %w", name, err)
	}
	return d, nil
}

// check refuses what the format does not allow. It is the same for writing and
// for reading.
func (a *Image) check() error {
	if err := checkSubject(a.Subject); err != nil {
		return err
	}
	switch {
	case a.Root.IsZero():
		return invalid("no Merkle root")
	case len(a.Layers) == 0:
		return invalid("no indexes")
	case len(a.Layers) > MaxLayers:
		return invalid("%d indexes, at most %d", len(a.Layers), MaxLayers)
	}
	sizes := make(map[chunkfmt.Digest]int64, len(a.Layers)+len(a.Blobs))
	for i, l := range a.Layers {
		if l.Digest.IsZero() || l.DiffID.IsZero() || l.Root.IsZero() {
			return invalid("layer %d: no digest, diff ID or Merkle root", i)
		}
		if err := l.Index.check(MaxIndexSize); err != nil {
			return fmt.Errorf("layer %d: index: %w", i, err)
		}
		if size, known := sizes[l.Index.Digest]; known && size != l.Index.Size {
			return invalid("layer %d: index %s has %d bytes here and %d before", i, l.Index.Digest, l.Index.Size, size)
		}
		sizes[l.Index.Digest] = l.Index.Size
	}
	for i, b := range a.Blobs {
		if err := b.check(MaxBlobSize); err != nil {
			return fmt.Errorf("data blob %d: %w", i, err)
		}
		if _, known := sizes[b.Digest]; known {
			return invalid("data blob %d: %s is listed twice", i, b.Digest)
		}
		sizes[b.Digest] = b.Size
	}
	return nil
}

func (o Object) check(most int64) error {
	if o.Digest.IsZero() || o.Size <= 0 || o.Size > most {
		return invalid("%s has %d bytes, at least 1 and at most %d", o.Digest, o.Size, most)
	}
	return nil
}
