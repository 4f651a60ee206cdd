package mirror_test

import (
	"bytes"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/dfdaemon/internal/enginetest"
	"github.com/damselfly-io/damselfly/internal/e2e/registrytest"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

func smallStore(o *piecestore.Options) { o.Limit = 10_000 }

const (
	good = "Bearer good"
	bad  = "Bearer bad"
)

// private adds a blob that only the good token may read.
func private(s *site, size int) (data []byte, digest, path string) {
	data = registrytest.Random(size, uint64(size))
	digest = s.reg.Blob("org/private", data)
	s.reg.Allow("org/private", good)
	return data, digest, "/v2/org/private/blobs/" + digest + ns
}

// mustBeRefused fails if a client without permission got anything but the
// registry's refusal.
func mustBeRefused(t *testing.T, a answer, data []byte) {
	t.Helper()
	if a.status != http.StatusUnauthorized || a.header.Get("Www-Authenticate") != registrytest.Challenge {
		t.Errorf("status %d, header %v, want the registry's 401", a.status, a.header)
	}
	if len(a.body) > 1000 || bytes.Contains(a.body, data[:16]) {
		t.Errorf("a client without permission got %d bytes", len(a.body))
	}
}

func TestCachedBlobOnlyForThoseWithPermission(t *testing.T) {
	s := newSite(t)
	data, _, path := private(s, 200_000)
	if a := s.get(path, "Authorization", good); a.status != 200 || !bytes.Equal(a.body, data) {
		t.Fatalf("with permission: %d", a.status)
	}
	for _, cred := range []string{bad, "", "Basic Z29vZDpnb29k"} {
		mustBeRefused(t, s.get(path, "Authorization", cred), data)
		mustBeRefused(t, s.get(path, "Authorization", cred, "Range", "bytes=0-99"), data)
	}
}

func TestBlobUnderWayOnlyForThoseWithPermission(t *testing.T) {
	s := newSite(t)
	data, digest, path := private(s, 500_000)
	upstream := registrytest.BlobPath("org/private", digest)
	s.reg.Stall(upstream, 300_000)
	first := make(chan answer, 1)
	go func() { first <- s.get(path, "Authorization", good) }()
	testenv.Eventually(t, func() bool { return s.reg.Sent(upstream) >= 300_000 }, "the first download to be under way")
	for _, cred := range []string{bad, ""} {
		mustBeRefused(t, s.get(path, "Authorization", cred), data)
	}
	s.reg.Release(upstream)
	// Neither may the one without permission have harmed the one with it.
	if a := <-first; a.err != nil || a.status != 200 || !bytes.Equal(a.body, data) {
		t.Errorf("the first client: %d, %d bytes, %v", a.status, len(a.body), a.err)
	}
}

// TestPermissionAtTheMomentOfCompletion asks again and again without permission
// while downloads complete.
func TestPermissionAtTheMomentOfCompletion(t *testing.T) {
	s := newSite(t)
	for round := range 15 {
		data, _, path := private(s, 100_000+round)
		var clients sync.WaitGroup
		done := make(chan struct{})
		for range 3 {
			clients.Go(func() {
				for {
					mustBeRefused(t, s.get(path, "Authorization", bad), data)
					select {
					case <-done:
						return
					default:
					}
				}
			})
		}
		a := s.get(path, "Authorization", good)
		for i := 0; a.status == 401 && i < 100; i++ { // it shared a bad client's request
			a = s.get(path, "Authorization", good)
		}
		close(done)
		clients.Wait()
		if a.err != nil || a.status != 200 || !bytes.Equal(a.body, data) {
			t.Fatalf("round %d, with permission: %d, %d bytes, %v: %s", round, a.status, len(a.body), a.err, a.body[:min(200, len(a.body))])
		}
	}
}

func TestYesToACredentialCountsForAuthTTLHoweverOftenItIsUsed(t *testing.T) {
	s := newSite(t)
	data, digest, path := private(s, 100_000)
	if a := s.get(path, "Authorization", good); a.status != 200 {
		t.Fatalf("with permission: %d", a.status)
	}
	s.reg.Allow("org/private") // the token is revoked
	s.clock.Add(authTTL / 2)
	if a := s.get(path, "Authorization", good); a.status != 200 {
		t.Errorf("within AuthTTL: %d", a.status)
	}
	s.clock.Add(authTTL/2 + time.Second)
	mustBeRefused(t, s.get(path, "Authorization", good), data)
	if n := len(s.reg.Hits("HEAD", registrytest.BlobPath("org/private", digest))); n != 1 {
		t.Errorf("the registry was asked %d times, want once", n)
	}
}

func TestYesForOneRepositorySaysNothingAboutAnother(t *testing.T) {
	s := newSite(t)
	data, digest, path := private(s, 100_000)
	if a := s.get(path, "Authorization", good); a.status != 200 {
		t.Fatalf("with permission: %d", a.status)
	}
	// A client that may read another repository asks for the blob there.
	s.reg.Manifest("org/public", "v1")
	if a := s.get("/v2/org/public/manifests/v1" + ns); a.status != 200 {
		t.Fatalf("public manifest: %d", a.status)
	}
	mustBeRefused(t, s.get(path), data)
	_ = digest
}

func TestRegistryDown(t *testing.T) {
	s := newSite(t)
	data := registrytest.Random(100_000, 7)
	layer := s.reg.Blob("org/app", data)
	other := s.reg.Blob("org/app", registrytest.Random(1000, 8))
	body, digest := s.reg.Manifest("org/app", "v1", layer)
	s.reg.Allow("org/app", good)
	for _, path := range []string{"/manifests/v1", "/blobs/" + layer, "/blobs/" + other} {
		if a := s.get("/v2/org/app"+path+ns, "Authorization", good); a.status != 200 {
			t.Fatalf("GET %s: %d", path, a.status)
		}
	}
	s.reg.SetDown(503)
	s.clock.Add(2 * authTTL)

	for _, ref := range []string{"v1", digest} {
		a := s.get("/v2/org/app/manifests/"+ref+ns, "Authorization", good)
		if a.status != 200 || !bytes.Equal(a.body, body) || a.header.Get("Docker-Content-Digest") != digest {
			t.Errorf("a granted manifest: %d %.100q", a.status, a.body)
		}
		if a := s.do("HEAD", "/v2/org/app/manifests/"+ref+ns, "Authorization", good); a.status != 200 || len(a.body) != 0 {
			t.Errorf("HEAD of a granted manifest: %d", a.status)
		}
		s.want(s.get("/v2/org/app/manifests/"+ref+ns, "Authorization", bad), 503, "")
		s.want(s.get("/v2/org/app/manifests/"+ref+ns), 503, "")
	}
	if a := s.get("/v2/org/app/blobs/"+layer+ns, "Authorization", good); a.status != 200 || !bytes.Equal(a.body, data) {
		t.Errorf("a granted blob: %d", a.status)
	}
	s.want(s.get("/v2/org/app/blobs/"+layer+ns, "Authorization", bad), 503, "")
	s.want(s.get("/v2/org/app/blobs/"+other+ns, "Authorization", good), 503, "") // here, but not granted
	s.want(s.get("/v2/org/app/manifests/v2"+ns, "Authorization", good), 503, "")

	// After a restart the grants of tokens serve no client of the mirror.
	s.open()
	s.want(s.get("/v2/org/app/manifests/v1"+ns, "Authorization", good), 503, "")
}

func TestAnonymousGrantSurvivesARestartWithTheRegistryDown(t *testing.T) {
	s := newSite(t)
	data := registrytest.Random(50_000, 9)
	layer := s.reg.Blob("org/app", data)
	body, _ := s.reg.Manifest("org/app", "v1", layer)
	s.get("/v2/org/app/manifests/v1" + ns)
	s.get("/v2/org/app/blobs/" + layer + ns)
	s.node.Close()
	if err := s.node.Store.Close(); err != nil {
		t.Fatal(err)
	}

	s.reg.CloseClientConnections()
	_ = s.reg.Listener.Close()
	s.node = enginetest.New(t, enginetest.Options{Dir: filepath.Join(s.dir, "cache")})
	s.open()
	if a := s.get("/v2/org/app/manifests/v1" + ns); a.status != 200 || !bytes.Equal(a.body, body) {
		t.Errorf("the manifest: %d %s", a.status, a.body)
	}
	if a := s.get("/v2/org/app/blobs/" + layer + ns); a.status != 200 || !bytes.Equal(a.body, data) {
		t.Errorf("the blob: %d", a.status)
	}
	if a := s.get("/v2/" + ns); a.status != 200 {
		t.Errorf("/v2/: %d", a.status)
	}
}
