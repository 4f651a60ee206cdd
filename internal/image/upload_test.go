package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const piece = 64 << 10

func pushOptions() Options {
	o := testOptions()
	o.ChunkSize = piece
	return o
}

func openTarget(t *testing.T, ref Ref, o Options) *Target {
	t.Helper()
	target, err := OpenTarget(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, target.Close()) })
	return target
}

// upload5 pushes a blob of 4 pieces and a bit and checks that it arrived.
func upload5(t *testing.T, s *uploadServer, target *Target, seed uint64) {
	t.Helper()
	data := noise(seed, 4*piece+100)
	b := BytesBlob("", data)
	var last int64
	b.Progress = func(done int64) { last = done }
	how, err := target.PushBlob(t.Context(), b)
	if err != nil || how != Uploaded {
		t.Fatalf("%v, %v; requests %q", how, err, s.seen(""))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !bytes.Equal(s.blobs[b.Descriptor.Digest], data) {
		t.Error("the registry has something else")
	}
	if last != int64(len(data)) {
		t.Errorf("progress ends at %d", last)
	}
}

func TestPushInPieces(t *testing.T) {
	s := newUploadServer(t)
	target := openTarget(t, s.ref(t), pushOptions())
	upload5(t, s, target, 1)
	want := []string{"HEAD", "POST", "PATCH 0-65535", "PATCH 65536-131071", "PATCH 131072-196607", "PATCH 196608-262143", "PATCH 262144-262243", "PUT"}
	if got := s.seen(""); !slices.Equal(got, want) {
		t.Errorf("requests %q, want %q", got, want)
	}
	if how, err := target.PushBlob(t.Context(), BytesBlob("", noise(1, 4*piece+100))); err != nil || how != Existed {
		t.Errorf("again: %v, %v", how, err)
	}
	for _, data := range [][]byte{noise(2, 100), {}, noise(3, piece)} {
		before := len(s.seen(""))
		b := BytesBlob("", data)
		if how, err := target.PushBlob(t.Context(), b); err != nil || how != Uploaded {
			t.Errorf("%d bytes: %v, %v", len(data), how, err)
		}
		if got := s.seen("")[before:]; !slices.Equal(got, []string{"HEAD", "POST", "PUT"}) {
			t.Errorf("%d bytes: requests %q", len(data), got)
		}
		if has, err := target.HasBlob(t.Context(), b.Descriptor); err != nil || !has {
			t.Errorf("HasBlob: %v, %v", has, err)
		}
	}
}

// TestPushGoesOn breaks the upload in several ways; what the registry has is
// not sent again.
func TestPushGoesOn(t *testing.T) {
	const whole = 4*piece + 100
	for name, tc := range map[string]struct {
		fault func(s *uploadServer) func(w http.ResponseWriter, r *http.Request, n int) bool
		taken int // bytes that the registry read in all
	}{
		"connection ends in the middle of a piece": {func(s *uploadServer) func(http.ResponseWriter, *http.Request, int) bool {
			return func(_ http.ResponseWriter, r *http.Request, n int) bool {
				if n == 4 { // the second piece
					s.hangUp(r, 1000)
				}
				return false
			}
		}, whole},
		"connection ends each time": {func(s *uploadServer) func(http.ResponseWriter, *http.Request, int) bool {
			return func(_ http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method == http.MethodPatch {
					s.hangUp(r, 10_000)
				}
				return false
			}
		}, whole},
		"503 in between": {func(*uploadServer) func(http.ResponseWriter, *http.Request, int) bool {
			return func(w http.ResponseWriter, _ *http.Request, n int) bool {
				if n%4 == 0 {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
				return n%4 == 0
			}
		}, whole},
		"416 although all is well": {func(*uploadServer) func(http.ResponseWriter, *http.Request, int) bool {
			return func(w http.ResponseWriter, _ *http.Request, n int) bool {
				if n == 4 {
					w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				}
				return n == 4
			}
		}, whole},
		"the upload is forgotten": {func(s *uploadServer) func(http.ResponseWriter, *http.Request, int) bool {
			return func(_ http.ResponseWriter, _ *http.Request, n int) bool {
				if n == 5 {
					clear(s.uploads)
				}
				return false
			}
		}, 2*piece + whole},
		"the answer to the last request is lost": {func(s *uploadServer) func(http.ResponseWriter, *http.Request, int) bool {
			return func(_ http.ResponseWriter, r *http.Request, n int) bool {
				if r.Method == http.MethodPut {
					s.ServeLost(r)
				}
				return false
			}
		}, whole},
	} {
		t.Run(name, func(t *testing.T) {
			s := newUploadServer(t)
			target := openTarget(t, s.ref(t), pushOptions())
			s.mu.Lock()
			s.fault = tc.fault(s)
			s.mu.Unlock()
			upload5(t, s, target, 1)
			if s.taken != tc.taken {
				t.Errorf("the registry took %d bytes, want %d: %q", s.taken, tc.taken, s.seen(""))
			}
		})
	}
}

// ServeLost does what a request asks and ends the connection in place of the
// answer.
func (s *uploadServer) ServeLost(r *http.Request) {
	id := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	d := digest.Digest(r.URL.Query().Get("digest"))
	if digest.FromBytes(s.uploads[id]) == d {
		s.blobs[d] = s.uploads[id]
	}
	panic(http.ErrAbortHandler)
}

func TestRegistryWithoutPieces(t *testing.T) {
	for _, status := range []int{http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusRequestedRangeNotSatisfiable, http.StatusBadRequest, http.StatusNotImplemented, http.StatusRequestEntityTooLarge} {
		s := newUploadServer(t)
		s.fault = func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if r.Method == http.MethodPatch {
				w.WriteHeader(status)
			}
			return r.Method == http.MethodPatch
		}
		target := openTarget(t, s.ref(t), pushOptions())
		upload5(t, s, target, 1)
		upload5(t, s, target, 2)
		if got := s.seen("PATCH"); len(got) != 1 {
			t.Errorf("status %d: %q", status, got)
		}
	}
}

// TestSecondPieceRefused has a registry that takes the first piece alone.
func TestSecondPieceRefused(t *testing.T) {
	s := newUploadServer(t)
	s.fault = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		refuse := r.Method == http.MethodPatch && !strings.HasPrefix(r.Header.Get("Content-Range"), "0-")
		if refuse {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		}
		return refuse
	}
	_, err := openTarget(t, s.ref(t), pushOptions()).PushBlob(t.Context(), BytesBlob("", noise(1, 3*piece)))
	if err != nil {
		t.Errorf("error %v; requests %q", err, s.seen(""))
	}
}

func TestMount(t *testing.T) {
	s := newUploadServer(t)
	target := openTarget(t, s.ref(t), pushOptions())
	b := BytesBlob("", noise(1, 100))
	s.mu.Lock()
	s.others["team/base"] = map[digest.Digest]bool{b.Descriptor.Digest: true}
	s.mu.Unlock()
	b.MountFrom = []string{"team/none", "team/base"}
	if how, err := target.PushBlob(t.Context(), b); err != nil || how != Mounted {
		t.Errorf("%v, %v", how, err)
	}
	b = BytesBlob("", noise(2, 100))
	b.MountFrom = []string{"team/none", "team/base"}
	before := len(s.seen(""))
	if how, err := target.PushBlob(t.Context(), b); err != nil || how != Uploaded {
		t.Errorf("%v, %v", how, err)
	}
	if got := s.seen("")[before:]; !slices.Equal(got, []string{"HEAD", "POST", "POST", "PUT"}) {
		t.Errorf("the upload begun by mounting is not used: %q", got)
	}
}

func TestRetryAfter(t *testing.T) {
	s := newUploadServer(t)
	s.fault = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodPut && len(s.uploads) == 1 {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	}
	var mu sync.Mutex
	var waits []time.Duration
	o := pushOptions()
	after := o.After
	o.After = func(d time.Duration) <-chan time.Time {
		mu.Lock()
		defer mu.Unlock()
		waits = append(waits, d)
		return after(d)
	}
	o.MaxRetryAfter = 5 * time.Second
	if _, err := openTarget(t, s.ref(t), o).PushBlob(t.Context(), BytesBlob("", noise(1, 100))); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(waits, []time.Duration{5 * time.Second}) {
		t.Errorf("waits %v", waits)
	}
}

func TestPushFails(t *testing.T) {
	answer := func(status int) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if r.Method == http.MethodHead {
				return false
			}
			w.WriteHeader(status)
			return true
		}
	}
	good := BytesBlob("", noise(1, 2*piece))
	wrong := BytesBlob("", noise(1, 2*piece))
	wrong.Descriptor.Digest = someDigest
	short := BytesBlob("", noise(1, 2*piece))
	short.Descriptor.Size += 10
	broken := Blob{Descriptor: good.Descriptor, Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(noise(1, piece+10)), errReader{})), nil
	}}
	for name, tc := range map[string]struct {
		blob  Blob
		fault func(http.ResponseWriter, *http.Request, int) bool
		want  error
		text  string
		most  int // requests
	}{
		"denied":             {good, answer(401), ErrDenied, "no permission to push to ", 3},
		"forbidden":          {good, answer(403), ErrDenied, "log in with docker login", 3},
		"no such repository": {good, answer(404), ErrNotFound, "create it first", 3},
		"always 503":         {good, answer(503), nil, "503", 8},
		"wrong content":      {wrong, nil, ErrCorrupt, "DIGEST_INVALID", 12},
		"short content":      {short, nil, ErrCorrupt, "ends after", 12},
		"broken content":     {broken, nil, errBroken, "", 12},
		"missing file":       {FileBlob(good.Descriptor, "/no/such/file"), nil, nil, "/no/such/file", 3},
		"no location": {good, func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if r.Method == http.MethodPost {
				w.WriteHeader(http.StatusAccepted)
			}
			return r.Method == http.MethodPost
		}, ErrCorrupt, "Location", 3},
	} {
		t.Run(name, func(t *testing.T) {
			s := newUploadServer(t)
			s.fault = tc.fault
			target := openTarget(t, s.ref(t), pushOptions())
			_, err := target.PushBlob(t.Context(), tc.blob)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), tc.blob.Descriptor.Digest.String()) {
				t.Errorf("error %v; want %v with %q", err, tc.want, tc.text)
			}
			if got := s.seen(""); len(got) > tc.most {
				t.Errorf("%d requests: %q", len(got), got)
			}
		})
	}
}

var errBroken = errors.New("disk on fire")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

func TestStalledPush(t *testing.T) {
	var once sync.Once
	stalled, release := make(chan struct{}), make(chan struct{})
	srv := newRegistry(t)
	srv.setFault(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch || r.Method == http.MethodPut {
			once.Do(func() { close(stalled) })
			<-release
		}
		return false
	})
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-stalled
		cancel()
	}()
	target := openTarget(t, srv.ref(t, "a"), pushOptions())
	if _, err := target.PushBlob(ctx, BytesBlob("", noise(1, 64*piece))); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	o := pushOptions()
	o.IdleTimeout = time.Millisecond
	o.MaxAttempts = 2
	target = openTarget(t, srv.ref(t, "a"), pushOptions())
	p, ok := target.sink.(*pusher)
	if !ok {
		t.Fatalf("sink %T", target.sink)
	}
	p.opts = o.withDefaults() // logging in may take longer
	if _, err := target.PushBlob(t.Context(), BytesBlob("", noise(1, 64*piece))); !errors.Is(err, errStalled) {
		t.Errorf("error %v", err)
	}
}

// TestSilentRegistry has one that takes connections and says nothing.
func TestSilentRegistry(t *testing.T) {
	release := make(chan struct{})
	srv := newRegistry(t)
	srv.setFault(func(http.ResponseWriter, *http.Request) bool {
		<-release
		return true
	})
	defer close(release)
	o := testOptions()
	o.IdleTimeout = time.Millisecond
	if _, err := Open(t.Context(), srv.ref(t, "a"), o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestPushBlobsLimit(t *testing.T) {
	dir := t.TempDir()
	target := openTarget(t, parse(t, "oci:"+dir), testOptions())
	var mu sync.Mutex
	running, most := 0, 0
	var list []Blob
	for i := range 12 {
		b := BytesBlob("", noise(uint64(i), 1000))
		inner := b.Open
		b.Open = func(ctx context.Context) (io.ReadCloser, error) {
			mu.Lock()
			defer mu.Unlock()
			running++
			most = max(most, running)
			return inner(ctx)
		}
		b.Progress = func(done int64) {
			if done == 1000 {
				mu.Lock()
				defer mu.Unlock()
				running--
			}
		}
		list = append(list, b)
	}
	if _, err := target.PushBlobs(t.Context(), list, 3); err != nil {
		t.Fatal(err)
	}
	if most > 3 {
		t.Errorf("%d at a time", most)
	}
	how, err := target.PushBlobs(t.Context(), list[:2], 0)
	if err != nil || !slices.Equal(how, []Pushed{Existed, Existed}) {
		t.Errorf("%v, %v", how, err)
	}
	list[5].Descriptor = v1.Descriptor{Digest: someDigest, Size: 1000}
	if _, err := target.PushBlobs(t.Context(), list, 2); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error %v", err)
	}
}

func TestUploadLocation(t *testing.T) {
	for _, tc := range []struct{ base, location, want string }{
		{"https://r.io", "/v2/a/blobs/uploads/1?x=y", "https://r.io/v2/a/blobs/uploads/1?x=y"},
		{"https://r.io", "http://r.io/v2/1", "https://r.io/v2/1"},
		{"https://r.io", "https://s3.io/1", "https://s3.io/1"},
		{"https://r.io", "http://s3.io/1", ""},
		{"http://127.0.0.1:1", "http://127.0.0.1:2/1", "http://127.0.0.1:2/1"},
		{"https://r.io", "", ""},
		{"https://r.io", "ftp://x/", ""},
		{"https://r.io", "https://u:p@r.io/1", "https://r.io/1"},
		{"https://r.io", "%zz", ""},
	} {
		got, err := (&remote{base: tc.base}).location(http.Header{"Location": {tc.location}})
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s: Location %q: %q, %v; want %q", tc.base, tc.location, got, err, tc.want)
		}
	}
}
