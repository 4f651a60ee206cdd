package snapshotter

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/fdkeeper"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// TestMain makes this program a keeper, too.
func TestMain(m *testing.M) {
	if len(os.Args) < 4 || os.Args[1] != "keeper" || os.Args[2] != "--address" {
		os.Exit(m.Run())
	}
	c := KeeperConfig{Address: os.Args[3], Unused: time.Minute}
	if err := RunKeeper(context.Background(), c, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		os.Exit(1)
	}
}

// shortDir is a directory whose path a socket's address has room for.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "spare-") //nolint:usetesting // the address of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// A keeper outlives whoever reads its log: it may be the last holder.
func TestKeeperOutlivesItsLog(t *testing.T) {
	socket := filepath.Join(shortDir(t), "keeper.sock")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "keeper", "--address", socket) // #nosec G204 -- this program
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended //nolint:errcheck // it was killed
	})
	_ = w.Close()
	c := fdkeeper.NewClient(socket)
	t.Cleanup(func() { _ = c.Close() })
	testenv.Eventually(t, func() bool { _, err := c.Instance(t.Context()); return err == nil }, "the keeper")
	_ = r.Close()

	// It has something to say about a client that does not speak its language.
	bad, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bad.Write([]byte("nonsense")); err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(bad) // until it hangs up
	_ = bad.Close()
	if _, err := c.Instance(t.Context()); err != nil {
		t.Errorf("the keeper does not answer any more: %v", err)
	}
	select {
	case err := <-ended:
		t.Errorf("the keeper has ended: %v", err)
		ended <- err
	default:
	}
}

// A spare keeper is a process of its own: nothing of the service's is in it.
func TestSpareKeeper(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	t.Chdir(shortDir(t))
	s := &spare{socket: "spare.sock", log: slog.New(slog.DiscardHandler)}
	for range 2 { // the second finds it there
		if err := s.ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	pid := holderOf(t, s.socket)
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	if dir, err := os.Readlink(procFile(pid, "cwd")); err != nil || dir != "/" {
		t.Errorf("its directory is %q (%v)", dir, err)
	}
	env, err := os.ReadFile(procFile(pid, "environ"))
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(strings.Split(string(env), "\x00"), func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") }) {
		t.Error("it would speak to systemd as the snapshotter")
	}
	if session, err := syscall.Getpgid(pid); err != nil || session != pid {
		t.Errorf("it is in process group %d (%v), not in its own", session, err)
	}
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

// holderOf returns the process that listens on a socket.
func holderOf(t *testing.T, socket string) int {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // nothing was said
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) // #nosec G115 -- a descriptor
		if err != nil {
			t.Error(err)
			return
		}
		pid = int(cred.Pid)
	})
	if err != nil || pid == 0 {
		t.Fatalf("process %d: %v", pid, err)
	}
	return pid
}

func TestDataDir(t *testing.T) {
	base := t.TempDir()
	if err := os.Symlink(base, filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(base)
	real, err := filepath.EvalSymlinks(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ in, want string }{
		{filepath.Join(base, "data"), filepath.Join(real, "data")},
		{"relative//data/", filepath.Join(real, "relative/data")},
		{filepath.Join(base, "link", "with a space"), filepath.Join(real, "with a space")},
		{"a:b", ""}, {"a,b", ""}, {`a\b`, ""}, {"a\nb", ""}, {strings.Repeat("long", 60), ""},
	} {
		got, err := dataDir(test.in)
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%q is %q (%v), want %q", test.in, got, err, test.want)
		}
	}
}
