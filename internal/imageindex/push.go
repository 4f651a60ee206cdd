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

// push sends blobs, then the image's manifest if the target needs it, then the
// artifact, its signature, and last the tag of the image: who finds the image by
// its tag finds its index.
func (c *converter) push(ctx context.Context) error {
	blobs, err := c.blobs()
	if err != nil {
		return err
	}
	if err := c.pushBlobs(ctx, blobs); err != nil {
		return err
	}
	if c.needsSubject() {
		if _, err := c.target.PushManifest(ctx, c.subjectManifest, c.subject.MediaType, ""); err != nil {
			return err
		}
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
	if err := c.sign(ctx, desc); err != nil || c.imageTag == "" {
		return err
	}
	_, err = c.target.PushManifest(ctx, c.subjectManifest, c.subject.MediaType, c.imageTag)
	return err
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
			add(image.OwnFileBlob(layerDescriptor(l.Image, nil), l.Image.Path))
		}
	}
	for _, o := range c.artifact.Blobs {
		desc := o.Descriptor(artifact.DataType)
		if f, ok := files[o.Digest]; ok {
			add(image.OwnFileBlob(desc, f.Path))
			continue
		}
		if c.o.DictionarySource == nil {
			return nil, fmt.Errorf("blob %s is neither new nor in a dictionary", o.Digest)
		}
		add(c.dictionaryBlob(desc))
	}
	add(image.BytesBlob(v1.MediaTypeEmptyJSON, v1.DescriptorEmptyJSON.Data))
	if c.needsSubject() {
		add(image.BytesBlob(v1.MediaTypeImageConfig, c.img.Config))
	}
	for i := range c.img.Layers {
		if c.needsLayer(i) {
			add(c.layerBlob(&c.img.Layers[i]))
		}
	}
	return all, nil
}

// needsSubject says whether the image's manifest and configuration go with the
// index: of an image that is written or copied, and to every layout.
func (c *converter) needsSubject() bool {
	return c.o.AsImage || c.copied || c.target.Ref().Kind == image.KindLayout
}

// needsLayer says whether a layer of the image goes with the index.
func (c *converter) needsLayer(i int) bool {
	return c.copied || c.target.Ref().Kind == image.KindLayout && c.built.Layers[i].InPlace
}

func (c *converter) layerBlob(l *image.Layer) image.Blob {
	b := image.Blob{Descriptor: l.Descriptor, Open: l.Open}
	if from, to := c.src.Ref(), c.target.Ref(); from.Kind == image.KindRegistry && from.Registry == to.Registry && from.Repository != to.Repository {
		b.MountFrom = []string{from.Repository}
	}
	return b
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
	_, err = target.PushManifest(ctx, data, v1.MediaTypeImageIndex, tagOf(target.Ref()))
	return err
}
