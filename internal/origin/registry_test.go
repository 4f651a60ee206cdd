package origin

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// pushBlob stores data in a registry without auth and returns its digest.
func pushBlob(t *testing.T, h http.Handler, repo string, data []byte) string {
	t.Helper()
	srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { h.ServeHTTP(w, r) })
	sum := sha256.Sum256(data)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/v2/"+repo+"/blobs/uploads/?digest="+digest, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	equal(t, "push", resp.StatusCode, http.StatusCreated)
	return digest
}

// A real registry behind the token protocol: parallel ranges of one blob with a
// password from a docker config.
func TestRegistry(t *testing.T) {
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	data := content(1 << 20)
	digest := pushBlob(t, reg, "a/b", data)

	a := &authority{user: "u", password: "p", expiresIn: 60}
	var url string
	guarded := a.guard(func() string { return url + "/token" }, reg)
	srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Path == "/token" {
			a.ServeHTTP(w, r)
			return
		}
		guarded.ServeHTTP(w, r)
	})
	url = srv.URL

	config := filepath.Join(t.TempDir(), "config.json")
	host := strings.TrimPrefix(url, "http://")
	if err := os.WriteFile(config, []byte(`{"auths":{"`+host+`":{"auth":"`+b64("u:p")+`"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, clock := newTestClient(t, Options{Keychain: DockerConfig(config)})
	obj := Object{URL: BlobURL(url, "a/b", digest)}

	info, err := c.Head(t.Context(), obj)
	if err != nil || info.Length != 1<<20 {
		t.Fatalf("Head: %+v, %v", info, err)
	}
	got := make([]byte, len(data))
	const part = 1 << 18
	var wg sync.WaitGroup
	for off := 0; off < len(data); off += part {
		wg.Go(func() {
			b, err := c.Open(t.Context(), obj, int64(off), part)
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Close()
			if _, err := io.ReadFull(b, got[off:off+part]); err != nil || !b.Ranged {
				t.Errorf("at %d: %v, ranged %v", off, err, b.Ranged)
			}
		})
	}
	wg.Wait()
	if !bytes.Equal(got, data) {
		t.Error("content differs")
	}
	mustRead(t, mustOpen(t, c, obj, 0, -1), data) // this registry refuses open ranges
	equal(t, "tokens, one of them refused to the anonymous", a.count(), 2)
	equal(t, "waits", len(clock.slept()), 0)
}
