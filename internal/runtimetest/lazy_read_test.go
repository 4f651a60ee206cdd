package runtimetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// readersOfAll is how many readers a test has.
const readersOfAll = 8

// readers read all files below a directory, each in an order of its own, and
// compare them.
type readers struct {
	root string
	want map[string][]byte
	read atomic.Int64 // bytes, by all together
	done chan struct{}

	mu     sync.Mutex
	wrong  []string // places that were not what was pushed
	failed []string // reads that returned an error
}

// startReaders starts readers that end when they have read everything once. Their
// end is waited for after all else of the test has ended: nothing lets go of
// readers as long as somebody might answer them.
func startReaders(root string, want map[string][]byte) *readers {
	r := &readers{root: root, want: want, done: make(chan struct{})}
	var wg sync.WaitGroup
	names := slices.Sorted(maps.Keys(want))
	for i := range readersOfAll {
		order := slices.Clone(names)
		rand.New(rand.NewPCG(uint64(i), 7)).Shuffle(len(order), func(a, b int) { order[a], order[b] = order[b], order[a] })
		wg.Go(func() {
			for _, name := range order {
				r.readFile(name)
			}
		})
	}
	go func() {
		wg.Wait()
		close(r.done)
	}()
	return r
}

// readFile reads a file and compares what it gets, up to an error.
func (r *readers) readFile(name string) {
	f, err := os.Open(filepath.Join(r.root, name))
	if err != nil {
		r.fail(err)
		return
	}
	defer f.Close() //nolint:errcheck // only read
	want, buf := r.want[name], make([]byte, 64<<10)
	for off := 0; off < len(want); {
		n, err := f.Read(buf)
		if n > 0 && !bytes.Equal(buf[:n], want[off:min(off+n, len(want))]) {
			r.differ(name, off, buf[:n])
		}
		off += n
		r.read.Add(int64(n))
		if err != nil && (!errors.Is(err, io.EOF) || off != len(want)) {
			r.fail(fmt.Errorf("at %d: %w", off, err))
			return
		}
	}
}

func (r *readers) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = append(r.failed, err.Error())
}

func (r *readers) differ(name string, off int, got []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	want := r.want[name][off:]
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	rest := got[i:]
	kind := "other bytes"
	if len(bytes.Trim(rest[:min(len(rest), 512)], "\x00")) == 0 {
		kind = "zeros"
	}
	r.wrong = append(r.wrong, fmt.Sprintf("%s has %s at %d", name, kind, off+i))
}

// end waits for the end of the readers.
func (r *readers) end(t *testing.T) {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		t.Fatalf("the readers hang: they have read %d bytes", r.read.Load())
	}
}

// check waits for the end of the readers and fails the test for wrong bytes and
// failed reads.
func (r *readers) check(t *testing.T) {
	t.Helper()
	r.end(t)
	reportFirst(t, "wrong bytes", r.wrong)
	reportFirst(t, "failed read", r.failed)
}

func reportFirst(t *testing.T, what string, all []string) {
	t.Helper()
	for _, x := range all[:min(len(all), 5)] {
		t.Errorf("%s: %s", what, x)
	}
	if len(all) > 5 {
		t.Errorf("%s: %d more", what, len(all)-5)
	}
}

// dropPages has the kernel forget what it has cached of files, so that they are
// read again.
func dropPages(t *testing.T, root string, files map[string][]byte) {
	t.Helper()
	for name := range files {
		f, err := os.Open(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
}
