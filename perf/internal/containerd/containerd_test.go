package containerd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/containerdbuild"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/perf/internal/containerd"
	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

func TestStart(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	programs, err := containerdbuild.Build(t.Context(), containerdbuild.V2_3)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "ctd-") // a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d, err := containerd.Start(t.Context(), containerd.Options{
		Host: fleet.Local{}, Programs: programs, Dir: filepath.Join(dir, "c"), Registry: "registry.test", Endpoint: "http://127.0.0.1:1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := d.Ctr(t.Context(), "version"); err != nil || !strings.Contains(out, " 2.3.") {
		t.Errorf("version: %v, %s", err, out)
	}
	if err := d.Pull(t.Context(), "registry.test/none:latest"); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("a pull that does not go to the endpoint: %v", err)
	}
	if _, err := d.Run(t.Context(), "registry.test/none:latest", "none", []string{"true"}); err == nil {
		t.Error("an image that is not there was run")
	}
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := d.Err(); err != nil {
		t.Error(err)
	}
}

func TestLongPaths(t *testing.T) {
	_, err := containerd.Start(t.Context(), containerd.Options{Host: fleet.Local{}, Dir: filepath.Join(t.TempDir(), strings.Repeat("x", 100))})
	if err == nil || !strings.Contains(err.Error(), "too long for a socket") {
		t.Errorf("got %v", err)
	}
}
