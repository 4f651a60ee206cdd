package backendtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
)

// Open opens a backend of a node, the filler of which is n.Filler. Backends
// that are opened one after the other with the same n stand for successive
// processes: what a keeper would hold between them is kept by n.Dir. The suite
// closes them.
type Open func(t testing.TB, n *Node) backend.Backend

// Suite tests a backend. It needs root. Each test has a node of its own, so
// that nothing is cached.
func Suite(t *testing.T, open Open) {
	testenv.Integration(t)
	testenv.Root(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, Open)
	}{
		{"Tree", testTree},
		{"TreeCompleteInAdvance", testComplete},
		{"NoXattrs", testNoXattrs},
		{"ReadOnly", testReadOnly},
		{"StatFS", testStatFS},
		{"Exec", testExec},
		{"Mmap", testMmap},
		{"Overlay", testOverlay},
		{"ParallelReaders", testParallelReaders},
		{"SlowFillHoldsUpNobodyElse", testSlowFill},
		{"FailedFill", testFailedFill},
		{"KilledReader", testKilledReader},
		{"SignalledReader", testSignalledReader},
		{"TwoMounts", testTwoMounts},
		{"TwoImages", testTwoImages},
		{"UnmountInUse", testUnmountInUse},
		{"MountAgain", testMountAgain},
		{"MountFails", testMountFails},
		{"Adopt", testAdopt},
		{"AdoptWhileReading", testAdoptWhileReading},
		{"AdoptNothing", testAdoptNothing},
		{"AdoptOtherImage", testAdoptOtherImage},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open) })
	}
}

// setup is a backend on a node of its own.
type setup struct {
	t    *testing.T
	node *Node
	open Open
	backend.Backend
}

func newSetup(t *testing.T, open Open) *setup {
	t.Helper()
	s := &setup{t: t, node: NewNode(t, t.TempDir()), open: open}
	s.Backend = open(t, s.node)
	t.Cleanup(func() {
		s.node.Filler.SetGate(nil)
		if err := s.Close(); err != nil {
			t.Errorf("close the backend: %v", err)
		}
	})
	return s
}

// restart closes the backend and opens the next.
func (s *setup) restart() {
	s.t.Helper()
	if err := s.Close(); err != nil {
		s.t.Fatalf("close the backend: %v", err)
	}
	s.Backend = s.open(s.t, s.node)
}

// dir returns an empty directory, on which nothing is mounted when the test
// ends.
func (s *setup) dir() string {
	s.t.Helper()
	dir := filepath.Join(s.t.TempDir(), "mount point")
	if err := os.Mkdir(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	return dir
}

// mount mounts an image and unmounts it when the test ends.
func (s *setup) mount(im *Image) (string, backend.Mount) {
	s.t.Helper()
	dir := s.dir()
	m, err := s.Mount(s.t.Context(), &im.Image, dir)
	if err != nil {
		s.t.Fatalf("mount: %v", err)
	}
	s.unmountAtEnd(m)
	return dir, m
}

func (s *setup) unmountAtEnd(m backend.Mount) {
	s.t.Cleanup(func() {
		if err := m.Unmount(context.WithoutCancel(s.t.Context())); err != nil {
			s.t.Errorf("unmount: %v", err)
		}
	})
}

func testMountFails(t *testing.T, open Open) {
	s := newSetup(t, open)
	im := s.node.Image(t, Layer{Regular("file", Noise(1, 1000))})
	missing := filepath.Join(t.TempDir(), "missing")
	if m, err := s.Mount(t.Context(), &im.Image, missing); err == nil {
		s.unmountAtEnd(m)
		t.Error("mounting at a directory that does not exist succeeds")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	at := s.dir()
	if m, err := s.Mount(ctx, &im.Image, at); !errors.Is(err, context.Canceled) {
		if err == nil {
			s.unmountAtEnd(m)
		}
		t.Errorf("mounting when the context has ended: %v, want %v", err, context.Canceled)
	}
	Want{}.Compare(t, at)
	dir, _ := s.mount(im) // and the backend is none the worse
	im.Want.Compare(t, dir)
}

func testMountAgain(t *testing.T, open Open) {
	s := newSetup(t, open)
	im := s.node.Image(t, Layer{Regular("file", Noise(1, 200_000))})
	dir := s.dir()
	for range 3 {
		m, err := s.Mount(t.Context(), &im.Image, dir)
		if err != nil {
			t.Fatalf("mount: %v", err)
		}
		im.Want.Compare(t, dir)
		if err := m.Unmount(t.Context()); err != nil {
			t.Fatalf("unmount: %v", err)
		}
		Want{}.Compare(t, dir)
	}
}

func testUnmountInUse(t *testing.T, open Open) {
	s := newSetup(t, open)
	content := Noise(1, 1<<20)
	im := s.node.Image(t, Layer{Regular("file", content)})
	dir := s.dir()
	m, err := s.Mount(t.Context(), &im.Image, dir)
	if err != nil {
		t.Fatalf("mount: %v", err)
	}
	file, err := os.Open(filepath.Join(dir, "file")) // #nosec G304 -- a test's file
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if err := m.Unmount(t.Context()); err != nil {
		t.Fatalf("unmount: %v", err)
	}
	Want{}.Compare(t, dir)
	expect(t, file, content, 0, len(content))
}

func testTwoMounts(t *testing.T, open Open) {
	s := newSetup(t, open)
	im := s.node.Image(t, Layer{Regular("file", Noise(1, 500_000))})
	first, _ := s.mount(im)
	second, m := s.mount(im)
	im.Want.Compare(t, first)
	im.Want.Compare(t, second)
	if err := m.Unmount(t.Context()); err != nil {
		t.Fatalf("unmount one of two: %v", err)
	}
	im.Want.Compare(t, first)
	if _, most := s.node.Filler.Fetches(); most != 1 {
		t.Errorf("a group was fetched %d times", most)
	}
}

// testTwoImages mounts two images that have a layer in common, and so a device.
func testTwoImages(t *testing.T, open Open) {
	s := newSetup(t, open)
	base := Layer{Directory("base"), Regular("base/file", Noise(1, 300_000))}
	one := s.node.Image(t, base, Layer{Regular("one", Noise(2, 100_000))})
	two := s.node.Image(t, base, Layer{Regular("two", Noise(3, 100_000))})
	first, _ := s.mount(one)
	second, _ := s.mount(two)
	one.Want.Compare(t, first)
	two.Want.Compare(t, second)
	if _, most := s.node.Filler.Fetches(); most != 1 {
		t.Errorf("a group was fetched %d times", most)
	}
}

func testAdopt(t *testing.T, open Open) {
	s := newSetup(t, open)
	im := s.node.Image(t, baseLayer(), upperLayer())
	dir := s.dir()
	if _, err := s.Mount(t.Context(), &im.Image, dir); err != nil {
		t.Fatalf("mount: %v", err)
	}
	file, err := os.Open(filepath.Join(dir, "data/large")) // #nosec G304 -- a test's file
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	want := im.Want.content("data/large")
	expect(t, file, want, 0, 100_000)
	for range 2 {
		s.restart()
		m, err := s.Adopt(t.Context(), &im.Image, dir)
		if err != nil {
			t.Fatalf("adopt: %v", err)
		}
		t.Cleanup(func() { _ = m.Unmount(context.WithoutCancel(t.Context())) })
	}
	expect(t, file, want, 0, len(want))
	im.Want.Compare(t, dir)
}

func testAdoptNothing(t *testing.T, open Open) {
	s := newSetup(t, open)
	im := s.node.Image(t, Layer{Regular("file", nil)})
	if _, err := s.Adopt(t.Context(), &im.Image, s.dir()); !errors.Is(err, backend.ErrLost) {
		t.Errorf("adopting what is not mounted: %v, want %v", err, backend.ErrLost)
	}
}

func testAdoptOtherImage(t *testing.T, open Open) {
	s := newSetup(t, open)
	one := s.node.Image(t, Layer{Regular("file", Noise(1, 1000))})
	two := s.node.Image(t, Layer{Regular("file", Noise(2, 1000))})
	dir := s.dir()
	if _, err := s.Mount(t.Context(), &one.Image, dir); err != nil {
		t.Fatalf("mount: %v", err)
	}
	s.restart()
	if _, err := s.Adopt(t.Context(), &two.Image, dir); !errors.Is(err, backend.ErrLost) {
		t.Errorf("adopting another image's mount: %v, want %v", err, backend.ErrLost)
	}
	Want{}.Compare(t, dir)
}
