package imageindex

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
	"github.com/damselfly-io/damselfly/internal/image"
)

// fetchers is how many indexes are fetched at a time.
const fetchers = 8

// The limits of what Load accepts: nobody need have vouched for an artifact.
const (
	// maxStored bounds the indexes of one image as they are stored, in bytes. A
	// million files take some 50 MB.
	maxStored = 256 << 20
	// maxRows bounds the inodes, entries, runs, chunks and groups of all indexes
	// of one image.
	maxRows = 1 << 26
)

// Loaded is an image's indexes.
type Loaded struct {
	*Found
	// Indexes of the layers, lowest first. Layers that share one index share
	// the pointer.
	Indexes []*chunkfmt.Index
	// Sizes are those of the indexes as they are stored, in bytes.
	Sizes []int64

	stored [][]byte // nil for those that are not stored
}

// Encoded returns the index of layer i as it is stored or, if it is stored
// nowhere, encoded.
func (l *Loaded) Encoded(i int) ([]byte, error) {
	if i < len(l.stored) && l.stored[i] != nil {
		return l.stored[i], nil
	}
	data, err := chunkfmt.Encode(l.Indexes[i])
	if err != nil {
		return nil, fmt.Errorf("index of layer %d of %s: %w", i, l.Artifact.Subject.Digest, err)
	}
	return data, nil
}

// Load fetches the indexes that an artifact lists and decodes them. limits are
// those of each; together they have at most 256 MiB, or limits.Body if that is
// less, as they are stored. Errors wrap artifact.ErrMismatch if they are not
// those of the image's layers, chunkfmt.ErrInvalid if they are damaged or beyond
// a limit, and are those of the source.
func Load(ctx context.Context, src *image.Source, f *Found, limits chunkfmt.Limits) (*Loaded, error) {
	if err := f.check(limits); err != nil {
		return nil, fmt.Errorf("index %s: %w", src.Ref().WithDigest(f.Descriptor.Digest), err)
	}
	n := len(f.Artifact.Layers)
	l := &loader{src: src, limits: limits, loaded: &Loaded{Found: f, Indexes: make([]*chunkfmt.Index, n), Sizes: make([]int64, n), stored: make([][]byte, n)}}
	first := map[chunkfmt.Digest]int{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fetchers)
	for i, layer := range f.Artifact.Layers {
		l.loaded.Sizes[i] = layer.Index.Size
		if _, ok := first[layer.Index.Digest]; ok {
			continue
		}
		first[layer.Index.Digest] = i
		group.Go(func() error { return l.fetch(ctx, i, layer.Index) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, layer := range f.Artifact.Layers {
		l.loaded.Indexes[i] = l.loaded.Indexes[first[layer.Index.Digest]]
		l.loaded.stored[i] = l.loaded.stored[first[layer.Index.Digest]]
		if err := layer.Check(l.loaded.Indexes[i]); err != nil {
			return nil, fmt.Errorf("index %s: %w", src.Ref().WithDigest(f.Descriptor.Digest), err)
		}
	}
	return l.loaded, nil
}

// check compares the artifact with the image, and what it claims with the
// limits, before anything is fetched.
func (f *Found) check(limits chunkfmt.Limits) error {
	err := artifact.MatchLayers(f.Artifact, f.Subject)
	if f.Config != nil {
		err = artifact.Match(f.Artifact, f.Subject, f.Config)
	}
	if err != nil {
		return err
	}
	most, total := int64(maxStored), int64(0)
	if limits.Body > 0 {
		most = min(most, limits.Body)
	}
	for _, o := range f.indexes() {
		if total += o.Size; total > most {
			return fmt.Errorf("%w: its layers' indexes have more than %d bytes", chunkfmt.ErrInvalid, most)
		}
	}
	return nil
}

// indexes returns what the layers' indexes are stored as, each once.
func (f *Found) indexes() []artifact.Object {
	var all []artifact.Object
	seen := map[chunkfmt.Digest]bool{}
	for _, l := range f.Artifact.Layers {
		if !seen[l.Index.Digest] {
			seen[l.Index.Digest] = true
			all = append(all, l.Index)
		}
	}
	return all
}

// IndexBytes returns the size of all indexes as they are stored, each once.
func (f *Found) IndexBytes() int64 {
	total := int64(0)
	for _, o := range f.indexes() {
		total += o.Size
	}
	return total
}

// loader is one call of Load.
type loader struct {
	src    *image.Source
	limits chunkfmt.Limits
	loaded *Loaded

	mu   sync.Mutex
	rows int // guarded by mu
}

func (l *loader) fetch(ctx context.Context, i int, o artifact.Object) error {
	data, err := readBlob(ctx, l.src, o.Descriptor(artifact.IndexType))
	if err != nil {
		return err
	}
	// One at a time, so that what is decoded beyond maxRows is at most one.
	l.mu.Lock()
	defer l.mu.Unlock()
	x, err := chunkfmt.Decode(data, l.limits)
	if err == nil {
		if l.rows += rows(&x.Tree); l.rows > maxRows {
			err = fmt.Errorf("%w: the indexes of the layers together have more than %d rows", chunkfmt.ErrInvalid, maxRows)
		}
	}
	if err != nil {
		return fmt.Errorf("index %s of %s: %w", o.Digest, l.src.Ref(), err)
	}
	l.loaded.Indexes[i], l.loaded.stored[i] = x, data
	return nil
}

func rows(t *chunkfmt.Tree) int {
	n := len(t.Inodes) + len(t.Entries) + len(t.Runs) + len(t.Chunks)
	for i := range t.Blobs {
		n += len(t.Blobs[i].Groups)
	}
	return n
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

// Check computes the Merkle roots of all indexes and of the merged tree and
// compares them with those that the indexes and the artifact have. Errors wrap
// merkle.ErrMismatch.
func (l *Loaded) Check(merged *chunkfmt.Tree) error {
	done := map[*chunkfmt.Index]bool{}
	for i, x := range l.Indexes {
		if done[x] {
			continue
		}
		done[x] = true
		if err := merkle.Check(x); err != nil {
			return fmt.Errorf("layer %d (%s): %w", i, l.Artifact.Layers[i].Digest, err)
		}
	}
	if root := merkle.Root(merged); root != l.Artifact.Root {
		return fmt.Errorf("%w: the merged tree has root %s, the artifact says %s", merkle.ErrMismatch, root, l.Artifact.Root)
	}
	return nil
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
