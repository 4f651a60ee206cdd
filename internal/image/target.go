package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Blob is content to push.
type Blob struct {
	Descriptor v1.Descriptor
	// Open opens the content from its beginning. It is called again after a
	// failure, and at once by each of several pushes. If what it returns is an
	// io.Seeker, a push that goes on in the middle seeks, otherwise it reads up
	// to there.
	Open func(ctx context.Context) (io.ReadCloser, error)
	// Handover is a file with the content, known to match the descriptor, that
	// nobody changes any more. An OCI layout on the same file system takes it by
	// a hard link instead of copying it. Default: none.
	Handover string
	// MountFrom are repositories of the same registry that may have the blob;
	// best those that Options.MountFrom has too. An OCI layout has no use for
	// them.
	MountFrom []string
	// Progress is told how many bytes the target has, from 0 to the length of the
	// blob; after a failure it may go back. It is called often and from any
	// goroutine, but never twice at a time for one blob. Default: nobody is told.
	Progress func(done int64)
}

// FileBlob is a blob in a file.
func FileBlob(desc v1.Descriptor, path string) Blob {
	return Blob{Descriptor: desc, Open: func(context.Context) (io.ReadCloser, error) { return os.Open(path) }}
}

// OwnFileBlob is a blob in a file whose content the caller has hashed, and which
// nobody changes any more: see Blob.Handover.
func OwnFileBlob(desc v1.Descriptor, path string) Blob {
	b := FileBlob(desc, path)
	b.Handover = path
	return b
}

// BytesBlob is a blob in memory, with its descriptor.
func BytesBlob(mediaType string, data []byte) Blob {
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return Blob{Descriptor: desc, Open: func(context.Context) (io.ReadCloser, error) {
		return struct {
			io.ReadSeeker
			io.Closer
		}{bytes.NewReader(data), nothing{}}, nil
	}}
}

// nothing has nothing to close.
type nothing struct{}

// Close implements io.Closer.
func (nothing) Close() error { return nil }

// Pushed is how a blob came to be where it was pushed to.
type Pushed int

// The ways of a blob.
const (
	Uploaded Pushed = iota // sent
	Existed                // was there before
	Mounted                // taken from another repository of the registry
)

// String names the way for people.
func (p Pushed) String() string {
	switch p {
	case Uploaded:
		return "uploaded"
	case Existed:
		return "existed"
	case Mounted:
		return "mounted"
	}
	return fmt.Sprintf("Pushed(%d)", int(p))
}

// sink is what the kinds of targets have in common.
type sink interface {
	hasBlob(ctx context.Context, desc v1.Descriptor) (bool, error)
	pushBlob(ctx context.Context, b Blob) (Pushed, error)
	// pushManifest stores a manifest under a tag, or by digest alone if that is
	// empty.
	pushManifest(ctx context.Context, data []byte, desc v1.Descriptor, tag string) error
	// attach stores a manifest that refers to another.
	attach(ctx context.Context, data []byte, desc v1.Descriptor, subject digest.Digest, tag string) error
	close() error
}

// Target is where images and artifacts are pushed to.
type Target struct {
	// Set once.
	ref  Ref
	sink sink
}

// OpenTarget opens the repository or OCI layout that a reference names; its tag
// or digest does not matter. For a registry it logs in with the right to push;
// an OCI layout is made if it is missing. Errors: ErrDenied, ErrUnsupported for
// other kinds of references, *origin.StatusError and those of the file system
// and the network. The caller closes the Target.
func OpenTarget(ctx context.Context, ref Ref, o Options) (*Target, error) {
	opts := o.withDefaults()
	var s sink
	var err error
	switch ref.Kind {
	case KindRegistry:
		var r *remote
		if r, err = dial(ctx, ref, opts, transport.PushScope); err == nil {
			s = &pusher{remote: r}
		}
	case KindLayout:
		s, err = newLayoutWriter(ctx, ref.Path, opts)
	default:
		err = fmt.Errorf("%w: nothing can be pushed to a %s: use HOST/REPO[:TAG] or oci:DIR[:TAG]", ErrUnsupported, ref.Kind)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s to push to: %w", ref, err)
	}
	return &Target{ref: ref, sink: s}, nil
}

// Ref returns the reference that was opened.
func (t *Target) Ref() Ref { return t.ref }

// Close gives back idle connections.
func (t *Target) Close() error { return t.sink.close() }

// HasBlob reports whether a blob is there. If a registry has it with another
// length, that is ErrCorrupt: the descriptor must be wrong.
func (t *Target) HasBlob(ctx context.Context, desc v1.Descriptor) (bool, error) {
	err := checkDescriptor(desc)
	has := false
	if err == nil {
		has, err = t.sink.hasBlob(ctx, desc)
	}
	if err != nil {
		return false, fmt.Errorf("look for blob %s in %s: %w", desc.Digest, t.ref, err)
	}
	return has, nil
}

// PushBlob makes sure that the target has a blob: it is left alone if it is
// there, else mounted from another repository if one has it, else sent. ErrCorrupt
// if the content is not what its descriptor says.
func (t *Target) PushBlob(ctx context.Context, b Blob) (Pushed, error) {
	if b.Progress == nil {
		b.Progress = func(int64) {}
	}
	err := checkDescriptor(b.Descriptor)
	how := Uploaded
	if err == nil {
		how, err = t.sink.pushBlob(ctx, b)
	}
	if err != nil {
		return 0, fmt.Errorf("push blob %s to %s: %w", b.Descriptor.Digest, t.ref, err)
	}
	b.Progress(b.Descriptor.Size)
	return how, nil
}

// PushBlobs pushes blobs, at most limit at a time (default 4), and says how each
// came there. The first failure ends all.
func (t *Target) PushBlobs(ctx context.Context, blobs []Blob, limit int) ([]Pushed, error) {
	if limit <= 0 {
		limit = 4
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(limit)
	how := make([]Pushed, len(blobs))
	for i, b := range blobs {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			var err error
			how[i], err = t.PushBlob(ctx, b)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return how, nil
}

// PushManifest stores a manifest or index whose parts are there already, under
// a tag or, if that is empty, by its digest alone. In an OCI layout a tag is the
// name of an entry of index.json, and what is stored without one can be found
// only through another index or its digest.
func (t *Target) PushManifest(ctx context.Context, data []byte, mediaType, tag string) (v1.Descriptor, error) {
	desc, _, err := t.checkManifest(data, mediaType, tag)
	if err == nil {
		err = t.sink.pushManifest(ctx, data, desc, tag)
	}
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("push manifest to %s: %w", t.ref.WithTag(tag), err)
	}
	return desc, nil
}

// Attach stores a manifest that refers to another by its subject, so that
// Source.Referrers finds it. The tag is for registries whose garbage collection
// knows no subjects and deletes what has no tag. In a registry without the
// referrers API the manifest is added to the index at the fallback tag, and kept
// there against others who change that index at the same time.
func (t *Target) Attach(ctx context.Context, data []byte, mediaType, tag string) (v1.Descriptor, error) {
	desc, doc, err := t.checkManifest(data, mediaType, tag)
	switch {
	case err != nil:
	case tag == "":
		err = fmt.Errorf("%w: a referrer without a tag", ErrUnsupported)
	case doc.Subject == nil:
		err = fmt.Errorf("%w: the manifest has no subject", ErrUnsupported)
	default:
		if err = checkDescriptor(*doc.Subject); err == nil {
			desc = describe(desc, doc)
			err = t.sink.attach(ctx, data, desc, doc.Subject.Digest, tag)
		}
	}
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("attach manifest at %s: %w", t.ref.WithTag(tag), err)
	}
	return desc, nil
}

func (t *Target) checkManifest(data []byte, mediaType, tag string) (v1.Descriptor, *document, error) {
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if len(data) > maxManifest {
		return desc, nil, fmt.Errorf("%w: a manifest of %d bytes, at most %d", ErrUnsupported, len(data), maxManifest)
	}
	pattern := tagPattern
	if t.ref.Kind == KindLayout {
		pattern = layoutPattern
	}
	if tag != "" && !pattern.MatchString(tag) {
		return desc, nil, fmt.Errorf("%.200q is no tag", tag)
	}
	doc, err := parseDocument(data, mediaType)
	if err == nil && doc.MediaType != mediaType {
		err = fmt.Errorf("%w: a manifest of media type %s pushed as %q", ErrUnsupported, doc.MediaType, mediaType)
	}
	return desc, doc, err
}
