package objectserver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
)

// do returns an answer whose body has been read and closed, and the body.
func do(t *testing.T, method, url, byteRange string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

func TestServer(t *testing.T) {
	const size = 3<<20 + 7
	dir := t.TempDir()
	digest, err := WriteObject(dir, 42, size)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := WriteObject(t.TempDir(), 42, size); err != nil || again != digest {
		t.Errorf("the same seed gave %s and %s (%v)", digest, again, err)
	}
	s := New(dir)
	srv := httptest.NewServer(s)
	defer srv.Close()
	before := s.Stats()

	if resp, _ := do(t, "GET", srv.URL+"/v2/", ""); resp.StatusCode != http.StatusOK { //nolint:bodyclose // do has closed it
		t.Errorf("ping: %s", resp.Status)
	}
	resp, body := do(t, "GET", srv.URL+"/v2/bench/blobs/"+digest, "") //nolint:bodyclose // do has closed it
	if sum := sha256.Sum256(body); "sha256:"+hex.EncodeToString(sum[:]) != digest || resp.StatusCode != http.StatusOK {
		t.Errorf("blob: %s, %d bytes", resp.Status, len(body))
	}
	if resp, _ := do(t, "HEAD", srv.URL+"/v2/bench/blobs/"+digest, ""); resp.ContentLength != size { //nolint:bodyclose // do has closed it
		t.Errorf("HEAD: length %d", resp.ContentLength)
	}
	if resp, part := do(t, "GET", srv.URL+"/files/"+digest, "bytes=10-19"); resp.StatusCode != http.StatusPartialContent || string(part) != string(body[10:20]) { //nolint:bodyclose // do has closed it
		t.Errorf("range: %s, %d bytes", resp.Status, len(part))
	}
	for _, path := range []string{"/files/../secret", "/v2/bench/blobs/sha256:00", "/v2/x/manifests/" + digest, "/"} {
		if resp, _ := do(t, "GET", srv.URL+path, ""); resp.StatusCode != http.StatusNotFound { //nolint:bodyclose // do has closed it
			t.Errorf("%s: %s", path, resp.Status)
		}
	}

	_, text := do(t, "GET", srv.URL+"/stats", "") //nolint:bodyclose // do has closed it
	var got Stats
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	got = got.Sub(before)
	if want := map[string]int64{"ping": 1, "blob": 1, "blob-head": 1, "file": 1, "other": 4}; !maps.Equal(got.Requests, want) {
		t.Errorf("requests %v, want %v", got.Requests, want)
	}
	if got.Bytes["blob"] != size || got.Bytes["file"] != 10 || got.Bytes["blob-head"] != 0 {
		t.Errorf("bytes %v", got.Bytes)
	}
}
