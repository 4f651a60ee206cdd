package registrytest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
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

// Challenge is the WWW-Authenticate of refusals.
const Challenge = `Basic realm="registry.test"`

// Hit is one request that the registry has answered.
type Hit struct {
	Method, Path, Query, Range, Authorization string
	Status                                    int
	Bytes                                     int64 // of the body that were sent
}

// content is what a path has.
type content struct {
	data      []byte
	mediaType string
	digest    string // Docker-Content-Digest
	etag      string
	link      string
}

// Registry is the server. Its methods are safe for concurrent use.
type Registry struct {
	*httptest.Server

	mu      sync.Mutex
	content map[string]content         // by path
	allowed map[string]map[string]bool // Authorization values, by repository or path; absent: everybody
	stalls  map[string]*stall          // by path
	down    int                        // status of all answers; 0: not down
	hits    []Hit
}

// stall holds a body back.
type stall struct {
	after int64
	ended chan struct{}
}

// New runs a registry until the end of the test.
func New(t testing.TB) *Registry {
	t.Helper()
	r := &Registry{content: map[string]content{}, allowed: map[string]map[string]bool{}, stalls: map[string]*stall{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(func() {
		r.mu.Lock()
		paths := make([]string, 0, len(r.stalls))
		for path := range r.stalls {
			paths = append(paths, path)
		}
		r.mu.Unlock()
		for _, path := range paths {
			r.Release(path)
		}
		r.CloseClientConnections()
		r.Close()
	})
	return r
}

// Host is the registry's HOST:PORT.
func (r *Registry) Host() string { return strings.TrimPrefix(r.URL, "http://") }

// Random returns n bytes that are the same for the same seed.
func Random(n int, seed uint64) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// Digest returns the sha256 digest of data.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// BlobPath is the path of a blob.
func BlobPath(repo, digest string) string { return "/v2/" + repo + "/blobs/" + digest }

// Blob adds a blob to a repository and returns its digest.
func (r *Registry) Blob(repo string, data []byte) string {
	d := Digest(data)
	r.BlobAs(repo, d, data)
	return d
}

// BlobAs adds a blob under a digest that it need not have.
func (r *Registry) BlobAs(repo, digest string, data []byte) {
	r.put(BlobPath(repo, digest), content{data: data, mediaType: "application/octet-stream", digest: digest})
}

// Manifest adds an image manifest that refers to blobs, under a tag and its
// digest, and returns it with its digest.
func (r *Registry) Manifest(repo, tag string, blobs ...string) (body []byte, digest string) {
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	m := map[string]any{"schemaVersion": 2, "mediaType": ManifestType, "annotations": map[string]string{"tag": tag}}
	var layers []descriptor
	for _, d := range blobs {
		layers = append(layers, descriptor{"application/vnd.oci.image.layer.v1.tar", d, 1})
	}
	m["layers"] = layers
	body, err := json.Marshal(m)
	if err != nil {
		panic(err) // maps and strings can be marshalled
	}
	digest = Digest(body)
	r.ManifestAs(repo, tag, digest, body)
	r.ManifestAs(repo, digest, digest, body)
	return body, digest
}

// ManifestType is the media type of manifests.
const ManifestType = "application/vnd.oci.image.manifest.v1+json"

// ManifestAs adds a manifest under a reference, with any digest in its header.
func (r *Registry) ManifestAs(repo, ref, digest string, body []byte) {
	r.put("/v2/"+repo+"/manifests/"+ref, content{data: body, mediaType: ManifestType, digest: digest})
}

// File adds a plain file.
func (r *Registry) File(path string, data []byte, etag string) {
	r.put(path, content{data: data, mediaType: "application/x-test", etag: etag})
}

// JSON adds a document, with a Link header if link is not empty.
func (r *Registry) JSON(path string, body []byte, link string) {
	r.put(path, content{data: body, mediaType: "application/json", link: link})
}

func (r *Registry) put(path string, c content) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.content[path] = c
}

// Allow lets only requests with one of the Authorization values read a
// repository, or a path of a file. No value: nobody.
func (r *Registry) Allow(repoOrPath string, authorization ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	set := map[string]bool{}
	for _, a := range authorization {
		set[a] = true
	}
	r.allowed[repoOrPath] = set
}

// Stall makes bodies of path stop after n bytes of the content, until Release.
func (r *Registry) Stall(path string, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stalls[path] = &stall{after: n, ended: make(chan struct{})}
}

// Release ends a stall.
func (r *Registry) Release(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.stalls[path]; s != nil {
		close(s.ended)
		delete(r.stalls, path)
	}
}

// SetDown makes every answer have the status; 0 ends that.
func (r *Registry) SetDown(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = status
}

// Hits returns the requests that have been answered, for path if it is not
// empty.
func (r *Registry) Hits(method, path string) []Hit {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Hit
	for _, h := range r.hits {
		if (method == "" || h.Method == method) && (path == "" || h.Path == path) {
			out = append(out, h)
		}
	}
	return out
}

// Sent returns how many bytes of path were sent, counting what is under way.
func (r *Registry) Sent(path string) int64 {
	n := int64(0)
	for _, h := range r.Hits("", path) {
		n += h.Bytes
	}
	return n
}

// ServeHTTP answers one request.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	i := len(r.hits)
	r.hits = append(r.hits, Hit{
		Method: req.Method, Path: req.URL.Path, Query: req.URL.RawQuery, Range: req.Header.Get("Range"), Authorization: req.Header.Get("Authorization"),
	})
	c, found := r.content[req.URL.Path]
	held, down := r.stalls[req.URL.Path], r.down
	admitted := r.admitsLocked(req)
	r.mu.Unlock()

	rec := &recorder{ResponseWriter: w, r: r, hit: i}
	switch {
	case down != 0:
		refuse(rec, down, "UNAVAILABLE")
	case !admitted:
		rec.Header().Set("Www-Authenticate", Challenge)
		refuse(rec, http.StatusUnauthorized, "UNAUTHORIZED")
	case req.URL.Path == "/v2/":
		rec.WriteHeader(http.StatusOK)
	case !found:
		refuse(rec, http.StatusNotFound, "NOT_FOUND")
	default:
		r.send(rec, req, c, held)
	}
}

// admitsLocked reports whether req may read what it names.
func (r *Registry) admitsLocked(req *http.Request) bool {
	name := req.URL.Path
	if rest, ok := strings.CutPrefix(name, "/v2/"); ok {
		for _, part := range []string{"/blobs/", "/manifests/", "/tags/", "/referrers/"} {
			if i := strings.LastIndex(rest, part); i > 0 {
				name = rest[:i]
			}
		}
	}
	set, limited := r.allowed[name]
	return !limited || set[req.Header.Get("Authorization")]
}

func refuse(w http.ResponseWriter, status int, code string) {
	body := fmt.Sprintf(`{"errors":[{"code":%q,"message":"the test registry says so"}]}`, code)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func (r *Registry) send(w http.ResponseWriter, req *http.Request, c content, held *stall) {
	h := w.Header()
	h.Set("Content-Type", c.mediaType)
	for name, v := range map[string]string{"Docker-Content-Digest": c.digest, "Etag": c.etag, "Link": c.link} {
		if v != "" {
			h.Set(name, v)
		}
	}
	http.ServeContent(w, req, "", time.Time{}, &body{Reader: bytes.NewReader(c.data), held: held, ctx: req.Context()})
}

// body is content that may stall.
type body struct {
	*bytes.Reader
	held *stall
	ctx  context.Context //nolint:containedctx // of one request
}

// WriteTo is hidden, or reading would not pass through Read.
func (b *body) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{b}) }

// Read stops where the stall says.
func (b *body) Read(p []byte) (int, error) {
	if b.held == nil {
		return b.Reader.Read(p)
	}
	pos, err := b.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	if left := b.held.after - pos; left > 0 {
		return b.Reader.Read(p[:min(int64(len(p)), left)])
	}
	select {
	case <-b.held.ended:
		return b.Reader.Read(p)
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	}
}

// recorder counts what is sent. It hides ReadFrom, so that every byte is
// flushed and counted as it goes.
type recorder struct {
	http.ResponseWriter
	r   *Registry
	hit int
}

// WriteHeader notes the status.
func (w *recorder) WriteHeader(status int) {
	w.r.mu.Lock()
	w.r.hits[w.hit].Status = status
	w.r.mu.Unlock()
	w.ResponseWriter.WriteHeader(status)
}

// Write notes and sends b.
func (w *recorder) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	w.r.hits[w.hit].Bytes += int64(n)
	return n, err
}
