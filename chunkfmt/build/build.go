package build

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"golang.org/x/sync/errgroup"
)

// Layer is a layer to convert.
type Layer struct {
	// Name for messages: the layer's digest, or the directory it came from.
	Name string
	// Digest of the stored bytes, checked while they are read; zero: not
	// checked.
	Digest chunkfmt.Digest
	// Size in stored bytes, checked too; -1: unknown.
	Size int64
	// Verified says that what Open returns ends only after its bytes have had
	// the Digest, so that they need not be hashed here again. Of no meaning
	// without a Digest.
	Verified bool
	// DiffID is the digest of the plain tar, checked; zero: not checked.
	DiffID chunkfmt.Digest
	// Open returns the stored bytes: a tar, plain or compressed by gzip or
	// zstd. It is called once, and a second time if the layer turns out not to
	// be usable in place after all. Reading must end when ctx does.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// Result is what Build made.
type Result struct {
	// Layers has one for each layer, in the order of the layers.
	Layers []LayerResult
	// Root is the Merkle root of the layers merged.
	Root chunkfmt.Digest
}

// LayerResult is what was made of one layer.
type LayerResult struct {
	Index *chunkfmt.Index
	// Encoded is the index as bytes.
	Encoded []byte
	// Blobs are the new blobs with nothing but content. At most one; none for
	// a layer without new content.
	Blobs []BlobFile
	// Image is the layer as tar+zstd, in the mode AsImage.
	Image *BlobFile
	// InPlace says that the layer itself is the blob.
	InPlace bool
	// Plain and Stored are the sizes in bytes of the layer that was read: of
	// its tar, and as it is stored.
	Plain, Stored int64
	Stats         Stats
	// Warnings say what of the layer could not be kept.
	Warnings []string
}

// Stats count what is in a layer.
type Stats struct {
	// Entries of the tar.
	Entries int
	// Chunks are those that the layer's files have, each counted once; Groups
	// those of the new blobs and of the blob in place.
	Chunks, Groups int
	// Content is the sum of the files' sizes in bytes. It is made up of Inline
	// (in the index), Holes (stored nowhere), New and the equal chunks that
	// were found before: FromLayer in the same layer, FromImage in a lower
	// one, FromDictionary in the dictionary. Sizes of hard links count once.
	Content, Inline, Holes, New, FromLayer, FromImage, FromDictionary int64
}

// BlobFile is a file that Build made.
type BlobFile struct {
	Digest chunkfmt.Digest
	Size   int64
	// Path is the file's: its name is the digest in hex.
	Path string
}

// Build turns layers, lowest first, into indexes and blobs. The blobs are
// written into dir, which must exist, as temporary files with a leading dot
// and renamed to their digests in hex; what was there before stays there.
//
// Errors name the layer, and the entry when it is about one. They wrap
// ErrMismatch, ErrLimit and chunkfmt.ErrInvalid where those say more.
func Build(ctx context.Context, layers []Layer, dir string, o Options) (*Result, error) {
	b, err := newBuilder(layers, dir, o)
	if err != nil {
		return nil, err
	}
	if err := b.run(ctx); err != nil {
		for _, name := range b.made {
			_ = os.Remove(name) // the error says more than why this one failed
		}
		return nil, err
	}
	return &Result{Layers: b.results, Root: b.root}, nil
}

// builder is one run of Build. Bytes flow from the scanners (one for each
// layer, several at a time) through scan.out to the packer, from there through
// jobs to the compressors and, in the packer's order, through order to the
// writer.
type builder struct {
	o      *settings
	dir    string
	trace  traceMap
	scans  []*scan
	budget *budget
	zeros  *zeros
	// placed has the digests of layers that may become blobs themselves.
	placed map[chunkfmt.Digest]bool
	// buffers hold plain bytes of groups, outputs stored ones.
	buffers, outputs *pool
	jobs             chan *task
	order            chan *task

	// Of the writer.
	results []LayerResult
	made    []string
	root    chunkfmt.Digest

	mu sync.Mutex // held while Progress is called
}

func newBuilder(layers []Layer, dir string, o Options) (*builder, error) {
	if len(layers) == 0 {
		return nil, errors.New("no layers to build from")
	}
	s, err := o.resolve()
	if err != nil {
		return nil, err
	}
	trace, err := newTraceMap(o.Trace)
	if err != nil {
		return nil, err
	}
	inFlight := s.queue + s.Workers + 2
	b := &builder{
		o: s, dir: dir, trace: trace, budget: newBudget(s), zeros: &zeros{size: int(s.ChunkSize)},
		placed:  map[chunkfmt.Digest]bool{},
		buffers: newPool(int(s.GroupSize), inFlight),
		outputs: newPool(int(s.GroupSize)+int(s.GroupSize)/64+1024, inFlight),
		jobs:    make(chan *task, s.queue),
		order:   make(chan *task, s.queue),
	}
	for i, l := range layers {
		b.scans = append(b.scans, &scan{
			b: b, layer: l, at: i, out: make(chan batch, s.slabs), mayPlace: b.mayPlace(l),
		})
	}
	return b, nil
}

// mayPlace reports whether a layer may be indexed in place. Then its digest
// must be known from the start, for no two blobs of an image may have the same:
// a layer that occurs twice is one blob, and the dictionary must not have it.
func (b *builder) mayPlace(l Layer) bool {
	if b.o.Mode != Auto || len(b.o.Trace) > 0 || l.Digest.IsZero() || b.placed[l.Digest] {
		return false
	}
	b.placed[l.Digest] = true
	return true
}

// run does all the work and ends after all its goroutines.
func (b *builder) run(ctx context.Context) error {
	compressors := make([]*compressor, b.o.Workers)
	for i := range compressors {
		c, err := newCompressor(b)
		if err != nil {
			return err
		}
		compressors[i] = c
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.scanAll(ctx) })
	g.Go(func() error { return newPacker(b).run(ctx) })
	for _, c := range compressors {
		g.Go(func() error { return c.run(ctx) })
	}
	g.Go(func() error { return (&writer{b: b}).run(ctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	b.budget, b.buffers, b.outputs = nil, nil, nil // the merge needs the memory
	var err error
	b.root, err = merged(b.results)
	return err
}

// scanAll scans the layers in order, some at a time.
func (b *builder) scanAll(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(b.o.open)
	for _, s := range b.scans {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return s.run(ctx) })
	}
	return g.Wait()
}

// dispatch sends a task to the writer and, unless it is done, to a compressor.
func (b *builder) dispatch(ctx context.Context, t *task) error {
	select {
	case b.order <- t:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if t.done == nil {
		return nil
	}
	select {
	case b.jobs <- t:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b *builder) progress(e Event) {
	if b.o.Progress == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.o.Progress(e)
}
