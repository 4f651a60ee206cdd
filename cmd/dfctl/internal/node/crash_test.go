package node

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
)

var errCrash = errors.New("crash")

// crashAt makes a disk that stops for good at its nth step, as a power cut
// would; no clean-up runs after it.
func crashAt(n int) func(op, path string) error {
	return func(string, string) error {
		if n--; n < 0 {
			return errCrash
		}
		return nil
	}
}

// crashes calls try with a disk that stops at each step in turn, until one
// runs to its end.
func crashes(t *testing.T, try func(t *testing.T, step func(op, path string) error) error) {
	t.Helper()
	for n := range 1000 {
		err := try(t, crashAt(n))
		if err == nil {
			if n < 5 {
				t.Fatalf("finished after %d steps; the steps are not counted", n)
			}
			return
		}
		if !errors.Is(err, errCrash) {
			t.Fatalf("step %d: %v", n, err)
		}
		if t.Failed() {
			t.Fatalf("crash at step %d", n)
		}
	}
	t.Fatal("never finished")
}

// goldenRequest turns a case's arguments into what the command would do.
func goldenRequest(t *testing.T, c goldenCase, root string) (*node, request) {
	t.Helper()
	f := &flags{}
	fs := pflag.NewFlagSet("setup", pflag.ContinueOnError)
	f.setup(fs)
	if err := fs.Parse(c.args); err != nil {
		t.Fatal(err)
	}
	n := testNode(root)
	if c.opts.ContainerdVersion != nil {
		n.version = c.opts.ContainerdVersion
	}
	req := f.req
	if req.runtime = f.runtime; req.runtime == "auto" {
		req.runtime = containerd
	}
	if err := req.check(); err != nil {
		t.Fatal(err)
	}
	return n, req
}

func TestCrashInSetupThenRemove(t *testing.T) {
	for _, c := range goldenCases(t) {
		t.Run(filepath.Base(c.dir), func(t *testing.T) {
			crashes(t, func(t *testing.T, step func(op, path string) error) error {
				root := c.root(t)
				original := snapshot(t, root)
				n, req := goldenRequest(t, c, root)
				n.disk.step = step
				_, err := n.setup(t.Context(), req)
				mustRun(t, c.opts, "remove", "--root", root)
				diff(t, "after remove", snapshot(t, root), original)
				return err
			})
		})
	}
}

func TestCrashInSetupThenSetup(t *testing.T) {
	for _, c := range goldenCases(t) {
		t.Run(filepath.Base(c.dir), func(t *testing.T) {
			after := contents(t, filepath.Join(c.dir, "after"))
			crashes(t, func(t *testing.T, step func(op, path string) error) error {
				root := c.root(t)
				original := snapshot(t, root)
				n, req := goldenRequest(t, c, root)
				n.disk.step = step
				_, err := n.setup(t.Context(), req)
				mustRun(t, c.opts, c.setup(root)...)
				diff(t, "after the second setup", contents(t, root), after)
				mustRun(t, c.opts, "remove", "--root", root)
				diff(t, "after remove", snapshot(t, root), original)
				return err
			})
		})
	}
}

func TestCrashInRemoveThenRemove(t *testing.T) {
	for _, c := range goldenCases(t) {
		t.Run(filepath.Base(c.dir), func(t *testing.T) {
			crashes(t, func(t *testing.T, step func(op, path string) error) error {
				root := c.root(t)
				original := snapshot(t, root)
				mustRun(t, c.opts, c.setup(root)...)
				n := testNode(root)
				n.disk.step = step
				_, err := n.remove(nil, false, false)
				mustRun(t, c.opts, "remove", "--root", root)
				diff(t, "after remove", snapshot(t, root), original)
				return err
			})
		})
	}
}

// An update replaces one written version by another; between the two the
// record has to know both.
func TestCrashInUpdateThenRemove(t *testing.T) {
	c := goldenCase{dir: "testdata/golden/containerd-registries"}
	first := []string{"setup", "--registry", "docker.io", "--registry", "gcr.io", "--root"}
	crashes(t, func(t *testing.T, step func(op, path string) error) error {
		root := c.root(t)
		original := snapshot(t, root)
		mustRun(t, c.opts, append(first, root)...)
		n := testNode(root)
		n.disk.step = step
		_, err := n.setup(t.Context(), request{runtime: containerd, mirror: "127.0.0.1:9", registries: []string{"docker.io", "quay.io"}})
		mustRun(t, c.opts, "remove", "--root", root)
		diff(t, "after remove", snapshot(t, root), original)
		return err
	})
}
