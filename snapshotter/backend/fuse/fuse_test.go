package fuse_test

import (
	"context"
	"log/slog"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/backend/backendtest"
	"github.com/damselfly-io/damselfly/snapshotter/backend/fuse"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// logTo sends a log to the test's.
func logTo(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func TestSuite(t *testing.T) {
	all := keepers{by: map[string]*keeper{}}
	backendtest.Suite(t, func(t testing.TB, n *backendtest.Node) backend.Backend {
		b, err := fuse.New(fuse.Options{Filler: n.Filler, Keeper: all.of(n.Dir), Log: logTo(t)})
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

// mount mounts an image until the test ends.
func mount(t testing.TB, n *backendtest.Node, im *backendtest.Image, o fuse.Options) string {
	t.Helper()
	o.Filler, o.Log = n.Filler, logTo(t)
	b, err := fuse.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close the backend: %v", err)
		}
	})
	dir := t.TempDir()
	m, err := b.Mount(t.Context(), &im.Image, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// TestKilledDirectReader kills a program whose own request waits: the kernel
// lets go of it only when the request is answered.
func TestKilledDirectReader(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	n := backendtest.NewNode(t, t.TempDir())
	im := n.Image(t, backendtest.Layer{backendtest.Regular("file", backendtest.Noise(1, 100_000))})
	dir := mount(t, n, im, fuse.Options{})
	waiting, ended := make(chan struct{}), make(chan struct{})
	n.Filler.SetGate(func(ctx context.Context, _ *device.Device, _ int) error {
		close(waiting)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	})
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "dd"), "if="+filepath.Join(dir, "file"), "of=/dev/null", "bs=4096", "count=1", "iflag=direct")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-waiting
	if err := cmd.Process.Signal(unix.SIGWINCH); err != nil { // which it ignores
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the program was not killed")
	}
	<-ended
	n.Filler.SetGate(nil)
	im.Want.Compare(t, dir)
}

func TestMapFile(t *testing.T) { backendtest.MapFile(t) }
