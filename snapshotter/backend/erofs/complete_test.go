package erofs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestRaise(t *testing.T) {
	for text, want := range map[string]string{"128\n": "1024", "0\n": "1024", "1024\n": "1024\n", "8192\n": "8192\n"} {
		setting := filepath.Join(t.TempDir(), "read_ahead_kb")
		if err := os.WriteFile(setting, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := raise(setting, 1024); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if got, err := os.ReadFile(setting); err != nil || string(got) != want {
			t.Errorf("%q became %q, %v, want %q", text, got, err, want)
		}
	}
	if err := raise(filepath.Join(t.TempDir(), "absent"), 1024); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of a mount that has ended: %v", err)
	}
}

func TestDiskReadAhead(t *testing.T) {
	for _, path := range []string{t.TempDir(), "/proc/self/status", filepath.Join(t.TempDir(), "absent")} {
		if kib := diskReadAhead(path); kib < minReadAhead {
			t.Errorf("%s: %d KiB, want at least %d", path, kib, minReadAhead)
		}
	}
}
