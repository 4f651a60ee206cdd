package imageindex

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/internal/image"
)

// maxConfig bounds the configuration of an image, in bytes.
const maxConfig = 8 << 20

// Resolved is the image that a reference names.
type Resolved struct {
	// Descriptor of the image's manifest and its bytes.
	Descriptor v1.Descriptor
	Manifest   []byte
	Platform   v1.Platform
	// Artifact is set where the reference names the artifact of an image: then
	// no other one is looked for.
	Artifact *v1.Descriptor
	// Config is nil where it cannot be read, which only an artifact that was
	// taken away from its image may lack.
	Config *v1.Image
}

// Resolve returns the image of a source. A reference to the artifact of an
// image stands for the image. choose picks one of several platforms.
func Resolve(ctx context.Context, src *image.Source, choose func([]v1.Platform) (int, error)) (*Resolved, error) {
	data, desc, err := src.Manifest(ctx, "")
	if err != nil {
		return nil, err
	}
	switch TypeOf(data) {
	case artifact.ArtifactType:
		return resolveSubject(ctx, src, data, desc)
	case artifact.SignatureType:
		return nil, fmt.Errorf("%s: %w: it is the signature of an index: name the image or the index", src.Ref(), image.ErrUnsupported)
	}
	images, err := src.Images(ctx)
	if err != nil {
		return nil, err
	}
	platforms := make([]v1.Platform, len(images))
	for i, img := range images {
		platforms[i] = img.Platform
	}
	i, err := choose(platforms)
	if err != nil {
		return nil, err
	}
	img := images[i]
	config := &v1.Image{}
	if err := json.Unmarshal(img.Config, config); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", src.Ref().WithDigest(img.Descriptor.Digest), err)
	}
	return &Resolved{Descriptor: img.Descriptor, Manifest: img.Manifest, Platform: img.Platform, Config: config}, nil
}

func resolveSubject(ctx context.Context, src *image.Source, data []byte, desc v1.Descriptor) (*Resolved, error) {
	a, err := artifact.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", src.Ref(), err)
	}
	r := &Resolved{Artifact: &desc}
	if r.Manifest, r.Descriptor, err = src.Manifest(ctx, a.Subject.Digest.String()); err != nil {
		return nil, fmt.Errorf("the image whose index is %s: %w", src.Ref(), err)
	}
	m, err := artifact.ParseSubject(r.Manifest)
	if err != nil {
		return nil, fmt.Errorf("the image whose index is %s: %w", src.Ref(), err)
	}
	if m.Config.Size > maxConfig {
		return nil, fmt.Errorf("configuration of the image whose index is %s: %d bytes, at most %d", src.Ref(), m.Config.Size, maxConfig)
	}
	config, err := readBlob(ctx, src, m.Config)
	if errors.Is(err, image.ErrNotFound) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	r.Config = &v1.Image{}
	if err := json.Unmarshal(config, r.Config); err != nil {
		return nil, fmt.Errorf("configuration of the image whose index is %s: %w", src.Ref(), err)
	}
	r.Platform = r.Config.Platform
	return r, nil
}
