package fanotify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestServeFillsBeforeTheReaderGoesOn(t *testing.T) {
	f := sparse(t, 1<<20)
	w := watchFile(t, f)
	var events atomic.Int64
	serve(t, w, func(_ context.Context, off, n int64) error {
		events.Add(1)
		return fill(f, off, n)
	})
	var reads []<-chan result
	for off := int64(0); off < 1<<20; off += 16 << 10 {
		reads = append(reads, read(f.Name(), off, 16<<10))
	}
	for i, r := range reads {
		expect(t, r, int64(i)*16<<10)
	}
	if events.Load() == 0 {
		t.Error("no event")
	}
	if n := w.Pending(); n != 0 {
		t.Errorf("%d events pending after all reads", n)
	}
}

func TestServeRefusesWithEIO(t *testing.T) {
	f := sparse(t, 1<<20)
	w := watchFile(t, f)
	serve(t, w, func(context.Context, int64, int64) error { return errors.New("origin down") })
	if got := <-read(f.Name(), 8192, 4096); !errors.Is(got.err, unix.EIO) {
		t.Errorf("read: %v, want EIO", got.err)
	}
}

func TestServeClosesDescriptors(t *testing.T) {
	f := sparse(t, 1<<20)
	w := watchFile(t, f)
	before := countOpen(t)
	stop := serve(t, w, func(_ context.Context, off, n int64) error { return fill(f, off, n) })
	for range 100 {
		expect(t, read(f.Name(), 0, 4096), 0)
	}
	stop() // a handler closes after the reader went on
	if after := countOpen(t); after > before {
		t.Errorf("%d descriptors open, were %d", after, before)
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

func TestMoreReadersThanSlots(t *testing.T) {
	const readers = slots + 50
	f := sparse(t, readers*4096)
	w := watchFile(t, f)
	release := make(chan struct{})
	var running, most atomic.Int64
	serve(t, w, func(_ context.Context, off, n int64) error {
		now := running.Add(1)
		defer running.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		<-release
		return fill(f, off, n)
	})
	var reads []<-chan result
	for i := range int64(readers) {
		reads = append(reads, read(f.Name(), i*4096, 4096))
	}
	testenv.Eventually(t, func() bool { return running.Load() == slots-1 }, "as many handlers as slots")
	close(release)
	for i, r := range reads {
		expect(t, r, int64(i)*4096)
	}
	if most.Load() != slots-1 {
		t.Errorf("%d handlers at once, want %d", most.Load(), slots-1)
	}
}

func TestStoppedServeLeavesItsEventsToTheNext(t *testing.T) {
	f := sparse(t, 1<<20)
	w := watchFile(t, f)
	entered := make(chan struct{}, 3)
	stop := serve(t, w, func(ctx context.Context, _, _ int64) error {
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	before := countOpen(t)
	var reads []<-chan result
	for i := range int64(3) {
		reads = append(reads, read(f.Name(), i*8192, 8192))
		<-entered
	}
	stop()
	for _, r := range reads {
		stillBlocked(t, r)
	}
	if n := w.Pending(); n != 3 {
		t.Errorf("%d events pending, want 3", n)
	}
	// Each reader has its own descriptor open.
	if after := countOpen(t); after != before+3 {
		t.Errorf("%d descriptors open, want %d", after, before+3)
	}
	serve(t, w, func(_ context.Context, off, n int64) error { return fill(f, off, n) })
	for i, r := range reads {
		expect(t, r, int64(i)*8192)
	}
}

func TestOneServes(t *testing.T) {
	f := sparse(t, 4096)
	w := watchFile(t, f)
	group, ring := keep(t, w)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Restore(ctx, group, ring, Options{}); !errors.Is(err, ErrBusy) || !errors.Is(err, context.Canceled) {
		t.Errorf("Restore while another Watch has the ring: %v, want ErrBusy and the context's error", err)
	}
	entered := make(chan struct{})
	stop := serve(t, w, func(ctx context.Context, _, _ int64) error {
		close(entered)
		<-ctx.Done()
		return nil
	})
	r := read(f.Name(), 0, 1)
	<-entered
	if err := w.Serve(t.Context(), nil); !errors.Is(err, ErrBusy) {
		t.Errorf("second Serve: %v, want ErrBusy", err)
	}
	stop()
	if got := <-r; got.err != nil {
		t.Errorf("read: %v", got.err)
	}
}

func TestRestoreRefusesOtherFiles(t *testing.T) {
	f := sparse(t, ringSize)
	w := watchFile(t, f)
	group, ring := keep(t, w)
	if err := w.Unmark(); err != nil {
		t.Fatal(err)
	}
	foreign, err := newRing()
	if err != nil {
		t.Fatal(err)
	}
	copy(foreign.slot(0), "something else")
	t.Cleanup(func() { closing(t, closerFunc(foreign.unmap)); closing(t, foreign.file) })
	corrupt, err := newRing()
	if err != nil {
		t.Fatal(err)
	}
	copy(corrupt.slot(0), ringMagic)
	copy(corrupt.slot(7), "\x18\x00\x00\x00\x09")
	t.Cleanup(func() { closing(t, closerFunc(corrupt.unmap)); closing(t, corrupt.file) })
	for name, files := range map[string][2]*os.File{
		"file as group":  {f, ring},
		"ring as group":  {ring, ring},
		"file as ring":   {group, f},
		"foreign header": {group, foreign.file},
		"corrupt slot":   {group, corrupt.file},
	} {
		if _, err := Restore(t.Context(), files[0], files[1], Options{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

func TestMarked(t *testing.T) {
	f, other := sparse(t, 4096), sparse(t, 4096)
	w := watchFile(t, f)
	want := func(file *os.File, want bool) {
		t.Helper()
		if got, err := w.Marked(file); err != nil || got != want {
			t.Errorf("Marked: %t, %v, want %t", got, err, want)
		}
	}
	want(f, true)
	want(other, false)
	if err := w.Mark(f); err != nil {
		t.Errorf("mark again: %v", err)
	}
	if err := w.Unmark(); err != nil {
		t.Fatal(err)
	}
	want(f, false)
}

// TestWhoAsks is what the order "open the writer, mark, open the readers" rests
// on.
func TestWhoAsks(t *testing.T) {
	f := sparse(t, 1<<20)
	before, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, before)
	w := watchFile(t, f)
	after, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, after)
	var events atomic.Int64
	serve(t, w, func(_ context.Context, off, n int64) error {
		events.Add(1)
		return nil
	})
	asks := func(name string, want int64, do func() error) {
		t.Helper()
		events.Store(0)
		if err := do(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := events.Load(); got != want {
			t.Errorf("%s: %d events, want %d", name, got, want)
		}
	}
	b := make([]byte, 4096)
	readAt := func(f *os.File) func() error {
		return func() error { _, err := f.ReadAt(b, 8192); return err }
	}
	punch := func() error {
		return control(f, func(fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 8192)
		})
	}
	asks("reader from before the mark", 0, readAt(before))
	asks("writer from before the mark", 0, func() error { return fill(f, 0, 8192) })
	asks("writer punches", 0, punch)
	asks("writer reads", 0, readAt(f))
	asks("writer syncs", 0, f.Sync)
	asks("reader from after the mark", 1, readAt(after))
	asks("present range", 1, readAt(after))
	if err := w.Unmark(); err != nil {
		t.Fatal(err)
	}
	asks("after Unmark", 0, readAt(after))
	unmarked, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, unmarked)
	if err := w.Mark(f); err != nil {
		t.Fatal(err)
	}
	asks("marked again", 1, readAt(after))
	asks("opened while unmarked", 0, readAt(unmarked))
}

// TestLastCloseReleasesReaders is why a keeper is needed.
func TestLastCloseReleasesReaders(t *testing.T) {
	f := sparse(t, 1<<20)
	w := newWatch(t)
	if err := w.Mark(f); err != nil {
		t.Fatal(err)
	}
	group, _ := keep(t, w)
	entered := make(chan struct{}, 2)
	stop := serve(t, w, func(ctx context.Context, _, _ int64) error {
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	r := read(f.Name(), 0, 4096)
	<-entered
	stop()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	stillBlocked(t, r)
	queued := read(f.Name(), 8192, 4096)
	testenv.Eventually(t, func() bool { return waiting(t) == 2 }, "two readers in the kernel")
	stillBlocked(t, queued)
	if err := group.Close(); err != nil {
		t.Fatal(err)
	}
	for _, r := range []<-chan result{r, queued} {
		if got := <-r; got.err != nil || !bytes.Equal(got.data, make([]byte, 4096)) {
			t.Errorf("after the last close: error %v", got.err)
		}
	}
}

// waiting counts this process's threads that wait for an answer.
func waiting(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, task := range tasks {
		stack, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%s/stack", task.Name()))
		if strings.Contains(string(stack), "fanotify_handle_event") {
			n++
		}
	}
	return n
}

// TestNoDescriptorLeft: the kernel refuses what it cannot report.
func TestNoDescriptorLeft(t *testing.T) {
	f := sparse(t, 1<<20)
	w := watchFile(t, f)
	serve(t, w, func(_ context.Context, off, n int64) error { return fill(f, off, n) })
	reader, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, reader)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	restore := sync.OnceFunc(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	})
	defer restore()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	_, err = reader.ReadAt(b, 0)
	restore()
	t.Logf("read: %v", err)
	if err == nil {
		t.Error("a read that nobody could be asked about succeeded")
	}
	if _, err := reader.ReadAt(b, 0); err != nil {
		t.Errorf("the next read: %v", err)
	}
	if err := check(b, 0); err != nil {
		t.Error(err)
	}
}

func TestProbe(t *testing.T) {
	testenv.Root(t)
	testenv.Kernel(t, 6, 14)
	dir := t.TempDir()
	if err := Probe(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("Probe left %v, %v", entries, err)
	}
	if err := Probe(t.Context(), "/dev/shm"); !errors.Is(err, ErrFilesystem) {
		t.Errorf("Probe on tmpfs: %v, want ErrFilesystem", err)
	}
	if err := Probe(t.Context(), dir+"/absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Probe in a directory that is not there: %v", err)
	}
}

func TestErrorsExplain(t *testing.T) {
	for _, c := range []struct{ got, want error }{
		{initError(unix.EPERM), ErrPrivilege},
		{initError(unix.EINVAL), ErrKernel},
		{initError(unix.ENOSYS), ErrKernel},
		{initError(unix.EMFILE), ErrGroups},
		{markError("f", unix.EINVAL), ErrKernel},
		{markError("f", unix.EOPNOTSUPP), ErrFilesystem},
		{markError("f", unix.ENOSPC), unix.ENOSPC},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%v is not %v", c.got, c.want)
		}
	}
}
