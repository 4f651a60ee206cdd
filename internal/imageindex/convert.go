package imageindex

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
)

// ConvertOptions of Convert.
type ConvertOptions struct {
	// Build says how content is stored. Its Dictionary and Progress are set by
	// Convert, its Mode must be build.AsImage exactly if AsImage is set.
	Build build.Options
	// AsImage writes an ordinary image to the target, and the index of that.
	AsImage bool
	// Dictionary returns the indexes of another image for the platform, nil if
	// there are none, whose chunks are used instead of storing them again;
	// DictionarySource is where its blobs are. Default: none.
	Dictionary       func(context.Context, v1.Platform) (*Loaded, error)
	DictionarySource *image.Source
	// Key signs the artifact. Default: it is not signed.
	Key *trust.PrivateKey
	// Tag of the artifact besides artifact.Tag. With several platforms it gets
	// "-OS-ARCH" added. It must not name an image. Default: in an OCI layout the
	// tag of the target, unless that names the image itself; else none.
	Tag string
	// Dir is where new blobs wait to be pushed; it must exist. Those of a platform
	// are removed when they have been pushed, or when Convert fails.
	Dir string
	// Image has what sources and targets need.
	Image image.Options
	// Progress is called now and then, by one goroutine at a time.
	Progress func(Progress)
}

// Progress says how far a conversion is.
type Progress struct {
	// Platform that is being converted.
	Platform string
	// Read of the image's ReadTotal stored bytes are converted, and Sent of
	// SendTotal bytes are in the target; SendTotal is 0 until that is known.
	Read, ReadTotal int64
	Sent, SendTotal int64
}

// Converted is what was made of the image for one platform. Sizes are in bytes.
type Converted struct {
	Platform string `json:"platform"`
	// Subject is the digest of the image's manifest, with AsImage of the new
	// one.
	Subject string `json:"subject"`
	// Artifact is the digest of the artifact's manifest, Tag its tag.
	Artifact string `json:"artifact"`
	Tag      string `json:"tag"`
	Root     string `json:"root"`
	// SignedBy is the ID of the key; empty if the artifact is not signed. Bound
	// artifacts need no signature.
	SignedBy string `json:"signed_by"`
	Bound    bool   `json:"bound"`
	// Copied says that the image was copied to the target, which did not have it.
	Copied bool             `json:"copied"`
	Layers []ConvertedLayer `json:"layers"`
	// ImageBytes are those of the image's own layers as they were read,
	// TarBytes of them unpacked, PlainBytes of the files in them.
	ImageBytes int64 `json:"image_bytes"`
	TarBytes   int64 `json:"tar_bytes"`
	PlainBytes int64 `json:"plain_bytes"`
	// IndexBytes are those of the indexes, BlobBytes those of the new blobs,
	// with AsImage of the new layers.
	IndexBytes int64 `json:"index_bytes"`
	BlobBytes  int64 `json:"blob_bytes"`
	// SentBytes were sent to the target, PresentBytes were there, or in
	// another repository of the same registry.
	SentBytes    int64 `json:"sent_bytes"`
	PresentBytes int64 `json:"present_bytes"`
}

// ConvertedLayer is one layer. Sizes are in bytes.
type ConvertedLayer struct {
	Digest     string `json:"digest"`
	IndexBytes int64  `json:"index_bytes"`
	BlobBytes  int64  `json:"blob_bytes"`
	// InPlace says that the layer's own blob is indexed.
	InPlace bool `json:"in_place"`
	Entries int  `json:"entries"`
	Chunks  int  `json:"chunks"`
	Groups  int  `json:"groups"`
	// Content of the files, and what of it was not stored because it is in the
	// index, zeros, or was found in the same layer, a lower one or the
	// dictionary.
	ContentBytes    int64    `json:"content_bytes"`
	InlineBytes     int64    `json:"inline_bytes"`
	HoleBytes       int64    `json:"hole_bytes"`
	FromLayer       int64    `json:"from_layer_bytes"`
	FromImage       int64    `json:"from_image_bytes"`
	FromDictionary  int64    `json:"from_dictionary_bytes"`
	Warnings        []string `json:"warnings,omitempty"`
	NewContentBytes int64    `json:"new_content_bytes"`
}

// Convert makes the index of each image of a source and pushes it to a target,
// which may be the source itself. An index is of no use in a repository without
// its image: one that is not there is copied to the target's tag. An OCI layout
// gets what reading the index takes: the image's manifest and configuration, and
// those of its layers that are indexed in place. What the target's tag or
// ConvertOptions.Tag names already and is something else is left alone: ErrTaken.
func Convert(ctx context.Context, src *image.Source, to image.Ref, o ConvertOptions) (_ []*Converted, err error) {
	images, err := src.Images(ctx)
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		if len(img.Layers) == 0 {
			return nil, fmt.Errorf("image %s of %s: %w: it has no layers, and so nothing to index", img.Descriptor.Digest, src.Ref(), image.ErrUnsupported)
		}
	}
	if o.DictionarySource != nil {
		if from := o.DictionarySource.Ref(); from.Kind == to.Kind && from.Registry == to.Registry && from.Repository != to.Repository {
			o.Image.MountFrom = append(o.Image.MountFrom, from.Repository)
		}
	}
	if from := src.Ref(); from.Kind == image.KindRegistry && from.Registry == to.Registry && from.Repository != to.Repository {
		o.Image.MountFrom = append(o.Image.MountFrom, from.Repository)
	}
	target, err := image.OpenTarget(ctx, to, o.Image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	c := &conversion{o: &o, src: src, target: target, images: images}
	if err := c.look(ctx); err != nil {
		return nil, err
	}
	return c.run(ctx)
}

// conversion is one call of Convert.
type conversion struct {
	o      *ConvertOptions
	src    *image.Source
	target *image.Target
	images []*image.Image
	// tag of the artifact, before a platform is added to it.
	tag string
	// missing says which images the target does not have, but needs.
	missing []bool
}

func (c *conversion) run(ctx context.Context) ([]*Converted, error) {
	var all []*Converted
	var manifests []v1.Descriptor
	tagged := c.o.AsImage || slices.Contains(c.missing, true)
	for i, img := range c.images {
		p := &converter{
			o: c.o, src: c.src, target: c.target, img: img,
			tag: c.tagFor(img.Platform), copied: c.missing[i],
			report: &Converted{Platform: image.FormatPlatform(img.Platform), Copied: c.missing[i]},
		}
		if tagged && len(c.images) == 1 {
			p.imageTag = tagOf(c.target.Ref())
		}
		desc, err := p.convert(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.report.Platform, err)
		}
		desc.Platform = &img.Platform
		manifests = append(manifests, desc)
		all = append(all, p.report)
	}
	if tagged && len(c.images) > 1 {
		return all, pushIndex(ctx, c.target, manifests)
	}
	return all, nil
}

// converter converts the image for one platform.
type converter struct {
	o      *ConvertOptions
	src    *image.Source
	target *image.Target
	img    *image.Image
	// tag of the artifact, and imageTag of the image that is written; none if
	// empty.
	tag, imageTag string
	// copied says that the image goes to the target too.
	copied bool
	dir    string
	report *Converted

	built    *build.Result
	artifact *artifact.Image
	// subject is the manifest that the index is of.
	subject         v1.Descriptor
	subjectManifest []byte
}

// convert returns the descriptor of the manifest whose index was made.
func (c *converter) convert(ctx context.Context) (_ v1.Descriptor, err error) {
	if c.dir, err = os.MkdirTemp(c.o.Dir, "blobs-"); err != nil {
		return v1.Descriptor{}, fmt.Errorf("make a directory for new blobs: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.dir)) }()
	for _, step := range []func(context.Context) error{c.build, c.describe, c.push} {
		if err := step(ctx); err != nil {
			return v1.Descriptor{}, err
		}
	}
	return c.subject, nil
}

func (c *converter) build(ctx context.Context) error {
	progress := Progress{Platform: c.report.Platform}
	layers := make([]build.Layer, len(c.img.Layers))
	for i := range c.img.Layers {
		layer := &c.img.Layers[i]
		digest, err := chunkfmt.ParseDigest(string(layer.Descriptor.Digest))
		if err != nil {
			return err
		}
		diffID, err := chunkfmt.ParseDigest(string(layer.DiffID))
		if err != nil {
			return err
		}
		layers[i] = build.Layer{Name: digest.String(), Digest: digest, Size: layer.Descriptor.Size, Verified: true, DiffID: diffID, Open: layer.Open}
		progress.ReadTotal += layer.Descriptor.Size
	}
	o := c.o.Build
	if c.o.Dictionary != nil {
		d, err := c.o.Dictionary(ctx, c.img.Platform)
		if err != nil {
			return fmt.Errorf("dictionary: %w", err)
		}
		if d != nil {
			o.Dictionary = d.Indexes
		}
	}
	read := make([]int64, len(layers))
	o.Progress = func(e build.Event) {
		progress.Read += e.Read - read[e.Layer]
		read[e.Layer] = e.Read
		c.tell(progress)
	}
	var err error
	if c.built, err = build.Build(ctx, layers, c.dir, o); err != nil {
		return err
	}
	progress.Read = progress.ReadTotal
	c.tell(progress)
	c.summarize()
	return nil
}

func (c *converter) tell(p Progress) {
	if c.o.Progress != nil {
		c.o.Progress(p)
	}
}

// summarize puts what was built into the report.
func (c *converter) summarize() {
	r := c.report
	r.Root = c.built.Root.String()
	for i := range c.built.Layers {
		l := &c.built.Layers[i]
		s := &l.Stats
		layer := ConvertedLayer{
			Digest: c.img.Layers[i].Descriptor.Digest.String(), IndexBytes: int64(len(l.Encoded)), InPlace: l.InPlace,
			Entries: s.Entries, Chunks: s.Chunks, Groups: s.Groups,
			ContentBytes: s.Content, InlineBytes: s.Inline, HoleBytes: s.Holes, NewContentBytes: s.New,
			FromLayer: s.FromLayer, FromImage: s.FromImage, FromDictionary: s.FromDictionary, Warnings: l.Warnings,
		}
		for _, b := range l.Blobs {
			layer.BlobBytes += b.Size
		}
		if l.Image != nil {
			layer.BlobBytes += l.Image.Size
		}
		r.Layers = append(r.Layers, layer)
		r.ImageBytes += l.Stored
		r.TarBytes += l.Plain
		r.PlainBytes += s.Content
		r.IndexBytes += layer.IndexBytes
		r.BlobBytes += layer.BlobBytes
	}
}
