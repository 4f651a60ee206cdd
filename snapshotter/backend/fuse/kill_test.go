package fuse_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/backend/backendtest"
	"github.com/damselfly-io/damselfly/snapshotter/backend/fuse"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

const (
	childNode  = "DAMSELFLY_TEST_FUSE_NODE"
	childMount = "DAMSELFLY_TEST_FUSE_MOUNT"
	childAdopt = "DAMSELFLY_TEST_FUSE_ADOPT"
	childHangs = "DAMSELFLY_TEST_FUSE_HANGS"

	// fillsBeforeHang is after how many fetches a child that hangs does.
	fillsBeforeHang = 20
	// patience is how long a child may take.
	patience = 30 * time.Second
)

func killContent() []byte { return backendtest.Noise(7, 16<<20) }

// TestChild is not a test: it is the process that TestKill kills.
func TestChild(t *testing.T) {
	dir := os.Getenv(childMount)
	if dir == "" {
		return
	}
	socket, err := net.FileConn(os.NewFile(3, "keeper"))
	if err != nil {
		t.Fatal(err)
	}
	conn, ok := socket.(*net.UnixConn)
	if !ok {
		t.Fatalf("the keeper's socket is %T", socket)
	}
	keeper := &remoteKeeper{conn: conn}
	node := backendtest.NewNode(t, os.Getenv(childNode))
	im := node.Image(t, backendtest.Layer{backendtest.Regular("file", killContent())})
	var fills atomic.Int32
	node.Filler.SetGate(func(ctx context.Context, _ *device.Device, _ int) error {
		n := fills.Add(1)
		if os.Getenv(childHangs) == "" || n < fillsBeforeHang {
			return nil
		}
		if n == fillsBeforeHang {
			go func() { _ = keeper.tell("hangs") }() // this process is killed next
		}
		<-ctx.Done()
		return ctx.Err()
	})
	b, err := fuse.New(fuse.Options{Filler: node.Filler, Keeper: keeper, Log: logTo(t)})
	if err != nil {
		t.Fatal(err)
	}
	begin := b.Mount
	if os.Getenv(childAdopt) != "" {
		begin = b.Adopt
	}
	if _, err := begin(t.Context(), &im.Image, dir); err != nil {
		_ = keeper.tell(err.Error())
		t.Fatal(err)
	}
	if err := keeper.tell("ready"); err != nil {
		t.Fatal(err)
	}
	<-t.Context().Done() // never: it is killed
}

// child is a process with a backend.
type child struct {
	cmd  *exec.Cmd
	told chan string
	out  bytes.Buffer
	wait func()
}

func startChild(t *testing.T, k *keeper, env ...string) *child {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "keeper"), os.NewFile(uintptr(fds[1]), "child")
	socket, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	conn, ok := socket.(*net.UnixConn)
	if !ok {
		t.Fatalf("the child's socket is %T", socket)
	}
	c := &child{cmd: exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestChild$"), told: make(chan string, 10)}
	c.cmd.Env = append(os.Environ(), env...)
	c.cmd.ExtraFiles = []*os.File{theirs}
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.out
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		k.serve(t, conn, c.told)
	}()
	c.wait = sync.OnceFunc(func() {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
		_ = conn.Close()
		<-served
	})
	t.Cleanup(c.wait)
	return c
}

// expect waits for something that the child tells.
func (c *child) expect(t *testing.T, want string) {
	t.Helper()
	timer, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case got := <-c.told:
		if got != want {
			t.Fatalf("the child tells %q, want %q", got, want)
		}
	case <-timer.Done():
		t.Fatalf("the child does not tell %q", want)
	}
}

// TestKill kills the process that serves a mount while readers compare bytes
// and some of their requests are in its hands: no read may fail, and none may
// return anything else than what is in the image.
func TestKill(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	testenv.Kernel(t, 6, 9)
	dir, k := t.TempDir(), newKeeper()
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		for name := range k.kept {
			_ = k.Drop(name)
		}
	})
	env := []string{childNode + "=" + t.TempDir(), childMount + "=" + dir}
	c := startChild(t, k, append(env, childHangs+"=1")...)
	c.expect(t, "ready")
	r := backendtest.StartReaders(t, 8, filepath.Join(dir, "file"), killContent())
	for range 4 {
		c.expect(t, "hangs")
		c.wait()
		c = startChild(t, k, append(env, childAdopt+"=1", childHangs+"=1")...)
		c.expect(t, "ready")
	}
	c.expect(t, "hangs")
	c.wait()
	before := r.Reads()
	c = startChild(t, k, append(env, childAdopt+"=1")...)
	c.expect(t, "ready")
	testenv.Eventually(t, func() bool { return r.Reads() > before+300 }, "reads after the last kill")
	r.Stop()
}

// TestKillWithoutKeeper kills the process and the keeper: what was mounted must
// fail and be taken away.
func TestKillWithoutKeeper(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	dir, k, state := t.TempDir(), newKeeper(), t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH) })
	c := startChild(t, k, childNode+"="+state, childMount+"="+dir)
	c.expect(t, "ready")
	c.wait()
	for name := range k.kept {
		_ = k.Drop(name)
	}
	if _, err := os.ReadFile(filepath.Join(dir, "file")); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("reading what nobody serves: %v, want %v", err, unix.ENOTCONN)
	}
	node := backendtest.NewNode(t, state)
	im := node.Image(t, backendtest.Layer{backendtest.Regular("file", killContent())})
	b, err := fuse.New(fuse.Options{Filler: node.Filler, Keeper: k, Log: logTo(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	if _, err := b.Adopt(t.Context(), &im.Image, dir); !errors.Is(err, backend.ErrLost) {
		t.Errorf("adopting what is lost: %v, want %v", err, backend.ErrLost)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the directory has %v (%v)", entries, err)
	}
}
