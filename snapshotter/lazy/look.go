package lazy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// look does a lookup. The indexes of an image that it finds are on disk and held.
func (l *lookups) look(ctx context.Context, r request) (*outcome, []*chunkfmt.Index) {
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return refused(Late, "too many images are looked up"), nil
	}
	begin := l.now()
	found, err := l.load(ctx, r)
	loaded := l.now()
	if err == nil {
		var im *known
		if im, err = l.store(r, found); err == nil {
			l.log.Info("found the index of an image", "image", r.ref, "manifest", im.manifest, "trusted", im.trustedBy,
				"layers", len(im.layers), "fetched_in", loaded.Sub(begin), "kept_in", l.now().Sub(loaded))
			return &outcome{image: im}, found.Indexes
		}
	}
	o := &outcome{reason: reasonOf(err)}
	l.log.Info("an image is pulled the ordinary way", "image", r.ref, "manifest", r.manifest, "code", o.reason.Code, "detail", o.reason.Detail,
		"found_out_in", l.now().Sub(begin))
	return o, nil
}

// load finds and fetches the indexes of an image.
func (l *lookups) load(ctx context.Context, r request) (*imageindex.Loaded, error) {
	policy, err := l.policy(ctx)
	if err != nil {
		return nil, local("read the trust policy", err)
	}
	src, err := l.registry(ctx, r.ref)
	if err != nil {
		return nil, err
	}
	defer src.Close() //nolint:errcheck // opened for reading
	resolved, err := l.resolve(ctx, src, r)
	if err != nil {
		return nil, err
	}
	found, err := imageindex.Find(ctx, src, resolved, policy)
	if err == nil {
		if err := l.checkBound(found); err != nil {
			return nil, err
		}
		return imageindex.Load(ctx, src, found, chunkfmt.Limits{})
	}
	if l.refuseBound || ctx.Err() != nil {
		return nil, err
	}
	fromTables, tablesErr := tables(ctx, src, resolved)
	if tablesErr == nil {
		return fromTables, nil
	}
	if !errors.Is(tablesErr, imageindex.ErrNoIndex) {
		err = errors.Join(err, tablesErr)
	}
	return nil, err
}

// checkBound refuses an index that only the image's author vouches for, if those
// are not trusted.
func (l *lookups) checkBound(f *imageindex.Found) error {
	if l.refuseBound && f.Verdict.Reason == trust.Bound {
		return fmt.Errorf("%w: only the image's own manifest vouches for it, and trust-bound is false", trust.ErrUntrusted)
	}
	return nil
}

// tables tries the layers' own tables of contents, which is of use only if the
// manifest binds one for every layer.
func tables(ctx context.Context, src *image.Source, r *imageindex.Resolved) (*imageindex.Loaded, error) {
	subject, err := artifact.ParseSubject(r.Manifest)
	if err != nil {
		return nil, err
	}
	for _, layer := range subject.Layers {
		if _, ok := trust.BoundTOC(layer); !ok {
			return nil, imageindex.ErrNoIndex
		}
	}
	r.Config, err = config(ctx, src, subject.Config)
	if err != nil {
		return nil, err
	}
	return imageindex.FromTables(ctx, src, r)
}

// maxConfig bounds the configuration of an image, in bytes.
const maxConfig = 8 << 20

func config(ctx context.Context, src *image.Source, d v1.Descriptor) (*v1.Image, error) {
	if d.Size < 0 || d.Size > maxConfig {
		return nil, fmt.Errorf("%w: a configuration of %d bytes", artifact.ErrInvalid, d.Size)
	}
	data := make([]byte, d.Size)
	if _, err := src.ReadBlobAt(ctx, d, data, 0); err != nil {
		return nil, err
	}
	if got := digest.FromBytes(data); got != d.Digest {
		return nil, fmt.Errorf("%w: the configuration %s has digest %s", image.ErrCorrupt, d.Digest, got)
	}
	var c v1.Image
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("%w: configuration %s: %w", artifact.ErrInvalid, d.Digest, err)
	}
	return &c, nil
}

// resolve returns the manifest of the image that a layer is being pulled for.
func (l *lookups) resolve(ctx context.Context, src *image.Source, r request) (*imageindex.Resolved, error) {
	if r.manifest != "" {
		data, desc, err := src.Manifest(ctx, r.manifest.String())
		if err != nil {
			return nil, err
		}
		return &imageindex.Resolved{Descriptor: desc, Manifest: data}, nil
	}
	// Containerd 1.6 says only which layer it is: it is of one of the manifests
	// behind the reference.
	data, desc, err := src.Manifest(ctx, "")
	if err != nil {
		return nil, err
	}
	var list v1.Index
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", artifact.ErrInvalid, r.ref, err)
	}
	if len(list.Manifests) == 0 {
		return &imageindex.Resolved{Descriptor: desc, Manifest: data}, nil
	}
	return withLayer(ctx, src, list.Manifests, r)
}

// maxPlatforms bounds the manifests that are searched for a layer.
const maxPlatforms = 64

// withLayer returns the first manifest of a list that has the layer. One that the
// repository does not have, or that is of another kind, is passed over.
func withLayer(ctx context.Context, src *image.Source, list []v1.Descriptor, r request) (*imageindex.Resolved, error) {
	var errs []error
	for _, m := range list[:min(len(list), maxPlatforms)] {
		data, desc, err := src.Manifest(ctx, m.Digest.String())
		if err != nil {
			if errs = append(errs, err); !errors.Is(err, image.ErrNotFound) {
				return nil, errors.Join(errs...)
			}
			continue
		}
		subject, err := artifact.ParseSubject(data)
		if err != nil {
			continue // an attestation, or another kind of manifest
		}
		for _, layer := range subject.Layers {
			if layer.Digest == r.layer {
				return &imageindex.Resolved{Descriptor: desc, Manifest: data}, nil
			}
		}
	}
	none := fmt.Errorf("%w: no manifest of %s has the layer %q", imageindex.ErrNoIndex, r.ref, r.layer)
	return nil, errors.Join(append(errs, none)...)
}

// store puts the indexes on disk, and holds them.
func (l *lookups) store(r request, found *imageindex.Loaded) (*known, error) {
	im := &known{
		repository: repository(r.ref), manifest: found.Artifact.Subject.Digest, trustedBy: found.Verdict.String(),
		byChain: map[digest.Digest]int{}, layers: make([]knownLayer, len(found.Indexes)),
	}
	diffIDs := make([]digest.Digest, len(found.Indexes))
	for i, x := range found.Indexes {
		if x.DiffID.IsZero() {
			return nil, fmt.Errorf("%w: the index of layer %d does not say the layer's diff ID", artifact.ErrMismatch, i)
		}
		diffIDs[i] = digest.Digest(x.DiffID.String())
	}
	var group errgroup.Group
	for i, chain := range chains(diffIDs) {
		im.byChain[chain] = i
		group.Go(func() (err error) {
			im.layers[i], err = l.storeLayer(found, i, chain)
			return err
		})
	}
	group.Go(func() error { return checkRoots(found) })
	if err := group.Wait(); err != nil {
		for _, layer := range im.layers {
			if layer.index != "" {
				l.indexes.release(layer.index)
			}
		}
		return nil, err
	}
	return im, nil
}

// checkRoots compares the trees with the Merkle roots that whoever vouches for them
// has signed or bound. Those of an image's own tables of contents were computed
// when the tables were read.
func checkRoots(found *imageindex.Loaded) error {
	if found.Descriptor.Digest == "" {
		return nil
	}
	merged, err := found.Merge(len(found.Indexes))
	if err != nil {
		return err
	}
	return found.Check(merged)
}

func (l *lookups) storeLayer(found *imageindex.Loaded, i int, chain digest.Digest) (knownLayer, error) {
	data, err := found.Encoded(i)
	if err != nil {
		return knownLayer{}, err
	}
	layer := knownLayer{chain: chain, devices: devicesOf(&found.Indexes[i].Tree)}
	layer.index, err = l.indexes.put(data)
	return layer, err
}

// devicesOf returns the keys of the devices that a layer's index defines.
func devicesOf(t *chunkfmt.Tree) []device.Key {
	var keys []device.Key
	for i := range t.Blobs {
		if !t.Blobs[i].External {
			keys = append(keys, t.DeviceKey(uint32(i))) // #nosec G115 -- at most 64 Ki
		}
	}
	return keys
}
