package cdn

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// only allows the given tokens.
func only(tokens ...string) func(string) bool {
	return func(authorization string) bool {
		for _, token := range tokens {
			if authorization == "Bearer "+token {
				return true
			}
		}
		return false
	}
}

func (s *site) requestWith(token string) Request {
	r := s.request()
	if token != "" {
		r.Credential = bearer(token)
	}
	return r
}

func TestOwnCredentialDecides(t *testing.T) {
	s := newSite(t, size)
	s.allow = only("good")
	n := newNode(t, nil)
	for _, token := range []string{"bad", ""} {
		if _, err := n.Ensure(t.Context(), s.requestWith(token)); status(err) != http.StatusUnauthorized {
			t.Fatalf("token %q: %v, want 401", token, err)
		}
	}
	if _, ok := storeHas(n.store, s.id()); ok {
		t.Error("a refused request has made a task")
	}
	waitComplete(t, n.ensure(t, s.requestWith("good")), s.content)
	// It is all there now, and still not everybody's.
	for _, token := range []string{"bad", ""} {
		o, err := n.Ensure(t.Context(), s.requestWith(token))
		if status(err) != http.StatusUnauthorized || o != nil {
			t.Errorf("token %q, of what is in the cache: %v, %v; want 401", token, o, err)
		}
		if o := n.Known(s.requestWith(token)); o != nil {
			t.Errorf("token %q: known", token)
		}
	}
}

// Requests with different credentials arrive while the first is being asked.
func TestRefusalIsNotShared(t *testing.T) {
	s := newSite(t, size)
	s.allow = only("good")
	n := newNode(t, nil)
	var all sync.WaitGroup
	for i := range 20 {
		token, want := "good", 0
		if i%2 == 0 {
			token, want = "bad", http.StatusUnauthorized
		}
		all.Go(func() {
			o, err := n.Ensure(t.Context(), s.requestWith(token))
			if status(err) != want || (err == nil) != (want == 0) {
				t.Errorf("token %q: %v", token, err)
			}
			if o != nil {
				o.Release()
			}
		})
	}
	all.Wait()
}

func TestAuthorizationCounts(t *testing.T) {
	s := newSite(t, 1000)
	s.allow = only("a", "b")
	n := newNode(t, nil)
	n.ensure(t, s.requestWith("a"))
	for range 3 {
		n.ensure(t, s.requestWith("a"))
		n.ensure(t, s.requestWith("b"))
	}
	if got := s.headCount(); got != 1 {
		t.Errorf("%d HEADs, want one for the second credential", got)
	}
	other := s.requestWith("b")
	other.URL = s.URL + "/v2/repo/blobs/other"
	n.ensure(t, other)
	if got := s.headCount(); got != 1 {
		t.Errorf("%d HEADs: another blob of the repository was asked for", got)
	}
	other.URL = s.URL + "/v2/another/blobs/x"
	n.ensure(t, other)
	if got := s.headCount(); got != 2 {
		t.Errorf("%d HEADs: another repository was not asked", got)
	}
	n.advance(time.Minute)
	s.set(func() { s.allow = only("b") })
	if _, err := n.Ensure(t.Context(), s.requestWith("a")); status(err) != http.StatusUnauthorized {
		t.Errorf("after a minute: %v, want 401", err)
	}
}

// What the supernode's own credential opens is not open to everybody.
func TestOwnCredentialsOfTheSupernode(t *testing.T) {
	s := newSite(t, size)
	s.allow = func(a string) bool { return strings.HasPrefix(a, "Basic ") }
	n := newNode(t, func(n *node) { n.keys = keychain{Username: "super", Password: "node"} })
	if _, err := n.Ensure(t.Context(), s.request()); status(err) != http.StatusUnauthorized {
		t.Fatalf("anonymous: %v, want 401", err)
	}
	r := s.request()
	r.Authorized = true
	waitComplete(t, n.ensure(t, r), s.content)
	if _, err := n.Ensure(t.Context(), s.request()); status(err) != http.StatusUnauthorized {
		t.Errorf("anonymous, after an authorized request: %v, want 401", err)
	}
	r.ID = ""
	waitComplete(t, n.ensure(t, r), s.content)
	r.Authorized = false
	if _, err := n.Ensure(t.Context(), r); status(err) != http.StatusUnauthorized {
		t.Errorf("anonymous by URL, after an authorized request: %v, want 401", err)
	}
}

func TestExpiredTokenIsReplaced(t *testing.T) {
	s := newSite(t, size)
	var expired atomic.Bool
	reached, goOn := make(chan struct{}), make(chan struct{})
	s.allow = func(a string) bool { return a == "Bearer b" || a == "Bearer a" && !expired.Load() }
	s.intercept = func(_ http.ResponseWriter, _ *http.Request, k int) bool {
		if k == 1 {
			close(reached)
			<-goOn
		}
		return false
	}
	n := newNode(t, nil)
	first := make(chan *Object, 1)
	go func() {
		o, err := n.Ensure(t.Context(), s.requestWith("a"))
		if err != nil {
			t.Error(err)
		}
		first <- o
	}()
	<-reached
	// The token of the first is good for the answer under way and no more.
	second := make(chan *Object, 1)
	go func() {
		o, err := n.Ensure(t.Context(), s.requestWith("b"))
		if err != nil {
			t.Error(err)
		}
		second <- o
	}()
	expired.Store(true)
	close(goOn)
	a, b := <-first, <-second
	if a == nil || b == nil {
		t.FailNow()
	}
	defer a.Release()
	defer b.Release()
	// If the fetch failed just when the second came, it asks again, as nodes do.
	testenv.Eventually(t, func() bool {
		b.Resume(s.requestWith("b"))
		_, complete := b.Published()
		return complete
	}, "the content is complete")
	waitComplete(t, b, s.content)
	if sent := s.sent.Load(); float64(sent) > 1.02*size {
		t.Errorf("the origin sent %d bytes for %d", sent, size)
	}
}

// A token that ends within a body is replaced by one that came meanwhile.
func TestTokenEndsWithinBody(t *testing.T) {
	s := newSite(t, testSegment)
	var broken atomic.Bool
	half, goOn := make(chan struct{}), make(chan struct{})
	s.allow = func(a string) bool { return a == "Bearer b" || a == "Bearer a" && !broken.Load() }
	s.intercept = func(w http.ResponseWriter, r *http.Request, k int) bool {
		if k > 1 {
			return false
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", testSegment-1, testSegment))
		w.Header().Set("Content-Length", fmt.Sprint(testSegment))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(s.content[:testPiece+10])
		_ = http.NewResponseController(w).Flush()
		close(half)
		<-goOn
		panic(http.ErrAbortHandler)
	}
	n := newNode(t, nil)
	n.ensure(t, s.requestWith("a"))
	<-half
	o := n.ensure(t, s.requestWith("b"))
	broken.Store(true)
	close(goOn)
	waitComplete(t, o, s.content)
	if got := n.events.failures(); len(got) != 0 {
		t.Errorf("failed: %v", got)
	}
}

// The same blob is at two registries. Neither hears the other's credentials.
func TestCredentialsStayWithTheirOrigin(t *testing.T) {
	a, b := newSite(t, size), newSite(t, size)
	a.allow, b.allow = only("for-a"), only("for-b")
	var gone atomic.Bool
	a.intercept = func(w http.ResponseWriter, _ *http.Request, k int) bool {
		if k > 1 && gone.Load() {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	}
	n := newNode(t, nil)
	r := a.requestWith("for-a")
	r.Whole, r.Ranges = false, []Range{{Offset: 0, Length: 1}}
	o := n.ensure(t, r)
	testenv.Eventually(t, func() bool { return !o.busy() }, "the ranges are there")
	gone.Store(true)
	waitComplete(t, n.ensure(t, b.requestWith("for-b")), a.content)
	if a.saw("Bearer for-b") || b.saw("Bearer for-a") {
		t.Error("a credential went to another origin")
	}
	if got := n.events.failures(); len(got) != 0 {
		t.Errorf("failed: %v", got)
	}
}

func TestCredentialsAreForgotten(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	o := n.ensure(t, s.requestWith("secret"))
	waitComplete(t, o, s.content)
	n.ensure(t, s.requestWith("another"))
	places, _ := o.places()
	if len(places) != 1 || len(places[0].Credentials) != 0 {
		t.Errorf("of complete content is kept: %v; want its URL alone", places)
	}
}

func TestSourcesAreBounded(t *testing.T) {
	o := &Object{}
	for i := range 100 {
		o.addSourceLocked(Request{URL: "http://a", Credential: bearer(fmt.Sprint(i))})
	}
	o.addSourceLocked(Request{URL: "http://a", Credential: bearer("98")})
	o.addSourceLocked(Request{URL: "http://b", Authorized: true})
	places, _ := o.places()
	if len(places) != 2 || len(o.sources) != maxSources {
		t.Fatalf("%d places, %d sources", len(places), len(o.sources))
	}
	if places[0].URL != "http://b" || places[0].Credentials != nil {
		t.Errorf("the latest is not first, or has credentials: %+v", places[0])
	}
	if c := places[1].Credentials; len(c) != maxSources-1 || c[0] != bearer("98") || c[1] != bearer("99") {
		t.Errorf("credentials out of order: %d", len(c))
	}
}

func TestErrorsKeepSecrets(t *testing.T) {
	s := newSite(t, size)
	s.allow = func(string) bool { return false }
	n := newNode(t, nil)
	for _, id := range []bool{true, false} {
		r := s.requestWith("sesame")
		r.URL += "?X-Signature=sesame"
		if !id {
			r.ID = ""
		}
		for _, offset := range []int64{0, testSegment} {
			r.Whole, r.Ranges = false, []Range{{Offset: offset, Length: 1}}
			if _, err := n.Ensure(t.Context(), r); err == nil || strings.Contains(err.Error(), "sesame") {
				t.Errorf("error %v", err)
			}
		}
	}
}

func TestScope(t *testing.T) {
	for _, tc := range []struct{ url, want string }{
		{"https://r/v2/a/b/blobs/sha256:x", "https://r/v2/a/b"},
		{"https://r/prefix/v2/a/blobs/sha256:x", "https://r/prefix/v2/a"},
		{"https://r/v2/a/blobs/blobs/sha256:x", "https://r/v2/a/blobs"},
		{"https://f/data/blobs/x", "https://f/data/blobs/x"},
		{"https://f/x?y", "https://f/x?y"},
	} {
		if got := scope(tc.url); got != tc.want {
			t.Errorf("scope(%q) = %q, want %q", tc.url, got, tc.want)
		}
	}
}

func TestCachesAreBounded(t *testing.T) {
	now := start
	a := newAuthCache(time.Minute, func() time.Time { return now })
	u := newURLCache(time.Minute, func() time.Time { return now })
	for i := range maxEntries + maxEntries/2 {
		r := Request{URL: fmt.Sprint("http://", i)}
		a.until[authKey(Request{URL: r.URL, Credential: origin.Credential{}})] = now.Add(time.Minute)
		if i >= maxEntries {
			a.add(r)
		}
		u.put(r.URL, "", Meta{})
	}
	if len(a.until) > maxEntries+1 || len(u.tags) > maxEntries {
		t.Errorf("%d and %d entries are kept", len(a.until), len(u.tags))
	}
}

func TestEnsureEndsWithItsContext(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, id := range []bool{true, false} {
		r := s.request()
		if !id {
			r.ID = ""
		}
		if o, err := n.Ensure(ctx, r); err == nil {
			o.Release()
			t.Error("a request that has ended is served")
		}
	}
}
