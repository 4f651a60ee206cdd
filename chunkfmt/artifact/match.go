package artifact

import (
	"fmt"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// MatchLayers returns an error naming the first layer that the artifact and
// the image's manifest do not agree on. It wraps ErrMismatch.
func MatchLayers(a *Image, subject *v1.Manifest) error {
	if len(a.Layers) != len(subject.Layers) {
		return fmt.Errorf("%w: it has the indexes of %d layers, the image has %d", ErrMismatch, len(a.Layers), len(subject.Layers))
	}
	for i, l := range a.Layers {
		if string(subject.Layers[i].Digest) != l.Digest.String() {
			return fmt.Errorf("%w: layer %d: it is of %s, the image has %.80s", ErrMismatch, i, l.Digest, subject.Layers[i].Digest)
		}
	}
	return nil
}

// Match is MatchLayers, and also compares the diff IDs with those of the
// image's config.
func Match(a *Image, subject *v1.Manifest, config *v1.Image) error {
	if err := MatchLayers(a, subject); err != nil {
		return err
	}
	ids := config.RootFS.DiffIDs
	if len(ids) != len(a.Layers) {
		return fmt.Errorf("%w: the image has %d layers and its config %d diff IDs", ErrMismatch, len(a.Layers), len(ids))
	}
	for i, l := range a.Layers {
		if string(ids[i]) != l.DiffID.String() {
			return fmt.Errorf("%w: layer %d (%s): it is of diff ID %s, the image has %.80s", ErrMismatch, i, l.Digest, l.DiffID, ids[i])
		}
	}
	return nil
}

// Check compares what the artifact says of a layer with the layer's decoded
// index. The error wraps ErrMismatch.
func (l *Layer) Check(ix *chunkfmt.Index) error {
	switch {
	case ix.DiffID != l.DiffID:
		return fmt.Errorf("%w: the index of layer %s is of diff ID %s, its artifact says %s", ErrMismatch, l.Digest, ix.DiffID, l.DiffID)
	case ix.Root != l.Root:
		return fmt.Errorf("%w: the index of layer %s has Merkle root %s, its artifact says %s", ErrMismatch, l.Digest, ix.Root, l.Root)
	}
	return nil
}

// Bind writes into the manifest of an image which indexes its layers have, so
// that whoever vouches for the manifest vouches for them, and they need no
// signature. The artifact has no Subject yet. The error, which wraps
// ErrMismatch, says that m has other layers.
func (a *Image) Bind(m *v1.Manifest) error {
	if err := MatchLayers(a, m); err != nil {
		return err
	}
	for i, l := range a.Layers {
		m.Layers[i].Annotations = with(m.Layers[i].Annotations, AnnotationIndex, l.Index.Digest)
	}
	m.Annotations = with(m.Annotations, AnnotationRoot, a.Root)
	return nil
}

// Bound reports whether the manifest of an image binds all that the artifact
// says, as Bind has written it: the layers, their indexes and the root.
func (a *Image) Bound(m *v1.Manifest) bool {
	if MatchLayers(a, m) != nil || m.Annotations[AnnotationRoot] != a.Root.String() {
		return false
	}
	for i, l := range a.Layers {
		if m.Layers[i].Annotations[AnnotationIndex] != l.Index.Digest.String() {
			return false
		}
	}
	return len(a.Layers) > 0
}

// with returns a copy: callers may share the map that m came with.
func with(annotations map[string]string, name string, value chunkfmt.Digest) map[string]string {
	all := make(map[string]string, len(annotations)+1)
	for k, v := range annotations {
		all[k] = v
	}
	all[name] = value.String()
	return all
}
