package mirror_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/dfdaemon/grant"
	"github.com/damselfly-io/damselfly/dfdaemon/internal/enginetest"
	"github.com/damselfly-io/damselfly/dfdaemon/mirror"
	"github.com/damselfly-io/damselfly/dfdaemon/swarm"
	"github.com/damselfly-io/damselfly/internal/e2e/registrytest"
	"github.com/damselfly-io/damselfly/internal/upstream"
)

// exchanger answers like a supernode's, or is unreachable.
type exchanger struct {
	mu  sync.Mutex
	err error
}

func (e *exchanger) Exchange(context.Context, *apiv1.ExchangeRequest) (*apiv1.ExchangeResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return nil, e.err
}

// clock is a time that the test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// site is a mirror before a registry, without a supernode.
type site struct {
	*httptest.Server
	t        *testing.T
	reg      *registrytest.Registry
	node     *enginetest.Node
	exchange *exchanger
	clock    *clock
	dir      string
}

const authTTL = time.Minute

// linger lets a download end only when it is complete.
func linger(o *engine.Options) { o.Linger = time.Hour }

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, reg: registrytest.New(t), dir: t.TempDir(), exchange: &exchanger{err: swarm.ErrUnreachable}, clock: &clock{now: time.Now()}}
	s.node = enginetest.New(t, enginetest.Options{Dir: filepath.Join(s.dir, "cache"), Engine: linger})
	s.open()
	return s
}

// open starts the mirror, with the grants that are on disk.
func (s *site) open() {
	s.t.Helper()
	grants, err := grant.Open(filepath.Join(s.dir, "grants"), time.Hour, s.clock.Now)
	if err != nil {
		s.t.Fatal(err)
	}
	registries, err := upstream.Parse([]string{"reg.test=" + s.reg.URL, s.reg.Host()})
	if err != nil {
		s.t.Fatal(err)
	}
	m := mirror.New(mirror.Options{
		Engine: s.node.Engine, Exchange: s.exchange, Origin: s.node.Origin, Registries: registries, Grants: grants, Now: s.clock.Now, AuthTTL: authTTL,
	})
	srv := httptest.NewServer(m)
	s.Server = srv
	s.t.Cleanup(func() {
		s.node.Stop()
		srv.CloseClientConnections()
		srv.Close()
	})
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // of reading the body
}

// get asks for path with headers given as name, value.
func (s *site) get(path string, header ...string) answer {
	return s.do(http.MethodGet, path, header...)
}

func (s *site) do(method, path string, header ...string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, a.err = io.ReadAll(resp.Body)
	return a
}

func (s *site) want(a answer, status int, contains string) {
	s.t.Helper()
	if a.err != nil || a.status != status || !strings.Contains(string(a.body), contains) {
		s.t.Errorf("status %d, error %v, body %.300q; want %d with %q", a.status, a.err, a.body, status, contains)
	}
}

const ns = "?ns=reg.test"

func TestRefusals(t *testing.T) {
	s := newSite(t)
	s.want(s.get("/v2/app/manifests/v1?ns=evil.test"), 403, "--allow-registry evil.test")
	s.want(s.get("/v2/app/manifests/v1"), 403, "--allow-registry docker.io")
	s.want(s.get("/v2/?ns=evil.test"), 403, "--allow-registry evil.test")
	s.want(s.get("/v2/App/manifests/v1"+ns), 400, "NAME_INVALID")
	s.want(s.get("/v2/_catalog"+ns), 404, "UNSUPPORTED")
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		s.want(s.do(method, "/v2/app/blobs/uploads/"+ns), 405, "only GET and HEAD")
	}
	if n := len(s.reg.Hits("", "")); n != 0 {
		t.Errorf("%d requests reached the registry", n)
	}
}

func TestManifests(t *testing.T) {
	s := newSite(t)
	body, digest := s.reg.Manifest("org/app", "v1")
	for _, path := range []string{"/v2/org/app/manifests/v1" + ns, "/v2/org/app/manifests/" + digest + ns, "/v2/" + s.reg.Host() + "/org/app/manifests/v1"} {
		a := s.get(path)
		if a.status != 200 || !bytes.Equal(a.body, body) || a.header.Get("Docker-Content-Digest") != digest || a.header.Get("Content-Type") != registrytest.ManifestType {
			t.Errorf("GET %s: %d %v %.100q", path, a.status, a.header, a.body)
		}
		a = s.do("HEAD", path)
		if a.status != 200 || len(a.body) != 0 || a.header.Get("Content-Length") != fmt.Sprint(len(body)) || a.header.Get("Docker-Content-Digest") != digest {
			t.Errorf("HEAD %s: %d %v", path, a.status, a.header)
		}
	}
	s.want(s.get("/v2/org/app/manifests/v2"+ns), 404, "NOT_FOUND")
	for _, path := range []string{"/v2/" + ns, "/v2/", "/v2"} { // no registry named: a mirror is here all the same
		if a := s.get(path); a.status != 200 {
			t.Errorf("GET %s: %d", path, a.status)
		}
	}
}

func TestManifestWithAnotherDigestIsRefused(t *testing.T) {
	s := newSite(t)
	want := registrytest.Digest([]byte("right"))
	s.reg.ManifestAs("org/app", want, want, []byte("wrong"))
	s.reg.ManifestAs("org/app", "v1", want, []byte("wrong"))
	s.reg.ManifestAs("org/app", "empty", want, nil)
	empty := registrytest.Digest([]byte("not empty"))
	s.reg.ManifestAs("org/app", empty, "", nil)
	s.reg.ManifestAs("org/app", "huge", "", make([]byte, 9<<20))
	for _, ref := range []string{want, "v1", "empty", empty, "huge"} {
		s.want(s.get("/v2/org/app/manifests/"+ref+ns), 502, "MANIFEST_INVALID")
	}
}

func TestChallengePassesThrough(t *testing.T) {
	s := newSite(t)
	_, digest := s.reg.Manifest("org/private", "v1")
	blob := s.reg.Blob("org/private", registrytest.Random(1000, 1))
	s.reg.Allow("org/private", "Bearer good")
	for _, path := range []string{"/manifests/v1", "/manifests/" + digest, "/blobs/" + blob, "/tags/list"} {
		for _, cred := range []string{"", "Bearer bad"} {
			a := s.get("/v2/org/private"+path+ns, "Authorization", cred)
			if a.status != 401 || a.header.Get("Www-Authenticate") != registrytest.Challenge {
				t.Errorf("GET %s with %q: %d %v", path, cred, a.status, a.header)
			}
		}
	}
	if a := s.get("/v2/org/private/manifests/v1"+ns, "Authorization", "Bearer good"); a.status != 200 {
		t.Errorf("with a good token: %d %s", a.status, a.body)
	}
}

func TestTagsAndReferrersPassThrough(t *testing.T) {
	s := newSite(t)
	s.reg.JSON("/v2/org/app/tags/list", []byte(`{"tags":["v1"]}`), `</v2/org/app/tags/list?last=v1>; rel="next"`)
	ref := "/v2/org/app/referrers/" + registrytest.Digest(nil)
	s.reg.JSON(ref, []byte(`{"manifests":[]}`), "")
	a := s.get("/v2/org/app/tags/list?n=1&ns=reg.test")
	s.want(a, 200, `["v1"]`)
	if !strings.Contains(a.header.Get("Link"), "rel=") {
		t.Errorf("the Link header is lost: %v", a.header)
	}
	if h := s.reg.Hits("GET", "/v2/org/app/tags/list"); len(h) != 1 || h[0].Query != "n=1" {
		t.Errorf("the registry was asked %+v", h)
	}
	s.want(s.get(ref+"?artifactType=x&ns=reg.test"), 200, "manifests")
}

func TestBlobAndItsRanges(t *testing.T) {
	s := newSite(t)
	data := registrytest.Random(300_000, 2)
	digest := s.reg.Blob("org/app", data)
	path := "/v2/org/app/blobs/" + digest + ns
	size := len(data)
	for _, tt := range []struct {
		name, header string
		status       int
		from, to     int // of the body
		contentRange string
	}{
		{"a range first", "bytes=100000-199999", 206, 100_000, 200_000, "bytes 100000-199999/300000"},
		{"whole", "", 200, 0, size, ""},
		{"first byte", "bytes=0-0", 206, 0, 1, "bytes 0-0/300000"},
		{"to the end", "bytes=299000-", 206, 299_000, size, "bytes 299000-299999/300000"},
		{"beyond the end", "bytes=299000-400000", 206, 299_000, size, "bytes 299000-299999/300000"},
		{"suffix", "bytes=-500", 206, size - 500, size, "bytes 299500-299999/300000"},
		{"long suffix", "bytes=-900000", 206, 0, size, "bytes 0-299999/300000"},
		{"several ranges", "bytes=0-1,5-6", 200, 0, size, ""},
		{"malformed", "bytes=x-y", 200, 0, size, ""},
	} {
		a := s.get(path, "Range", tt.header)
		if a.err != nil || a.status != tt.status || !bytes.Equal(a.body, data[tt.from:tt.to]) || a.header.Get("Content-Range") != tt.contentRange {
			t.Errorf("%s: status %d, %d bytes, Content-Range %q, error %v", tt.name, a.status, len(a.body), a.header.Get("Content-Range"), a.err)
		}
		if a.header.Get("Docker-Content-Digest") != digest || a.header.Get("Accept-Ranges") != "bytes" {
			t.Errorf("%s: header %v", tt.name, a.header)
		}
	}
	a := s.get(path, "Range", "bytes=300000-")
	if a.status != 416 || a.header.Get("Content-Range") != "bytes */300000" {
		t.Errorf("beyond the end: %d %v", a.status, a.header)
	}
	if a := s.do("HEAD", path); a.status != 200 || a.header.Get("Content-Length") != "300000" {
		t.Errorf("HEAD: %d %v", a.status, a.header)
	}
}

func TestEmptyBlob(t *testing.T) {
	s := newSite(t)
	digest := s.reg.Blob("org/app", nil)
	for range 2 {
		if a := s.get("/v2/org/app/blobs/" + digest + ns); a.err != nil || a.status != 200 || len(a.body) != 0 || a.header.Get("Content-Length") != "0" {
			t.Errorf("status %d, error %v, %q %v", a.status, a.err, a.body, a.header)
		}
	}
}

func TestBlobWithAnotherDigestAlgorithmPassesThrough(t *testing.T) {
	s := newSite(t)
	data := registrytest.Random(9<<20, 3) // more than is held in memory
	ref := "sha512:" + strings.Repeat("ab", 64)
	s.reg.BlobAs("org/app", ref, data)
	path := "/v2/org/app/blobs/" + ref + ns
	if a := s.get(path); a.err != nil || a.status != 200 || !bytes.Equal(a.body, data) {
		t.Errorf("status %d, %d bytes, error %v", a.status, len(a.body), a.err)
	}
	a := s.get(path, "Range", "bytes=10-19")
	if a.status != 206 || !bytes.Equal(a.body, data[10:20]) || a.header.Get("Content-Range") != fmt.Sprintf("bytes 10-19/%d", len(data)) {
		t.Errorf("a range: status %d, %d bytes, %v", a.status, len(a.body), a.header)
	}
	if n := len(s.node.Store.List()); n != 0 {
		t.Errorf("%d tasks in the store", n)
	}
}

func TestWrongDigestNeverGivesACompleteBody(t *testing.T) {
	for _, size := range []int{1000, 1 << 20} {
		s := newSite(t)
		data := registrytest.Random(size, 4)
		ref := registrytest.Digest([]byte("something else"))
		s.reg.BlobAs("org/app", ref, data)
		a := s.get("/v2/org/app/blobs/" + ref + ns)
		if a.err == nil && a.status == 200 {
			t.Errorf("%d bytes of wrong content were served as a complete body", len(a.body))
		}
		if size == 1000 && a.status != 502 && a.status != 503 {
			t.Errorf("status %d, want 502 or 503", a.status)
		}
		s.node.Close()
		for _, info := range s.node.Store.List() {
			if info.HeldPieces > 0 || info.Complete {
				t.Errorf("wrong content is kept: %+v", info)
			}
		}
	}
}

func TestFullStoreIsToldToTheClient(t *testing.T) {
	s := newSite(t)
	tight := enginetest.New(t, enginetest.Options{Store: smallStore})
	s.node = tight
	s.open()
	digest := s.reg.Blob("org/app", registrytest.Random(200_000, 5))
	a := s.get("/v2/org/app/blobs/" + digest + ns)
	if a.status != http.StatusInsufficientStorage || !strings.Contains(string(a.body), "full") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func TestNoTokenReachesTheDisk(t *testing.T) {
	s := newSite(t)
	const token = "Bearer s3cr3t-token-value"
	data := registrytest.Random(100_000, 6)
	digest := s.reg.Blob("org/private", data)
	s.reg.Manifest("org/private", "v1", digest)
	s.reg.Allow("org/private", token)
	for _, path := range []string{"/manifests/v1", "/blobs/" + digest} {
		if a := s.get("/v2/org/private"+path+ns, "Authorization", token); a.status != 200 {
			t.Fatalf("GET %s: %d %s", path, a.status, a.body)
		}
	}
	files := 0
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("s3cr3t")) {
			t.Errorf("%s holds the token", path)
		}
		return err
	})
	if err != nil || files < 3 {
		t.Errorf("walked %d files: %v", files, err)
	}
}

func TestSupernodeThatCannotReachTheRegistry(t *testing.T) {
	s := newSite(t)
	s.exchange.err = status.Error(codes.FailedPrecondition, "dial tcp: no route to host")
	a := s.get("/v2/org/app/manifests/v1" + ns)
	s.want(a, 503, "no route to host")
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

func TestLargeAnswerIsReadFromTheRegistryItself(t *testing.T) {
	s := newSite(t)
	s.exchange.err = status.Error(codes.ResourceExhausted, "too large")
	body, _ := s.reg.Manifest("org/app", "v1")
	if a := s.get("/v2/org/app/manifests/v1" + ns); a.status != 200 || !bytes.Equal(a.body, body) {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

// containerd asks where a tag leads with a HEAD and fetches by digest.
func TestTagOfContainerdIsServedWhileTheRegistryIsDown(t *testing.T) {
	s := newSite(t)
	_, digest := s.reg.Manifest("org/app", "v1")
	tag := "/v2/org/app/manifests/v1" + ns
	if a := s.do("HEAD", tag); a.status != 200 {
		t.Fatalf("HEAD: %d", a.status)
	}
	if a := s.get("/v2/org/app/manifests/" + digest + ns); a.status != 200 {
		t.Fatalf("GET by digest: %d", a.status)
	}
	s.reg.SetDown(503)
	s.clock.Add(2 * authTTL)
	if a := s.do("HEAD", tag); a.status != 200 || a.header.Get("Docker-Content-Digest") != digest {
		t.Errorf("HEAD while the registry is down: %d %v", a.status, a.header)
	}
}
