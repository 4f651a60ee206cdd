package imageindex

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/internal/image"
)

// ErrTaken says that a tag of the target names something that Convert will not
// replace.
var ErrTaken = errors.New("the tag is taken")

// look finds out what the target has and decides on tags, before any work is
// done.
func (c *conversion) look(ctx context.Context) (err error) {
	c.missing = make([]bool, len(c.images))
	to := c.target.Ref()
	there, err := image.Open(ctx, to, c.o.Image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, there.Close()) }()
	if !c.o.AsImage && to.Kind == image.KindRegistry && !c.home() {
		if err := c.lookForImages(ctx, there); err != nil {
			return err
		}
	}
	if err := c.chooseTag(ctx, there); err != nil || c.tag == "" {
		return err
	}
	for _, img := range c.images {
		tag := c.tagFor(img.Platform)
		data, desc, err := named(ctx, there, tag)
		if err != nil {
			return err
		}
		if data != nil && TypeOf(data) != artifact.ArtifactType {
			return fmt.Errorf("%w: %s names %s, which is no index: give the index another with --tag", ErrTaken, to.WithTag(tag), desc.Digest)
		}
	}
	return nil
}

// home says whether the target is where the image is.
func (c *conversion) home() bool {
	from, to := c.src.Ref(), c.target.Ref()
	if from.Kind != to.Kind {
		return false
	}
	if from.Kind == image.KindRegistry {
		return from.Registry == to.Registry && from.Repository == to.Repository
	}
	return sameFile(from.Path, to.Path)
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// lookForImages finds the images that have to be copied to another repository.
func (c *conversion) lookForImages(ctx context.Context, there *image.Source) error {
	complete := true
	for i, img := range c.images {
		data, _, err := named(ctx, there, img.Descriptor.Digest.String())
		if err != nil {
			return err
		}
		c.missing[i] = data == nil
		complete = complete && data != nil
	}
	if complete {
		return nil
	}
	tag := tagOf(there.Ref())
	data, desc, err := named(ctx, there, tag)
	if err != nil {
		return err
	}
	if data != nil && (len(c.images) > 1 || !c.has(desc.Digest)) {
		return fmt.Errorf("%w: %s is %s, another image than %s: name another tag or repository", ErrTaken, there.Ref().WithTag(tag), desc.Digest, c.src.Ref())
	}
	return nil
}

// has says whether a digest is that of one of the images.
func (c *conversion) has(d digest.Digest) bool {
	for _, img := range c.images {
		if img.Descriptor.Digest == d {
			return true
		}
	}
	return false
}

// chooseTag sets the artifact's tag. That of a layout names the artifact, unless
// it names the image.
func (c *conversion) chooseTag(ctx context.Context, there *image.Source) error {
	c.tag = c.o.Tag
	to := c.target.Ref()
	if c.tag != "" || c.o.AsImage || to.Kind != image.KindLayout || to.Tag == "" {
		return nil
	}
	data, desc, err := named(ctx, there, to.Tag)
	if err != nil {
		return err
	}
	if data != nil && (c.has(desc.Digest) || c.home() && to.Tag == c.src.Ref().Tag) {
		return nil
	}
	c.tag = to.Tag
	return nil
}

// tagFor is the artifact's tag for a platform.
func (c *conversion) tagFor(p v1.Platform) string {
	if c.tag == "" || len(c.images) == 1 {
		return c.tag
	}
	return c.tag + "-" + strings.ReplaceAll(image.FormatPlatform(p), "/", "-")
}

// named returns what a tag or digest names, nil if it is not there.
func named(ctx context.Context, src *image.Source, reference string) ([]byte, v1.Descriptor, error) {
	data, desc, err := src.Manifest(ctx, reference)
	if errors.Is(err, image.ErrNotFound) {
		return nil, v1.Descriptor{}, nil
	}
	return data, desc, err
}

// tagOf is the tag of the image that is written to a reference.
func tagOf(to image.Ref) string {
	if to.Tag == "" {
		return "latest"
	}
	return to.Tag
}
