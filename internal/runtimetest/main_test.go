package runtimetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// programs is the directory of the binaries under test and of hello, the
// program in the images. They are built once, when the first test asks.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "dfrt-bin-")
	if err != nil {
		return "", err
	}
	out := dir + string(filepath.Separator)
	for _, args := range [][]string{
		{"./cmd/supernode", "./cmd/dfdaemon", "./cmd/snapshotter", "./cmd/dfctl"},
		{"-ldflags=-s -w", "./internal/runtimetest/testdata/hello"},
	} {
		cmd := exec.Command("go", append([]string{"build", "-trimpath", "-o", out}, args...)...)
		cmd.Dir = filepath.Join("..", "..")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if msg, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("build the programs: %w\n%s", err, msg)
		}
	}
	return dir, nil
})

var built atomic.Bool // whether there is something to remove

func TestMain(m *testing.M) {
	code := m.Run()
	if built.Load() {
		dir, _ := programs() // tests that need them have said why they failed
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

// program returns the path of a binary of this module.
func program(t *testing.T, name string) string {
	t.Helper()
	built.Store(true)
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// needRuntimes skips or fails tests where they cannot run.
func needRuntimes(t *testing.T) {
	t.Helper()
	testenv.Integration(t)
	testenv.Root(t)
	for _, name := range []string{"containerd", "ctr", "runc", "docker-registry"} {
		testenv.Tool(t, name)
	}
}
