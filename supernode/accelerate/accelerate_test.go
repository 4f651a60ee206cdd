package accelerate

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
)

func TestPatterns(t *testing.T) {
	all, err := parsePatterns([]string{"registry.local/team/*", "registry.local:5000/app", "nginx.local/*", "docker.io/nginx", "index.docker.io/org/*"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		host, repo string
		want       bool
	}{
		{"registry.local", "team/app", true},
		{"REGISTRY.local", "team/a/b", true},
		{"registry.local", "team", false},
		{"registry.local", "teams/app", false},
		{"registry.local:5000", "team/app", false},
		{"registry.local:5000", "app", true},
		{"registry.local:5000", "app/x", false},
		{"nginx.local", "anything/at/all", true},
		{"registry-1.docker.io", "library/nginx", true},
		{"docker.io", "library/redis", false},
		{"docker.io", "org/app", true},
	} {
		got := false
		for _, p := range all {
			got = got || p.matches(c.host, c.repo)
		}
		if got != c.want {
			t.Errorf("%s/%s is covered: %v", c.host, c.repo, got)
		}
	}
	for _, bad := range []string{"", "registry.local", "/x", "registry.local/", "*", "registry.local/a*", "registry.local/*/b", "https://registry.local/x", "registry.local/x:v1", "registry.local/X"} {
		if p, err := parsePatterns([]string{bad}); err == nil {
			t.Errorf("%q is taken as %+v", bad, p)
		}
	}
}

func TestParseTarget(t *testing.T) {
	d := "sha256:" + digest.FromString("x").Encoded()
	for raw, want := range map[string]target{
		"https://r.test/v2/a/b/manifests/v1":                     {place: place{"https://r.test", "a/b"}, kind: "manifests", reference: "v1"},
		"http://r.test:5000/prefix/v2/a/blobs/" + d:              {place: place{"http://r.test:5000/prefix", "a"}, kind: "blobs", reference: d},
		"https://r.test/v2/a/referrers/" + d + "?artifactType=x": {place: place{"https://r.test", "a"}, kind: "referrers", reference: d},
		"https://r.test/v2/a/tags/list":                          {},
		"https://r.test/v2/":                                     {},
		"https://r.test/other":                                   {},
		"/v2/a/manifests/v1":                                     {},
		"https://r.test/v2/a%2fb/manifests/v1":                   {},
		"://":                                                    {},
	} {
		got, ok := parseTarget(raw)
		if ok != (want.kind != "") || ok && (got.place != want.place || got.kind != want.kind || got.reference != want.reference) {
			t.Errorf("%s: %+v, %v", raw, got, ok)
		}
		if ok && got.kind == "blobs" && got.blobURL("sha256:x") != "http://r.test:5000/prefix/v2/a/blobs/sha256:x" {
			t.Errorf("%s: a blob is at %s", raw, got.blobURL("sha256:x"))
		}
	}
	if got, _ := parseTarget("https://r.test/v2/a/referrers/" + d + "?artifactType=x"); got.query.Get("artifactType") != "x" {
		t.Errorf("%+v", got.query)
	}
}

func FuzzParseTarget(f *testing.F) {
	f.Add("https://r.test/v2/a/b/manifests/v1")
	f.Add("http://r.test/p/v2/a/referrers/sha256:00?artifactType=x")
	f.Fuzz(func(t *testing.T, raw string) {
		got, ok := parseTarget(raw)
		if ok && (got.repo == "" && got.kind == "" || got.reference == "" || got.base == "") {
			t.Errorf("%q: %+v", raw, got)
		}
	})
}

func TestBombsEndBeforeTheDiskIsFull(t *testing.T) {
	reg := indextest.NewRegistry(t, true)
	ref, err := image.Parse(reg.Put("app:v1", indextest.Image(t, "amd64", indextest.Files{"a": indextest.Noise(1, 3<<20)})))
	if err != nil {
		t.Fatal(err)
	}
	src, err := image.Open(t.Context(), ref, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	key, err := trust.Generate()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Memory: 64 << 20}
	o.setDefaults()
	for limit, fits := range map[int64]bool{1 << 20: false, 8 << 20: true} {
		c := &conversion{a: &Accelerator{o: o, key: key}, dir: t.TempDir()}
		_, err = c.build(t.Context(), src, limit)
		if fits != (err == nil) || !fits && !errors.Is(err, errTooLarge) {
			t.Errorf("limit of %d: %v", limit, err)
		}
		left, err := os.ReadDir(filepath.Join(c.dir, "blobs"))
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}
