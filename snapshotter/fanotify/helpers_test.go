package fanotify

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"golang.org/x/sys/unix"
)

// pattern is the right content of the 4 KiB block at off: no byte is zero.
func pattern(off int64) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(off)+1)
	b := make([]byte, 4096)
	_, _ = rand.NewChaCha8(seed).Read(b)
	for i := range b {
		b[i] |= 1
	}
	return b
}

// fill writes the right content of the blocks that overlap n bytes at off.
func fill(f *os.File, off, n int64) error {
	for at := off &^ 4095; at < off+n; at += 4096 {
		if _, err := f.WriteAt(pattern(at), at); err != nil {
			return err
		}
	}
	return nil
}

// check compares a whole number of blocks with what they should be.
func check(b []byte, off int64) error {
	for ; len(b) > 0; b, off = b[4096:], off+4096 {
		if !bytes.Equal(b[:4096], pattern(off)) {
			return fmt.Errorf("wrong bytes at %d, all zero: %t", off, bytes.Equal(b[:4096], make([]byte, 4096)))
		}
	}
	return nil
}

// sparse makes an empty file of the given size and returns it open for writing.
func sparse(t *testing.T, size int64) *os.File {
	t.Helper()
	testenv.Root(t)
	testenv.Kernel(t, 6, 14)
	f, err := os.Create(filepath.Join(t.TempDir(), "device"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closing(t, f) })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func newWatch(t *testing.T) *Watch {
	t.Helper()
	w, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// watchFile returns a Watch that has marked f and is closed in the end.
func watchFile(t *testing.T, f *os.File) *Watch {
	t.Helper()
	w := newWatch(t)
	t.Cleanup(func() { closing(t, w) })
	if err := w.Mark(f); err != nil {
		t.Fatal(err)
	}
	return w
}

// serve runs Serve until the returned function, or the end of the test, stops
// it and has checked its error.
func serve(t *testing.T, w *Watch, handle Handler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, handle) }()
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
	}
	t.Cleanup(stop)
	return stop
}

// result is what a read gave.
type result struct {
	data []byte
	err  error
}

// read opens path and reads on a goroutine of its own.
func read(path string, off int64, n int) <-chan result {
	out := make(chan result, 1)
	go func() {
		f, err := os.Open(path)
		if err != nil {
			out <- result{err: err}
			return
		}
		b := make([]byte, n)
		_, err = f.ReadAt(b, off)
		out <- result{b, errors.Join(err, f.Close())}
	}()
	return out
}

// expect fails the test unless the read gives the right bytes.
func expect(t *testing.T, r <-chan result, off int64) {
	t.Helper()
	got := <-r
	if got.err != nil {
		t.Errorf("read at %d: %v", off, got.err)
		return
	}
	if err := check(got.data, off); err != nil {
		t.Error(err)
	}
}

// stillBlocked fails the test if the read has ended.
func stillBlocked(t *testing.T, r <-chan result) {
	t.Helper()
	select {
	case got := <-r:
		t.Errorf("the read ended, with error %v", got.err)
	default:
	}
}

// dup returns a second descriptor for f, as a keeper has it.
func dup(t *testing.T, f *os.File) *os.File {
	t.Helper()
	var second int
	err := control(f, func(fd int) (err error) {
		second, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(second), f.Name())
}

// keep returns descriptors of w's files that outlive w, closed in the end.
func keep(t *testing.T, w *Watch) (group, ring *os.File) {
	t.Helper()
	files := w.Files()
	group, ring = dup(t, files[0]), dup(t, files[1])
	t.Cleanup(func() { closing(t, group); closing(t, ring) })
	return group, ring
}

// closing closes c, which may be closed already.
func closing(t testing.TB, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Errorf("close: %v", err)
	}
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }
