package origin

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// content returns n bytes that differ at every offset a test may confuse.
func content(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	_, _ = src.Read(b)
	return b
}

// sleeper is a clock whose waits end at once and are noted.
type sleeper struct {
	mu    sync.Mutex
	waits []time.Duration
}

func (s *sleeper) after(d time.Duration) <-chan time.Time {
	s.mu.Lock()
	s.waits = append(s.waits, d)
	s.mu.Unlock()
	ch := make(chan time.Time, 1)
	ch <- time.Time{}
	return ch
}

func (s *sleeper) slept() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]time.Duration(nil), s.waits...)
}

// newTestClient returns a client whose waits are noted and which is closed with
// the test.
func newTestClient(t *testing.T, opts Options) (*Client, *sleeper) {
	t.Helper()
	s := &sleeper{}
	if opts.After == nil {
		opts.After = s.after
	}
	c := New(opts)
	t.Cleanup(c.CloseIdleConnections)
	return c, s
}

// requests notes what a server was asked.
type requests struct {
	mu  sync.Mutex
	all []*http.Request
}

func (r *requests) note(req *http.Request) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, req.Clone(context.Background()))
	return len(r.all)
}

func (r *requests) headers(name string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var values []string
	for _, req := range r.all {
		values = append(values, req.Header.Get(name))
	}
	return values
}

func (r *requests) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// serve starts a server that calls handler with the number of the request, from
// 1.
func serve(t *testing.T, handler func(w http.ResponseWriter, r *http.Request, n int)) (*httptest.Server, *requests) {
	t.Helper()
	seen := &requests{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler(w, r, seen.note(r))
	}))
	t.Cleanup(srv.Close)
	return srv, seen
}

// serveFile answers as a proper server with ranges and validators does.
func serveFile(w http.ResponseWriter, r *http.Request, data []byte, etag string) {
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// cutWriter lets only so many bytes of an answer pass and then breaks the
// connection.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if len(p) <= w.left {
		w.left -= len(p)
		return w.ResponseWriter.Write(p)
	}
	_, _ = w.ResponseWriter.Write(p[:w.left])
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

// unranged answers with the whole content whatever was asked.
func unranged(w http.ResponseWriter, data []byte, cut int) {
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if cut < len(data) {
		w = &cutWriter{w, cut}
	}
	_, _ = w.Write(data)
}

func mustOpen(t *testing.T, c *Client, obj Object, off, n int64) *Body {
	t.Helper()
	b, err := c.Open(t.Context(), obj, off, n)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func mustRead(t *testing.T, r io.Reader, want []byte) {
	t.Helper()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read: %v after %d bytes", err, len(got))
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes that differ from the %d expected", len(got), len(want))
	}
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

func join(s []string) string { return strings.Join(s, "|") }
