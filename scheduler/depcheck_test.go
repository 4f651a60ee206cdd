package scheduler

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"testing"
)

// The policies must stay usable, and testable, without a network, a disk or a
// clock: outside tests nothing is imported but the vocabulary package and
// parts of the standard library that cannot reach any of these, of package
// time only durations are used, and no goroutine is started.
func TestPure(t *testing.T) {
	allowed := map[string]bool{
		"cmp": true, "math": true, "math/bits": true, "slices": true, "time": true,
		"github.com/damselfly-io/damselfly/internal/task": true,
	}
	pkg, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range pkg.Imports {
		if !allowed[path] {
			t.Errorf("the package imports %s", path)
		}
	}
	durations := map[string]bool{"Duration": true, "Second": true, "Millisecond": true}
	for _, name := range pkg.GoFiles {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s starts a goroutine", name)
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && !durations[n.Sel.Name] {
					t.Errorf("%s uses time.%s", name, n.Sel.Name)
				}
			}
			return true
		})
	}
}
