package snapshots_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	cdsnapshots "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// images is an Images whose lazy layers are directories, merged with an overlay.
type images struct {
	dir string

	mu      sync.Mutex
	lazy    map[string]bool // chain IDs that are lazy, unless all are
	all     bool
	answer  func(snapshots.Request) (snapshots.Decision, bool) // asked first
	asked   map[string]int
	yes     map[string]bool // and not Removed since
	mounts  map[string]int  // calls of Mounted
	idle    map[string]int
	busy    map[string]bool
	overlap bool // calls for one chain ID ran at the same time
	fail    error
	// onMounted is called in Mounted.
	onMounted func()
	// restored are the topmost chain IDs of Restore, with Used.
	restored map[string]bool
}

func newImages(dir string) *images {
	return &images{
		dir: dir, lazy: map[string]bool{}, asked: map[string]int{}, yes: map[string]bool{},
		mounts: map[string]int{}, idle: map[string]int{}, busy: map[string]bool{}, restored: map[string]bool{},
	}
}

const labelIndex = snapshots.LabelPrefix + "index"

func (im *images) layerDir(id string) string { return filepath.Join(im.dir, "layers", encoded(id)) }
func (im *images) root(id string) string {
	return filepath.Join(im.dir, "mounts", encoded(id), "root")
}

// encoded is short, because mount(2) takes one page of options.
func encoded(id string) string { return digest.Digest(id).Encoded()[:16] }

// enter takes note of a call for a chain ID until the function returned is called.
func (im *images) enter(id string) func() {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.overlap = im.overlap || im.busy[id]
	im.busy[id] = true
	return func() {
		im.mu.Lock()
		defer im.mu.Unlock()
		delete(im.busy, id)
	}
}

func (im *images) Layer(_ context.Context, r snapshots.Request) snapshots.Decision {
	defer im.enter(r.ChainID)()
	im.mu.Lock()
	defer im.mu.Unlock()
	im.asked[r.ChainID]++
	if im.answer != nil {
		if d, ok := im.answer(r); ok {
			return d
		}
	}
	if !im.all && !im.lazy[r.ChainID] {
		return snapshots.Decision{Reason: snapshots.Reason{Code: "no-index", Detail: "nobody has made one"}}
	}
	im.yes[r.ChainID] = true
	return snapshots.Decision{Lazy: true, Labels: map[string]string{labelIndex: "of " + r.ChainID}}
}

func (im *images) Mounted(_ context.Context, chain []snapshots.Layer) (string, error) {
	id := chain[len(chain)-1].ChainID
	defer im.enter(id)()
	im.mu.Lock()
	fail, hook := im.fail, im.onMounted
	im.mounts[id]++
	im.mu.Unlock()
	if hook != nil {
		hook()
	}
	if fail != nil {
		return "", fail
	}
	root := im.root(id)
	if entries, err := os.ReadDir(root); err == nil && len(entries) > 0 {
		return root, nil
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return "", err
	}
	var lower []string
	for _, l := range slices.Backward(chain) {
		if l.Labels[labelIndex] != "of "+l.ChainID {
			return "", fmt.Errorf("layer %s has the labels %v", l.ChainID, l.Labels)
		}
		lower = append(lower, im.layerDir(l.ChainID))
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + strings.Join(lower, ":")}}
	if len(lower) == 1 {
		m = mount.Mount{Type: "bind", Source: lower[0], Options: []string{"ro", "rbind"}}
	}
	return root, m.Mount(root)
}

func (im *images) Idle(_ context.Context, id string) {
	defer im.enter(id)()
	im.mu.Lock()
	defer im.mu.Unlock()
	im.idle[id]++
}

func (im *images) Removed(_ context.Context, id string) {
	defer im.enter(id)()
	_ = mount.UnmountAll(im.root(id), 0)
	im.mu.Lock()
	defer im.mu.Unlock()
	delete(im.yes, id)
}

func (im *images) Usage(_ context.Context, l snapshots.Layer) (cdsnapshots.Usage, error) {
	return cdsnapshots.Usage{Inodes: 7, Size: int64(len(l.Labels[labelIndex]))}, nil
}

func (im *images) Restore(_ context.Context, layers []snapshots.Restored) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, l := range layers {
		top := l.Chain[len(l.Chain)-1].ChainID
		im.restored[top] = l.Used
		im.yes[top] = true
	}
	return nil
}

// unmount takes all mounts away, as a reboot does.
func (im *images) unmount(t testing.TB) {
	roots, err := filepath.Glob(filepath.Join(im.dir, "mounts", "*", "root"))
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		if err := mount.UnmountAll(root, 0); err != nil {
			t.Errorf("unmount %s: %v", root, err)
		}
	}
}

func (im *images) yeses() []string {
	im.mu.Lock()
	defer im.mu.Unlock()
	return slices.Sorted(maps.Keys(im.yes))
}

func (im *images) count(of map[string]int, id string) int {
	im.mu.Lock()
	defer im.mu.Unlock()
	return of[id]
}

// env is a snapshotter with its fake images.
type env struct {
	*snapshots.Snapshotter
	images  *images
	root    string
	options snapshots.Options

	mu      sync.Mutex
	decided []snapshots.Decided
}

func newEnv(t testing.TB, dir string, change ...func(*snapshots.Options)) *env {
	t.Helper()
	e := &env{images: newImages(dir), root: filepath.Join(dir, "root")}
	e.options = snapshots.Options{
		Root: e.root, Images: e.images, Log: slog.New(slog.DiscardHandler),
		Decided: func(d snapshots.Decided) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.decided = append(e.decided, d)
		},
	}
	for _, c := range change {
		c(&e.options)
	}
	e.open(t)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		e.images.unmount(t)
	})
	return e
}

func (e *env) open(t testing.TB) {
	t.Helper()
	sn, err := snapshots.New(context.Background(), e.options)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	e.Snapshotter = sn
}

// restart opens the snapshotter again, with images that know nothing.
func (e *env) restart(t testing.TB) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	im := newImages(e.images.dir)
	im.lazy, im.all = e.images.lazy, e.images.all
	e.images, e.options.Images = im, im
	e.open(t)
}

// last returns the last decision about a chain ID.
func (e *env) last(id string) (snapshots.Decided, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range slices.Backward(e.decided) {
		if d.ChainID == id {
			return d, nil
		}
	}
	return snapshots.Decided{}, errors.New("no decision about " + id)
}
