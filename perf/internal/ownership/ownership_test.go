package ownership

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestLeft(t *testing.T) {
	started := map[int]uint64{10: 100, 11: 110}
	got := left("lab", []string{
		"damselfly-lab-10-100-node1", // its process runs
		"damselfly-lab-11-999-node1", // its process's id is another's now
		"damselfly-lab-12-120-a-b",
		"damselfly-lab-12", "damselfly-lab-x-1-a", "damselfly-lab--1-1-a", "damselfly-test-12-120-a", "h1", "",
	}, func(pid int) (uint64, bool) { s, ok := started[pid]; return s, ok })
	want := []string{"damselfly-lab-11-999-node1", "damselfly-lab-12-120-a-b"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOwnIsNotLeft(t *testing.T) {
	prefix, err := Prefix("lab")
	if err != nil {
		t.Fatal(err)
	}
	if got := Left("lab", []string{prefix + "node1"}); len(got) != 0 {
		t.Errorf("this process is taken for gone: %v", got)
	}
}

func TestTempDir(t *testing.T) {
	parent := t.TempDir()
	other := filepath.Join(parent, "damselfly-other-1-1-x")
	old := filepath.Join(parent, "damselfly-kind-1-99999999999-x") // process 1 started earlier
	for _, dir := range []string{other, old} {
		if err := os.MkdirAll(filepath.Join(dir, "data"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	first, err := TempDir(parent, "kind")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TempDir(parent, "kind"); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{old: false, other: true, first: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s: there: %v, want %v", dir, err == nil, want)
		}
	}
}
