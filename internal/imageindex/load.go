package imageindex

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/internal/image"
)

// fetchers is how many indexes are fetched at a time.
const fetchers = 8

// Loaded is an image's indexes.
type Loaded struct {
	*Found
	// Indexes of the layers, lowest first. Layers that share one index share
	// the pointer.
	Indexes []*chunkfmt.Index
	// Sizes are those of the indexes as they are stored, in bytes.
	Sizes []int64
}

// Load fetches the indexes that an artifact lists and decodes them.
func Load(ctx context.Context, src *image.Source, f *Found, limits chunkfmt.Limits) (*Loaded, error) {
	l := &Loaded{Found: f, Indexes: make([]*chunkfmt.Index, len(f.Artifact.Layers)), Sizes: make([]int64, len(f.Artifact.Layers))}
	first := map[chunkfmt.Digest]int{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fetchers)
	for i, layer := range f.Artifact.Layers {
		l.Sizes[i] = layer.Index.Size
		if _, ok := first[layer.Index.Digest]; ok {
			continue
		}
		first[layer.Index.Digest] = i
		group.Go(func() error {
			x, err := fetchIndex(ctx, src, layer.Index, limits)
			l.Indexes[i] = x
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, layer := range f.Artifact.Layers {
		l.Indexes[i] = l.Indexes[first[layer.Index.Digest]]
		if err := layer.Check(l.Indexes[i]); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func fetchIndex(ctx context.Context, src *image.Source, o artifact.Object, limits chunkfmt.Limits) (*chunkfmt.Index, error) {
	data, err := readBlob(ctx, src, o.Descriptor(artifact.IndexType))
	if err != nil {
		return nil, err
	}
	x, err := chunkfmt.Decode(data, limits)
	if err != nil {
		return nil, fmt.Errorf("index %s of %s: %w", o.Digest, src.Ref(), err)
	}
	return x, nil
}

// readBlob reads a blob whose size the caller has checked.
func readBlob(ctx context.Context, src *image.Source, desc v1.Descriptor) (data []byte, err error) {
	r, err := src.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if data, err = io.ReadAll(r); err != nil {
		return nil, fmt.Errorf("read blob %s of %s: %w", desc.Digest, src.Ref(), err)
	}
	return data, nil
}

// Merge returns the tree of the lowest n layers.
func (l *Loaded) Merge(n int) (*chunkfmt.Tree, error) {
	trees := make([]*chunkfmt.Tree, n)
	for i, x := range l.Indexes[:n] {
		trees[i] = &x.Tree
	}
	tree, err := chunkfmt.Merge(trees...)
	if err != nil {
		return nil, fmt.Errorf("merge %d layers of %s: %w", n, l.Artifact.Subject.Digest, err)
	}
	return tree, nil
}

// Stored reads groups for package content from an image's source, nothing
// verified.
type Stored struct{ Source *image.Source }

// ReadAt implements content.Source.
func (s Stored) ReadAt(ctx context.Context, blob *chunkfmt.Blob, p []byte, off int64) error {
	desc := v1.Descriptor{MediaType: artifact.DataType, Digest: digest.Digest(blob.Digest.String()), Size: blob.Size}
	n, err := s.Source.ReadBlobAt(ctx, desc, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
