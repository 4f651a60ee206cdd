package imageindex

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
)

// describe makes the artifact of what was built, and the manifest of the image
// that AsImage writes.
func (c *converter) describe(context.Context) error {
	c.artifact = &artifact.Image{Root: c.built.Root}
	inPlace := map[chunkfmt.Digest]bool{}
	for i := range c.built.Layers {
		l := &c.built.Layers[i]
		digest, err := c.layerDigest(i)
		if err != nil {
			return err
		}
		inPlace[digest] = true
		c.artifact.Layers = append(c.artifact.Layers, artifact.Layer{
			Index:  artifact.Object{Digest: chunkfmt.Sum(l.Encoded), Size: int64(len(l.Encoded))},
			Digest: digest, DiffID: l.Index.DiffID, Root: l.Index.Root,
		})
	}
	for i := range c.built.Layers {
		for _, b := range c.built.Layers[i].Index.Blobs {
			if !b.External && !inPlace[b.Digest] {
				c.artifact.Blobs = append(c.artifact.Blobs, artifact.Object{Digest: b.Digest, Size: b.Size})
			}
		}
	}
	c.subject, c.subjectManifest = c.img.Descriptor, c.img.Manifest
	if c.o.AsImage {
		if err := c.writeManifest(); err != nil {
			return err
		}
	}
	c.artifact.Subject = v1.Descriptor{MediaType: c.subject.MediaType, Digest: c.subject.Digest, Size: c.subject.Size}
	c.report.Subject = c.subject.Digest.String()
	return nil
}

// layerDigest returns the digest of a layer in the subject.
func (c *converter) layerDigest(i int) (chunkfmt.Digest, error) {
	if b := c.built.Layers[i].Image; b != nil {
		return b.Digest, nil
	}
	return chunkfmt.ParseDigest(string(c.img.Layers[i].Descriptor.Digest))
}

// foreignAnnotations begin those of layers that say how the layer's old bytes
// are to be read.
var foreignAnnotations = []string{"containerd.io/snapshot/", "io.containers.", "io.github.containers.", artifact.AnnotationPrefix}

// writeManifest makes the manifest of the new image: the old one's with other
// layers. Schema 2 has no zstd, so that it becomes an OCI manifest.
func (c *converter) writeManifest() error {
	var m v1.Manifest
	if err := json.Unmarshal(c.img.Manifest, &m); err != nil {
		return fmt.Errorf("read the image's manifest: %w", err)
	}
	m.MediaType, m.Config.MediaType = v1.MediaTypeImageManifest, v1.MediaTypeImageConfig
	for i := range m.Layers {
		kept := map[string]string{}
		for k, v := range m.Layers[i].Annotations {
			if !foreign(k) {
				kept[k] = v
			}
		}
		m.Layers[i] = layerDescriptor(c.built.Layers[i].Image, kept)
	}
	if err := c.artifact.Bind(&m); err != nil {
		return err
	}
	c.report.Bound = true
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("write the image's manifest: %w", err)
	}
	c.subjectManifest = data
	c.subject = v1.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return nil
}

func layerDescriptor(b *build.BlobFile, annotations map[string]string) v1.Descriptor {
	d := artifact.Object{Digest: b.Digest, Size: b.Size}.Descriptor(v1.MediaTypeImageLayerZstd)
	d.Annotations = annotations
	return d
}

func foreign(annotation string) bool {
	for _, prefix := range foreignAnnotations {
		if strings.HasPrefix(annotation, prefix) {
			return true
		}
	}
	return false
}
