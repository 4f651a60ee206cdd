package state_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/supernode/state"
	"github.com/damselfly-io/damselfly/supernode/state/statetest"
)

func openBolt(t *testing.T, path string) state.Store {
	t.Helper()
	s, err := state.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMemory(t *testing.T) {
	statetest.Run(t, func(*testing.T) state.Store { return state.NewMemory() })
}

func TestBolt(t *testing.T) {
	statetest.Run(t, func(t *testing.T) state.Store { return openBolt(t, filepath.Join(t.TempDir(), "state.db")) })
}

func TestBoltIsDurable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	statetest.RunDurable(t, func(t *testing.T) state.Store { return openBolt(t, path) })
}

func TestBoltFileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := openBolt(t, path)
	_, err := state.OpenBolt(path)
	if !errors.Is(err, state.ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Fatalf("second open: %v, want ErrInUse naming the file", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := openBolt(t, path).Close(); err != nil {
		t.Fatalf("open after close: %v", err)
	}
}

func TestBoltFileIsPrivateAndMustBeBolt(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	if err := openBolt(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", fi.Mode(), err)
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte(strings.Repeat("not a state file ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{other, filepath.Join(dir, "missing", "state.db")} {
		if _, err := state.OpenBolt(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("OpenBolt(%s) = %v, want an error naming it", bad, err)
		}
	}
}
