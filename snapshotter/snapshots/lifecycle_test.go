package snapshots_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	cdsnapshots "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// commitLazy commits the layers of an image as lazy ones, and returns the name of
// the topmost snapshot.
func commitLazy(t testing.TB, e *env, im *image) string {
	t.Helper()
	parent := ""
	for _, l := range im.layers {
		_, err := e.Prepare(t.Context(), "ns/1/extract "+l.chain.String(), parent, cdsnapshots.WithLabels(l.labels()))
		if !errdefs.IsAlreadyExists(err) {
			t.Fatalf("prepare of a lazy layer: %v", err)
		}
		parent = "lazy:" + l.chain.String()
	}
	return parent
}

func TestMountIsIdleWithoutUsers(t *testing.T) {
	needMounts(t)
	e := newEnv(t, t.TempDir())
	im := newImage(t, e.images, "idle", 2, 2)
	top, id := commitLazy(t, e, im), im.top()
	ctx := t.Context()
	if n := e.images.count(e.images.mounts, id); n != 0 {
		t.Errorf("mounted %d times before it was used", n)
	}
	if _, err := e.Prepare(ctx, "c1", top); err != nil {
		t.Fatal(err)
	}
	if _, err := e.View(ctx, "v1", top); err != nil {
		t.Fatal(err)
	}
	if err := e.Remove(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	if n := e.images.count(e.images.idle, id); n != 0 {
		t.Errorf("idle while a view uses it")
	}
	// An ordinary layer that is committed on top uses it no more; a container on
	// that does.
	if _, err := e.Prepare(ctx, "l1", top); err != nil {
		t.Fatal(err)
	}
	if err := e.Remove(ctx, "v1"); err != nil {
		t.Fatal(err)
	}
	if err := e.Commit(ctx, "layer", "l1"); err != nil {
		t.Fatal(err)
	}
	if n := e.images.count(e.images.idle, id); n != 1 {
		t.Errorf("idle %d times, want 1", n)
	}
	if _, err := e.Prepare(ctx, "c2", "layer"); err != nil {
		t.Fatal(err)
	}
	if err := e.Remove(ctx, "c2"); err != nil {
		t.Fatal(err)
	}
	if n := e.images.count(e.images.idle, id); n != 2 {
		t.Errorf("idle %d times, want 2", n)
	}
	if err := e.Remove(ctx, top); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removed below a layer: %v", err)
	}
	for _, name := range []string{"layer", top} {
		if err := e.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if got := e.images.yeses(); !slices.Equal(got, []string{im.layers[0].chain.String()}) {
		t.Errorf("images keep %v", got)
	}
}

func TestRestart(t *testing.T) {
	needMounts(t)
	e := newEnv(t, t.TempDir())
	used, unused := newImage(t, e.images, "used", 3, 3), newImage(t, e.images, "unused", 2, 2)
	ctx := t.Context()
	top := commitLazy(t, e, used)
	commitLazy(t, e, unused)
	before, err := e.Prepare(ctx, "container", top)
	if err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(e.root, "snapshots", "4711", "fs")
	if err := os.MkdirAll(stray, 0o700); err != nil {
		t.Fatal(err)
	}
	e.images.unmount(t) // as a reboot does
	e.restart(t)

	if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory without a snapshot is still there: %v", err)
	}
	if got := len(e.images.restored); got != 5 {
		t.Errorf("%d layers restored, want 5", got)
	}
	for id, isUsed := range e.images.restored {
		if isUsed != (id == used.top()) {
			t.Errorf("layer %s: used=%v", id, isUsed)
		}
	}
	after, err := e.Mounts(ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	if slices.Compare(lowerDirs(after), lowerDirs(before)) != 0 {
		t.Errorf("mounts are %v, were %v", after, before)
	}
	expect(t, after, used.files())
	if err := e.Remove(ctx, "container"); err != nil {
		t.Fatal(err)
	}
	if n := e.images.count(e.images.idle, used.top()); n != 1 {
		t.Errorf("idle %d times, want 1", n)
	}
}

func TestPowerCutBeforeTheDirectoryWasWritten(t *testing.T) {
	needMounts(t)
	e := newEnv(t, t.TempDir())
	im := newImage(t, e.images, "cut", 1, 1)
	top := commitLazy(t, e, im)
	entries, err := filepath.Glob(filepath.Join(e.root, "snapshots", "*"))
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	if err := os.RemoveAll(entries[0]); err != nil {
		t.Fatal(err)
	}
	e.restart(t)
	mounts, err := e.Prepare(t.Context(), "container", top)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, mounts, im.files())
}

func TestMountThatFailsLeavesNoSnapshot(t *testing.T) {
	e := newEnv(t, t.TempDir())
	im := newImage(t, e.images, "broken", 2, 2)
	top := commitLazy(t, e, im)
	e.images.fail = errdefs.ErrAlreadyExists // which would mean something else to containerd
	sn := overSocket(t, e)
	for range 2 {
		_, err := sn.Prepare(t.Context(), "container", top)
		if !errdefs.IsUnavailable(err) || errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), im.top()) {
			t.Errorf("got %v", err)
		}
	}
	if got := names(t, e); len(got) != 2 {
		t.Errorf("left: %v", got)
	}
	if n := e.images.count(e.images.idle, im.top()); n != 2 {
		t.Errorf("idle %d times, want 2", n)
	}
}

// TestRemoveDoesNotWaitForAMount is about containerd, which commits and removes
// within a transaction of its own.
func TestRemoveDoesNotWaitForAMount(t *testing.T) {
	needMounts(t)
	e := newEnv(t, t.TempDir())
	im := newImage(t, e.images, "slow", 2, 2)
	top := commitLazy(t, e, im)
	ctx := t.Context()
	if _, err := e.Prepare(ctx, "first", top); err != nil {
		t.Fatal(err)
	}
	entered, release := make(chan struct{}), make(chan struct{})
	e.images.onMounted = func() {
		close(entered)
		<-release
	}
	done := make(chan error, 1)
	go func() {
		_, err := e.Prepare(ctx, "second", top)
		done <- err
	}()
	<-entered
	if err := e.Remove(ctx, "first"); err != nil {
		t.Error(err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := e.images.count(e.images.idle, im.top()); n != 0 {
		t.Errorf("idle %d times while it was mounted for somebody", n)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	e := newEnv(t, t.TempDir())
	o := e.options
	o.LockTimeout = 1
	if sn, err := snapshots.New(t.Context(), o); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v, %v", sn, err)
	}
}

func TestOptionsThatAreRefused(t *testing.T) {
	for _, o := range []snapshots.Options{
		{}, {Root: "relative"}, {Root: "/a:b"}, {Root: "/a,b"}, {Root: t.TempDir(), Staged: true},
	} {
		if sn, err := snapshots.New(t.Context(), o); err == nil {
			t.Errorf("%+v: %v", o, sn)
		}
	}
}

func TestLazyLayersWithoutImagesAreRefused(t *testing.T) {
	e := newEnv(t, t.TempDir())
	commitLazy(t, e, newImage(t, e.images, "off", 1, 1))
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if sn, err := snapshots.New(t.Context(), snapshots.Options{Root: e.root}); err == nil {
		t.Errorf("got %v", sn)
	}
}

func TestWhatImagesSayInVain(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer snapshots.Decision
		cancel bool
		reason string
	}{
		{"label of somebody else", snapshots.Decision{Lazy: true, Labels: map[string]string{"x": "y"}}, false, snapshots.ReasonLabels},
		{"yes too late", snapshots.Decision{Lazy: true}, true, ""},
		{"no too late", snapshots.Decision{Reason: snapshots.Reason{Code: "timeout"}}, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEnv(t, t.TempDir())
			im := newImage(t, e.images, "vain", 1, 0)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			e.images.answer = func(r snapshots.Request) (snapshots.Decision, bool) {
				if c.cancel {
					cancel()
				}
				e.images.yes[r.ChainID] = true
				return c.answer, true
			}
			_, err := e.Prepare(ctx, "key", "", cdsnapshots.WithLabels(im.layers[0].labels()))
			if c.cancel {
				if !errors.Is(err, context.Canceled) || len(names(t, e)) != 0 {
					t.Errorf("%v, left %v", err, names(t, e))
				}
			} else if d, derr := e.last(im.top()); err != nil || derr != nil || d.Reason.Code != c.reason {
				t.Errorf("%v, %+v, %v", err, d, derr)
			}
			if c.answer.Lazy && len(e.images.yeses()) != 0 {
				t.Error("images still believe in their yes")
			}
		})
	}
}

func TestLabelsFromOutsideDecideNothing(t *testing.T) {
	e := newEnv(t, t.TempDir())
	ctx := t.Context()
	forged := cdsnapshots.WithLabels(map[string]string{
		snapshots.LabelRemote: "remote snapshot", snapshots.LabelReason: "x", labelIndex: "y", "kept": "z",
	})
	if _, err := e.Prepare(ctx, "active", "", forged); err != nil {
		t.Fatal(err)
	}
	if err := e.Commit(ctx, "committed", "active", forged); err != nil {
		t.Fatal(err)
	}
	if _, err := e.View(ctx, "view", "committed", forged); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"committed", "view"} {
		info, err := e.Stat(ctx, name)
		if err != nil || len(info.Labels) != 1 || info.Labels["kept"] != "z" {
			t.Errorf("%s: %v, %v", name, info.Labels, err)
		}
	}
	for name, call := range map[string]func() error{
		"prepare": func() error { _, err := e.Prepare(ctx, "lazy:x", ""); return err },
		"view":    func() error { _, err := e.View(ctx, "lazy:x", "committed"); return err },
		"commit":  func() error { return e.Commit(ctx, "lazy:x", "view") },
	} {
		if err := call(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s of a name that is ours: %v", name, err)
		}
	}
}

func TestLayersThatContradictThemselvesAreOrdinary(t *testing.T) {
	needMounts(t)
	e := newEnv(t, t.TempDir())
	e.images.all = true
	a, b := newImage(t, e.images, "a", 2, 2), newImage(t, e.images, "b", 2, 2)
	commitLazy(t, e, a)
	commitLazy(t, e, b)
	ctx := t.Context()
	// Without a diff ID, as from containerd 1.6, only what is there speaks against it.
	wrong := a.layers[1].labels()
	delete(wrong, "containerd.io/snapshot/diff-id")
	delete(wrong, "containerd.io/snapshot/parent-chain-id")
	for i, labels := range []map[string]string{
		wrong,
		a.layers[1].labels(),
		{"containerd.io/snapshot.ref": "not a digest"},
	} {
		key := "extract" + string(rune('0'+i))
		if _, err := e.Prepare(ctx, key, "lazy:"+b.layers[0].chain.String(), cdsnapshots.WithLabels(labels)); err != nil {
			t.Fatal(err)
		}
		info, err := e.Stat(ctx, key)
		if err != nil || !strings.HasPrefix(info.Labels[snapshots.LabelReason], snapshots.ReasonLabels) {
			t.Errorf("%d: %v, %v", i, info.Labels, err)
		}
	}
}

func TestRootHasTheOwnerThatTheImageSays(t *testing.T) {
	needMounts(t)
	e := newEnv(t, t.TempDir())
	im := newImage(t, e.images, "owned", 2, 2)
	top := commitLazy(t, e, im)
	if err := os.Lchown(e.images.layerDir(im.top()), 1234, 4321); err != nil {
		t.Fatal(err)
	}
	mounts, err := e.Prepare(t.Context(), "container", top)
	if err != nil {
		t.Fatal(err)
	}
	if uid, gid := rootOwner(t, mounts); uid != 1234 || gid != 4321 {
		t.Errorf("root belongs to %d:%d", uid, gid)
	}
}

func TestMappedIDs(t *testing.T) {
	needMounts(t)
	e := newEnv(t, t.TempDir(), func(o *snapshots.Options) { o.RemapIDs = true })
	im := newImage(t, e.images, "mapped", 1, 1)
	top := commitLazy(t, e, im)
	mapping := cdsnapshots.WithLabels(map[string]string{
		cdsnapshots.LabelSnapshotUIDMapping: "0:70000:65536", cdsnapshots.LabelSnapshotGIDMapping: "0:80000:65536",
	})
	mounts, err := e.Prepare(t.Context(), "container", top, mapping)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, mounts, im.files())
	if mounts, err = e.Mounts(t.Context(), "container"); err != nil { // mounting has changed the options
		t.Fatal(err)
	}
	if uid, gid := rootOwner(t, mounts); uid != 70000 || gid != 80000 {
		t.Errorf("root belongs to %d:%d", uid, gid)
	}
	if fi, err := os.Stat(filepath.Join(e.images.layerDir(im.top()), "top")); err != nil || owner(t, fi) != 0 {
		t.Errorf("the layer itself was changed: %v, %v", fi, err)
	}
}

func TestDecisionsAreLogged(t *testing.T) {
	var b bytes.Buffer
	e := newEnv(t, t.TempDir(), func(o *snapshots.Options) { o.Log = slog.New(slog.NewTextHandler(&b, nil)) })
	im := newImage(t, e.images, "logged", 2, 0)
	parent := ""
	for _, l := range im.layers {
		if _, err := e.Prepare(t.Context(), "a-"+l.chain.String(), parent, cdsnapshots.WithLabels(l.labels())); err != nil {
			t.Fatal(err)
		}
		parent = l.chain.String()
		if err := e.Commit(t.Context(), parent, "a-"+parent); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "reason=no-index") || !strings.Contains(got, imageName) {
		t.Errorf("logged %q", got)
	}
}

func owner(t testing.TB, fi os.FileInfo) uint32 {
	t.Helper()
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no owner")
	}
	return st.Uid
}
