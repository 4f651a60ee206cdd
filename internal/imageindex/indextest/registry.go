package indextest

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Registry is a registry of a test's.
type Registry struct {
	// Host is its address.
	Host string

	t testing.TB
	// uploaded counts the bytes of blobs that clients sent, requests all requests.
	uploaded, requests atomic.Int64
	intercept          atomic.Pointer[Intercept]
}

// Intercept may answer a request in place of the registry; it returns whether it
// did. next is the registry.
type Intercept func(w http.ResponseWriter, r *http.Request, next http.Handler) bool

// NewRegistry starts a registry, with the API for referrers or without, that
// ends with the test.
func NewRegistry(t testing.TB, referrers bool) *Registry {
	t.Helper()
	s := &Registry{t: t}
	inner := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)), registry.WithReferrersSupport(referrers))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		if f := s.intercept.Load(); f != nil && (*f)(w, r, inner) {
			return
		}
		if strings.Contains(r.URL.Path, "/blobs/uploads") {
			r.Body = &counted{r.Body, &s.uploaded}
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	s.Host = strings.TrimPrefix(srv.URL, "http://")
	return s
}

// Uploaded returns how many bytes of blobs clients have sent.
func (s *Registry) Uploaded() int64 { return s.uploaded.Load() }

// Requests returns how many requests were made.
func (s *Registry) Requests() int64 { return s.requests.Load() }

// Intercept sets what sees each request first; nil for nothing.
func (s *Registry) Intercept(f Intercept) {
	if f == nil {
		s.intercept.Store(nil)
		return
	}
	s.intercept.Store(&f)
}

// Fail answers requests whose path contains part with a status.
func (s *Registry) Fail(part string, status int) {
	s.Intercept(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		http.Error(w, "failed by the test", status)
		return true
	})
}

// Damage changes a byte in the middle of a blob as the registry sends it.
func (s *Registry) Damage(digest string) {
	s.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/blobs/"+digest) {
			return false
		}
		whole := httptest.NewRecorder()
		plain := r.Clone(r.Context())
		plain.Header.Del("Range")
		next.ServeHTTP(whole, plain)
		data := bytes.Clone(whole.Body.Bytes())
		data[len(data)/2] ^= 1
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		return true
	})
}

// Put pushes an image as repo, which may have a tag, and returns its reference.
func (s *Registry) Put(repo string, img ggcr.Image) string {
	s.t.Helper()
	tag := s.tag(repo)
	if err := remote.Write(tag, img); err != nil {
		s.t.Fatal(err)
	}
	return tag.String()
}

// PutIndex is Put for an index.
func (s *Registry) PutIndex(repo string, index ggcr.ImageIndex) string {
	s.t.Helper()
	tag := s.tag(repo)
	if err := remote.WriteIndex(tag, index); err != nil {
		s.t.Fatal(err)
	}
	return tag.String()
}

func (s *Registry) tag(repo string) name.Tag {
	s.t.Helper()
	tag, err := name.NewTag(s.Host+"/"+repo, name.Insecure)
	if err != nil {
		s.t.Fatal(err)
	}
	return tag
}

type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}
