package runtimetest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/time/rate"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// registryName is what runtimes call the registry; only dfdaemon knows where it
// is.
const registryName = "registry.test"

// dockerRegistry is a docker-registry of the test's own.
type dockerRegistry struct {
	*process
	url, config string
}

// startRegistry runs a docker-registry on an empty directory. auth is its auth
// section in YAML, empty for none.
func startRegistry(t *testing.T, auth string) *dockerRegistry {
	t.Helper()
	dir, addr := t.TempDir(), freeAddress(t)
	config := fmt.Sprintf("version: 0.1\nlog: {accesslog: {disabled: true}, level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n%s",
		subdir(t, dir, "data"), addr, auth)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &dockerRegistry{url: "http://" + addr, config: file}
	r.again(t)
	return r
}

// again runs a registry that has ended, with what it had.
func (r *dockerRegistry) again(t *testing.T) {
	t.Helper()
	r.process = start(t, "docker-registry", filepath.Join(filepath.Dir(r.config), "log"), testenv.Tool(t, "docker-registry"), "serve", r.config)
	r.awaitHTTP(t, r.url+"/") // outside the API no credential is asked for
}

// hit is one answer of a front.
type hit struct {
	method, path, span string // span is the Range header
	as                 string // the end of its Authorization header
	status             int
	bytes              int64 // of the body, as far as it was sent
}

// front is a reverse proxy before a registry that records what it passes on. It
// can ask for tokens, and be slow.
type front struct {
	*httptest.Server
	registry string
	proxy    *httputil.ReverseProxy
	admit    func(w http.ResponseWriter, r *http.Request) bool // false: it has answered itself

	mu   sync.Mutex
	hits []*hit
	pace *rate.Limiter // of blobs, in all; nil: no limit
	news chan struct{} // closed at each change of hits
}

// newFront runs a front until the end of the test.
func newFront(t *testing.T, registry string) *front {
	t.Helper()
	return newFrontAt(t, registry, "127.0.0.1")
}

// newFrontAt runs a front on an address of this network.
func newFrontAt(t *testing.T, registry, ip string) *front {
	t.Helper()
	target, err := url.Parse(registry)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{registry: registry, news: make(chan struct{}), admit: func(http.ResponseWriter, *http.Request) bool { return true }}
	f.proxy = &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	f.Server = &httptest.Server{Listener: lis, Config: &http.Server{Handler: f, ReadHeaderTimeout: patience}}
	f.Start()
	t.Cleanup(func() {
		f.CloseClientConnections()
		f.Close()
		if t.Failed() {
			hits, _ := f.seen("")
			for _, h := range hits {
				t.Logf("the registry was asked: %+v", h)
			}
		}
	})
	return f
}

// slow limits the rate of blobs to n bytes per second; 0: no limit.
func (f *front) slow(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pace = nil
	if n > 0 {
		f.pace = rate.NewLimiter(rate.Limit(n), chunk)
	}
}

// chunk is how much is sent at a time by a slow front.
const chunk = 64 << 10

// ServeHTTP passes a request on and records the answer.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := &hit{method: r.Method, path: r.URL.Path, span: r.Header.Get("Range")}
	auth := r.Header.Get("Authorization")
	h.as = auth[max(0, len(auth)-4):]
	f.mu.Lock()
	f.hits = append(f.hits, h)
	pace := f.pace
	f.mu.Unlock()
	if !strings.Contains(r.URL.Path, "/blobs/") {
		pace = nil
	}
	cw := &countingWriter{ResponseWriter: w, ctx: r.Context(), f: f, hit: h, pace: pace}
	if f.admit(cw, r) {
		f.proxy.ServeHTTP(cw, r)
	}
}

// countingWriter records in a hit what is sent.
type countingWriter struct {
	http.ResponseWriter
	ctx  context.Context //nolint:containedctx // of one request
	f    *front
	hit  *hit
	pace *rate.Limiter
}

func (w *countingWriter) note(change func(*hit)) {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	change(w.hit)
	close(w.f.news)
	w.f.news = make(chan struct{})
}

// WriteHeader records the status.
func (w *countingWriter) WriteHeader(status int) {
	w.note(func(h *hit) { h.status = status })
	w.ResponseWriter.WriteHeader(status)
}

// Write sends b at the front's pace.
func (w *countingWriter) Write(b []byte) (int, error) {
	sent := 0
	for len(b) > 0 {
		part := b[:min(len(b), chunk)]
		if w.pace != nil {
			if err := w.pace.WaitN(w.ctx, len(part)); err != nil {
				return sent, err
			}
		}
		n, err := w.ResponseWriter.Write(part)
		sent += n
		w.note(func(h *hit) { h.bytes += int64(n) })
		if err != nil {
			return sent, err
		}
		b = b[n:]
	}
	return sent, nil
}

// seen returns the hits so far whose path contains part, and a channel that is
// closed when there is more.
func (f *front) seen(part string) (hits []hit, news <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.hits {
		if strings.Contains(h.path, part) {
			hits = append(hits, *h)
		}
	}
	return hits, f.news
}

// reset forgets what was recorded.
func (f *front) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hits = nil
}

// sent returns how many bytes of the paths that contain part were sent with
// success.
func (f *front) sent(part string) int64 {
	hits, _ := f.seen(part)
	n := int64(0)
	for _, h := range hits {
		if h.status < 300 {
			n += h.bytes
		}
	}
	return n
}

// awaitSent waits until n bytes of the paths that contain part were sent.
func (f *front) awaitSent(t *testing.T, part string, n int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		_, news := f.seen(part) // before looking, or the last change is missed
		if f.sent(part) >= n {
			return
		}
		select {
		case <-news:
		case <-ctx.Done():
			t.Fatalf("the registry has sent %d bytes of %s, want %d", f.sent(part), part, n)
		}
	}
}

// awaitFailed waits until the front could not pass on a request for one of the
// paths that contain part.
func (f *front) awaitFailed(t *testing.T, part string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		hits, news := f.seen(part)
		if slices.ContainsFunc(hits, func(h hit) bool { return h.status == http.StatusBadGateway }) {
			return
		}
		select {
		case <-news:
		case <-ctx.Done():
			t.Fatalf("nobody has asked for %s in vain", part)
		}
	}
}

// checkSentOnce fails unless the registry has sent the image's blobs once: no
// byte range was asked for twice, and what was sent is their size.
func (f *front) checkSentOnce(t *testing.T, img *image) {
	t.Helper()
	const slack = 0.02
	var total int64
	for digest, blob := range img.blobs {
		hits, _ := f.seen("/blobs/" + digest)
		total += f.sent("/blobs/" + digest)
		asked := make([]bool, len(blob))
		for _, h := range hits {
			if h.method != http.MethodGet || h.status >= 300 {
				continue
			}
			first, end := bounds(t, h.span, len(blob))
			for i := first; i < end; i++ {
				if asked[i] {
					t.Errorf("byte %d of blob %.19s was asked for twice: %+v", i, digest, hits)
					break
				}
				asked[i] = true
			}
		}
	}
	if most := float64(img.size()) * (1 + slack); float64(total) > most || total < img.size() {
		t.Errorf("the registry sent %d bytes for an image of %d", total, img.size())
	}
}

// bounds are those of a Range header in content of n bytes.
func bounds(t *testing.T, span string, n int) (first, end int) {
	t.Helper()
	if span == "" {
		return 0, n
	}
	if c, _ := fmt.Sscanf(span, "bytes=%d-%d", &first, &end); c < 1 {
		t.Fatalf("range %q", span)
	} else if c == 1 {
		return first, n
	}
	return first, min(end+1, n)
}

// blobBytes is how many bytes of blobs the registry has sent.
func (f *front) blobBytes() int64 { return f.sent("/blobs/") }

// drain reads a short answer to its end and closes it.
func drain(resp *http.Response) (string, error) {
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return string(b), err
}

// refused is how many requests for blobs have been answered with 401.
func (f *front) refused() int {
	hits, _ := f.seen("/blobs/")
	n := 0
	for _, h := range hits {
		if h.status == http.StatusUnauthorized {
			n++
		}
	}
	return n
}
