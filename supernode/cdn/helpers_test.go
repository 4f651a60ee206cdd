package cdn

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

const (
	testSegment = 256 << 10
	testPiece   = 64 << 10 // of all contents here
	path        = "/v2/repo/blobs/x"
)

// site is an origin with one content.
type site struct {
	*httptest.Server

	mu      sync.Mutex
	content []byte
	etag    string
	noRange bool // ignores Range
	chunked bool // does not tell the length
	// intercept may answer the n-th GET, from 1, in place of the site.
	intercept func(w http.ResponseWriter, r *http.Request, n int) bool
	// allow decides over Authorization headers; nil: all.
	allow func(authorization string) bool

	gets   []string // Range headers
	heads  int
	tokens map[string]bool // Authorization headers seen
	sent   atomic.Int64    // bytes of bodies
}

func newSite(t testing.TB, size int) *site {
	t.Helper()
	s := &site{content: make([]byte, size), etag: `"v1"`, tokens: map[string]bool{}}
	_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(s.content)
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *site) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *site) ranges() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.gets...)
}

func (s *site) headCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heads
}

func (s *site) saw(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[token]
}

// counting counts the bytes of a body.
type counting struct {
	http.ResponseWriter
	s *site
}

func (c counting) Write(p []byte) (int, error) {
	c.s.sent.Add(int64(len(p))) // before anybody can have read them
	return c.ResponseWriter.Write(p)
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token := r.Header.Get("Authorization")
	s.mu.Lock()
	s.tokens[token] = true
	if r.Method == http.MethodHead {
		s.heads++
	} else {
		s.gets = append(s.gets, r.Header.Get("Range"))
	}
	n, intercept, allow := len(s.gets), s.intercept, s.allow
	content, etag, noRange, chunked := s.content, s.etag, s.noRange, s.chunked
	s.mu.Unlock()
	if allow != nil && !allow(token) {
		w.Header().Set("Www-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.Method == http.MethodGet && intercept != nil && intercept(w, r, n) {
		return
	}
	if noRange {
		r.Header.Del("Range")
	}
	if etag != "" {
		w.Header().Set("Etag", etag)
	}
	w.Header().Set("Content-Type", "application/test")
	if chunked {
		_ = http.NewResponseController(w).Flush()
		_, _ = counting{w, s}.Write(content)
		return
	}
	if noRange {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = counting{w, s}.Write(content)
		return
	}
	http.ServeContent(counting{w, s}, r, "", time.Time{}, bytes.NewReader(content))
}

func (s *site) id() task.ID { return task.BlobID(sha256.Sum256(s.content)) }

func (s *site) request() Request { return Request{ID: s.id(), URL: s.URL + path, Whole: true} }

func bearer(token string) origin.Credential {
	return origin.Credential{Authorization: "Bearer " + token}
}

// events remembers what it is told.
type events struct {
	mu      sync.Mutex
	revoked []error
	failed  []error
	// onPublished is called on every publication.
	onPublished func(id task.ID)
}

func (e *events) Published(id task.ID) {
	e.mu.Lock()
	f := e.onPublished
	e.mu.Unlock()
	if f != nil {
		f(id)
	}
}

func (e *events) Revoked(_ task.ID, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.revoked = append(e.revoked, err)
}

func (e *events) Failed(_ task.ID, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failed = append(e.failed, err)
}

func (e *events) failures() []error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]error(nil), e.failed...)
}

func (e *events) revocations() []error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]error(nil), e.revoked...)
}

// node is a cache with its store.
type node struct {
	*Cache
	store  *piecestore.Store
	events *events
	dir    string
	limit  int64
	now    atomic.Int64 // nanoseconds since start
	keys   origin.Keychain
}

func newNode(t testing.TB, configure func(*node)) *node {
	t.Helper()
	n := &node{events: &events{}, dir: t.TempDir()}
	if configure != nil {
		configure(n)
	}
	n.open(t)
	t.Cleanup(n.close)
	return n
}

var start = time.Unix(1_700_000_000, 0)

func (n *node) open(t testing.TB) {
	t.Helper()
	var err error
	if n.store, err = piecestore.Open(piecestore.Options{Dir: filepath.Join(n.dir, "cache"), Limit: n.limit}); err != nil {
		t.Fatal(err)
	}
	n.Cache = New(Options{
		Store: n.store, Events: n.events, SpoolDir: n.dir, Segment: testSegment, Parallel: 2,
		Now: func() time.Time { return start.Add(time.Duration(n.now.Load())) },
		Origin: origin.New(origin.Options{
			MaxAttempts: 4, Backoff: func(int) time.Duration { return time.Microsecond }, Keychain: n.keys,
			MaxRetryAfter: time.Millisecond, IdleTimeout: time.Minute,
		}),
	})
}

func (n *node) close() {
	n.Close()
	_ = n.store.Close()
}

func (n *node) restart(t testing.TB) {
	t.Helper()
	n.close()
	n.open(t)
}

func (n *node) advance(d time.Duration) { n.now.Add(int64(d)) }

func (n *node) ensure(t testing.TB, r Request) *Object {
	t.Helper()
	o, err := n.Ensure(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Release)
	return o
}

// waitComplete waits until all of o is published and checks it against want.
func waitComplete(t testing.TB, o *Object, want []byte) {
	t.Helper()
	testenv.Eventually(t, func() bool { _, complete := o.Published(); return complete }, "the content is complete")
	set, _ := o.Published()
	if set.Len() != o.Table().Count() {
		t.Errorf("%d of %d pieces are published", set.Len(), o.Table().Count())
	}
	got := make([]byte, o.Table().Length)
	if len(got) > 0 {
		if _, err := o.t.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("the content is not that of the origin")
	}
}

func (e *events) waitFailed(t testing.TB) error {
	t.Helper()
	testenv.Eventually(t, func() bool { return len(e.failures()) > 0 }, "a failure is told")
	return e.failures()[0]
}

func status(err error) int {
	var s *origin.StatusError
	if errors.As(err, &s) {
		return s.Status
	}
	return 0
}

// keychain has one credential for all.
type keychain origin.Credential

func (k keychain) Resolve(context.Context, string) (origin.Credential, bool, error) {
	return origin.Credential(k), true, nil
}
