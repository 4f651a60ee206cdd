package imageindex

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/estargz"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
)

// FromTables makes the indexes of an image whose layers are all eStargz or
// zstd:chunked, from their own tables of contents. The image's manifest has the
// digests of the tables, so nobody else need vouch for them. Only the tables
// are read. What is made has no artifact's Descriptor and no stored indexes;
// its roots are computed, not compared.
//
// The error wraps ErrNoIndex if a layer has no table that its manifest binds,
// or one that cannot be used.
func FromTables(ctx context.Context, src *image.Source, r *Resolved) (*Loaded, error) {
	subject, err := artifact.ParseSubject(r.Manifest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", src.Ref(), err)
	}
	t := &tables{src: src, layers: subject.Layers, indexes: make([]*chunkfmt.Index, len(subject.Layers))}
	if r.Config != nil && len(r.Config.RootFS.DiffIDs) == len(subject.Layers) {
		t.config = r.Config
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(fetchers)
	for i := range subject.Layers {
		group.Go(func() error { return t.open(groupCtx, i) })
	}
	err = group.Wait()
	switch {
	case errors.Is(err, estargz.ErrNoTable), errors.Is(err, estargz.ErrUnverified), errors.Is(err, estargz.ErrUnsupported):
		return nil, fmt.Errorf("%w: %w", ErrNoIndex, err)
	case err != nil:
		return nil, err
	case len(t.indexes) == 0:
		return nil, fmt.Errorf("%s: %w: it has no layers", src.Ref(), ErrNoIndex)
	}
	return t.load(r, subject)
}

// tables is one call of FromTables.
type tables struct {
	src     *image.Source
	layers  []v1.Descriptor
	config  *v1.Image // nil if it does not say the layers' diff IDs
	indexes []*chunkfmt.Index
}

func (t *tables) open(ctx context.Context, i int) error {
	layer := t.layers[i]
	toc, ok := trust.BoundTOC(layer)
	if !ok {
		return fmt.Errorf("layer %s of %s: %w: its manifest binds none", layer.Digest, t.src.Ref(), estargz.ErrNoTable)
	}
	o := estargz.Options{TOCDigest: toc.JSON, Annotations: layer.Annotations}
	var err error
	if o.Digest, err = chunkfmt.ParseDigest(string(layer.Digest)); err != nil {
		return err
	}
	if t.config != nil {
		if o.DiffID, err = chunkfmt.ParseDigest(string(t.config.RootFS.DiffIDs[i])); err != nil {
			return err
		}
	}
	x, err := estargz.Open(ctx, layerReader{ctx, t.src, layer}, layer.Size, o)
	if err != nil {
		return fmt.Errorf("%s: %w", t.src.Ref(), err)
	}
	x.Root = merkle.Root(&x.Tree)
	t.indexes[i] = x
	return nil
}

func (t *tables) load(r *Resolved, subject *v1.Manifest) (*Loaded, error) {
	a := &artifact.Image{Subject: v1.Descriptor{MediaType: r.Descriptor.MediaType, Digest: r.Descriptor.Digest, Size: r.Descriptor.Size}}
	total := 0
	for i, x := range t.indexes {
		if total += rows(&x.Tree); total > maxRows {
			return nil, fmt.Errorf("%s: %w: the tables of the layers together have more than %d rows", t.src.Ref(), chunkfmt.ErrInvalid, maxRows)
		}
		digest, err := chunkfmt.ParseDigest(string(t.layers[i].Digest))
		if err != nil {
			return nil, err
		}
		a.Layers = append(a.Layers, artifact.Layer{Digest: digest, DiffID: x.DiffID, Root: x.Root})
	}
	l := &Loaded{
		Found: &Found{
			Artifact: a, Subject: subject, Config: r.Config,
			Verdict: trust.Verdict{Reason: trust.Bound, Image: a, Subject: subject},
		},
		Indexes: t.indexes, Sizes: make([]int64, len(t.indexes)),
	}
	tree, err := l.Merge(len(t.indexes))
	if err != nil {
		return nil, err
	}
	a.Root = merkle.Root(tree)
	return l, nil
}

// layerReader reads a layer's blob for package estargz, which checks what it
// reads.
type layerReader struct {
	ctx   context.Context //nolint:containedctx // io.ReaderAt has none, and the reader does not outlive the call
	src   *image.Source
	layer v1.Descriptor
}

// ReadAt implements io.ReaderAt.
func (r layerReader) ReadAt(p []byte, off int64) (int, error) {
	return r.src.ReadBlobAt(r.ctx, r.layer, p, off)
}
