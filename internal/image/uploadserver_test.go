package image

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// uploadServer is a registry for blobs alone that keeps to the distribution
// specification, as far as its faults let it.
type uploadServer struct {
	*httptest.Server

	mu      sync.Mutex
	blobs   map[digest.Digest][]byte
	others  map[string]map[digest.Digest]bool // blobs of other repositories
	uploads map[string][]byte
	log     []string // method and Content-Range
	taken   int      // bytes of bodies
	// fault may answer itself; it returns true then. It is called with mu held.
	fault func(w http.ResponseWriter, r *http.Request, n int) bool
}

func newUploadServer(t *testing.T) *uploadServer {
	t.Helper()
	s := &uploadServer{blobs: map[digest.Digest][]byte{}, others: map[string]map[digest.Digest]bool{}, uploads: map[string][]byte{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *uploadServer) ref(t *testing.T) Ref {
	t.Helper()
	return parse(t, strings.TrimPrefix(s.URL, "http://")+"/team/app")
}

func (s *uploadServer) seen(method string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []string
	for _, entry := range s.log {
		if strings.HasPrefix(entry, method) {
			found = append(found, entry)
		}
	}
	return found
}

// ServeHTTP has the requests wait for each other.
func (s *uploadServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const uploads, blobs = "/v2/team/app/blobs/uploads/", "/v2/team/app/blobs/"
	if r.URL.Path == "/v2/" {
		return
	}
	s.log = append(s.log, strings.TrimSpace(r.Method+" "+r.Header.Get("Content-Range")))
	if s.fault != nil && s.fault(w, r, len(s.log)) {
		return
	}
	id, isUpload := strings.CutPrefix(r.URL.Path, uploads)
	switch {
	case r.Method == http.MethodHead:
		data, ok := s.blobs[digest.Digest(strings.TrimPrefix(r.URL.Path, blobs))]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	case r.Method == http.MethodPost && isUpload:
		s.begin(w, r)
	case !isUpload:
		w.WriteHeader(http.StatusNotFound)
	default:
		s.upload(w, r, id)
	}
}

func (s *uploadServer) begin(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if d := digest.Digest(q.Get("mount")); s.others[q.Get("from")][d] {
		s.blobs[d] = nil
		w.WriteHeader(http.StatusCreated)
		return
	}
	id := strconv.Itoa(len(s.uploads) + 1)
	s.uploads[id] = []byte{}
	s.where(w, id)
	w.WriteHeader(http.StatusAccepted)
}

func (s *uploadServer) where(w http.ResponseWriter, id string) {
	w.Header().Set("Location", "/v2/team/app/blobs/uploads/"+id+"?state="+strconv.Itoa(len(s.uploads[id])))
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(len(s.uploads[id])-1, 0)))
}

func (s *uploadServer) upload(w http.ResponseWriter, r *http.Request, id string) {
	have, ok := s.uploads[id]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if r.Method == http.MethodGet {
		s.where(w, id)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if r.URL.Query().Get("state") != strconv.Itoa(len(have)) {
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	if span := r.Header.Get("Content-Range"); span != "" && !strings.HasPrefix(span, strconv.Itoa(len(have))+"-") {
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	data, err := io.ReadAll(r.Body)
	s.taken += len(data)
	s.uploads[id] = append(have, data...)
	if err != nil {
		return
	}
	if r.Method == http.MethodPatch {
		s.where(w, id)
		w.WriteHeader(http.StatusAccepted)
		return
	}
	s.finish(w, id, digest.Digest(r.URL.Query().Get("digest")))
}

func (s *uploadServer) finish(w http.ResponseWriter, id string, want digest.Digest) {
	data := s.uploads[id]
	delete(s.uploads, id)
	if digest.FromBytes(data) != want {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match uploaded content"}]}`)
		return
	}
	s.blobs[want] = data
	w.WriteHeader(http.StatusCreated)
}

// hangUp ends the connection of a request after n bytes of its body, which are
// kept if the request is a PATCH.
func (s *uploadServer) hangUp(r *http.Request, n int64) {
	data, _ := io.ReadAll(io.LimitReader(r.Body, n))
	s.taken += len(data)
	if id := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]; r.Method == http.MethodPatch {
		s.uploads[id] = append(s.uploads[id], data...)
	}
	panic(http.ErrAbortHandler)
}
