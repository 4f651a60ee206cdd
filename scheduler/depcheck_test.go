package scheduler

import (
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// The policies must stay usable, and testable, without a network, a disk or a
// clock: outside tests nothing is imported but the vocabulary package and
// parts of the standard library that cannot reach any of these.
func TestImports(t *testing.T) {
	allowed := map[string]bool{
		"cmp": true, "math": true, "math/bits": true, "slices": true,
		"time": true, // time.Duration only, see below
		"github.com/damselfly-io/damselfly/internal/task": true,
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if !allowed[path] {
				t.Errorf("%s imports %s", name, path)
			}
		}
		for _, clock := range []string{"time.Now", "time.Since", "time.After", "time.NewTimer", "time.Sleep", "go func"} {
			if strings.Contains(string(src), clock) {
				t.Errorf("%s uses %s", name, clock)
			}
		}
	}
}
