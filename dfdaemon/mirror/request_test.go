package mirror

import (
	"errors"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/upstream"
)

const sha256Ref = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func parseRaw(t *testing.T, raw string) (request, error) {
	t.Helper()
	u, err := url.ParseRequestURI(raw)
	if err != nil {
		t.Fatal(err)
	}
	return parse(u)
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		raw, registry, path string
	}{
		{"/v2/", "docker.io", "/v2/"},
		{"/v2", "docker.io", "/v2/"},
		{"/v2/?ns=quay.io", "quay.io", "/v2/"},
		{"/v2/library/alpine/manifests/latest", "docker.io", "/v2/library/alpine/manifests/latest"},
		{"/v2/library/alpine/manifests/latest?ns=docker.io", "docker.io", "/v2/library/alpine/manifests/latest"},
		{"/v2/org/app/manifests/v1.2?ns=quay.io", "quay.io", "/v2/org/app/manifests/v1.2"},
		{"/v2/app/manifests/" + sha256Ref + "?ns=127.0.0.1:5000", "127.0.0.1:5000", "/v2/app/manifests/" + sha256Ref},
		{"/v2/a/b/c/blobs/" + sha256Ref + "?ns=%5B::1%5D:5000", "[::1]:5000", "/v2/a/b/c/blobs/" + sha256Ref},
		{"/v2/quay.io/org/app/manifests/v1", "quay.io", "/v2/org/app/manifests/v1"},
		{"/v2/localhost:5000/app/blobs/" + sha256Ref, "localhost:5000", "/v2/app/blobs/" + sha256Ref},
		{"/v2/quay.io/app/manifests/v1?ns=ghcr.io", "ghcr.io", "/v2/quay.io/app/manifests/v1"},
		{"/v2/org/app/tags/list?n=10&last=v1&ns=quay.io", "quay.io", "/v2/org/app/tags/list?last=v1&n=10"},
		{"/v2/org/app/referrers/" + sha256Ref + "?artifactType=application/x", "docker.io", "/v2/org/app/referrers/" + sha256Ref + "?artifactType=application%2Fx"},
		{"/v2/a/manifests/manifests/v1", "docker.io", "/v2/a/manifests/manifests/v1"},
		{"/v2/app/blobs/sha512:abc123", "docker.io", "/v2/app/blobs/sha512:abc123"},
		{"/v2/" + strings.Repeat("a", 255) + "/manifests/v1", "docker.io", "/v2/" + strings.Repeat("a", 255) + "/manifests/v1"},
	} {
		r, err := parseRaw(t, tt.raw)
		if err != nil {
			t.Errorf("parse(%q): %v", tt.raw, err)
			continue
		}
		if r.registry != tt.registry || r.path() != tt.path {
			t.Errorf("parse(%q) = %s %s, want %s %s", tt.raw, r.registry, r.path(), tt.registry, tt.path)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	var bad *badName
	for _, tt := range []struct {
		raw  string
		name bool // a bad name, rather than an unknown path
	}{
		{"/v2/library/../etc/manifests/v1", true},
		{"/v2/library/%2e%2e/manifests/v1", true},
		{"/v2/library%2f..%2fetc/manifests/v1", true},
		{"/v2/./app/manifests/v1", true},
		{"/v2/app/manifests/..", true},
		{"/v2/app/manifests/%2e%2e", true},
		{"/v2/app/manifests/", true},
		{"/v2//app/manifests/v1", true},
		{"/v2/App/manifests/v1", true},
		{"/v2/app/Blobs/" + sha256Ref, false},
		{"/v2/app/blobs/latest", true},
		{"/v2/app/blobs/sha256:../../x", false},
		{"/v2/app/referrers/v1", true},
		{"/v2/" + strings.Repeat("a", 300) + "/manifests/v1", true},
		{"/v2/" + strings.Repeat("a/", 150) + "a/manifests/v1", true},
		{"/v2/app/manifests/" + strings.Repeat("v", 300), true},
		{"/v2/app/manifests/v1?ns=quay.io/evil", true},
		{"/v2/app/manifests/v1?ns=user@quay.io", true},
		{"/v2/app/manifests/v1?ns=http://quay.io", true},
		{"/v2/app/manifests/v1?ns=" + strings.Repeat("a", 300), true},
		{"/v2/a%00b/manifests/v1", true},
		{"/v2/app/manifests/v1%0d%0aX:1", true},
		{"/v2/_catalog", false},
		{"/v2/tags/list", false},
		{"/v2/app/uploads/x", false},
		{"/v1/search", false},
		{"/v2x/app/manifests/v1", false},
		{"/", false},
	} {
		r, err := parseRaw(t, tt.raw)
		if err == nil {
			t.Errorf("parse(%q) = %+v, want an error", tt.raw, r)
			continue
		}
		if errors.As(err, &bad) != tt.name {
			t.Errorf("parse(%q): %v, want a bad name: %v", tt.raw, err, tt.name)
		}
		if len(err.Error()) > 300 {
			t.Errorf("parse(%.40q): an error of %d bytes", tt.raw, len(err.Error()))
		}
	}
}

// FuzzParse checks that what is accepted stays below its repository's path at
// the registry.
func FuzzParse(f *testing.F) {
	for _, raw := range []string{
		"/v2/", "/v2/library/alpine/manifests/latest?ns=docker.io", "/v2/quay.io/org/app/blobs/" + sha256Ref,
		"/v2/a/../b/manifests/v1", "/v2/a%2f..%2fb/tags/list?n=1&last=%2e%2e", "/v2/a/referrers/" + sha256Ref + "?artifactType=x%23y",
		"/v2/a/manifests/..", "/v2/[::1]:5000/a/manifests/v1?ns=", "/v2/a/manifests/v1?ns=a&ns=b#frag",
	} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.ParseRequestURI(raw)
		if err != nil {
			t.Skip()
		}
		r, err := parse(u)
		if err != nil {
			return
		}
		if !upstream.ValidHost(r.registry) {
			t.Fatalf("parse(%q): registry %q", raw, r.registry)
		}
		up, err := url.Parse("http://upstream.test" + r.path())
		if err != nil {
			t.Fatalf("parse(%q): path %q: %v", raw, r.path(), err)
		}
		if up.Host != "upstream.test" || up.Fragment != "" || up.User != nil {
			t.Fatalf("parse(%q): path %q leads elsewhere", raw, r.path())
		}
		if r.kind == "" {
			if up.Path != "/v2/" {
				t.Fatalf("parse(%q): path %q", raw, r.path())
			}
			return
		}
		below := "/v2/" + r.repo + "/"
		if !strings.HasPrefix(up.Path, below) || path.Clean(up.Path) != up.Path || strings.Contains(r.repo, "..") {
			t.Fatalf("parse(%q): path %q is not below %q", raw, up.Path, below)
		}
		if up.Query().Has("ns") {
			t.Fatalf("parse(%q): ns is passed on in %q", raw, r.path())
		}
	})
}

func TestPickTakesOnlyWhatIsNamed(t *testing.T) {
	got := pick(http.Header{"Accept": {"a", "b"}, "Cookie": {"secret"}, "Authorization": {"Bearer x"}}, headersUp)
	if len(got) != 2 || len(got["Accept"]) != 2 || got.Get("Authorization") == "" {
		t.Errorf("pick = %v", got)
	}
}
