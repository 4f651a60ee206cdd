package preheat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
)

// Origin reads from registries; *origin.Client is one.
type Origin interface {
	Open(ctx context.Context, obj origin.Object, off, n int64) (*origin.Body, error)
}

// Bounds on what a registry may make a job of.
const (
	maxManifest  = 4 << 20
	maxBlobs     = 10_000
	maxManifests = 200
	maxDepth     = 3 // of indexes within indexes
)

var manifestTypes = []types.MediaType{
	types.OCIImageIndex, types.DockerManifestList, types.OCIManifestSchema1, types.DockerManifestSchema2,
}

// content is one blob to hold.
type content struct {
	id   task.ID
	size int64
}

// resolver finds out what an image consists of.
type resolver struct {
	origin    Origin
	cred      []origin.Credential
	image     *imageRef
	platforms []*v1.Platform // nil: all

	contents  []content
	images    []string // digests of the manifests, other than indexes
	seen      map[task.ID]bool
	manifests int
	matched   []bool   // per platform
	offered   []string // platforms that the index lists
}

// resolved is what an image consists of.
type resolved struct {
	digest   string    // of its manifest or index
	images   []string  // digests of the manifests of the chosen platforms
	contents []content // distinct configs and layers of these
}

func resolve(ctx context.Context, o Origin, s subject, cred origin.Credential) (resolved, error) {
	r := &resolver{origin: o, image: s.image, platforms: s.platforms, seen: map[task.ID]bool{}, matched: make([]bool, len(s.platforms))}
	if cred != (origin.Credential{}) {
		r.cred = []origin.Credential{cred}
	}
	digest, err := r.manifest(ctx, s.image.reference, 0)
	if err != nil {
		return resolved{}, fmt.Errorf("resolving image %s: %w", s.image, err)
	}
	if len(r.contents) == 0 {
		return resolved{}, fmt.Errorf("resolving image %s: it has no content", s.image)
	}
	return resolved{digest, r.images, r.contents}, nil
}

// get reads a manifest and checks its digest, if reference is one.
func (r *resolver) get(ctx context.Context, reference string) (data []byte, digest string, err error) {
	if r.manifests++; r.manifests > maxManifests {
		return nil, "", fmt.Errorf("it has more than %d manifests", maxManifests)
	}
	accept := make([]string, len(manifestTypes))
	for i, t := range manifestTypes {
		accept[i] = string(t)
	}
	body, err := r.origin.Open(ctx, origin.Object{
		URL: r.image.manifestURL(reference), Credentials: r.cred, Header: http.Header{"Accept": {strings.Join(accept, ", ")}},
	}, 0, -1)
	if err != nil {
		return nil, "", err
	}
	data, err = io.ReadAll(io.LimitReader(body, maxManifest+1))
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, "", fmt.Errorf("reading manifest %s: %w", reference, err)
	}
	if len(data) > maxManifest {
		return nil, "", fmt.Errorf("manifest %s is larger than %d bytes", reference, maxManifest)
	}
	digest = string(task.BlobID(sha256.Sum256(data)))
	if strings.Contains(reference, ":") && reference != digest {
		return nil, "", fmt.Errorf("manifest %s has the digest %s: refused", reference, digest)
	}
	return data, digest, nil
}

// manifest adds what reference, a manifest or an index, consists of.
func (r *resolver) manifest(ctx context.Context, reference string, depth int) (digest string, err error) {
	data, digest, err := r.get(ctx, reference)
	if err != nil {
		return "", err
	}
	// One document of either kind; a manifest has layers, an index manifests.
	index, err := v1.ParseIndexManifest(bytes.NewReader(data))
	if err == nil && len(index.Manifests) > 0 {
		return digest, r.index(ctx, index, depth)
	}
	m, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		return "", fmt.Errorf("manifest %s: %w", reference, err)
	}
	if m.SchemaVersion != 2 || m.Config.Digest.Hex == "" && len(m.Layers) == 0 {
		return "", fmt.Errorf("manifest %s (%.100s) is not an image's", reference, m.MediaType)
	}
	if !slices.Contains(r.images, digest) {
		r.images = append(r.images, digest)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := r.add(d); err != nil {
			return "", fmt.Errorf("manifest %s: %w", reference, err)
		}
	}
	return digest, nil
}

func (r *resolver) index(ctx context.Context, index *v1.IndexManifest, depth int) error {
	if depth == maxDepth {
		return fmt.Errorf("it has indexes more than %d deep", maxDepth)
	}
	for _, d := range index.Manifests {
		if !r.wanted(d) {
			continue
		}
		if _, err := r.manifest(ctx, d.Digest.String(), depth+1); err != nil {
			return err
		}
	}
	if i := slices.Index(r.matched, false); depth == 0 && i >= 0 {
		return fmt.Errorf("it has no manifest for platform %s, only for %s", r.platforms[i], strings.Join(r.offered, ", "))
	}
	return nil
}

// wanted reports whether an entry of an index belongs to the chosen platforms.
func (r *resolver) wanted(d v1.Descriptor) bool {
	if d.Platform == nil {
		return r.platforms == nil || d.MediaType.IsIndex()
	}
	if d.Platform.OS == "unknown" {
		return false // attestations, which no node pulls
	}
	r.offered = append(r.offered, d.Platform.String())
	want := r.platforms == nil
	for i, p := range r.platforms {
		exact := p.Variant != "" || p.OSVersion != ""
		if d.Platform.Satisfies(*p) && (exact || !r.matched[i]) {
			want, r.matched[i] = true, true // of several variants the first
		}
	}
	return want
}

// add takes one config or layer, unless it is already there or is not kept in
// registries.
func (r *resolver) add(d v1.Descriptor) error {
	if d.Digest.Hex == "" || !d.MediaType.IsDistributable() && len(d.URLs) > 0 {
		return nil
	}
	id, ok := blobID(d.Digest.String())
	if !ok || d.Size < 0 {
		return fmt.Errorf("blob %.100s of %d bytes: want a sha256 digest and a size", d.Digest, d.Size)
	}
	if r.seen[id] {
		return nil
	}
	if r.seen[id] = true; len(r.contents) == maxBlobs {
		return fmt.Errorf("it has more than %d blobs", maxBlobs)
	}
	r.contents = append(r.contents, content{id: id, size: d.Size})
	return nil
}
