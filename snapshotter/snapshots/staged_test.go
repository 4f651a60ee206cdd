package snapshots_test

import (
	"context"
	"fmt"
	"testing"

	cdsnapshots "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// TestParallelUnpackWithoutStaging is containerd up to 2.3 with the capability
// rebase, which has no way to say that a layer without a parent is there already.
func TestParallelUnpackWithoutStaging(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	e := newEnv(t, dir)
	im := newImage(t, e.images, "parallel", 2, 2)
	cd := newContainerd(t, dir, e)
	ctx := inNamespace(t, "k8s.io")
	if err := cd.pullWith(ctx, im, []string{"rebase"}, parallel()); err != nil {
		t.Fatal(err)
	}
	if got := cd.fetches(); got != 1 {
		t.Errorf("%d layers fetched, want the upper one", got)
	}
	if d, err := e.last(im.top()); err != nil || d.Reason.Code != snapshots.ReasonParallel {
		t.Errorf("%+v, %v", d, err)
	}
	cd.run(ctx, t, "container", im)
}

// staged is what containerd's unpacker does from 2.4 on, in parallel.
type staged struct {
	sn   cdsnapshots.Snapshotter
	keys []string // of layers to commit; "" for those that are there
	pull []bool   // of them, those that were fetched
}

func (s *staged) prepare(ctx context.Context, t *testing.T, im *image) {
	t.Helper()
	for i, l := range im.layers {
		key := fmt.Sprintf("extract-%d %s", i, l.chain)
		mounts, err := s.sn.Prepare(ctx, key, "", cdsnapshots.WithLabels(l.labels()))
		if errdefs.IsAlreadyExists(err) {
			if _, err := s.sn.Stat(ctx, l.chain.String()); err != nil {
				t.Fatal(err)
			}
			key, err = "", nil
		}
		if err != nil {
			t.Fatal(err)
		}
		fetched := key != "" && !mounts[len(mounts)-1].ReadOnly()
		if fetched {
			l.write(t, mounts[0].Source)
		}
		s.keys, s.pull = append(s.keys, key), append(s.pull, fetched)
	}
}

func (s *staged) commit(ctx context.Context, im *image) error {
	for i, l := range im.layers {
		if s.keys[i] == "" {
			continue
		}
		opts := []cdsnapshots.Opt{cdsnapshots.WithLabels(l.labels())}
		if i > 0 {
			opts = append(opts, cdsnapshots.WithParent(l.parent.String()))
		}
		if err := s.sn.Commit(ctx, l.chain.String(), s.keys[i], opts...); err != nil {
			return err
		}
	}
	return nil
}

func (s *staged) fetched() (n int) {
	for _, p := range s.pull {
		if p {
			n++
		}
	}
	return n
}

func TestStaged(t *testing.T) {
	needMounts(t)
	for _, c := range []struct{ layers, lazy int }{{1, 1}, {1, 0}, {24, 24}, {5, 3}, {4, 0}} {
		t.Run(fmt.Sprintf("%d of %d", c.lazy, c.layers), func(t *testing.T) {
			dir := t.TempDir()
			e := newEnv(t, dir, func(o *snapshots.Options) { o.Staged = true })
			im := newImage(t, e.images, "staged", c.layers, c.lazy)
			cd := newContainerd(t, dir, overSocket(t, e))
			for _, ns := range []string{"a", "b"} {
				ctx := inNamespace(t, ns)
				for round := range 2 {
					s := staged{sn: cd.snapshotter()}
					s.prepare(ctx, t, im)
					if err := s.commit(ctx, im); err != nil {
						t.Fatal(err)
					}
					if got, want := s.fetched(), (c.layers-c.lazy)*(1-round); got != want {
						t.Fatalf("%d layers fetched, want %d", got, want)
					}
				}
				mounts := cd.run(ctx, t, "container", im)
				if got := lowerDirs(mounts); len(got) != max(c.layers-c.lazy, 0)+min(c.lazy, 1) {
					t.Errorf("%d lower directories: %v", len(got), got)
				}
			}
			collect(t, e, cd)
		})
	}
}

// collect lets containerd collect all, and looks for what is left.
func collect(t *testing.T, e *env, cd *containerd) {
	t.Helper()
	ctx := inNamespace(t, "a")
	if err := cd.snapshotter().Remove(ctx, "container"); err != nil {
		t.Fatal(err)
	}
	if _, err := cd.db.GarbageCollect(ctx); err != nil {
		t.Fatal(err)
	}
	if got, keep := names(t, e), e.images.yeses(); len(got) != 0 || len(keep) != 0 {
		t.Errorf("left: %v, %v", got, keep)
	}
}

// TestStagedOnAnotherParent lets somebody else pull the parent in the meantime.
func TestStagedOnAnotherParent(t *testing.T) {
	needMounts(t)
	e := newEnv(t, t.TempDir(), func(o *snapshots.Options) { o.Staged = true })
	im := newImage(t, e.images, "staged", 2, 2)
	ctx := t.Context()
	lower, upper := im.layers[0], im.layers[1]
	commitLazy(t, e, &image{layers: im.layers[:1]})
	mounts, err := e.Prepare(ctx, "ns/1/extract", "", cdsnapshots.WithLabels(upper.labels()))
	if err != nil || !mounts[0].ReadOnly() {
		t.Fatal(mounts, err)
	}
	if again, err := e.Mounts(ctx, "ns/1/extract"); err != nil || !again[0].ReadOnly() {
		t.Errorf("%v, %v", again, err)
	}
	if _, err := e.Prepare(ctx, "ns/2/other", ""); err != nil {
		t.Fatal(err)
	}
	if err := e.Commit(ctx, "ns/3/other", "ns/2/other", cdsnapshots.WithLabels(lower.labels())); err != nil {
		t.Fatal(err)
	}
	commit := func(parent string) error {
		return e.Commit(ctx, "ns/4/upper", "ns/1/extract", cdsnapshots.WithLabels(upper.labels()), cdsnapshots.WithParent(parent))
	}
	if err := commit("ns/3/other"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("committed on a layer that was pulled: %v", err)
	}
	if err := commit(""); !errdefs.IsNotFound(err) {
		t.Errorf("committed on nothing: %v", err)
	}
	// The next try sees it.
	mounts, err = e.Prepare(ctx, "ns/5/extract", "", cdsnapshots.WithLabels(upper.labels()))
	if err != nil || mounts[0].ReadOnly() {
		t.Errorf("%v, %v", mounts, err)
	}
	e.restart(t)
	if !e.images.yes[upper.chain.String()] {
		t.Error("a restart forgets a staged layer")
	}
	if err := commit("lazy:" + lower.chain.String()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ns/4/upper", "lazy:" + lower.chain.String()} {
		if err := e.Remove(ctx, name); err != nil {
			t.Error(err)
		}
	}
	if got := e.images.yeses(); len(got) != 0 {
		t.Errorf("images keep %v", got)
	}
}
