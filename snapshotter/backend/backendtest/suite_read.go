package backendtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

var errGate = errors.New("the gate is closed")

// expect compares n bytes of a file at off.
func expect(t testing.TB, f io.ReaderAt, content []byte, off, n int) {
	t.Helper()
	got := make([]byte, n)
	if _, err := f.ReadAt(got, int64(off)); err != nil {
		t.Errorf("read %d bytes at %d: %v", n, off, err)
	} else if want := content[off : off+n]; !bytes.Equal(got, want) {
		t.Errorf("%d bytes at %d differ from byte %d on", n, off, off+firstDifference(got, want))
	}
}

// openRandom opens a file for reads that are made as they are asked for: the kernel
// does not read ahead.
func openRandom(t testing.TB, name string) *os.File {
	t.Helper()
	f, err := os.Open(name) // #nosec G304 -- a test's file
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil { // #nosec G115 -- a file descriptor
		t.Fatal(err)
	}
	return f
}

func testParallelReaders(t *testing.T, open Open) {
	s := newSetup(t, open)
	content := Noise(1, 8<<20)
	im := s.node.Image(t, Layer{Regular("file", content)})
	dir, _ := s.mount(im)
	r := StartReaders(t, 8, filepath.Join(dir, "file"), content)
	testenv.Eventually(t, func() bool { return r.Reads() >= 300 }, "300 reads")
	r.Stop()
	im.Want.Compare(t, dir)
	if sum, most := s.node.Filler.Fetches(); most != 1 {
		t.Errorf("%d fetches, up to %d of one group", sum, most)
	}
}

// testSlowFill lets one group hang.
func testSlowFill(t *testing.T, open Open) {
	s := newSetup(t, open)
	slow, fast := Noise(1, 300_000), Noise(2, 300_000)
	im := s.node.Image(t, Layer{Regular("slow", slow), Regular("fast", fast), Regular("unknown", Noise(3, 5000))})
	dir, _ := s.mount(im)
	var held atomic.Int32
	first, release := make(chan struct{}), make(chan struct{})
	s.node.Filler.SetGate(func(ctx context.Context, _ *device.Device, _ int) error {
		if held.Add(1) > 1 {
			return nil
		}
		close(first)
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	f := openRandom(t, filepath.Join(dir, "slow"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		expect(t, f, slow, 0, 1000)
	}()
	<-first
	g := openRandom(t, filepath.Join(dir, "fast"))
	expect(t, g, fast, 150_000, 150_000)
	if _, err := os.Lstat(filepath.Join(dir, "unknown")); err != nil {
		t.Error(err)
	}
	select {
	case <-done:
		t.Error("the read did not wait for its fill")
	default:
	}
	close(release)
	<-done
	im.Want.Compare(t, dir)
}

// testFailedFill lets one group fail for a time.
func testFailedFill(t *testing.T, open Open) {
	s := newSetup(t, open)
	content := Noise(1, 1<<20)
	im := s.node.Image(t, Layer{Regular("file", content)})
	dir, _ := s.mount(im)
	bad := im.Devices[0].Table().Groups(512<<10, 1)[0]
	s.node.Filler.SetGate(func(_ context.Context, _ *device.Device, group int) error {
		if group == bad {
			return errGate
		}
		return nil
	})
	f := openRandom(t, filepath.Join(dir, "file"))
	expect(t, f, content, 0, 300_000)
	buf := make([]byte, 4096)
	if _, err := f.ReadAt(buf, 512<<10); !errors.Is(err, unix.EIO) {
		t.Errorf("reading what cannot be filled: %v, want %v", err, unix.EIO)
	}
	expect(t, f, content, 700_000, 300_000)
	s.node.Filler.SetGate(nil)
	expect(t, f, content, 0, len(content))
	im.Want.Compare(t, dir)
}

// hang makes every fill wait until the returned function is called, and
// returns a channel that tells of the first.
func (s *setup) hang() (waiting <-chan struct{}, release func()) {
	first, end := make(chan struct{}), make(chan struct{})
	var once, ended sync.Once
	s.node.Filler.SetGate(func(ctx context.Context, _ *device.Device, _ int) error {
		once.Do(func() { close(first) })
		select {
		case <-end:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	release = func() { ended.Do(func() { close(end) }) }
	s.t.Cleanup(release)
	return first, release
}

// cat starts a program that copies a file to out.
func (s *setup) cat(name string, out io.Writer) *exec.Cmd {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), testenv.Tool(s.t, "cat"), name) // #nosec G204 -- a test's file
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return cmd
}

// testKilledReader kills a program that waits for a fill which does not end.
func testKilledReader(t *testing.T, open Open) {
	s := newSetup(t, open)
	content := Noise(1, 100_000)
	im := s.node.Image(t, Layer{Regular("file", content)})
	dir, _ := s.mount(im)
	waiting, release := s.hang()
	cmd := s.cat(filepath.Join(dir, "file"), io.Discard)
	<-waiting
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the program was not killed")
	}
	release()
	im.Want.Compare(t, dir)
}

// testSignalledReader stops and continues a program that waits for a fill: it
// must not notice.
func testSignalledReader(t *testing.T, open Open) {
	s := newSetup(t, open)
	content := Noise(1, 100_000)
	im := s.node.Image(t, Layer{Regular("file", content)})
	dir, _ := s.mount(im)
	waiting, release := s.hang()
	var out bytes.Buffer
	cmd := s.cat(filepath.Join(dir, "file"), &out)
	<-waiting
	for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT, syscall.SIGWINCH} {
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	release()
	if err := cmd.Wait(); err != nil || !bytes.Equal(out.Bytes(), content) {
		t.Errorf("the program read %d bytes: %v", out.Len(), err)
	}
}

// testAdoptWhileReading restarts the backend again and again under readers.
func testAdoptWhileReading(t *testing.T, open Open) {
	s := newSetup(t, open)
	content := Noise(1, 16<<20)
	im := s.node.Image(t, Layer{Regular("file", content)})
	dir := s.dir()
	m, err := s.Mount(t.Context(), &im.Image, dir)
	if err != nil {
		t.Fatalf("mount: %v", err)
	}
	r := StartReaders(t, 8, filepath.Join(dir, "file"), content)
	for range 5 {
		before := r.Reads()
		testenv.Eventually(t, func() bool { return r.Reads() >= before+10 }, "reads before a restart")
		s.restart()
		if m, err = s.Adopt(t.Context(), &im.Image, dir); err != nil {
			t.Fatalf("adopt: %v", err)
		}
	}
	before := r.Reads()
	testenv.Eventually(t, func() bool { return r.Reads() >= before+50 }, "reads after the last restart")
	r.Stop()
	im.Want.Compare(t, dir)
	s.unmountAtEnd(m)
}
