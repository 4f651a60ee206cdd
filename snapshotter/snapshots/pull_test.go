package snapshots_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	cdsnapshots "github.com/containerd/containerd/v2/core/snapshots"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

func needMounts(t testing.TB) {
	t.Helper()
	testenv.Integration(t)
	testenv.Root(t)
}

// lowerDirs returns the lower directories of an overlay mount.
func lowerDirs(mounts []mount.Mount) []string {
	for _, o := range mounts[0].Options {
		if l, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return strings.Split(l, ":")
		}
	}
	return nil
}

func TestPull(t *testing.T) {
	needMounts(t)
	for _, c := range []struct {
		name         string
		layers, lazy int
		lower        int // lower directories of a container
	}{
		{"pause image pulled", 1, 0, 1},
		{"one lazy layer", 1, 1, 1},
		{"24 lazy layers", 24, 24, 1},
		{"24 layers pulled", 24, 0, 24},
		{"two pulled on three lazy layers", 5, 3, 3},
		{"one pulled on a lazy layer", 2, 1, 2},
	} {
		for _, socket := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s over socket %v", c.name, socket), func(t *testing.T) {
				dir := t.TempDir()
				e := newEnv(t, dir)
				im := newImage(t, e.images, c.name, c.layers, c.lazy)
				sn := cdsnapshots.Snapshotter(e)
				if socket {
					sn = overSocket(t, e)
				}
				cd := newContainerd(t, dir, sn)
				ctx := inNamespace(t, "k8s.io")
				for range 2 { // the second time there is nothing to do
					if err := cd.pull(ctx, im); err != nil {
						t.Fatal(err)
					}
					if got, want := cd.fetches(), c.layers-c.lazy; got != want {
						t.Fatalf("%d layers fetched, want %d", got, want)
					}
				}
				mounts := cd.run(ctx, t, "container", im)
				if got := lowerDirs(mounts); len(got) != c.lower {
					t.Errorf("%d lower directories: %v", len(got), got)
				}
				checkLayers(ctx, t, e, cd, im, c.lazy)
			})
		}
	}
}

// checkLayers looks at the layers as a client of containerd.
func checkLayers(ctx context.Context, t *testing.T, e *env, cd *containerd, im *image, lazy int) {
	t.Helper()
	for i, l := range im.layers {
		id := l.chain.String()
		info, err := cd.snapshotter().Stat(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if info.Parent != l.parent.String() || info.Kind != cdsnapshots.KindCommitted {
			t.Errorf("layer %d: %+v", i, info)
		}
		usage, err := cd.snapshotter().Usage(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		d, err := e.last(id)
		if err != nil || d.Image != imageName {
			t.Errorf("layer %d: decision %+v, %v", i, d, err)
		}
		reason := info.Labels[snapshots.LabelReason]
		switch {
		case i < lazy:
			if info.Labels[snapshots.LabelRemote] != "remote snapshot" || reason != "" || !d.Lazy || usage.Inodes != 7 {
				t.Errorf("lazy layer %d: %+v, %+v", i, info, usage)
			}
		case i == lazy:
			if info.Labels[snapshots.LabelRemote] != "" || reason != "no-index: nobody has made one" || d.Lazy || usage.Size == 0 {
				t.Errorf("layer %d: %+v, %+v", i, info, usage)
			}
		default:
			if !strings.HasPrefix(reason, snapshots.ReasonParent) || e.images.count(e.images.asked, id) != 0 {
				t.Errorf("layer %d above one that was pulled: %+v", i, info)
			}
		}
	}
}

func TestPullsAtTheSameTime(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	e := newEnv(t, dir)
	im := newImage(t, e.images, "shared", 8, 6)
	cd := newContainerd(t, dir, overSocket(t, e))
	var g errgroup.Group
	for i := range 16 {
		ctx := inNamespace(t, fmt.Sprintf("ns%d", i%4))
		g.Go(func() error { return cd.pull(ctx, im) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, l := range im.layers[:6] {
		if n := e.images.count(e.images.asked, l.chain.String()); n != 1 {
			t.Errorf("layer %d: asked %d times", i, n)
		}
	}
	if e.images.overlap {
		t.Error("calls for one chain ID ran at the same time")
	}
	var containers errgroup.Group
	for i := range 16 {
		ctx := inNamespace(t, fmt.Sprintf("ns%d", i%4))
		containers.Go(func() error {
			cd.run(ctx, t, fmt.Sprintf("container-%d", i), im)
			return nil
		})
	}
	if err := containers.Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestGarbageCollection lets containerd remove an image, and what it has shared
// with another namespace stay.
func TestGarbageCollection(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	e := newEnv(t, dir)
	im := newImage(t, e.images, "gone", 4, 3)
	cd := newContainerd(t, dir, overSocket(t, e))
	for i, ns := range []string{"a", "b"} {
		ctx := inNamespace(t, ns)
		if err := cd.pull(ctx, im); err != nil {
			t.Fatal(err)
		}
		root := cdsnapshots.WithLabels(map[string]string{"containerd.io/gc.root": "now"})
		if _, err := cd.snapshotter().Prepare(ctx, "container", im.top(), root); err != nil {
			t.Fatal(err)
		}
		if _, err := cd.db.GarbageCollect(ctx); err != nil {
			t.Fatal(err)
		}
		// Layers and container; the lazy ones are shared.
		if got, want := len(names(t, e)), 3+(i+1)*2; got != want {
			t.Fatalf("%d snapshots, want %d: %v", got, want, names(t, e))
		}
	}
	for i, ns := range []string{"a", "b"} {
		ctx := inNamespace(t, ns)
		if err := cd.snapshotter().Remove(ctx, "container"); err != nil {
			t.Fatal(err)
		}
		if _, err := cd.db.GarbageCollect(ctx); err != nil {
			t.Fatal(err)
		}
		if got, want := len(e.images.yeses()), 3*(1-i); got != want {
			t.Errorf("images keep %d layers, want %d", got, want)
		}
	}
	if got := names(t, e); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if err := cd.pull(inNamespace(t, "a"), im); err != nil {
		t.Fatalf("pull again: %v", err)
	}
	cd.run(inNamespace(t, "a"), t, "container", im)
}

func TestUpdateThroughContainerdKeepsALayerLazy(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	e := newEnv(t, dir)
	im := newImage(t, e.images, "labelled", 2, 2)
	cd := newContainerd(t, dir, e)
	ctx := inNamespace(t, "a")
	if err := cd.pull(ctx, im); err != nil {
		t.Fatal(err)
	}
	if _, err := cd.snapshotter().Update(ctx, cdsnapshots.Info{Name: im.top(), Labels: map[string]string{"x": "y"}}, "labels"); err != nil {
		t.Fatal(err)
	}
	info, err := cd.snapshotter().Stat(ctx, im.top())
	if err != nil || info.Labels["x"] != "y" || info.Labels[snapshots.LabelRemote] == "" {
		t.Errorf("%+v, %v", info, err)
	}
	// Another namespace still finds it.
	if err := cd.pull(inNamespace(t, "b"), im); err != nil || cd.fetches() != 0 {
		t.Errorf("%v, %d fetches", err, cd.fetches())
	}
	cd.run(ctx, t, "container", im)
}

func TestSuiteOverASocket(t *testing.T) {
	needMounts(t)
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (cdsnapshots.Snapshotter, func() error, error) {
		sn, err := snapshots.New(ctx, snapshots.Options{Root: root, Images: newImages(root)})
		if err != nil {
			return nil, nil, err
		}
		return overSocket(t, sn), sn.Close, nil
	})
}

// TestAnswerThatWasLost is a crash between the commit of a lazy layer and
// containerd's note of it.
func TestAnswerThatWasLost(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	e := newEnv(t, dir)
	im := newImage(t, e.images, "lost", 3, 3)
	cd := newContainerd(t, dir, e)
	parent := ""
	for i, l := range im.layers[:2] {
		_, err := e.Prepare(t.Context(), fmt.Sprintf("a/%d/extract-1 %s", i, l.chain), parent, cdsnapshots.WithLabels(l.labels()))
		if !errdefs.IsAlreadyExists(err) {
			t.Fatalf("layer %d: %v", i, err)
		}
		parent = "lazy:" + l.chain.String()
	}
	e.restart(t)
	cd = reconnect(t, cd, dir, e)
	ctx := inNamespace(t, "a")
	if err := cd.pull(ctx, im); err != nil || cd.fetches() != 0 {
		t.Fatalf("%v, %d fetches", err, cd.fetches())
	}
	if d, err := e.last(im.layers[0].chain.String()); err != nil || !d.Shared {
		t.Errorf("%+v, %v", d, err)
	}
	cd.run(ctx, t, "container", im)
}

// reconnect starts containerd anew with another snapshotter.
func reconnect(t testing.TB, old *containerd, dir string, sn cdsnapshots.Snapshotter) *containerd {
	t.Helper()
	if err := old.db.Close(); err != nil {
		t.Fatal(err)
	}
	return newContainerd(t, dir, sn)
}
