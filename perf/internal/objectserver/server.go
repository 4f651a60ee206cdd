package objectserver

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

// Stats counts requests and sent body bytes by kind: "ping" (GET /v2/),
// "blob", "blob-head", "file", "file-head" and "other".
type Stats struct {
	Requests map[string]int64 `json:"requests"`
	Bytes    map[string]int64 `json:"bytes"`
}

// Sub returns what was counted since an earlier reading.
func (s Stats) Sub(earlier Stats) Stats {
	return Stats{subtract(s.Requests, earlier.Requests), subtract(s.Bytes, earlier.Bytes)}
}

func subtract(now, earlier map[string]int64) map[string]int64 {
	diff := map[string]int64{}
	for kind, n := range now {
		if n != earlier[kind] {
			diff[kind] = n - earlier[kind]
		}
	}
	return diff
}

// TotalBytes returns the bytes of all kinds.
func (s Stats) TotalBytes() (sum int64) {
	for _, n := range s.Bytes {
		sum += n
	}
	return sum
}

// TotalRequests returns the requests of all kinds.
func (s Stats) TotalRequests() (sum int64) {
	for _, n := range s.Requests {
		sum += n
	}
	return sum
}

// Server serves the objects of a directory. It is an http.Handler.
type Server struct {
	dir string

	mu    sync.Mutex
	stats Stats
}

// New returns a server of the objects in dir.
func New(dir string) *Server {
	return &Server{dir: dir, stats: Stats{Requests: map[string]int64{}, Bytes: map[string]int64{}}}
}

// Stats returns what was counted so far; a request in progress counts the
// bytes it has sent when it ends.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{maps.Clone(s.stats.Requests), maps.Clone(s.stats.Bytes)}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/stats" {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Stats()) // the client is gone if it fails
		return
	}
	kind, digest := classify(r)
	counted := &countingWriter{ResponseWriter: w}
	s.count(kind, 1, 0)
	defer func() { s.count(kind, 0, counted.n) }()
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		http.Error(counted, "only GET and HEAD", http.StatusMethodNotAllowed)
	case kind == "ping":
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	case digest == "":
		http.NotFound(counted, r)
	default:
		s.object(counted, r, digest)
	}
}

func (s *Server) count(kind string, requests, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Requests[kind] += requests
	s.stats.Bytes[kind] += bytes
}

// classify returns the kind of a request and the digest it names, if any.
func classify(r *http.Request) (kind, digest string) {
	path, head := r.URL.Path, ""
	if r.Method == http.MethodHead {
		head = "-head"
	}
	if path == "/v2/" || path == "/v2" {
		return "ping", ""
	}
	i := strings.LastIndexByte(path, '/')
	id, err := task.ParseID(path[i+1:])
	if _, ok := id.Digest(); err != nil || !ok {
		return "other", ""
	}
	switch dir := path[:i]; {
	case strings.HasPrefix(dir, "/v2/") && strings.HasSuffix(dir, "/blobs"):
		return "blob" + head, string(id)
	case dir == "/files":
		return "file" + head, string(id)
	}
	return "other", ""
}

func (s *Server) object(w *countingWriter, r *http.Request, digest string) {
	f, err := os.Open(filepath.Join(s.dir, digest)) // #nosec G703 -- classify has checked its form
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close() //nolint:errcheck // only read
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Etag", `"`+digest+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
}

// countingWriter counts body bytes. It keeps the way to sendfile open.
type countingWriter struct {
	http.ResponseWriter
	n int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	return n, err
}

// ReadFrom lets the connection take the file by itself.
func (w *countingWriter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(w.ResponseWriter, r)
	w.n += n
	return n, err
}
