package imageindex

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/internal/image"
)

// uploads is how many blobs are pushed at a time.
const uploads = 4

// push sends blobs, then the image if one was written, then the artifact, then
// its signature.
func (c *converter) push(ctx context.Context, only bool) error {
	blobs, err := c.blobs()
	if err != nil {
		return err
	}
	if err := c.pushBlobs(ctx, blobs); err != nil {
		return err
	}
	if err := c.pushSubject(ctx, only); err != nil {
		return err
	}
	data, desc, err := c.artifact.Manifest()
	if err != nil {
		return err
	}
	c.report.Artifact, c.report.Tag = desc.Digest.String(), artifact.Tag(c.subject.Digest)
	if _, err := c.target.Attach(ctx, data, desc.MediaType, c.report.Tag); err != nil {
		return err
	}
	if c.tag != "" {
		c.report.Tag = c.tag
		if _, err := c.target.PushManifest(ctx, data, desc.MediaType, c.tag); err != nil {
			return err
		}
	}
	return c.sign(ctx, desc)
}

// blobs returns everything that the target has to have, each once.
func (c *converter) blobs() ([]image.Blob, error) {
	var all []image.Blob
	seen := map[digest.Digest]bool{}
	add := func(b image.Blob) {
		if !seen[b.Descriptor.Digest] {
			seen[b.Descriptor.Digest] = true
			all = append(all, b)
		}
	}
	files := map[chunkfmt.Digest]build.BlobFile{}
	for i := range c.built.Layers {
		l := &c.built.Layers[i]
		add(image.BytesBlob(artifact.IndexType, l.Encoded))
		for _, b := range l.Blobs {
			files[b.Digest] = b
		}
		if l.Image != nil {
			add(image.FileBlob(layerDescriptor(l.Image, nil), l.Image.Path))
		}
	}
	for _, o := range c.artifact.Blobs {
		desc := o.Descriptor(artifact.DataType)
		if f, ok := files[o.Digest]; ok {
			add(image.FileBlob(desc, f.Path))
			continue
		}
		if c.o.DictionarySource == nil {
			return nil, fmt.Errorf("blob %s is neither new nor in a dictionary", o.Digest)
		}
		add(c.dictionaryBlob(desc))
	}
	add(image.BytesBlob(v1.MediaTypeEmptyJSON, v1.DescriptorEmptyJSON.Data))
	if c.needsConfig() {
		add(image.BytesBlob(v1.MediaTypeImageConfig, c.img.Config))
	}
	return all, nil
}

// dictionaryBlob is mounted where the registry can, else copied.
func (c *converter) dictionaryBlob(desc v1.Descriptor) image.Blob {
	src := c.o.DictionarySource
	b := image.Blob{Descriptor: desc, Open: func(ctx context.Context) (io.ReadCloser, error) { return src.Blob(ctx, desc) }}
	if from, to := src.Ref(), c.target.Ref(); from.Kind == image.KindRegistry && from.Registry == to.Registry {
		b.MountFrom = []string{from.Repository}
	}
	return b
}

// needsConfig says whether the image's configuration goes with the index: into
// the image that is written, and into a layout that does not have it.
func (c *converter) needsConfig() bool {
	return c.o.AsImage || c.target.Ref().Kind == image.KindLayout
}

func (c *converter) pushBlobs(ctx context.Context, blobs []image.Blob) error {
	progress := Progress{Platform: c.report.Platform, Read: c.report.ImageBytes, ReadTotal: c.report.ImageBytes}
	var mu sync.Mutex
	for i := range blobs {
		progress.SendTotal += blobs[i].Descriptor.Size
		last := int64(0)
		blobs[i].Progress = func(done int64) {
			mu.Lock()
			defer mu.Unlock()
			progress.Sent += done - last
			last = done
			c.tell(progress)
		}
	}
	how, err := c.target.PushBlobs(ctx, blobs, uploads)
	if err != nil {
		return err
	}
	for i, h := range how {
		if h == image.Uploaded {
			c.report.SentBytes += blobs[i].Descriptor.Size
		} else {
			c.report.PresentBytes += blobs[i].Descriptor.Size
		}
	}
	return nil
}

// pushSubject pushes the image that was written; and, to a layout, the manifest
// of the image that the index is of, without its layers, so that the index can
// be used without the image's own place.
func (c *converter) pushSubject(ctx context.Context, only bool) error {
	to := c.target.Ref()
	if !c.o.AsImage && to.Kind != image.KindLayout {
		return nil
	}
	tag := ""
	if c.o.AsImage && only {
		tag = to.Tag
		if tag == "" {
			tag = "latest"
		}
	}
	_, err := c.target.PushManifest(ctx, c.subjectManifest, c.subject.MediaType, tag)
	return err
}

func (c *converter) sign(ctx context.Context, artifactDesc v1.Descriptor) error {
	if c.o.Key == nil {
		return nil
	}
	data, desc, err := c.o.Key.Sign(artifactDesc)
	if err != nil {
		return err
	}
	if _, err := c.target.Attach(ctx, data, desc.MediaType, artifact.SignatureTag(artifactDesc.Digest, c.o.Key.ID())); err != nil {
		return fmt.Errorf("attach the signature: %w", err)
	}
	c.report.SignedBy = c.o.Key.ID()
	return nil
}

// pushIndex joins the images of several platforms under the target's tag.
func pushIndex(ctx context.Context, target *image.Target, manifests []v1.Descriptor) error {
	data, err := json.Marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: manifests,
	})
	if err != nil {
		return fmt.Errorf("write the index of platforms: %w", err)
	}
	tag := target.Ref().Tag
	if tag == "" {
		tag = "latest"
	}
	_, err = target.PushManifest(ctx, data, v1.MediaTypeImageIndex, tag)
	return err
}
