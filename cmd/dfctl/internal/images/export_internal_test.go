package images

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWriteFileLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	full := func(w io.Writer) error {
		if _, err := io.Copy(w, strings.NewReader(strings.Repeat("x", 3<<20))); err != nil {
			return err
		}
		return unix.ENOSPC
	}
	if err := writeFile(filepath.Join(dir, "f"), full); !errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "closed") {
		t.Errorf("full disk: %v", err)
	}
	// Somebody else is faster.
	taken := func(io.Writer) error { return os.WriteFile(filepath.Join(dir, "f"), []byte("theirs"), 0o600) }
	if err := writeFile(filepath.Join(dir, "f"), taken); !errors.Is(err, os.ErrExist) {
		t.Errorf("a name that was taken in the meantime: %v", err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(data) != "theirs" {
		t.Errorf("the other file has %q, %v", data, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%d files left, %v", len(entries), err)
	}
}
