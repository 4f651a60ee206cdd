package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// anonymous keeps the tests from the credentials of whoever runs them.
type anonymous struct{}

func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// testOptions wait for nothing between attempts.
func testOptions() Options {
	return Options{Keychain: anonymous{}, Backoff: func(int) time.Duration { return 0 }, After: func(time.Duration) <-chan time.Time {
		c := make(chan time.Time, 1)
		c <- time.Time{}
		return c
	}}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// noise is content that does not compress.
func noise(seed uint64, n int) []byte {
	data := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(data) // never fails
	return data
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// blobs are manifests and blobs by digest.
type blobs map[digest.Digest][]byte

func (b blobs) add(mediaType string, data []byte) v1.Descriptor {
	d := digest.FromBytes(data)
	b[d] = data
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (b blobs) addJSON(t *testing.T, mediaType string, v any) v1.Descriptor {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b.add(mediaType, data)
}

// image adds an image whose layers are gzips of the given contents.
func (b blobs) image(t *testing.T, architecture string, contents ...[]byte) v1.Descriptor {
	t.Helper()
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: architecture}, RootFS: v1.RootFS{Type: "layers"}}
	var layers []v1.Descriptor
	for _, content := range contents {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(content))
		layers = append(layers, b.add(v1.MediaTypeImageLayerGzip, gzipped(t, content)))
	}
	desc := b.addJSON(t, v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: b.addJSON(t, v1.MediaTypeImageConfig, config), Layers: layers,
	})
	desc.Platform = &config.Platform
	return desc
}

func (b blobs) index(t *testing.T, list ...v1.Descriptor) v1.Descriptor {
	t.Helper()
	return b.addJSON(t, v1.MediaTypeImageIndex, v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: list})
}

// artifact adds a manifest that refers to another.
func (b blobs) artifact(t *testing.T, artifactType string, subject v1.Descriptor, layers ...v1.Descriptor) v1.Descriptor {
	t.Helper()
	b.add(v1.MediaTypeEmptyJSON, []byte("{}"))
	if layers == nil {
		layers = []v1.Descriptor{v1.DescriptorEmptyJSON}
	}
	subject.Platform = nil
	return b.addJSON(t, v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: artifactType,
		Config: v1.DescriptorEmptyJSON, Layers: layers, Subject: &subject,
	})
}

// layout writes everything as an OCI layout with the given entries.
func (b blobs) layout(t *testing.T, entries ...v1.Descriptor) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "oci-layout"), `{"imageLayoutVersion":"1.0.0"}`)
	index, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: entries})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "index.json"), string(index))
	for d, data := range b {
		write(t, filepath.Join(dir, "blobs", "sha256", d.Encoded()), string(data))
	}
	return dir
}

func named(desc v1.Descriptor, name string) v1.Descriptor {
	desc.Annotations = map[string]string{v1.AnnotationRefName: name}
	return desc
}

// testRegistry is a registry in this process, before which a test can put
// faults.
type testRegistry struct {
	*httptest.Server
	inner http.Handler

	mu    sync.Mutex
	fault func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	seen  []string                                          // method, path and the range
}

func newRegistry(t *testing.T, opts ...registry.Option) *testRegistry {
	t.Helper()
	r := &testRegistry{inner: registry.New(append(opts, registry.Logger(log.New(io.Discard, "", 0)))...)}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *testRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	fault := r.fault
	r.seen = append(r.seen, strings.TrimSpace(req.Method+" "+req.URL.Path+" "+req.Header.Get("Range")+req.Header.Get("Content-Range")))
	r.mu.Unlock()
	if fault == nil || !fault(w, req) {
		r.inner.ServeHTTP(w, req)
	}
}

func (r *testRegistry) setFault(f func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
	r.seen = nil
}

// requests returns the requests that contain s.
func (r *testRegistry) requests(s string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []string
	for _, req := range r.seen {
		if strings.Contains(req, s) {
			found = append(found, req)
		}
	}
	return found
}

func (r *testRegistry) ref(t *testing.T, suffix string) Ref {
	t.Helper()
	return parse(t, strings.TrimPrefix(r.URL, "http://")+"/"+suffix)
}

func parse(t *testing.T, s string) Ref {
	t.Helper()
	ref, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// put uploads by plain HTTP, without the code under test.
func (r *testRegistry) put(t *testing.T, repo, tag string, b blobs, manifests ...v1.Descriptor) {
	t.Helper()
	done := map[digest.Digest]bool{}
	var push func(d digest.Digest)
	push = func(d digest.Digest) {
		data, ok := b[d]
		if !ok || done[d] {
			return
		}
		done[d] = true
		var doc document
		if json.Unmarshal(data, &doc) != nil || doc.SchemaVersion != 2 {
			send(t, http.MethodPost, r.URL+"/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", data)
			return
		}
		for _, part := range append(doc.Manifests, doc.Layers...) {
			push(part.Digest) // a registry wants the parts first
		}
		if doc.Config != nil {
			push(doc.Config.Digest)
		}
		send(t, http.MethodPut, r.URL+"/v2/"+repo+"/manifests/"+d.String(), doc.MediaType, data)
	}
	for d := range b {
		push(d)
	}
	for _, desc := range manifests {
		send(t, http.MethodPut, r.URL+"/v2/"+repo+"/manifests/"+tag, desc.MediaType, b[desc.Digest])
	}
}

func send(t *testing.T, method, url, mediaType string, data []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s: %s", method, url, resp.Status, body)
	}
}

func open(t *testing.T, ref Ref, o Options) *Source {
	t.Helper()
	s, err := Open(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func images(t *testing.T, s *Source) []*Image {
	t.Helper()
	list, err := s.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func readAll(ctx context.Context, open func(context.Context) (io.ReadCloser, error)) ([]byte, error) {
	r, err := open(ctx)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	return data, err
}

func itoa(n int) string { return strconv.Itoa(n) }

func contentRange(first, end, total int) string {
	return fmt.Sprintf("bytes %d-%d/%d", first, end-1, total)
}

// span are the bounds of a Range header in content of n bytes.
func span(t *testing.T, header string, n int) (first, end int) {
	t.Helper()
	if header == "" {
		return 0, n
	}
	if c, _ := fmt.Sscanf(header, "bytes=%d-%d", &first, &end); c < 2 {
		t.Errorf("range %q", header)
	}
	return first, min(end+1, n)
}

func newBody(data []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(data)) }
