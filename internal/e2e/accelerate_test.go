package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/dfdaemon"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// mirrored sends requests to a registry by way of a node's mirror.
type mirrored struct {
	n        *node
	registry string
}

// RoundTrip implements http.RoundTripper.
func (m mirrored) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	q := r.URL.Query()
	q.Set("ns", m.registry)
	r.URL.RawQuery, r.URL.Host = q.Encode(), m.n.c.Mirror
	return http.DefaultTransport.RoundTrip(r)
}

// readIndex finds the index of an image as a node does and reads all that it
// needs.
func readIndex(t *testing.T, n *node, registry, repo string, policy *trust.Policy) error {
	t.Helper()
	src, err := image.Open(t.Context(), image.Ref{Registry: registry, Repository: repo, Tag: "v1"}, image.Options{Transport: mirrored{n, registry}})
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	resolved, err := imageindex.Resolve(t.Context(), src, func([]v1.Platform) (int, error) { return 0, nil })
	if err != nil {
		return err
	}
	found, err := imageindex.Find(t.Context(), src, resolved, policy)
	if err != nil {
		return err
	}
	if _, err := imageindex.Load(t.Context(), src, found, chunkfmt.Limits{}); err != nil {
		return err
	}
	for _, b := range found.Artifact.Blobs {
		r, err := src.Blob(t.Context(), b.Descriptor(artifact.DataType))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		_ = r.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// TestNodesUseWhatTheSupernodeAccelerates pulls the index of an image that no
// registry has.
func TestNodesUseWhatTheSupernodeAccelerates(t *testing.T) {
	reg := indextest.NewRegistry(t, false)
	var blobs atomic.Int64
	reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			blobs.Add(1)
		}
		return false
	})
	c := newCluster(t, options{nodes: 2, node: func(_ int, c *dfdaemon.Config) {
		c.AllowRegistry = []string{reg.Host}
	}})
	c.ready()
	ref := reg.Put("team/app:v1", indextest.Image(t, runtime.GOARCH, indextest.Files{"bin/": "", "bin/a": indextest.Noise(1, 3<<20)}))
	body, err := json.Marshal(map[string]any{"type": "image", "ref": ref, "accelerate": true})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post("http://"+c.sc.HTTP+"/api/v1/preheats", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	var job struct {
		State        string `json:"state"`
		Acceleration []struct{ State, Error string }
	}
	testenv.Eventually(t, func() bool {
		a := fetch(client, "http://"+c.sc.HTTP+"/api/v1/preheats/1")
		return json.Unmarshal(a.body, &job) == nil && job.State == "succeeded"
	}, "the job to end")
	if len(job.Acceleration) != 1 || job.Acceleration[0].State != "succeeded" {
		t.Fatalf("%+v", job)
	}
	key, err := trust.Load(filepath.Join(c.sc.DataDir, "accelerate", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	policy, err := (*trust.Policy)(nil).With(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	blobs.Store(0)
	for _, n := range c.nodes {
		for range 2 { // the second time the node has it all
			if err := readIndex(t, n, reg.Host, "team/app", policy); err != nil {
				t.Errorf("%s: %v", n.name, err)
			}
		}
	}
	if n := blobs.Load(); n > 4 { // nobody but the image's configuration, once for each
		t.Errorf("the registry was asked for %d blobs", n)
	}
	if got := metric(t, c.sc.HTTP, "damselfly_accelerated_images"); got != 1 {
		t.Errorf("%v images are accelerated", got)
	}
}
