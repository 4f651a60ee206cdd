package preheat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
)

// testRegistry is a registry with an image for two platforms.
type testRegistry struct {
	t    *testing.T
	url  string
	host string
	user string // asked for, if not empty
	pass string

	index  string // digest of app:latest
	single string // digest of the manifest for amd64 alone
	amd64  []string
	arm64  []string
	shared string // a layer that both platforms have
}

type desc struct {
	MediaType string         `json:"mediaType"`
	Digest    string         `json:"digest"`
	Size      int            `json:"size"`
	URLs      []string       `json:"urls,omitempty"`
	Platform  map[string]any `json:"platform,omitempty"`
}

func newRegistry(t *testing.T, user, pass string) *testRegistry {
	t.Helper()
	r := &testRegistry{t: t}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if u, p, _ := req.BasicAuth(); r.user != "" && (u != r.user || p != r.pass) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, req)
	}))
	t.Cleanup(srv.Close)
	r.url, r.host = srv.URL, strings.TrimPrefix(srv.URL, "http://")
	r.fill()
	r.user, r.pass = user, pass
	return r
}

func (r *testRegistry) fill() {
	layer := "application/vnd.oci.image.layer.v1.tar+gzip"
	shared := r.blob(layer, "a layer that both have")
	r.shared = shared.Digest
	foreign := desc{MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Digest: digest("foreign"), Size: 7, URLs: []string{"https://elsewhere.test/x"}}
	one := func(arch string) (desc, []string) {
		config := r.blob("application/vnd.oci.image.config.v1+json", `{"architecture":"`+arch+`","os":"linux"}`)
		own := r.blob(layer, "a layer of "+arch)
		m := r.manifest(digest, "application/vnd.oci.image.manifest.v1+json", map[string]any{
			"config": config, "layers": []desc{shared, own, foreign, shared},
		})
		m.Platform = map[string]any{"os": "linux", "architecture": arch}
		if arch == "arm64" {
			m.Platform["variant"] = "v8"
		}
		return m, []string{config.Digest, shared.Digest, own.Digest}
	}
	amd, digests := one("amd64")
	r.amd64 = digests
	arm, digests := one("arm64")
	r.arm64 = digests
	attestation := r.manifest(digest, amd.MediaType, map[string]any{"config": r.blob("application/vnd.oci.image.config.v1+json", `{}`), "layers": []desc{}})
	attestation.Platform = map[string]any{"os": "unknown", "architecture": "unknown"}
	r.single = amd.Digest
	r.index = r.manifest(func(string) string { return "latest" }, "application/vnd.oci.image.index.v1+json", map[string]any{
		"manifests": []desc{amd, arm, attestation},
	}).Digest
}

func digest(s string) string { return string(task.BlobID(sha256.Sum256([]byte(s)))) }

func (r *testRegistry) blob(mediaType, content string) desc {
	r.put("POST", "/v2/app/blobs/uploads/?digest="+digest(content), mediaType, []byte(content))
	return desc{MediaType: mediaType, Digest: digest(content), Size: len(content)}
}

func (r *testRegistry) manifest(name func(content string) string, mediaType string, doc map[string]any) desc {
	doc["schemaVersion"], doc["mediaType"] = 2, mediaType
	b, err := json.Marshal(doc)
	if err != nil {
		r.t.Fatal(err)
	}
	r.put("PUT", "/v2/app/manifests/"+name(string(b)), mediaType, b)
	return desc{MediaType: mediaType, Digest: digest(string(b)), Size: len(b)}
}

func (r *testRegistry) put(method, path, mediaType string, content []byte) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, r.url+path, bytes.NewReader(content))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		r.t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

// client reads from the registry without retries.
func client() *origin.Client { return origin.New(origin.Options{MaxAttempts: 1}) }

// fromOrigin gives a bench a real origin for manifests and blobs.
func fromOrigin(o *Options) {
	c := client()
	o.Origin = c
	if cache, ok := o.Cache.(*fakeCache); ok {
		cache.origin = c
	}
}
