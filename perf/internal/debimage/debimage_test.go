package debimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// tree makes a small directory with what layers have.
func tree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{"a": "1", "d/b": "2", "d/c": "3"} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(root, "a"), filepath.Join(root, "d", "hard")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a", filepath.Join(root, "soft")); err != nil {
		t.Fatal(err)
	}
	return root
}

func names(t *testing.T, p []byte) map[string]*tar.Header {
	t.Helper()
	found := map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(p)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = h
	}
}

func TestLayerHasWhatTheDirectoryHas(t *testing.T) {
	var out bytes.Buffer
	w := &treeTar{root: tree(t), out: tar.NewWriter(&out), links: map[uint64]string{}}
	if err := filepath.WalkDir(w.root, w.add); err != nil {
		t.Fatal(err)
	}
	if err := w.out.Close(); err != nil {
		t.Fatal(err)
	}
	got := names(t, out.Bytes())
	if len(got) != 6 {
		t.Errorf("entries %v", got)
	}
	if h := got["d/hard"]; h == nil || h.Typeflag != tar.TypeLink || h.Linkname != "a" {
		t.Errorf("hard link: %+v", h)
	}
	if h := got["soft"]; h == nil || h.Linkname != "a" {
		t.Errorf("symbolic link: %+v", h)
	}
}

func TestOverlayBecomesWhiteouts(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	root := tree(t)
	if err := unix.Mknod(filepath.Join(root, "gone"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(filepath.Join(root, "d"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := &treeTar{root: root, overlay: true, out: tar.NewWriter(&out), links: map[uint64]string{}}
	if err := filepath.WalkDir(root, w.add); err != nil {
		t.Fatal(err)
	}
	got := names(t, out.Bytes())
	if got[".wh.gone"] == nil || got["d/.wh..wh..opq"] == nil || got["gone"] != nil {
		t.Errorf("entries %v", got)
	}
}

func TestNextChangesItsShare(t *testing.T) {
	testenv.Integration(t)
	testenv.Tool(t, "gzip")
	dir := t.TempDir()
	w, err := newWriter(filepath.Join(dir, "v1"), Image{}.config())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.layer(t.Context(), tree(t), false); err != nil {
		t.Fatal(err)
	}
	if err := w.finish(); err != nil {
		t.Fatal(err)
	}
	for percent, same := range map[uint32]bool{0: true, 100: false} {
		to := filepath.Join(dir, map[bool]string{true: "same", false: "other"}[same])
		if err := Next(t.Context(), w.dir, to, percent); err != nil {
			t.Fatal(err)
		}
		next, err := readManifest(to)
		if err != nil {
			t.Fatal(err)
		}
		if got := next.Layers[0].Digest == w.manifest.Layers[0].Digest; got != same {
			t.Errorf("%d %%: layer unchanged: %v", percent, got)
		}
	}
}

func TestPlainHasTheSameTars(t *testing.T) {
	testenv.Integration(t)
	testenv.Tool(t, "gzip")
	dir := t.TempDir()
	w, err := newWriter(filepath.Join(dir, "v1"), Image{Command: []string{"go", "version"}}.config())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.layer(t.Context(), tree(t), false), w.finish()); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "plain")
	for range 2 { // the second time, it is there
		if err := Plain(w.dir, to); err != nil {
			t.Fatal(err)
		}
	}
	m, err := readManifest(to)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Layers[0]; got.Digest != w.config.RootFS.DiffIDs[0] || got.MediaType != v1.MediaTypeImageLayer {
		t.Errorf("layer %+v", got)
	}
	if m.Config.Digest != w.manifest.Config.Digest {
		t.Error("the config is another one")
	}
	if err := Plain(to, filepath.Join(dir, "again")); err == nil {
		t.Error("layers that are not gzip were accepted")
	}
}
