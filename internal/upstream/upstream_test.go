package upstream_test

import (
	"testing"

	"github.com/damselfly-io/damselfly/internal/upstream"
)

func TestParse(t *testing.T) {
	r, err := upstream.Parse([]string{
		"docker.io", "quay.io", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "10.0.0.1:5000",
		"ghcr.io=https://cache.internal/ghcr/", "plain.test=http://plain.test:8080",
	})
	if err != nil {
		t.Fatal(err)
	}
	for registry, want := range map[string]string{
		"docker.io": "https://registry-1.docker.io", "quay.io": "https://quay.io",
		"localhost:5000": "http://localhost:5000", "127.0.0.1:5000": "http://127.0.0.1:5000", "[::1]:5000": "http://[::1]:5000",
		"10.0.0.1:5000": "https://10.0.0.1:5000", "ghcr.io": "https://cache.internal/ghcr", "plain.test": "http://plain.test:8080",
	} {
		if got, ok := r.Of(registry); !ok || got != want {
			t.Errorf("Of(%q) = %q, %v, want %q", registry, got, ok, want)
		}
	}
	if base, ok := r.Of("evil.test"); ok {
		t.Errorf("Of a registry that is not listed is %q", base)
	}
	for _, entry := range []string{
		"", "=http://x", "a/b", "https://quay.io", "quay.io=", "quay.io=ftp://x", "quay.io=//x", "quay.io=http://", "quay.io=http://u:p@x", "quay.io=http://x?y=1", "a b", "*",
	} {
		if _, err := upstream.Parse([]string{entry}); err == nil {
			t.Errorf("Parse(%q) gave no error", entry)
		}
	}
}
