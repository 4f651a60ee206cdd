package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/accelerate"
	"github.com/damselfly-io/damselfly/supernode/preheat"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

var (
	_ Preheats    = (*preheat.Manager)(nil)
	_ Accelerated = (*accelerate.Accelerator)(nil)
	_ Cluster     = (*tracker.Tracker)(nil)
	_ Store       = (*piecestore.Store)(nil)
)

var when = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fakePreheats keeps jobs in memory; tests move them on.
type fakePreheats struct {
	mu       sync.Mutex
	requests []preheat.Request
	jobs     map[int64]preheat.Job
	watchers map[int64][]chan preheat.Job
	refuse   error
}

func newFakePreheats() *fakePreheats {
	return &fakePreheats{jobs: map[int64]preheat.Job{}, watchers: map[int64][]chan preheat.Job{}}
}

func (f *fakePreheats) Submit(r preheat.Request) (preheat.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return preheat.Job{}, f.refuse
	}
	f.requests = append(f.requests, r)
	id := int64(len(f.requests))
	f.jobs[id] = preheat.Job{ID: id, Type: r.Type, Ref: r.Ref, URL: r.URL, Scope: r.Scope, State: preheat.Pending, CreatedAt: when}
	return f.jobs[id], nil
}

func (f *fakePreheats) Get(id int64) (preheat.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j, ok := f.jobs[id]
	if !ok {
		return j, fmt.Errorf("%w: %d", preheat.ErrNotFound, id)
	}
	return j, nil
}

func (f *fakePreheats) List() []preheat.Job {
	f.mu.Lock()
	defer f.mu.Unlock()
	var jobs []preheat.Job
	for id := int64(len(f.requests)); id > 0; id-- {
		jobs = append(jobs, f.jobs[id])
	}
	return jobs
}

func (f *fakePreheats) Cancel(id int64) (preheat.Job, error) {
	if _, err := f.Get(id); err != nil {
		return preheat.Job{}, err
	}
	f.set(id, func(j *preheat.Job) { j.State = preheat.Cancelled })
	return f.Get(id)
}

func (f *fakePreheats) Watch(_ context.Context, id int64) (<-chan preheat.Job, error) {
	j, err := f.Get(id)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan preheat.Job, 100)
	c <- j
	if j.State.Final() {
		close(c)
	} else {
		f.watchers[id] = append(f.watchers[id], c)
	}
	return c, nil
}

func (f *fakePreheats) set(id int64, change func(*preheat.Job)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j := f.jobs[id]
	change(&j)
	f.jobs[id] = j
	for _, c := range f.watchers[id] {
		c <- j
		if j.State.Final() {
			close(c)
		}
	}
	if j.State.Final() {
		delete(f.watchers, id)
	}
}

func (f *fakePreheats) last() preheat.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests[len(f.requests)-1]
}

var (
	blobA = task.ID("sha256:" + strings.Repeat("0a", 32))
	blobB = task.ID("url:" + strings.Repeat("0b", 32))
)

type fakeCluster struct{}

func (fakeCluster) Peers() []tracker.PeerInfo {
	return []tracker.PeerInfo{
		{Name: "n1", Zone: "z1", Address: "10.0.0.1:65002", Version: "v1", Tasks: 2},
		{Name: "n2", Zone: "z2", Address: "10.0.0.2:65002", Quarantined: true},
	}
}

func (fakeCluster) Holders(id task.ID) []string {
	return map[task.ID][]string{blobA: {"n1", "n2"}, blobB: {"n1"}}[id]
}

func (fakeCluster) HeldBytes(_ task.ID, peer string) int64 {
	return map[string]int64{"n1": 11, "n2": 22}[peer]
}

type fakeStore struct{}

func (fakeStore) List() []piecestore.Info {
	return []piecestore.Info{{ID: blobA, Source: "https://r.test/x", Length: 33, Pieces: 4, HeldPieces: 3, HeldBytes: 30, Created: when, LastAccess: when, Refs: 1}}
}

type fakeAccelerated struct{}

var accelerated = accelerate.Info{
	Image: "r.test/app@" + string(blobA), Digest: string(blobA), Index: "sha256:" + strings.Repeat("0c", 32), Key: "k",
	Blobs: 2, Bytes: 3, CreatedAt: when, Pushed: true, PushError: "e",
}

func (fakeAccelerated) List() []accelerate.Info { return []accelerate.Info{accelerated} }

func (fakeAccelerated) Remove(image string) ([]accelerate.Info, error) {
	if image != string(blobA) {
		return nil, fmt.Errorf("%w: %s", accelerate.ErrNotFound, image)
	}
	return []accelerate.Info{accelerated}, nil
}

// server is the API served over loopback.
type server struct {
	t    *testing.T
	jobs *fakePreheats
	url  string
}

func newServer(t *testing.T, change func(*Options)) *server {
	t.Helper()
	s := &server{t: t, jobs: newFakePreheats()}
	o := Options{Preheats: s.jobs, Accelerated: fakeAccelerated{}, Cluster: fakeCluster{}, Store: fakeStore{}, EventGap: time.Millisecond}
	if change != nil {
		change(&o)
	}
	mux := http.NewServeMux()
	New(o).Register(mux)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

// answer is a response that was read.
type answer struct {
	StatusCode int
	Header     http.Header
}

// do sends a request; header is of the form "Name: value".
func (s *server) do(method, path, body string, header ...string) (answer, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range header {
		name, value, ok := strings.Cut(h, ": ")
		if !ok {
			continue
		}
		req.Header.Set(name, value)
		if name == "Host" {
			req.Host = value
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header}, string(b)
}

// want sends a request and checks status and, of an error, the code.
func (s *server) want(status int, code, method, path, body string, header ...string) string {
	s.t.Helper()
	resp, got := s.do(method, path, body, header...)
	var e errorBody
	if code != "" {
		if err := json.Unmarshal([]byte(got), &e); err != nil || e.Error.Message == "" {
			s.t.Errorf("%s %s: %q is no error: %v", method, path, got, err)
		}
	}
	if resp.StatusCode != status || e.Error.Code != code {
		s.t.Errorf("%s %s %.100s: %d %s; want %d %s", method, path, body, resp.StatusCode, got, status, code)
	}
	return got
}
