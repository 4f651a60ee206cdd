package accelerate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/authn"
	ggname "github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/internal/task"
)

// maxPlain bounds what one layer may unpack to, in bytes.
const maxPlain = 256 << 30

// Accelerate makes the index of an image and offers it, unless it is offered
// already. Equal calls at the same time share one conversion. The error says
// what stands in the way.
func (a *Accelerator) Accelerate(ctx context.Context, img Image) (Info, error) {
	d, err := digest.Parse(img.Digest)
	if err != nil || d.Algorithm() != digest.SHA256 {
		return Info{}, fmt.Errorf("image %.100q: want the sha256 digest of its manifest", img.Digest)
	}
	key := imageKey{newPlace(img.Base, img.Repo), d}
	for {
		if info, ok := a.known(key); ok {
			return info, nil
		}
		f, mine := a.join(key)
		if mine {
			f.info, f.err = a.run(ctx, img, key)
			a.mu.Lock()
			delete(a.flights, key)
			a.mu.Unlock()
			close(f.done)
			return f.info, f.err
		}
		select {
		case <-ctx.Done():
			return Info{}, fmt.Errorf("waiting for the index of %s: %w", key.place, context.Cause(ctx))
		case <-f.done:
		}
		// What ended with somebody else's request, or was refused to somebody
		// else's credential, is nothing to go by.
		if f.err == nil || !errors.Is(f.err, context.Canceled) && !errors.Is(f.err, context.DeadlineExceeded) && !denied(f.err) {
			return f.info, f.err
		}
	}
}

// known returns the index that is offered.
func (a *Accelerator) known(key imageKey) (Info, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.table.images[key]
	if r == nil || !a.offeredLocked(r) {
		return Info{}, false
	}
	return r.info(), true
}

func (a *Accelerator) join(key imageKey) (f *flight, mine bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f := a.flights[key]; f != nil {
		return f, false
	}
	f = &flight{done: make(chan struct{})}
	a.flights[key] = f
	return f, true
}

// run waits for its turn and converts.
func (a *Accelerator) run(ctx context.Context, img Image, key imageKey) (info Info, err error) {
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		return Info{}, fmt.Errorf("waiting to convert %s: %w", key.place, context.Cause(ctx))
	}
	began := a.o.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, a.o.Timeout, fmt.Errorf("%w: a conversion may take %s", context.DeadlineExceeded, a.o.Timeout))
	defer cancel()
	dir, err := os.MkdirTemp(a.work(), "image-")
	if err != nil {
		return Info{}, fmt.Errorf("making a directory for the conversion: %w", err)
	}
	defer func() {
		err = errors.Join(err, os.RemoveAll(dir))
		a.o.Observe(err, a.o.Now().Sub(began))
	}()
	c := &conversion{a: a, img: img, key: key, dir: dir, reader: a.newReader(img)}
	defer c.reader.close()
	r, err := c.run(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return Info{}, fmt.Errorf("converting %s@%s: %w", key.place, key.subject, err)
	}
	a.o.Log.Info("an image is accelerated", "repository", key.place.String(), "image", img.Digest, "index", r.artifactDesc.Digest.String(),
		"bytes", r.bytes(), "took", a.o.Now().Sub(began), "pushed", r.Pushed)
	return r.info(), nil
}

// conversion is the making of one index.
type conversion struct {
	a      *Accelerator
	img    Image
	key    imageKey
	dir    string
	reader *reader
}

func (c *conversion) run(ctx context.Context) (*record, error) {
	converted, err := c.convert(ctx)
	if err != nil {
		return nil, err
	}
	r, tables, err := c.collect(ctx, converted)
	if err != nil {
		return nil, err
	}
	imported, err := c.keep(ctx, r, tables)
	if err == nil {
		err = c.a.offer(r)
	}
	if err != nil {
		c.a.discardUnused(imported)
		return nil, err
	}
	if c.a.o.Push {
		c.push(ctx, r)
	}
	return r, nil
}

// layout is where the conversion writes to.
func (c *conversion) layout() image.Ref {
	return image.Ref{Kind: image.KindLayout, Path: filepath.Join(c.dir, "layout")}
}

func (c *conversion) options() image.Options {
	return image.Options{
		Transport: c.reader, Keychain: anonymous{}, PlainHTTP: func(string) bool { return true },
		MaxAttempts: 1, IdleTimeout: c.a.o.Timeout, Log: c.a.o.Log,
	}
}

// ref names the image for package image. The reader serves it, whatever the
// registry's name is.
func (c *conversion) ref() image.Ref {
	host := c.key.host()
	if _, err := ggname.NewRegistry(host, ggname.Insecure); err != nil {
		host = "localhost"
	}
	return image.Ref{Kind: image.KindRegistry, Registry: host, Repository: c.key.repo, Digest: c.key.subject}
}

func (c *conversion) convert(ctx context.Context) (_ *imageindex.Converted, err error) {
	src, err := image.Open(ctx, c.ref(), c.options())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	images, err := src.Images(ctx)
	if err != nil {
		return nil, err
	}
	if len(images) != 1 || images[0].Descriptor.Digest != c.key.subject {
		return nil, fmt.Errorf("%w: it is an image for several platforms: name the manifest of one", image.ErrUnsupported)
	}
	if err := c.reader.fetch(ctx, images[0]); err != nil {
		return nil, err
	}
	return c.build(ctx, src, most(images[0]))
}

// build makes the index and its blobs, at most limit bytes of them.
func (c *conversion) build(ctx context.Context, src *image.Source, limit int64) (*imageindex.Converted, error) {
	blobs := filepath.Join(c.dir, "blobs")
	if err := os.Mkdir(blobs, 0o700); err != nil {
		return nil, fmt.Errorf("making a directory for blobs: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all, err := imageindex.Convert(ctx, src, c.layout(), imageindex.ConvertOptions{
		// The other half is for the nodes.
		Build: build.Options{MemoryLimit: c.a.o.Memory, MaxPlain: maxPlain, Workers: max(1, runtime.GOMAXPROCS(0)/2)},
		Key:   c.a.key, Dir: blobs, Image: c.options(),
		Progress: func(imageindex.Progress) {
			if size(blobs) > limit {
				cancel(fmt.Errorf("%w: its blobs grow beyond %d bytes, which is more than any honest image of its size needs", errTooLarge, limit))
			}
		},
	})
	if cause := context.Cause(ctx); errors.Is(cause, errTooLarge) {
		return nil, cause
	}
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// errTooLarge ends a conversion that would fill the disk.
var errTooLarge = errors.New("the image is a bomb")

// How much larger than the layers of an image its new blobs may be: groups are
// compressed each by itself, and layers may repeat themselves in wide windows,
// but not that much.
const (
	growth = 16
	slack  = 1 << 30
)

// most returns how large the blobs of an image may get, in bytes.
func most(img *image.Image) int64 {
	total := int64(slack)
	for i := range img.Layers {
		total += growth * min(img.Layers[i].Descriptor.Size, 1<<44)
	}
	return total
}

// size returns what the files below a directory take, as far as that can be
// told.
func size(dir string) (total int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil //nolint:nilerr // it has gone meanwhile
		}
		if info, err := e.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return total
}

// collect reads what the conversion has made from the layout, and how its blobs
// are best cut into pieces.
func (c *conversion) collect(ctx context.Context, made *imageindex.Converted) (_ *record, _ map[task.ID]task.Table, err error) {
	src, err := image.Open(ctx, c.layout(), image.Options{})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	r := &record{Base: c.key.base, Repo: c.key.repo, Key: c.a.key.ID(), Created: c.a.o.Now().UTC()}
	if r.Artifact, _, err = src.Manifest(ctx, made.Artifact); err != nil {
		return nil, nil, err
	}
	if r.Signature, _, err = src.Manifest(ctx, artifact.SignatureTag(digest.Digest(made.Artifact), r.Key)); err != nil {
		return nil, nil, err
	}
	parsed, err := artifact.Parse(r.Artifact)
	if err != nil {
		return nil, nil, err
	}
	r.Subject = v1.Descriptor{MediaType: parsed.Subject.MediaType, Digest: parsed.Subject.Digest, Size: parsed.Subject.Size}
	tables := map[task.ID]task.Table{}
	add := func(o artifact.Object) {
		id := task.BlobID(task.Digest(o.Digest))
		if _, ok := tables[id]; !ok {
			tables[id] = task.Uniform(o.Size)
			r.Blobs = append(r.Blobs, blob{id, o.Size})
		}
	}
	for _, l := range parsed.Layers {
		add(l.Index)
	}
	for _, o := range parsed.Blobs {
		add(o)
	}
	for _, l := range parsed.Layers {
		if err := c.cut(l.Index, tables); err != nil {
			return nil, nil, err
		}
	}
	// Whoever copies the artifact wants its configuration too.
	empty := artifact.Empty()
	r.Blobs = append(r.Blobs, blob{task.ID(empty.Digest), empty.Size})
	tables[task.ID(empty.Digest)] = task.Uniform(empty.Size)
	return r, tables, r.derive()
}

// cut makes the groups of the blobs that an index defines their pieces: they are
// what nodes ask for.
func (c *conversion) cut(o artifact.Object, tables map[task.ID]task.Table) error {
	data, err := os.ReadFile(c.file(task.BlobID(task.Digest(o.Digest))))
	if err != nil {
		return fmt.Errorf("reading back an index: %w", err)
	}
	x, err := chunkfmt.Decode(data, chunkfmt.Limits{})
	if err != nil {
		return fmt.Errorf("reading back an index: %w", err)
	}
	for i := range x.Blobs {
		b := &x.Blobs[i]
		id := task.BlobID(task.Digest(b.Digest))
		known, ours := tables[id]
		if !ours || b.External || len(b.Groups) == 0 {
			continue
		}
		ends := make([]int64, len(b.Groups))
		for g := range b.Groups {
			ends[g] = b.Groups[g].Offset + int64(b.Groups[g].Stored)
		}
		if t := task.Variable(ends); t.Length == known.Length && t.Validate() == nil {
			tables[id] = t
		}
	}
	return nil
}

// file is where the layout has a blob.
func (c *conversion) file(id task.ID) string {
	d := digest.Digest(id)
	return filepath.Join(c.layout().Path, v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// keep puts the blobs of r into the cache.
func (c *conversion) keep(ctx context.Context, r *record, tables map[task.ID]task.Table) (imported []task.ID, err error) {
	for _, b := range r.Blobs {
		imported = append(imported, b.ID)
		if err := c.keepOne(ctx, b.ID, tables[b.ID]); err != nil {
			return imported, fmt.Errorf("keeping the index in the cache: %w", err)
		}
	}
	return imported, nil
}

func (c *conversion) keepOne(ctx context.Context, id task.ID, table task.Table) (err error) {
	f, err := os.Open(c.file(id))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return c.a.cache.Import(ctx, id, table, sourcePrefix+c.key.place.String()+"@"+c.key.subject.String(), f)
}

// anonymous is a keychain with nothing in it: the reader has the credential.
type anonymous struct{}

// Resolve implements authn.Keychain.
func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }
