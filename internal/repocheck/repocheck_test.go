package repocheck

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/damselfly-io/damselfly"
)

// files returns the repository's files that match, as slash-separated paths
// from its root, without version control, build output and test data.
func files(t *testing.T, match func(name string) bool) []string {
	t.Helper()
	var found []string
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "bin", "testdata"}, d.Name()):
			return fs.SkipDir
		case d.Type().IsRegular() && match(name):
			found = append(found, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

type source struct {
	name, dir string
	ast       *ast.File
	lines     int
}

// sources returns the hand-written Go files.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	for _, name := range files(t, func(name string) bool { return path.Ext(name) == ".go" }) {
		data := read(t, name)
		parsed, err := parser.ParseFile(token.NewFileSet(), name, data, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			t.Errorf("parse: %v", err)
			continue
		}
		if !ast.IsGenerated(parsed) {
			all = append(all, source{name, path.Dir(name), parsed, bytes.Count(data, []byte("\n"))})
		}
	}
	if len(all) == 0 {
		t.Fatal("found no Go files")
	}
	return all
}

func TestPackagesOpenWithTheirContract(t *testing.T) {
	const least = 80 // bytes; less than this says no more than the name does
	docs := map[string]string{}
	for _, s := range sources(t) {
		if strings.HasSuffix(s.name, "_test.go") {
			continue
		}
		doc := s.ast.Doc.Text()
		if want := "Package " + s.ast.Name.Name + " "; doc != "" && s.ast.Name.Name != "main" && !strings.HasPrefix(doc, want) {
			t.Errorf("%s: package comment does not begin with %q", s.name, want)
		}
		docs[s.dir] += doc
	}
	for dir, doc := range docs {
		if len(doc) < least || strings.Contains(doc, "provides functions") {
			t.Errorf("%s: package comment does not say what the package promises: %q", dir, doc)
		}
	}
}

func TestFilesAreShort(t *testing.T) {
	const most = 600 // lines
	for _, s := range sources(t) {
		if s.lines > most {
			t.Errorf("%s has %d lines, at most %d; split it by noun or verb", s.name, s.lines, most)
		}
	}
}

func TestImportsPointDown(t *testing.T) {
	daemons := []string{"supernode", "dfdaemon", "snapshotter"}
	upper := append([]string{"cmd"}, daemons...)
	forbidden := map[string][]string{
		"internal": upper, "scheduler": upper, "chunkfmt": upper, "api": upper,
		"supernode": {"cmd", "dfdaemon", "snapshotter"}, "dfdaemon": {"cmd", "supernode", "snapshotter"}, "snapshotter": {"cmd", "supernode", "dfdaemon"},
	}
	for _, s := range sources(t) {
		if strings.HasSuffix(s.name, "_test.go") {
			continue
		}
		for _, spec := range s.ast.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(forbidden[top(s.name)], top(strings.TrimPrefix(imported, module+"/"))) && strings.HasPrefix(imported, module) {
				t.Errorf("%s imports %s", s.name, imported)
			}
			if top(s.name) == "scheduler" && !allowedInScheduler(imported) {
				t.Errorf("%s imports %s: the scheduler needs only the standard library and internal/task", s.name, imported)
			}
		}
	}
}

// top returns the first element of a path.
func top(name string) string {
	first, _, _ := strings.Cut(name, "/")
	return first
}

func allowedInScheduler(imported string) bool {
	isStd := !strings.Contains(top(imported), ".")
	return isStd || imported == module+"/internal/task" || strings.HasPrefix(imported, module+"/scheduler")
}

func TestShellScriptsStopAtErrors(t *testing.T) {
	shebang := regexp.MustCompile(`^#!.*\b(ba|da)?sh\b`)
	for _, name := range files(t, func(name string) bool { return path.Ext(name) == ".sh" || path.Ext(name) == "" }) {
		data := read(t, name)
		if path.Ext(name) != ".sh" && !shebang.Match(data) {
			continue
		}
		if !regexp.MustCompile(`(?m)^set -euo pipefail$`).Match(data) {
			t.Errorf("%s lacks a line \"set -euo pipefail\"", name)
		}
	}
}

func TestMarkdownLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, name := range files(t, func(name string) bool { return path.Ext(name) == ".md" }) {
		for _, m := range link.FindAllSubmatch(read(t, name), -1) {
			target, _, _ := strings.Cut(string(m[1]), "#")
			if target == "" || strings.Contains(target, ":") { // in this file, or a URL
				continue
			}
			if _, err := os.Stat(filepath.Join(root, path.Dir(name), target)); err != nil {
				t.Errorf("%s links to %s: %v", name, target, err)
			}
		}
	}
}
