package fanotify

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	limitsDir = "/proc/sys/fs/fanotify"
	// wantLimit is enough for a node with tens of thousands of blobs mounted.
	wantLimit = 65536
)

// Change is a kernel setting that RaiseLimits has changed.
type Change struct {
	// Name as sysctl(8) has it.
	Name string
	// Old and New are the values before and after.
	Old, New int
}

// RaiseLimits sets fs.fanotify.max_user_groups and max_user_marks to 65536
// where they are lower: by default a user has 128 groups. It returns what it
// has changed, also with an error.
func RaiseLimits() ([]Change, error) { return raiseLimits(limitsDir) }

func raiseLimits(dir string) ([]Change, error) {
	var changes []Change
	for _, name := range []string{"max_user_groups", "max_user_marks"} {
		path := filepath.Join(dir, name)
		old, err := readLimit(path)
		if err != nil {
			return changes, err
		}
		if old >= wantLimit {
			continue
		}
		if err := os.WriteFile(path, []byte(strconv.Itoa(wantLimit)), 0o600); err != nil {
			return changes, fmt.Errorf("raise fs.fanotify.%s from %d to %d: %w", name, old, wantLimit, err)
		}
		changes = append(changes, Change{Name: "fs.fanotify." + name, Old: old, New: wantLimit})
	}
	return changes, nil
}

func readLimit(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read fanotify limit: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("read fanotify limit %s: %w", path, err)
	}
	return n, nil
}
