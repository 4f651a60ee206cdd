package lazy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// Registry opens the repository of a reference for reading, by the node's own
// right.
type Registry func(ctx context.Context, ref image.Ref) (*image.Source, error)

// known is an image whose trusted indexes are on this node.
type known struct {
	repository string
	manifest   digest.Digest
	trustedBy  string
	layers     []knownLayer
	byChain    map[digest.Digest]int
}

// knownLayer is one layer of an image.
type knownLayer struct {
	chain   digest.Digest
	index   digest.Digest
	devices []device.Key
}

// outcome is what a lookup has come to.
type outcome struct {
	image  *known
	loaded []*chunkfmt.Index // to save decoding them again; dropped soon
	reason snapshots.Reason
	until  time.Time
}

// lookups finds the indexes of images. Equal lookups share one, and what it came
// to counts for a while.
type lookups struct {
	registry Registry
	policy   func(ctx context.Context) (*trust.Policy, error)
	indexes  *indexes
	log      *slog.Logger
	now      func() time.Time
	// timeout is how long a pull waits for a lookup, keepYes and keepNo how long
	// its outcome counts.
	timeout, keepYes, keepNo time.Duration

	flight singleflight.Group
	mu     sync.Mutex
	kept   map[string]*outcome // by key
}

// key names the image of a request.
func (r *request) key() string { return r.ref.String() + " " + r.manifest.String() }

// find returns the image of a request, or why there is none. It takes at most
// about l.timeout; a lookup that takes longer goes on, for the next to ask.
func (l *lookups) find(ctx context.Context, r request) *outcome {
	if o := l.get(r.key()); o != nil {
		return o
	}
	ch := l.flight.DoChan(r.key(), func() (any, error) {
		if o := l.get(r.key()); o != nil {
			return o, nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*l.timeout)
		defer cancel()
		o := l.look(ctx, r)
		l.put(r.key(), o)
		return o, nil
	})
	late := time.NewTimer(l.timeout)
	defer late.Stop()
	select {
	case res := <-ch:
		o, _ := res.Val.(*outcome)
		return o
	case <-late.C:
		return &outcome{reason: snapshots.Reason{Code: Late, Detail: fmt.Sprintf("the index of %s was not found within %s", r.ref, l.timeout)}}
	case <-ctx.Done():
		return &outcome{reason: snapshots.Reason{Code: Late, Detail: ctx.Err().Error()}}
	}
}

func (l *lookups) get(key string) *outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.kept[key]; o != nil && l.now().Before(o.until) {
		return o
	}
	return nil
}

// put keeps an outcome and drops those whose time is over.
func (l *lookups) put(key string, o *outcome) {
	now := l.now()
	o.until = now.Add(l.keepNo)
	if o.image != nil {
		o.until = now.Add(l.keepYes)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expireLocked(now)
	if old := l.kept[key]; old != nil {
		l.forget(old)
	}
	l.kept[key] = o
}

func (l *lookups) expireLocked(now time.Time) {
	for k, o := range l.kept {
		if !now.Before(o.until) {
			l.forget(o)
			delete(l.kept, k)
		}
	}
}

// expire drops what does not count any more.
func (l *lookups) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expireLocked(l.now())
}

// forget lets go of what an outcome holds.
func (l *lookups) forget(o *outcome) {
	if o.image != nil {
		for _, layer := range o.image.layers {
			l.indexes.release(layer.index)
		}
	}
}

// look does the lookup.
func (l *lookups) look(ctx context.Context, r request) *outcome {
	begin := l.now()
	found, err := l.load(ctx, r)
	loaded := l.now()
	if err == nil {
		var o *outcome
		if o, err = l.keep(r, found); err == nil {
			l.log.Info("found the index of an image", "image", r.ref, "manifest", o.image.manifest, "trusted", o.image.trustedBy,
				"layers", len(o.image.layers), "fetched_in", loaded.Sub(begin), "kept_in", l.now().Sub(loaded))
			return o
		}
	}
	o := &outcome{reason: reasonOf(err)}
	l.log.Info("an image is pulled the ordinary way", "image", r.ref, "manifest", r.manifest, "code", o.reason.Code, "detail", o.reason.Detail,
		"found_out_in", l.now().Sub(begin))
	return o
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
		return imageindex.Load(ctx, src, found, chunkfmt.Limits{})
	}
	fromTables, tablesErr := l.tables(ctx, src, resolved)
	if tablesErr == nil {
		return fromTables, nil
	}
	if !errors.Is(tablesErr, imageindex.ErrNoIndex) {
		err = errors.Join(err, tablesErr)
	}
	return nil, err
}

// tables tries the layers' own tables of contents, which is of use only if the
// manifest binds one for every layer.
func (l *lookups) tables(ctx context.Context, src *image.Source, r *imageindex.Resolved) (*imageindex.Loaded, error) {
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
	if d.Size > maxConfig {
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
	for _, m := range list.Manifests {
		data, desc, err := src.Manifest(ctx, m.Digest.String())
		if err != nil {
			return nil, err
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
	return nil, fmt.Errorf("%w: no manifest of %s has the layer %s", imageindex.ErrNoIndex, r.ref, r.layer)
}

// keep puts the indexes on disk.
func (l *lookups) keep(r request, found *imageindex.Loaded) (*outcome, error) {
	im := &known{repository: repository(r.ref), manifest: found.Artifact.Subject.Digest, byChain: map[digest.Digest]int{}}
	im.trustedBy = found.Verdict.String()
	diffIDs := make([]digest.Digest, len(found.Indexes))
	for i, x := range found.Indexes {
		if x.DiffID.IsZero() {
			return nil, fmt.Errorf("%w: the index of layer %d does not say the layer's diff ID", artifact.ErrMismatch, i)
		}
		diffIDs[i] = digest.Digest(x.DiffID.String())
	}
	im.layers = make([]knownLayer, len(diffIDs))
	var group errgroup.Group
	for i, chain := range chains(diffIDs) {
		im.byChain[chain] = i
		group.Go(func() error {
			data, err := found.Encoded(i)
			if err != nil {
				return err
			}
			d, err := l.indexes.put(data)
			im.layers[i] = knownLayer{chain: chain, index: d, devices: devicesOf(&found.Indexes[i].Tree)}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		for _, layer := range im.layers {
			if layer.index != "" {
				l.indexes.release(layer.index)
			}
		}
		return nil, err
	}
	return &outcome{image: im, loaded: found.Indexes}, nil
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
