package erofs_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/backend/backendtest"
	"github.com/damselfly-io/damselfly/snapshotter/backend/erofs"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// life is a node whose backend is restarted, with what its keeper has.
type life struct {
	t    *testing.T
	node *backendtest.Node
	kept *keeper
	*erofs.Backend
}

func newLife(t *testing.T) *life {
	t.Helper()
	testenv.Integration(t)
	testenv.Root(t)
	l := &life{t: t, node: backendtest.NewNode(t, t.TempDir()), kept: &keeper{kept: map[string][]*os.File{}, meta: map[string][]byte{}}}
	l.Backend = erofs.New(erofs.Options{Filler: l.node.Filler, Keeper: l.kept})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the backend: %v", err)
		}
	})
	return l
}

func (l *life) restart() {
	l.t.Helper()
	if err := l.Close(); err != nil {
		l.t.Fatalf("close the backend: %v", err)
	}
	l.Backend = erofs.New(erofs.Options{Filler: l.node.Filler, Keeper: l.kept})
}

func (l *life) dir() string {
	l.t.Helper()
	dir := filepath.Join(l.t.TempDir(), "a #mount\\point")
	if err := os.Mkdir(dir, 0o700); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
	})
	return dir
}

func (l *life) mount(im *backendtest.Image, dir string) backend.Mount {
	l.t.Helper()
	m, err := l.Mount(l.t.Context(), &im.Image, dir)
	if err != nil {
		l.t.Fatalf("mount: %v", err)
	}
	return m
}

func (l *life) unmount(m backend.Mount) {
	l.t.Helper()
	if err := m.Unmount(l.t.Context()); err != nil {
		l.t.Fatalf("unmount: %v", err)
	}
}

// gone waits until nobody uses what was unmounted.
func (l *life) gone(m backend.Mount) {
	l.t.Helper()
	lasting, ok := m.(interface{ Gone() <-chan struct{} })
	if !ok {
		l.t.Fatal("it is not known when a mount has no user left")
	}
	<-lasting.Gone()
}

// reader has a file of a mount open, and reads it without read-ahead.
type reader struct {
	t       *testing.T
	f       *os.File
	content []byte
}

func (l *life) open(dir, name string, content []byte) *reader {
	l.t.Helper()
	f, err := os.Open(filepath.Join(dir, name)) // #nosec G304 -- a test's file
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = f.Close() })
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil { // #nosec G115 -- a descriptor
		l.t.Fatal(err)
	}
	return &reader{l.t, f, content}
}

// expect reads n bytes at off.
func (r *reader) expect(off, n int) {
	r.t.Helper()
	got := make([]byte, n)
	if _, err := r.f.ReadAt(got, int64(off)); err != nil {
		r.t.Errorf("read %d bytes at %d: %v", n, off, err)
	} else if !bytes.Equal(got, r.content[off:off+n]) {
		r.t.Errorf("%d bytes at %d are wrong; they are all zero: %v", n, off, bytes.Equal(got, make([]byte, n)))
	}
}

func nameOf(d *device.Device) string {
	key := d.Key()
	return "erofs-" + hex.EncodeToString(key[:])
}

const size = 1 << 20

// What is open in an image keeps its devices from eviction, also when the image
// is not mounted any more and nobody else uses them.
func TestEvictionSparesUsersWithoutAMount(t *testing.T) {
	for name, all := range map[string]bool{"Incomplete": false, "Complete": true} {
		t.Run(name, func(t *testing.T) {
			l := newLife(t)
			content := backendtest.Noise(1, size)
			im := l.node.Image(t, backendtest.Layer{backendtest.Regular("file", content)})
			if all {
				for _, d := range im.Devices {
					if err := l.node.Filler.Fill(t.Context(), d, 0, d.Size()); err != nil {
						t.Fatal(err)
					}
				}
			}
			dir := l.dir()
			m := l.mount(im, dir)
			file := l.open(dir, "file", content)
			file.expect(0, 100)
			l.unmount(m)
			for _, d := range im.Devices {
				d.Release()
			}
			l.node.Store.Recovered()
			if _, err := l.node.Store.Prune(0); err != nil {
				t.Fatal(err)
			}
			file.expect(size/4, size/2) // which the kernel has not read yet
		})
	}
}

// An administrator may take a mount away that containers use.
func TestUnmountedUnderneath(t *testing.T) {
	l := newLife(t)
	content := backendtest.Noise(1, size)
	im := l.node.Image(t, backendtest.Layer{backendtest.Regular("file", content)})
	dir := l.dir()
	m := l.mount(im, dir)
	file := l.open(dir, "file", content)
	file.expect(0, 100)
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	l.unmount(m)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	l.unmount(m) // a second time does no harm
	file.expect(size/2, 100_000)
	if err := file.f.Close(); err != nil {
		t.Fatal(err)
	}
	l.gone(m)
	testenv.Eventually(t, func() bool { return l.kept.len() == 0 }, "the keeper to have nothing")
}

// If one of two groups is lost, readers of the other device get no zeros, and
// those of the first none any more.
func TestAdoptOneOfTwoLost(t *testing.T) {
	for lost := range 2 {
		l := newLife(t)
		contents := [][]byte{backendtest.Noise(1, size), backendtest.Noise(2, size)}
		im := l.node.Image(t, backendtest.Layer{backendtest.Regular("0", contents[0])}, backendtest.Layer{backendtest.Regular("1", contents[1])})
		if len(im.Devices) != 2 {
			t.Fatalf("%d devices", len(im.Devices))
		}
		dir := l.dir()
		l.mount(im, dir)
		files := []*reader{l.open(dir, "0", contents[0]), l.open(dir, "1", contents[1])}
		for _, f := range files {
			f.expect(0, 100)
		}
		if err := l.kept.Drop(nameOf(im.Devices[lost])); err != nil {
			t.Fatal(err)
		}
		l.restart()
		if _, err := l.Adopt(t.Context(), &im.Image, dir); !errors.Is(err, backend.ErrLost) {
			t.Errorf("adopt: %v, want %v", err, backend.ErrLost)
		}
		m := l.mount(im, dir)
		for _, f := range files {
			f.expect(size/2, 200_000)
		}
		im.Want.Compare(t, dir)
		l.unmount(m)
	}
}

// A new mount does not replace the group that an earlier process has left for
// readers of a mount that is gone.
func TestMountKeepsAnEarlierGroup(t *testing.T) {
	l := newLife(t)
	content := backendtest.Noise(1, size)
	im := l.node.Image(t, backendtest.Layer{backendtest.Regular("file", content)})
	dir := l.dir()
	l.mount(im, dir)
	file := l.open(dir, "file", content)
	file.expect(0, 100)
	l.restart()
	m := l.mount(im, dir) // which takes the earlier mount away
	file.expect(size/4, 100_000)
	l.unmount(m)
	l.gone(m)
	file.expect(size/2, 100_000)
}

// The next process learns that there are users of a mount that was taken away.
func TestLingeringUsersOutliveTheProcess(t *testing.T) {
	l := newLife(t)
	content := backendtest.Noise(1, size)
	im := l.node.Image(t, backendtest.Layer{backendtest.Regular("file", content)})
	one, two := l.dir(), l.dir()
	first := l.mount(im, one)
	l.mount(im, two)
	file := l.open(one, "file", content)
	file.expect(0, 100)
	l.unmount(first)
	l.restart()
	m, err := l.Adopt(t.Context(), &im.Image, two)
	if err != nil {
		t.Fatalf("adopt: %v", err)
	}
	l.Reclaim(l.kept.names(), l.node.Store.Load)
	l.unmount(m)
	l.gone(m)
	file.expect(size/2, 100_000)
}

// A keeper that has lost a group over telling it of users without a mount gets it
// again.
func TestLingeringUsersAreToldAgain(t *testing.T) {
	l := newLife(t)
	content := backendtest.Noise(1, size)
	im := l.node.Image(t, backendtest.Layer{backendtest.Regular("file", content)})
	dir := l.dir()
	m := l.mount(im, dir)
	file := l.open(dir, "file", content)
	l.kept.mu.Lock()
	l.kept.full = 1
	l.kept.mu.Unlock()
	l.unmount(m)
	testenv.Eventually(t, func() bool {
		l.kept.mu.Lock()
		defer l.kept.mu.Unlock()
		return l.kept.full == 0 && len(l.kept.kept) == 1
	}, "the keeper to be given the group again")
	l.restart()
	l.Reclaim(l.kept.names(), l.node.Store.Load)
	file.expect(size/2, 100_000)
}

// A keeper that cannot be asked now is no reason to give readers up.
func TestAdoptWaitsForTheKeeper(t *testing.T) {
	l := newLife(t)
	content := backendtest.Noise(1, size)
	im := l.node.Image(t, backendtest.Layer{backendtest.Regular("file", content)})
	dir := l.dir()
	l.mount(im, dir)
	file := l.open(dir, "file", content)
	file.expect(0, 100)
	l.restart()
	l.kept.fail(errors.New("no answer"))
	if _, err := l.Adopt(t.Context(), &im.Image, dir); err == nil || errors.Is(err, backend.ErrLost) {
		t.Errorf("adopt: %v", err)
	}
	l.kept.fail(nil)
	m, err := l.Adopt(t.Context(), &im.Image, dir)
	if err != nil {
		t.Fatalf("adopt: %v", err)
	}
	file.expect(size/2, 100_000)
	im.Want.Compare(t, dir)
	l.unmount(m)
}

// The directory may be written in another way than the kernel has it.
func TestAdoptThroughASymlink(t *testing.T) {
	l := newLife(t)
	im := l.node.Image(t, backendtest.Layer{backendtest.Regular("file", backendtest.Noise(1, size))})
	dir := l.dir()
	parent := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Dir(dir), parent); err != nil {
		t.Fatal(err)
	}
	through := parent + "//" + filepath.Base(dir)
	l.mount(im, through)
	l.restart()
	m, err := l.Adopt(t.Context(), &im.Image, through)
	if err != nil {
		t.Fatalf("adopt: %v", err)
	}
	l.unmount(m)
	backendtest.Want{}.Compare(t, dir)
}

// Mounts leave nothing behind.
func TestManyMounts(t *testing.T) {
	l := newLife(t)
	im := l.node.Image(t, backendtest.Layer{backendtest.Regular("0", backendtest.Noise(1, size))}, backendtest.Layer{backendtest.Regular("1", backendtest.Noise(2, size))})
	dir := l.dir()
	cycle := func() {
		m := l.mount(im, dir)
		if _, err := os.Stat(filepath.Join(dir, "0")); err != nil {
			t.Fatal(err)
		}
		l.unmount(m)
		l.gone(m)
	}
	cycle()
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for range 200 {
		cycle()
	}
	testenv.Eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines }, "as few goroutines as before")
	testenv.Eventually(t, func() bool { return openFiles(t) <= files }, "as few open files as before")
	if n := l.kept.len(); n > 0 {
		t.Errorf("the keeper has %d sets", n)
	}
	missing := filepath.Join(t.TempDir(), "missing")
	for range 20 {
		if _, err := l.Mount(t.Context(), &im.Image, missing); err == nil {
			t.Fatal("mounted at a directory that is not there")
		}
	}
	testenv.Eventually(t, func() bool {
		return l.kept.len() == 0 && runtime.NumGoroutine() <= goroutines && openFiles(t) <= files
	}, "nothing to be left of mounts that failed")
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// What completes a device makes that durable before its guard goes.
func TestCompleteIsDurableBeforeItIsUnguarded(t *testing.T) {
	l := newLife(t)
	im := l.node.Image(t, backendtest.Layer{backendtest.Regular("file", backendtest.Noise(1, size))})
	d := im.Devices[0]
	dropped := make(chan int64, 1)
	l.kept.onDrop = func(string) {
		info, err := os.Stat(filepath.Join(filepath.Dir(d.Path()), "present"))
		if err != nil {
			t.Error(err)
			dropped <- 0
			return
		}
		dropped <- info.ModTime().UnixNano()
	}
	m := l.mount(im, l.dir())
	defer l.unmount(m)
	before, err := os.Stat(filepath.Join(filepath.Dir(d.Path()), "present"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.node.Filler.Fill(context.WithoutCancel(t.Context()), d, 0, d.Size()); err != nil {
		t.Fatal(err)
	}
	if at := <-dropped; at <= before.ModTime().UnixNano() {
		t.Error("the group was dropped before the disk knew that the device is complete")
	}
}
