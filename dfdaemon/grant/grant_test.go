package grant_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/dfdaemon/grant"
	"github.com/damselfly-io/damselfly/internal/task"
)

const ttl = 10 * time.Hour

// clock is a time that the test moves.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time { return c.now }

func open(t *testing.T, dir string, c *clock) *grant.Store {
	t.Helper()
	s, err := grant.Open(dir, ttl, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func add(t *testing.T, s *grant.Store, m grant.Manifest, cred string) {
	t.Helper()
	if err := s.Add(m, cred); err != nil {
		t.Fatal(err)
	}
}

func blob(n int) task.ID { return task.ID(digest.FromString(fmt.Sprint("blob", n)).String()) }

// manifest is one of repository org/app, with config, layer and child n.
func manifest(n int, tag string) grant.Manifest {
	body := fmt.Appendf(nil, `{"config":{"digest":%q},"layers":[{"digest":%q}],"manifests":[{"digest":%q}]}`, blob(n), blob(n+1), blob(n+2))
	return grant.Manifest{
		Registry: "quay.io", Repo: "org/app", Tag: tag, Digest: digest.FromBytes(body).String(), MediaType: "application/x-manifest", Body: body,
	}
}

func TestGrantServesOnlyTheCredentialThatWasLetIn(t *testing.T) {
	s := open(t, t.TempDir(), newClock())
	m := manifest(1, "v1")
	add(t, s, m, "cred-a")
	for _, tt := range []struct {
		registry, repo, ref, cred string
		want                      bool
	}{
		{"quay.io", "org/app", "v1", "cred-a", true},
		{"quay.io", "org/app", m.Digest, "cred-a", true},
		{"quay.io", "org/app", "v1", "cred-b", false},
		{"quay.io", "org/app", "v1", "", false},
		{"quay.io", "org/app", "v2", "cred-a", false},
		{"quay.io", "org/other", "v1", "cred-a", false},
		{"ghcr.io", "org/app", "v1", "cred-a", false},
	} {
		got, ok := s.Manifest(tt.registry, tt.repo, tt.ref, tt.cred, false)
		if ok != tt.want {
			t.Errorf("Manifest(%q, %q, %q, %q) = %v, want %v", tt.registry, tt.repo, tt.ref, tt.cred, ok, tt.want)
		}
		if ok && (string(got.Body) != string(m.Body) || got.MediaType != m.MediaType || got.Digest != m.Digest) {
			t.Errorf("Manifest(%q) = %+v", tt.ref, got)
		}
	}
}

func TestGrantCoversTheBlobsOfItsManifest(t *testing.T) {
	s := open(t, t.TempDir(), newClock())
	add(t, s, manifest(1, "v1"), "cred-a")
	for _, tt := range []struct {
		name, repo string
		id         task.ID
		cred       string
		any, want  bool
	}{
		{"config", "org/app", blob(1), "cred-a", false, true},
		{"layer", "org/app", blob(2), "cred-a", false, true},
		{"child manifest", "org/app", blob(3), "cred-a", false, true},
		{"another blob", "org/app", blob(4), "cred-a", false, false},
		{"another credential", "org/app", blob(2), "cred-b", false, false},
		{"anonymous", "org/app", blob(2), "", false, false},
		{"the node itself", "org/app", blob(2), "", true, true},
		{"the node itself, another blob", "org/app", blob(4), "", true, false},
		{"another repository", "org/other", blob(2), "cred-a", false, false},
	} {
		if got := s.Covers("quay.io", tt.repo, tt.id, tt.cred, tt.any); got != tt.want {
			t.Errorf("%s: Covers = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestAnonymousGrantsSurviveAReopenAndOthersServeTheNodeOnly(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	s := open(t, dir, c)
	public, private := manifest(1, "public"), manifest(10, "private")
	add(t, s, public, "")
	add(t, s, private, "cred-a")

	s = open(t, dir, c)
	if _, ok := s.Manifest("quay.io", "org/app", "public", "", false); !ok {
		t.Error("the anonymous grant is gone after a reopen")
	}
	if _, ok := s.Manifest("quay.io", "org/app", "private", "cred-a", false); ok {
		t.Error("a grant of a token serves the mirror's clients after a reopen")
	}
	if _, ok := s.Manifest("quay.io", "org/app", "private", "", false); ok {
		t.Error("a grant of a token serves anonymous clients after a reopen")
	}
	if !s.Covers("quay.io", "org/app", blob(11), "", true) {
		t.Error("a grant of a token does not serve the node after a reopen")
	}
}

func TestMovedTagLeadsToTheLatestManifestAlsoAfterAReopen(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	s := open(t, dir, c)
	old, latest := manifest(1, "v1"), manifest(10, "v1")
	add(t, s, old, "")
	add(t, s, latest, "")
	for range 2 {
		for range 20 { // maps are walked in random order
			if m, ok := s.Manifest("quay.io", "org/app", "v1", "", false); !ok || m.Digest != latest.Digest {
				t.Fatalf("tag leads to %q, want %q", m.Digest, latest.Digest)
			}
		}
		if _, ok := s.Manifest("quay.io", "org/app", old.Digest, "", false); !ok {
			t.Error("the old manifest is gone by digest")
		}
		s = open(t, dir, c)
	}
}

// TestTagNotedApart has the order of containerd: it asks where a tag leads, and
// fetches what it does not have by digest.
func TestTagNotedApart(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	s := open(t, dir, c)
	first, second := manifest(1, ""), manifest(10, "")
	note := func(m grant.Manifest) {
		t.Helper()
		if err := s.Tag("quay.io", "org/app", "v1", m.Digest); err != nil {
			t.Fatal(err)
		}
	}
	leadsTo := func(want grant.Manifest) {
		t.Helper()
		for range 2 {
			if m, ok := s.Manifest("quay.io", "org/app", "v1", "", false); !ok || m.Digest != want.Digest {
				t.Errorf("tag leads to %q, want %q", m.Digest, want.Digest)
			}
			s = open(t, dir, c)
		}
	}
	note(first)
	if _, ok := s.Manifest("quay.io", "org/app", "v1", "", false); ok {
		t.Error("a tag alone grants something")
	}
	add(t, s, first, "")
	leadsTo(first)
	note(second)
	if m, ok := s.Manifest("quay.io", "org/app", "v1", "", false); ok {
		t.Errorf("moved tag leads to %q", m.Digest)
	}
	add(t, s, second, "")
	leadsTo(second)
	note(first) // is here already
	leadsTo(first)
}

func TestGrantEndsWhenItIsNotUsed(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	s := open(t, dir, c)
	add(t, s, manifest(1, "used"), "")
	add(t, s, manifest(10, "unused"), "")
	c.now = c.now.Add(ttl * 6 / 10)
	if _, ok := s.Manifest("quay.io", "org/app", "used", "", false); !ok {
		t.Fatal("a live grant is not served")
	}
	c.now = c.now.Add(ttl * 6 / 10)
	if _, ok := s.Manifest("quay.io", "org/app", "used", "", false); !ok {
		t.Error("a grant ended although it was used")
	}
	if _, ok := s.Manifest("quay.io", "org/app", "unused", "", false); ok {
		t.Error("a grant did not end although it was not used")
	}
	if s.Covers("quay.io", "org/app", blob(10), "", true) {
		t.Error("an ended grant covers a blob")
	}
	add(t, s, manifest(20, "new"), "")
	if files := list(t, dir); len(files) != 2 {
		t.Errorf("files %v, want that of the ended grant gone", files)
	}
	s = open(t, dir, c)
	if _, ok := s.Manifest("quay.io", "org/app", "used", "", false); !ok {
		t.Error("the use of a grant was not kept")
	}
}

func TestNoCredentialReachesTheDisk(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, newClock())
	add(t, s, manifest(1, "v1"), "s3cret-credential-key")
	for _, name := range list(t, dir) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "s3cret") {
			t.Errorf("%s holds the key of a credential", name)
		}
	}
}

func TestOpenDropsWhatIsDamagedOrHalfWritten(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	s := open(t, dir, c)
	add(t, s, manifest(1, "v1"), "")
	good := list(t, dir)
	forged, err := json.Marshal(grant.Manifest{Registry: "quay.io", Repo: "org/app", Digest: blob(1).Short(), Body: []byte("x"), Anonymous: true, Used: c.now})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"a.json": "", "b.json": "{", "c.json": string(forged), "grant-123": "half"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir, c)
	if got := list(t, dir); fmt.Sprint(got) != fmt.Sprint(good) {
		t.Errorf("files %v, want %v", got, good)
	}
	if _, ok := s.Manifest("quay.io", "org/app", "v1", "", false); !ok {
		t.Error("the good grant is gone")
	}
}

func TestHugeManifestIsNotGranted(t *testing.T) {
	s := open(t, t.TempDir(), newClock())
	body := make([]byte, 5<<20)
	m := grant.Manifest{Registry: "quay.io", Repo: "org/app", Digest: digest.FromBytes(body).String(), Body: body}
	add(t, s, m, "")
	if _, ok := s.Manifest("quay.io", "org/app", m.Digest, "", false); ok {
		t.Error("a manifest of 5 MiB was kept")
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// FuzzOpen reads a damaged grant file: it is dropped, or it is a manifest that
// has its digest.
func FuzzOpen(f *testing.F) {
	c := newClock()
	m := manifest(1, "v1")
	m.Anonymous, m.Used = true, c.now
	good, err := json.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(strings.Replace(string(good), "quay", "ghcr", 1)))
	f.Add([]byte(`{"body":"e30=","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","anonymous":true,"used":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"layers":null}`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, file []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "x.json"), file, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, c)
		got, ok := s.Manifest("quay.io", "org/app", m.Digest, "", false)
		if ok && digest.FromBytes(got.Body).String() != m.Digest {
			t.Errorf("a manifest without its digest is served: %q", got.Body)
		}
	})
}
