package exchange_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/supernode/exchange"
)

// clock is a time that moves when told to.
type clock struct{ ns atomic.Int64 }

func (c *clock) Now() time.Time          { return time.Unix(1_700_000_000, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

// registry answers with handle and counts.
type registry struct {
	*httptest.Server
	requests atomic.Int64
}

func newRegistry(t *testing.T, handle http.HandlerFunc) *registry {
	t.Helper()
	r := &registry{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.requests.Add(1)
		handle(w, req)
	}))
	t.Cleanup(r.Close)
	return r
}

func newExchanger(o exchange.Options) *exchange.Exchanger {
	o.Origin = origin.New(origin.Options{MaxAttempts: 1})
	return exchange.New(o)
}

func authorization(v string) http.Header { return http.Header{"Authorization": {v}} }

func get(t *testing.T, e *exchange.Exchanger, url string, h http.Header) *exchange.Answer {
	t.Helper()
	a, err := e.Do(t.Context(), http.MethodGet, url, h)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestEqualRequestsShareOne(t *testing.T) {
	gate := make(chan struct{})
	r := newRegistry(t, func(w http.ResponseWriter, _ *http.Request) {
		<-gate
		w.Header().Set("Docker-Content-Digest", "sha256:x")
		_, _ = io.WriteString(w, "manifest")
	})
	e := newExchanger(exchange.Options{})
	const askers = 50
	var asking, done sync.WaitGroup
	asking.Add(askers)
	errs := make(chan error, askers)
	for range askers {
		done.Go(func() {
			asking.Done()
			a, err := e.Do(t.Context(), http.MethodGet, r.URL+"/v2/a/manifests/latest", authorization("Bearer x"))
			if err == nil && (string(a.Body) != "manifest" || a.Status != 200 || a.Header.Get("Docker-Content-Digest") != "sha256:x") {
				err = fmt.Errorf("answer %+v", a)
			}
			errs <- err
		})
	}
	asking.Wait()
	close(gate)
	done.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if n := r.requests.Load(); n != 1 {
		t.Errorf("the origin was asked %d times, want 1", n)
	}
}

func TestWhatIsNotShared(t *testing.T) {
	r := newRegistry(t, func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, req.Method+req.URL.String()+fmt.Sprint(req.Header.Values("Authorization"), req.Header.Values("Accept"), req.Header.Get("Range")))
	})
	url := r.URL + "/v2/a/manifests/latest"
	for _, tc := range []struct {
		name   string
		a, b   http.Header
		url    string
		shared bool
	}{
		{"equal", authorization("Bearer x"), authorization("Bearer x"), url, true},
		{"other credential", authorization("Bearer x"), authorization("Bearer y"), url, false},
		{"credential and none", authorization("Bearer x"), http.Header{}, url, false},
		{"a second credential", http.Header{}, http.Header{"Authorization": {"", "Bearer x"}}, url, false},
		{"other types", http.Header{"Accept": {"a"}}, http.Header{"Accept": {"b"}}, url, false},
		{"types in another order", http.Header{"Accept": {"a", "b"}}, http.Header{"Accept": {"b", "a"}}, url, true},
		{"range", http.Header{"Range": {"bytes=0-1"}}, http.Header{}, url, false},
		{"validator", http.Header{"If-None-Match": {`"x"`}}, http.Header{}, url, false},
		{"program", http.Header{"User-Agent": {"a"}}, http.Header{"User-Agent": {"b"}}, url, true},
		{"other query", http.Header{}, http.Header{}, url + "?n=1", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newExchanger(exchange.Options{})
			before := r.requests.Load()
			get(t, e, url, tc.a)
			get(t, e, tc.url, tc.b)
			want := int64(2)
			if tc.shared {
				want = 1
			}
			if n := r.requests.Load() - before; n != want {
				t.Errorf("%d requests, want %d", n, want)
			}
		})
	}
}

func TestHowLongAnswersCount(t *testing.T) {
	const digest = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	for _, tc := range []struct {
		name, path string
		status     int
		ttl        time.Duration // 0: not kept
	}{
		{"tag", "/v2/a/manifests/latest", 200, 5 * time.Second},
		{"digest", "/v2/a/manifests/" + digest, 200, time.Minute},
		{"blob", "/v2/a/blobs/" + digest, 200, time.Minute},
		{"what refers to a digest can grow", "/v2/a/referrers/" + digest, 200, 5 * time.Second},
		{"tag list", "/v2/a/tags/list", 200, 5 * time.Second},
		{"unauthorized", "/v2/a/manifests/" + digest, 401, time.Second},
		{"forbidden", "/v2/a/manifests/latest", 403, time.Second},
		{"not found", "/v2/a/manifests/latest", 404, time.Second},
		{"too many requests", "/v2/a/manifests/latest", 429, 0},
		{"server error", "/v2/a/manifests/" + digest, 500, 0},
		{"bad gateway", "/v2/a/manifests/" + digest, 502, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRegistry(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(tc.status) })
			c := &clock{}
			e := newExchanger(exchange.Options{Now: c.Now})
			ask := func() int64 {
				if a := get(t, e, r.URL+tc.path, nil); a.Status != tc.status {
					t.Fatalf("status %d, want %d", a.Status, tc.status)
				}
				return r.requests.Load()
			}
			ask()
			if tc.ttl == 0 {
				if n := ask(); n != 2 {
					t.Fatalf("%d requests at once, want 2", n)
				}
				return
			}
			c.advance(tc.ttl - time.Nanosecond)
			if n := ask(); n != 1 {
				t.Errorf("%d requests just before the end, want 1", n)
			}
			c.advance(time.Nanosecond)
			if n := ask(); n != 2 {
				t.Errorf("%d requests after the end, want 2", n)
			}
		})
	}
}

func TestNoAnswerIsNotKept(t *testing.T) {
	fail := atomic.Bool{}
	fail.Store(true)
	r := newRegistry(t, func(w http.ResponseWriter, _ *http.Request) {
		if fail.Load() {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, "well")
	})
	e := newExchanger(exchange.Options{})
	if _, err := e.Do(t.Context(), http.MethodGet, r.URL+"/v2/a/manifests/x", nil); err == nil {
		t.Fatal("a broken connection is no error")
	}
	fail.Store(false)
	if a := get(t, e, r.URL+"/v2/a/manifests/x", nil); string(a.Body) != "well" {
		t.Errorf("answer %q", a.Body)
	}
}

func TestTooLarge(t *testing.T) {
	size := exchange.MaxBody
	r := newRegistry(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.Copy(w, bytes.NewReader(make([]byte, size)))
	})
	e := newExchanger(exchange.Options{})
	if a := get(t, e, r.URL+"/1", nil); len(a.Body) != exchange.MaxBody {
		t.Errorf("%d bytes of the largest answer", len(a.Body))
	}
	size++
	if _, err := e.Do(t.Context(), http.MethodGet, r.URL+"/2", nil); !errors.Is(err, exchange.ErrTooLarge) {
		t.Errorf("a byte more: %v, want ErrTooLarge", err)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	r := newRegistry(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1000)) })
	c := &clock{}
	e := newExchanger(exchange.Options{MaxBytes: 10_000, Now: c.Now})
	for i := range 100 {
		get(t, e, fmt.Sprintf("%s/v2/a/manifests/%d", r.URL, i), nil)
	}
	before := r.requests.Load()
	for i := range 100 {
		get(t, e, fmt.Sprintf("%s/v2/a/manifests/%d", r.URL, i), nil)
	}
	if n := r.requests.Load() - before; n < 90 {
		t.Errorf("%d of 100 answers of 1000 bytes were asked for again: more than 10 are kept", n)
	}
}

func TestOnlyGetAndHead(t *testing.T) {
	r := newRegistry(t, func(http.ResponseWriter, *http.Request) {})
	e := newExchanger(exchange.Options{})
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, "", "CONNECT"} {
		if _, err := e.Do(t.Context(), method, r.URL, nil); err == nil {
			t.Errorf("%q was passed on", method)
		}
	}
	if a, err := e.Do(t.Context(), http.MethodHead, r.URL, nil); err != nil || a.Status != 200 {
		t.Errorf("HEAD: %+v, %v", a, err)
	}
	if n := r.requests.Load(); n != 1 {
		t.Errorf("the origin saw %d requests, want the HEAD only", n)
	}
}

// Who asked first may go; the others still get the answer.
func TestFirstAskerLeaves(t *testing.T) {
	gate, asked := make(chan struct{}), make(chan struct{})
	r := newRegistry(t, func(w http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-gate
		_, _ = io.WriteString(w, "answer")
	})
	e := newExchanger(exchange.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := e.Do(ctx, http.MethodGet, r.URL+"/x", nil)
		first <- err
	}()
	<-asked
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who left got %v", err)
	}
	second := make(chan *exchange.Answer, 1)
	go func() {
		a, err := e.Do(t.Context(), http.MethodGet, r.URL+"/x", nil)
		if err != nil {
			t.Error(err)
		}
		second <- a
	}()
	close(gate)
	if a := <-second; a == nil || string(a.Body) != "answer" {
		t.Errorf("who stayed got %+v", a)
	}
	if n := r.requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}
