package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/internal/origin"
)

// client pulls like a container runtime that has a mirror for the registry: its
// requests to the registry go to the mirror, which is told of the registry by
// "ns"; those to a token server go there.
type client struct {
	src    *source
	origin *origin.Client
	pulled atomic.Int64
}

func newClient(s *source, mirror string) *client {
	direct := origin.NewTransport()
	return &client{src: s, origin: origin.New(origin.Options{
		UserAgent: "damselfly-demo", Transport: &viaMirror{registry: s.host, mirror: mirror, next: direct},
	})}
}

// viaMirror sends what is meant for a registry to its mirror.
type viaMirror struct {
	registry, mirror string
	next             *http.Transport
}

func (t *viaMirror) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host != t.registry {
		return t.next.RoundTrip(r)
	}
	r = r.Clone(r.Context())
	q := r.URL.Query()
	q.Set("ns", t.registry)
	r.URL.Scheme, r.URL.Host, r.URL.RawQuery, r.Host = "http", t.mirror, q.Encode(), ""
	return t.next.RoundTrip(r)
}

func (t *viaMirror) CloseIdleConnections() { t.next.CloseIdleConnections() }

// concurrent is how many layers a container runtime pulls at a time.
const concurrent = 3

// pull fetches manifest, config and layers, checks them all against their
// digests, and returns the digest of the manifest that the tag names and the
// number of bytes.
func (c *client) pull(ctx context.Context) (digest string, bytes int64, err error) {
	defer c.origin.CloseIdleConnections()
	raw, err := c.manifest(ctx, c.src.ref)
	if err != nil {
		return "", 0, err
	}
	digest = digestOf(raw)
	if child, err := platformOf(raw); err != nil {
		return "", 0, err
	} else if child != "" {
		if raw, err = c.manifest(ctx, child); err != nil {
			return "", 0, err
		}
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return "", 0, fmt.Errorf("read manifest %s: %w", digest, err)
	}
	if len(m.Layers) == 0 {
		return "", 0, fmt.Errorf("manifest %s has no layers", digest)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(concurrent)
	seen := map[v1.Hash]bool{}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			group.Go(func() error { return c.blob(ctx, d) })
		}
	}
	err = group.Wait()
	return digest, c.pulled.Load(), err
}

func (c *client) base() string { return c.src.scheme + "://" + c.src.host }

// manifest fetches a manifest by tag or digest; a digest is checked.
func (c *client) manifest(ctx context.Context, ref string) ([]byte, error) {
	accept := []string{
		string(types.OCIManifestSchema1), string(types.OCIImageIndex),
		string(types.DockerManifestSchema2), string(types.DockerManifestList),
	}
	body, err := c.origin.Open(ctx, origin.Object{
		URL: c.base() + "/v2/" + c.src.repo + "/manifests/" + ref, Header: http.Header{"Accept": {strings.Join(accept, ", ")}},
	}, 0, -1)
	if err != nil {
		return nil, fmt.Errorf("pull manifest %s: %w", ref, err)
	}
	const most = 4 << 20
	raw, err := io.ReadAll(io.LimitReader(body, most))
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, fmt.Errorf("pull manifest %s: %w", ref, err)
	}
	if strings.HasPrefix(ref, "sha256:") && digestOf(raw) != ref {
		return nil, fmt.Errorf("pull manifest %s: its content has digest %s", ref, digestOf(raw))
	}
	c.pulled.Add(int64(len(raw)))
	return raw, nil
}

func digestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// platformOf returns the manifest that an index has for this machine; "" if raw
// is no index.
func platformOf(raw []byte) (string, error) {
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return "", fmt.Errorf("read manifest: %w", err)
	}
	for _, m := range index.Manifests {
		if m.Platform != nil && m.Platform.OS == "linux" && m.Platform.Architecture == runtime.GOARCH {
			return m.Digest.String(), nil
		}
	}
	if len(index.Manifests) > 0 {
		return "", fmt.Errorf("the image has nothing for linux/%s", runtime.GOARCH)
	}
	return "", nil
}

// blob fetches a config or layer and checks it.
func (c *client) blob(ctx context.Context, d v1.Descriptor) error {
	body, err := c.origin.Open(ctx, origin.Object{URL: origin.BlobURL(c.base(), c.src.repo, d.Digest.String())}, 0, -1)
	if err != nil {
		return fmt.Errorf("pull blob %s: %w", d.Digest, err)
	}
	sum := sha256.New()
	n, err := io.CopyBuffer(sum, io.LimitReader(body, d.Size+1), make([]byte, 256<<10))
	if err = errors.Join(err, body.Close()); err != nil {
		return fmt.Errorf("pull blob %s: %w", d.Digest, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != d.Digest.Hex || n != d.Size {
		return fmt.Errorf("pull blob %s: got %d bytes with digest %s, want %d", d.Digest, n, got, d.Size)
	}
	c.pulled.Add(n)
	return nil
}
