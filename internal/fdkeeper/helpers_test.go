package fdkeeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"golang.org/x/sys/unix"
)

// startServer serves at path until the returned function, or the end of the
// test, stops it and closes what it holds.
func startServer(t *testing.T, path string) (s *Server, stop func()) {
	t.Helper()
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	s = NewServer(nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		closing(t, s)
	}
	t.Cleanup(stop)
	return s, stop
}

func newClient(t *testing.T, path string) *Client {
	t.Helper()
	c := NewClient(path)
	t.Cleanup(func() { closing(t, c) })
	return c
}

// pair is a server and a client of it.
func pair(t *testing.T) (*Server, *Client) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keeper.sock")
	s, _ := startServer(t, path)
	return s, newClient(t, path)
}

// files makes n files with different content, closed in the end.
func files(t *testing.T, n int) []*os.File {
	t.Helper()
	out := make([]*os.File, n)
	for i := range out {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(f, "file %d", i); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closing(t, f) })
		out[i] = f
	}
	return out
}

// same fails the test unless got holds the files of want, and closes got.
func same(t *testing.T, got Set, want []*os.File) {
	t.Helper()
	defer closing(t, got)
	if len(got.Files) != len(want) {
		t.Fatalf("%d files, want %d", len(got.Files), len(want))
	}
	for i := range want {
		a, err := got.Files[i].Stat()
		if err != nil {
			t.Fatal(err)
		}
		b, err := want[i].Stat()
		if err != nil {
			t.Fatal(err)
		}
		if !os.SameFile(a, b) {
			content, _ := io.ReadAll(io.NewSectionReader(got.Files[i], 0, 100))
			t.Errorf("file %d is another one: %q", i, content)
		}
	}
}

func countOpen(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// settled fails the test unless as many descriptors are open as before.
func settled(t *testing.T, before int) {
	t.Helper()
	testenv.Eventually(t, func() bool { return countOpen(t) == before }, fmt.Sprintf("%d open descriptors again", before))
}

// dupAll duplicates descriptors.
func dupAll(name string, fds []int) []*os.File {
	var out []int
	for _, fd := range fds {
		second, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			panic(err)
		}
		out = append(out, second)
	}
	return newFiles(name, out)
}

// closing closes c, which may be closed already.
func closing(t testing.TB, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, net.ErrClosed) {
		t.Errorf("close: %v", err)
	}
}
