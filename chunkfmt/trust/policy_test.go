package trust_test

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt/trust"
)

func TestUnsigned(t *testing.T) {
	for _, tt := range []struct {
		pattern  string
		yes, not string // words
	}{
		{"registry.local/dev/*", "registry.local/dev/app registry.local/dev/a/b Registry.LOCAL/dev/app",
			"registry.local/dev registry.local/developer registry.local/developer/app registry.local:5000/dev/app registry.local/x/dev/app evil-registry.local/dev/app " +
				"registry.local/dev/ registry.local/dev/../prod/app registry.local/dev//app registry.local/dev/App registry.local/dev/app:v1 registry.local/dev/app@sha256:00 http://registry.local/dev/app registry.local dev/app"},
		{"registry.local/dev", "registry.local/dev", "registry.local/dev/app registry.local/developer registry.local/de"},
		{"registry.local:5000/dev", "registry.local:5000/dev", "registry.local/dev registry.local:500/dev registry.local:50000/dev"},
		{"registry.local/*", "registry.local/a registry.local/a/b", "registry.local registry.local/ registry.locals/a registry.local:5000/a"},
		{"localhost/a", "localhost/a", "a localhosts/a"},
		{"[::1]:5000/a/*", "[::1]:5000/a/b", "[::1]/a/b"},
		{"docker.io/nginx", "docker.io/nginx docker.io/library/nginx index.docker.io/library/nginx registry-1.docker.io/library/nginx", "docker.io/me/nginx nginx library/nginx"},
		{"index.docker.io/library/*", "docker.io/nginx docker.io/library/nginx", "docker.io/me/nginx"},
		{"docker.io/me/*", "docker.io/me/app", "docker.io/me docker.io/library/me"},
		{"r.io/a--b__c.d/*", "r.io/a--b__c.d/e_f", "r.io/a--b__c.d/e___f r.io/a--b__c_d/e"},
	} {
		p := policy(t, []string{"other.example/x", tt.pattern})
		for _, r := range strings.Fields(tt.yes) {
			if !p.Unsigned(r) {
				t.Errorf("%s does not match %s", tt.pattern, r)
			}
		}
		for _, r := range append(strings.Fields(tt.not), "", "/", strings.Repeat("a", 600)) {
			if p.Unsigned(r) {
				t.Errorf("%s matches %s", tt.pattern, r)
			}
		}
	}
}

func TestPatternErrors(t *testing.T) {
	for pattern, want := range map[string]string{
		"*":                       "for all below",
		"*/*":                     "for all below",
		"**":                      "for all below",
		"dev/app":                 "registry's host first",
		"nginx":                   "registry's host first",
		"/dev":                    "registry's host first",
		"r.io":                    "want HOST/REPO",
		"r.io/":                   "want HOST/REPO",
		"r.io/dev/":               "want HOST/REPO",
		"r.io/dev/app*":           "last element only",
		"r.io/*/app":              "last element only",
		"r.io/dev/*/*":            "last element only",
		"https://r.io/dev":        "leave out the scheme",
		"r.io/dev:v1":             "leave out the tag",
		"r.io/dev@sha256:00":      "leave out the tag",
		"r.io/Dev":                "in lower case",
		"r.io/dev/../x":           "want HOST/REPO",
		"r.io:port/x":             "registry's host first",
		"r.io/" + long("x", 600):  "longer than 512",
		"r.io/dev\nr.io/prod":     "want HOST/REPO",
		"r.io/dev/*\x00":          "for all below",
		"user:secret@r.io/dev/*":  "registry's host first",
		"r.io /dev":               "registry's host first",
		"2001:db8::1/dev":         "registry's host first",
		"r.io:5000000/everything": "registry's host first",
	} {
		_, err := trust.Settings{Unsigned: []string{pattern}}.Policy(nil)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "trust.unsigned: ") {
			t.Errorf("%.80q: got error %v, want %q", pattern, err, want)
		}
	}
}

func long(s string, n int) string { return strings.Repeat(s, n) }

func TestParseSettings(t *testing.T) {
	s, err := trust.ParseSettings("f", []byte(`
# comment
keys:
  - ci.pem
  - |
    -----BEGIN PUBLIC KEY-----
    x
unsigned: [registry.local/dev/*, "docker.io/nginx"]
`))
	if err != nil || len(s.Keys) != 2 || s.Keys[0] != "ci.pem" || len(s.Unsigned) != 2 || s.Unsigned[0] != "registry.local/dev/*" {
		t.Fatalf("%q, %v", s, err)
	}
	for _, empty := range []string{"", "# nothing", "---", "keys:\nunsigned:\n"} {
		if s, err := trust.ParseSettings("f", []byte(empty)); err != nil || s.Keys != nil || s.Unsigned != nil {
			t.Errorf("%q: %q, %v", empty, s, err)
		}
	}
	for text, want := range map[string]string{
		"keys: []\nkey: []\nkeys: []": "f:2: unknown key \"key\": want keys or unsigned\nf:3: key \"keys\" is set twice",
		"keys: a":                     "f:1: keys: want a list",
		"keys: [{a: b}]":              "list entry on line 1: want text",
		"keys:\n- a\n-\n":             "list entry on line 3: want text",
		"unsigned: [1]":               "want text",
		"unsigned: [' ']":             "want text",
		"a: &a []\nkeys: *a":          "unknown key",
		"[a]":                         "f:1: want lines of the form",
		"keys: []\n---\nkeys: []":     "second YAML document",
		"keys: [":                     "parse f: yaml: ",
		"keys: []\n--- [":             "parse f: yaml: ",
		long(" ", trust.MaxFile+1):    "at most 1048576",
	} {
		if _, err := trust.ParseSettings("f", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.50q: got error %v, want %q", text, err, want)
		}
	}
}

func TestPolicyKeys(t *testing.T) {
	a, b, c := newKey(t), newKey(t), newKey(t)
	disk := func(name string) (map[string][]byte, error) {
		switch name {
		case "*.pem":
			return map[string][]byte{"a.pem": []byte(pemOf(t, a)), "ab.pem": []byte(pemOf(t, a) + "\n" + pemOf(t, b))}, nil
		case "bad.pem":
			return map[string][]byte{"bad.pem": []byte("no key")}, nil
		}
		return nil, fs.ErrNotExist
	}
	p, err := trust.Settings{Keys: []string{"*.pem", pemOf(t, c), pemOf(t, c)}}.Policy(disk)
	if err != nil {
		t.Fatal(err)
	}
	keys := p.Keys()
	if len(keys) != 3 || keys[0].ID() >= keys[1].ID() || keys[1].ID() >= keys[2].ID() {
		t.Errorf("keys %v", keys)
	}
	_, err = trust.Settings{Keys: []string{"bad.pem", "none.pem"}}.Policy(disk)
	if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, trust.ErrKey) || !strings.Contains(err.Error(), "trust.keys: bad.pem: ") {
		t.Errorf("error %v", err)
	}
	var none *trust.Policy
	if none.Keys() != nil || none.Unsigned("r.io/x") {
		t.Error("no policy trusts something")
	}
	if q, err := p.With(a.Public()); err != nil || len(q.Keys()) != 3 {
		t.Errorf("%v, %v", q, err)
	}
}

func TestTooManyKeys(t *testing.T) {
	var s trust.Settings
	for range trust.MaxKeys + 1 {
		s.Keys = append(s.Keys, pemOf(t, newKey(t)))
	}
	if _, err := s.Policy(nil); err == nil || !strings.Contains(err.Error(), "at most 4096") {
		t.Errorf("error %v", err)
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte("keys: [a]\nunsigned: [r.io/a/*]"), "r.io/a/b")
	f.Add([]byte("unsigned:\n- docker.io/nginx\n"), "docker.io/library/nginx")
	f.Add([]byte("keys: &a [*a]"), "")
	f.Fuzz(func(t *testing.T, data []byte, repository string) {
		s, err := trust.ParseSettings("f", data)
		if err != nil {
			return
		}
		s.Keys = nil
		p, err := s.Policy(nil)
		if err != nil || !p.Unsigned(repository) {
			return
		}
		// Whatever the pattern, only names of repositories match.
		for _, bad := range []string{"..", "//", "@", "://", " ", "*"} {
			if strings.Contains(repository, bad) {
				t.Fatalf("%q matches %s", s.Unsigned, fmt.Sprintf("%q", repository))
			}
		}
	})
}
