package preheat

import (
	"errors"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/damselfly-io/damselfly/internal/origin"
)

func TestParseRef(t *testing.T) {
	d := "sha256:" + strings.Repeat("0a", 32)
	up := func(registry string) (string, bool) {
		return map[string]string{"mapped.test": "http://10.1.1.1:5000/prefix", "docker.io": ""}[registry], registry == "mapped.test"
	}
	for _, c := range []struct{ ref, url string }{
		{"alpine", "https://registry-1.docker.io/v2/library/alpine/manifests/latest"},
		{"docker.io/library/alpine:3", "https://registry-1.docker.io/v2/library/alpine/manifests/3"},
		{"org/app:v1", "https://registry-1.docker.io/v2/org/app/manifests/v1"},
		{"ghcr.io/a/b/c:x", "https://ghcr.io/v2/a/b/c/manifests/x"},
		{"ghcr.io/a/b@" + d, "https://ghcr.io/v2/a/b/manifests/" + d},
		{"ghcr.io/a/b:tag@" + d, "https://ghcr.io/v2/a/b/manifests/" + d},
		{"127.0.0.1:5000/app", "http://127.0.0.1:5000/v2/app/manifests/latest"},
		{"localhost:5000/app", "http://localhost:5000/v2/app/manifests/latest"},
		{"[::1]:5000/app", "http://[::1]:5000/v2/app/manifests/latest"},
		{"10.0.0.1:5000/app", "https://10.0.0.1:5000/v2/app/manifests/latest"},
		{"localhost.evil.test/app", "https://localhost.evil.test/v2/app/manifests/latest"},
		{"mapped.test/app:1", "http://10.1.1.1:5000/prefix/v2/app/manifests/1"},
	} {
		got, err := parseRef(c.ref, up)
		if err != nil {
			t.Errorf("%s: %v", c.ref, err)
		} else if u := got.manifestURL(got.reference); u != c.url {
			t.Errorf("%s → %s, want %s", c.ref, u, c.url)
		}
	}
	for _, ref := range []string{
		"", "UPPER/case", "ghcr.io/", "ghcr.io/a:", "a b", "https://ghcr.io/a", "ghcr.io/a@sha256:12",
		"ghcr.io/a@sha512:" + strings.Repeat("0", 128), "ghcr.io/../a", "user:pw@ghcr.io/a", "ghcr.io/a?x=y", "ghcr.io/a:x#y",
	} {
		var bad *InvalidError
		if got, err := parseRef(ref, nil); !errors.As(err, &bad) || bad.Field != "ref" {
			t.Errorf("%q → %v, %v; want an InvalidError about ref", ref, got, err)
		}
	}
}

func TestParseManifestURL(t *testing.T) {
	for raw, want := range map[string]string{
		"https://harbor.test/v2/library/app/manifests/v1":     "https://harbor.test|library/app|v1",
		"http://harbor.test:8080/v2/app/manifests/latest":     "http://harbor.test:8080|app|latest",
		"https://harbor.test/x/v2/app/manifests/latest":       "https://harbor.test/x|app|latest",
		"https://harbor.test/v2/my.org/app/manifests/latest":  "https://harbor.test|my.org/app|latest",
		"https://harbor.test/v2/app/manifests/" + digest("x"): "https://harbor.test|app|" + digest("x"),
		"https://harbor.test/v2/manifests/manifests/latest":   "https://harbor.test|manifests|latest",
		"https://harbor.test/v2/app/manifests/sha256:1234":    "",
		"https://harbor.test/v2/app/manifests/":               "",
		"https://harbor.test/v2/app/manifests/a?b":            "",
		"https://harbor.test/v2/app/manifests/a#b":            "",
		"https://harbor.test/v2/../app/manifests/a":           "",
		"https://harbor.test/v2/App/manifests/a":              "",
		"https://harbor.test/v2/app%2fx/manifests/a":          "",
		"https://user:pw@harbor.test/v2/app/manifests/a":      "",
		"https://harbor.test/library/app":                     "",
		"ftp://harbor.test/v2/app/manifests/a":                "",
		"https:///v2/app/manifests/a":                         "",
		"https://harbor.test:99999/v2/app/manifests/a":        "",
		"": "",
	} {
		got, err := parseManifestURL(raw, nil)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q → %+v, want an error", raw, got)
		case want != "" && (err != nil || got.base+"|"+got.repo+"|"+got.reference != want):
			t.Errorf("%q → %+v, %v; want %s", raw, got, err, want)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"alpine", "ghcr.io/a/b:c", "[::1]:5000/a@" + digest("x"), "a:b:c", "https://h/v2/a/manifests/b", "//", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string, Upstream) (*imageRef, error){parseRef, parseManifestURL} {
			got, err := parse(s, nil)
			if err != nil {
				var bad *InvalidError
				if !errors.As(err, &bad) {
					t.Fatalf("%q: %T %v, want an InvalidError", s, err, err)
				}
				continue
			}
			again, err := parseManifestURL(got.manifestURL(got.reference), nil)
			if err != nil || again.repo != got.repo || again.reference != got.reference {
				t.Fatalf("%q → %+v → %+v, %v", s, got, again, err)
			}
		}
	})
}

func platform(t *testing.T, names ...string) []*v1.Platform {
	t.Helper()
	p, err := parsePlatforms(names)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestResolve(t *testing.T) {
	r := newRegistry(t, "", "")
	both := append(slices.Clone(r.amd64), r.arm64[0], r.arm64[2])
	for _, c := range []struct {
		ref       string
		platforms []string
		digest    string
		want      []string
		images    int
	}{
		{"app:latest", []string{"linux/amd64"}, r.index, r.amd64, 1},
		{"app:latest", []string{"linux/arm64"}, r.index, r.arm64, 1},
		{"app:latest", []string{"linux/arm64/v8"}, r.index, r.arm64, 1},
		{"app:latest", []string{"linux/amd64", "linux/arm64"}, r.index, both, 2},
		{"app:latest", []string{"all"}, r.index, both, 2},
		{"app@" + r.single, []string{"linux/s390x"}, r.single, r.amd64, 1},
	} {
		image, err := parseRef(r.host+"/"+c.ref, nil)
		if err != nil {
			t.Fatal(err)
		}
		found, err := resolve(t.Context(), client(), subject{image: image, platforms: platform(t, c.platforms...)}, origin.Credential{})
		if err != nil {
			t.Errorf("%s for %s: %v", c.ref, c.platforms, err)
			continue
		}
		var got []string
		for _, x := range found.contents {
			got = append(got, string(x.id))
		}
		if found.digest != c.digest || !slices.Equal(got, c.want) || len(found.images) != c.images {
			t.Errorf("%s for %s = %+v, want %s %v, %d images", c.ref, c.platforms, found, c.digest, c.want, c.images)
		}
	}
}

func TestResolveSaysWhatIsMissing(t *testing.T) {
	r := newRegistry(t, "", "")
	layers := r.manifest(func(string) string { return "noblob" }, "application/vnd.oci.image.manifest.v1+json", map[string]any{
		"config": r.blob("application/json", "{}"), "layers": []desc{{MediaType: "x", Digest: "sha512:" + strings.Repeat("0", 128), Size: 1}},
	})
	for ref, want := range map[string]string{
		"app:latest":           "no manifest for platform linux/s390x, only for linux/amd64, linux/arm64/v8",
		"app:none":             "404",
		"app@" + r.shared:      "404",
		"app@" + layers.Digest: "want a sha256 digest",
	} {
		image, err := parseRef(r.host+"/"+ref, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = resolve(t.Context(), client(), subject{image: image, platforms: platform(t, "linux/s390x")}, origin.Credential{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), image.repo) {
			t.Errorf("%s: %v, want an error with %q", ref, err, want)
		}
	}
}
