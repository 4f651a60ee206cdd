package node

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the expected trees of testdata/golden")

// goldenCase is one directory of testdata/golden: args of setup, the version
// containerd reports, and the file system before and after.
type goldenCase struct {
	dir  string
	args []string
	opts Options
}

func goldenCases(t *testing.T) []goldenCase {
	t.Helper()
	dirs, err := filepath.Glob("testdata/golden/*/args")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no golden cases: %v", err)
	}
	var cases []goldenCase
	for _, name := range dirs {
		c := goldenCase{dir: filepath.Dir(name)}
		c.args = strings.Fields(get(t, ".", name))
		if v, err := os.ReadFile(filepath.Join(c.dir, "version")); err == nil {
			c.opts.ContainerdVersion = fixedVersion(string(v))
		}
		cases = append(cases, c)
	}
	return cases
}

// root makes a copy of the case's file system with odd modes and times, so
// that a restore that loses them shows.
func (c goldenCase) root(t *testing.T) string {
	t.Helper()
	root := newRoot(t, nil)
	for path, content := range contents(t, filepath.Join(c.dir, "before")) {
		put(t, root, path, content)
		name := filepath.Join(root, path)
		if err := os.Chmod(name, 0o640); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			if err := os.Chown(name, 12, 34); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chtimes(name, clock(), clock()); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func (c goldenCase) setup(root string) []string {
	return append([]string{"setup", "--root", root}, c.args...)
}

func TestGolden(t *testing.T) {
	for _, c := range goldenCases(t) {
		t.Run(filepath.Base(c.dir), func(t *testing.T) {
			root := c.root(t)
			original := snapshot(t, root)

			mustRun(t, c.opts, append(c.setup(root), "--dry-run")...)
			diff(t, "after a dry run", snapshot(t, root), original)

			mustRun(t, c.opts, c.setup(root)...)
			after := filepath.Join(c.dir, "after")
			if *update {
				rewrite(t, after, contents(t, root))
			}
			diff(t, "after setup", contents(t, root), contents(t, after))

			once := snapshot(t, root)
			again := runJSON(t, c.opts, c.setup(root)...)
			for _, f := range again.Files {
				if f.Result != resultUnchanged {
					t.Errorf("second setup: %s: %s", f.Path, f.Result)
				}
			}
			diff(t, "after a second setup", snapshot(t, root), once)

			mustRun(t, c.opts, "remove", "--root", root)
			diff(t, "after remove", snapshot(t, root), original)
			mustRun(t, c.opts, "remove", "--root", root)
			diff(t, "after a second remove", snapshot(t, root), original)
		})
	}
}

func rewrite(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for path, content := range files {
		put(t, dir, path, content)
	}
}
