package coldcache

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

func TestBelow(t *testing.T) {
	const info = `22 28 0:21 / /proc rw,nosuid shared:13 - proc proc rw
36 28 8:1 / /d rw - ext4 /dev/sda1 rw
37 36 0:40 / /d/a\040b rw - overlay overlay rw,lowerdir=x
38 36 0:41 / /dd rw - tmpfs tmpfs rw
39 37 0:42 / /d/a\040b/c rw - fuse x rw
`
	got, err := below(strings.NewReader(info), "/d")
	if want := []string{"/d/a b/c", "/d/a b", "/d"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if got, err := below(strings.NewReader(info), "/d/a"); err != nil || len(got) != 0 {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := below(strings.NewReader("1 2 3\n"), "/d"); err == nil {
		t.Error("a line without a mount point was accepted")
	}
}

func TestUnmount(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	dir := t.TempDir()
	inner := filepath.Join(dir, "inner")
	for _, at := range []string{dir, inner} {
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := Unmount(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(inner); !os.IsNotExist(err) {
		t.Errorf("still mounted: %v", err)
	}
}

func TestWarm(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Warm(dir, filepath.Join(dir, "f")); err != nil {
		t.Error(err)
	}
	if err := Warm(filepath.Join(dir, "none")); err == nil {
		t.Error("a missing file was read")
	}
}
