package supernode

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/cdn"
	"github.com/damselfly-io/damselfly/supernode/preheat"
)

// rig is a supernode without its ports, in front of a registry.
type rig struct {
	*supernode
	t      *testing.T
	config Config
	reg    *registryLog
	stop   func()
}

// registryLog is a registry that counts what is read of it.
type registryLog struct {
	*indextest.Registry

	mu    sync.Mutex
	gets  map[string]int   // GETs by path
	sent  map[string]int64 // bytes of content by path
	down  bool
	allow string // Authorization that is wanted, if any
	block chan struct{}
}

func newRegistryLog(t *testing.T, referrers bool) *registryLog {
	r := &registryLog{Registry: indextest.NewRegistry(t, referrers), gets: map[string]int{}, sent: map[string]int64{}}
	r.Intercept(r.intercept)
	return r
}

func (r *registryLog) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *registryLog) intercept(w http.ResponseWriter, req *http.Request, next http.Handler) bool {
	r.mu.Lock()
	if req.Method == http.MethodGet {
		r.gets[req.URL.Path]++
	}
	down, allow, block := r.down, r.allow, r.block
	r.mu.Unlock()
	switch {
	case down:
		http.Error(w, "down", http.StatusServiceUnavailable)
		return true
	case allow != "" && req.Header.Get("Authorization") != allow:
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"log in"}]}`, http.StatusUnauthorized)
		return true
	case block != nil && req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/"):
		select {
		case <-block:
		case <-req.Context().Done():
		}
	}
	next.ServeHTTP(&counting{ResponseWriter: w, r: r, path: req.URL.Path}, req)
	return true
}

// counting counts what is sent, but for errors.
type counting struct {
	http.ResponseWriter
	r      *registryLog
	path   string
	failed bool
}

func (c *counting) WriteHeader(status int) {
	c.failed = status >= 300
	c.ResponseWriter.WriteHeader(status)
}

func (c *counting) Write(p []byte) (int, error) {
	if !c.failed {
		c.r.set(func() { c.r.sent[c.path] += int64(len(p)) })
	}
	return c.ResponseWriter.Write(p)
}

// read returns how often the paths with a part were read.
func (r *registryLog) read(part string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for path, times := range r.gets {
		if strings.Contains(path, part) {
			n += times
		}
	}
	return n
}

func newRig(t *testing.T, reg *registryLog, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, reg: reg, config: Config{
		Name: "s", Peer: "127.0.0.1:1", DataDir: t.TempDir(), OriginParallel: 2, OriginSegment: 16 << 20, OriginTimeout: 10 * time.Second,
		AuthTTL: time.Nanosecond, TagTTL: time.Nanosecond, MaxParents: 4, TicketTTL: time.Hour, Quarantine: time.Minute, UploadSlots: 1,
		AccelerateWorkers: 1, AccelerateMemory: 64 << 20,
	}}
	if change != nil {
		change(&r.config)
	}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *rig) start() {
	r.t.Helper()
	s, err := open(r.config, slog.New(slog.DiscardHandler))
	if err != nil {
		r.t.Fatal(err)
	}
	r.supernode = s
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{s.jobs.Run, s.accelerate.Run} {
		wg.Go(func() { _ = run(ctx) })
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		s.close()
	})
}

func (r *rig) restart() {
	r.t.Helper()
	r.stop()
	r.start()
}

// accelerated preheats an image and returns the finished job.
func (r *rig) accelerated(req preheat.Request) preheat.Job {
	r.t.Helper()
	req.Type, req.Accelerate = preheat.TypeImage, true
	j, err := r.jobs.Submit(req)
	if err != nil {
		r.t.Fatal(err)
	}
	updates, err := r.jobs.Watch(r.t.Context(), j.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	for j = range updates {
	}
	if !j.State.Final() {
		r.t.Fatalf("the job ended as %s", j.State)
	}
	return j
}

// node is a client of the supernode, as a node's mirror is.
type node struct {
	r    *rig
	auth string
}

// RoundTrip implements http.RoundTripper.
func (n node) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	h := req.Header.Clone()
	if h.Del("Authorization"); n.auth != "" {
		h.Set("Authorization", n.auth)
	}
	id, err := task.ParseID(req.URL.Path[strings.LastIndex(req.URL.Path, "/")+1:])
	if req.URL.Path == "/v2/" {
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: req}, nil
	}
	if err != nil || req.Method == http.MethodHead || !strings.Contains(req.URL.Path, "/blobs/") {
		a, err := n.r.exchange.Do(ctx, req.Method, req.URL.String(), h)
		if err != nil {
			return nil, err
		}
		return &http.Response{StatusCode: a.Status, Header: a.Header.Clone(), Body: io.NopCloser(strings.NewReader(string(a.Body))), ContentLength: int64(len(a.Body)), Request: req}, nil
	}
	o, err := n.r.cache.Ensure(ctx, cdn.Request{ID: id, URL: req.URL.String(), Credential: origin.Credential{Authorization: n.auth}, Whole: true})
	if err != nil {
		return nil, err
	}
	defer o.Release()
	if err := o.WaitComplete(ctx); err != nil {
		return nil, err
	}
	size := o.Table().Length
	body, err := o.Open(ctx, 0, size)
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Length": {fmt.Sprint(size)}}, Body: body, ContentLength: size, Request: req}, err
}

func (r *rig) policy() *trust.Policy {
	r.t.Helper()
	pem, err := r.accelerate.PublicKey()
	if err != nil {
		r.t.Fatal(err)
	}
	p, err := trust.Settings{Keys: []string{string(pem)}}.Policy(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// find looks for the index of an image as a node does.
func (r *rig) find(ref, auth string, policy *trust.Policy) (*imageindex.Loaded, *image.Source, error) {
	r.t.Helper()
	parsed, err := image.Parse(ref)
	if err != nil {
		r.t.Fatal(err)
	}
	src, err := image.Open(r.t.Context(), parsed, image.Options{Transport: node{r, auth}, MaxAttempts: 1, Keychain: noKeys{}})
	if err != nil {
		return nil, nil, err
	}
	r.t.Cleanup(func() { _ = src.Close() })
	resolved, err := imageindex.Resolve(r.t.Context(), src, func([]v1.Platform) (int, error) { return 0, nil })
	if err != nil {
		return nil, nil, err
	}
	found, err := imageindex.Find(r.t.Context(), src, resolved, policy)
	if err != nil {
		return nil, nil, err
	}
	loaded, err := imageindex.Load(r.t.Context(), src, found, chunkfmt.Limits{})
	return loaded, src, err
}

// verify reads everything that the index of an image needs.
func (r *rig) verify(ref, auth string) error {
	r.t.Helper()
	loaded, src, err := r.find(ref, auth, r.policy())
	if err != nil {
		return err
	}
	merged, err := loaded.Merge(len(loaded.Indexes))
	if err != nil {
		return err
	}
	if err := loaded.Check(merged); err != nil {
		return err
	}
	if len(loaded.Artifact.Blobs) == 0 {
		return fmt.Errorf("the index has no blobs")
	}
	for _, b := range append(loaded.Artifact.Blobs, artifact.Object{Digest: chunkfmt.Sum([]byte("{}")), Size: 2}) {
		body, err := src.Blob(r.t.Context(), b.Descriptor(artifact.DataType))
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return err
		}
		_ = body.Close()
	}
	return nil
}

// leftovers returns what conversions have left in the work directory and, of
// images that are not offered, in the cache.
func (r *rig) leftovers() (left []string) {
	r.t.Helper()
	entries, err := os.ReadDir(filepath.Join(r.config.DataDir, "accelerate", "work"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if len(r.accelerate.List()) > 0 {
		return left
	}
	for _, i := range r.store.List() {
		if strings.HasPrefix(i.Source, "accelerated ") {
			left = append(left, string(i.ID))
		}
	}
	return left
}

func testImage(t *testing.T) ggcr.Image {
	return indextest.Image(t, runtime.GOARCH,
		indextest.Files{"bin/": "", "bin/a": indextest.Noise(1, 300<<10), "etc/": "", "etc/conf": "small"},
		indextest.Files{"bin/b": indextest.Noise(2, 200<<10), "etc/conf": "changed"})
}

func digestOf(t *testing.T, img ggcr.Image) string {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// noKeys is a keychain with nothing in it.
type noKeys struct{}

// Resolve implements authn.Keychain.
func (noKeys) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }
