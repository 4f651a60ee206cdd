package fdkeeper

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memory is a Holder that does not duplicate, and can be broken.
type memory struct {
	mu       sync.Mutex
	sets     map[string]Set
	instance uint64
	broken   error
	hang     bool
	calls    int
}

func newMemory() *memory { return &memory{sets: map[string]Set{}, instance: 1} }

func (h *memory) enter(ctx context.Context) (func(), error) {
	h.mu.Lock()
	h.calls++
	if h.hang {
		h.mu.Unlock()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if h.broken != nil {
		defer h.mu.Unlock()
		return nil, h.broken
	}
	return h.mu.Unlock, nil
}

func (h *memory) Put(ctx context.Context, s Set) error {
	leave, err := h.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if old, ok := h.sets[s.Name]; ok && old.Stamp > s.Stamp {
		return ErrStale
	}
	h.sets[s.Name] = s
	return nil
}

func (h *memory) Get(ctx context.Context, name string) (Set, error) {
	leave, err := h.enter(ctx)
	if err != nil {
		return Set{}, err
	}
	defer leave()
	s, ok := h.sets[name]
	if !ok {
		return Set{}, ErrNotFound
	}
	var fds []int
	err = withFDs(s.Files, func(from []int) error { fds = slices.Clone(from); return nil })
	if err != nil {
		return Set{}, err
	}
	s.Files = dupAll(name, fds)
	return s, nil
}

func (h *memory) List(ctx context.Context) ([]Entry, error) {
	leave, err := h.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	var out []Entry
	for _, name := range slices.Sorted(maps.Keys(h.sets)) {
		out = append(out, Entry{name, h.sets[name].Stamp, len(h.sets[name].Files)})
	}
	return out, nil
}

func (h *memory) Drop(ctx context.Context, name string) error {
	leave, err := h.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	delete(h.sets, name)
	return nil
}

func (h *memory) Instance(ctx context.Context) (uint64, error) {
	leave, err := h.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	return h.instance, nil
}

// set changes how h behaves.
func (h *memory) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// names are what h holds.
func (h *memory) names() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(h.sets)), " ")
}

func newMulti(t *testing.T, o MultiOptions, holders ...Holder) *Multi {
	t.Helper()
	var members []Member
	for i, h := range holders {
		members = append(members, Member{Name: string(rune('a' + i)), Holder: h})
	}
	m, err := NewMulti(o, members...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func syncOK(t *testing.T, m *Multi) {
	t.Helper()
	if err := m.Sync(t.Context()); err != nil {
		t.Errorf("Sync: %v", err)
	}
}

func TestMultiRestoresAMember(t *testing.T) {
	dir := t.TempDir()
	pathA, pathB := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	_, stopA := startServer(t, pathA)
	b, _ := startServer(t, pathB)
	m := newMulti(t, MultiOptions{}, newClient(t, pathA), newClient(t, pathB))
	f := files(t, 3)
	ctx := t.Context()
	put := func(name string, f ...*os.File) {
		t.Helper()
		if err := m.Put(ctx, Set{Name: name, Meta: []byte("m-" + name), Files: f}); err != nil {
			t.Fatal(err)
		}
	}
	put("x", f[0])
	put("y", f[1])
	syncOK(t, m)
	stopA()
	put("z", f[2])
	put("x", f[2], f[0])
	if err := m.Drop(ctx, "y"); err != nil {
		t.Errorf("Drop with one member behind: %v", err)
	}
	if err := m.Sync(ctx); err == nil || strings.Contains(err.Error(), "b:") {
		t.Errorf("Sync with a member that does not answer: %v", err)
	}
	again, _ := startServer(t, pathA)
	syncOK(t, m)
	for name, s := range map[string]*Server{"restarted": again, "other": b} {
		if sets, fds := s.Held(); sets != 2 || fds != 3 {
			t.Errorf("%s holds %d sets, %d descriptors, want 2 and 3", name, sets, fds)
		}
	}
	got, err := newClient(t, pathA).Get(ctx, "x")
	if err != nil || string(got.Meta) != "m-x" {
		t.Fatalf("Get: %+v, %v", got, err)
	}
	same(t, got, []*os.File{f[2], f[0]})
}

// TestMultiAfterARestart is a new process that finds what an older one left.
func TestMultiAfterARestart(t *testing.T) {
	a, b := newMemory(), newMemory()
	f := files(t, 2)
	a.sets["only-a"] = Set{Name: "only-a", Stamp: 5, Files: f[:1]}
	a.sets["both"] = Set{Name: "both", Stamp: 6, Files: f[:1]}
	b.sets["both"] = Set{Name: "both", Stamp: 7, Files: f[1:]}
	m := newMulti(t, MultiOptions{Now: func() time.Time { return time.Unix(0, 1) }}, a, b)
	list, err := m.List(t.Context())
	if want := []Entry{{"both", 7, 1}, {"only-a", 5, 1}}; err != nil || !reflect.DeepEqual(list, want) {
		t.Errorf("List: %v, %v", list, err)
	}
	got, err := m.Get(t.Context(), "both")
	if err != nil || got.Stamp != 7 {
		t.Fatalf("Get: %+v, %v", got, err)
	}
	defer closing(t, got)
	info, _ := got.Files[0].Stat()
	if want, _ := f[1].Stat(); !os.SameFile(info, want) {
		t.Error("Get returned the older set")
	}
	a.set(func() { a.broken = errors.New("down") })
	if _, err := m.Get(t.Context(), "neither"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Get with one member down: %v, want no ErrNotFound", err)
	}
	a.set(func() { a.broken = nil })
	if _, err := m.Get(t.Context(), "neither"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get: %v, want ErrNotFound", err)
	}
	if err := m.Put(t.Context(), Set{Name: "new", Files: f}); err != nil {
		t.Fatal(err)
	}
	if got := a.sets["new"].Stamp; got != 8 {
		t.Errorf("stamp %d although the clock went back, want 8", got)
	}
	syncOK(t, m)
	if a.names() != "both new only-a" || b.names() != a.names() {
		t.Errorf("after Sync a has %q, b %q", a.names(), b.names())
	}
	if a.sets["both"].Stamp != 7 {
		t.Error("a still has the older set")
	}
}

func TestMultiNeed(t *testing.T) {
	a, b := newMemory(), newMemory()
	m := newMulti(t, MultiOptions{Need: 2}, a, b)
	syncOK(t, m)
	why := errors.New("down")
	b.set(func() { b.broken = why })
	if err := m.Put(t.Context(), Set{Name: "x", Files: files(t, 1)}); !errors.Is(err, why) {
		t.Errorf("Put: %v, want %v", err, why)
	}
	if a.names() != "" {
		t.Errorf("a keeps %q of a failed Put", a.names())
	}
	b.set(func() { b.broken = nil; b.sets["x"] = Set{Name: "x", Files: files(t, 1)} }) // it had arrived late
	syncOK(t, m)
	if b.names() != "" {
		t.Errorf("b has %q after Sync", b.names())
	}
	if len(m.dropped) != 0 {
		t.Errorf("%d dropped names remembered in vain", len(m.dropped))
	}
	for _, o := range []MultiOptions{{Need: 3}, {Need: -1}, {Timeout: -1}} {
		if _, err := NewMulti(o, Member{"a", a}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", o, err)
		}
	}
}

// TestMultiHangingMember costs the first request its timeout, and the others
// nothing.
func TestMultiHangingMember(t *testing.T) {
	f := files(t, 1)
	synctest.Test(t, func(t *testing.T) {
		a, b := newMemory(), newMemory()
		m := newMulti(t, MultiOptions{Timeout: time.Second, Interval: time.Minute}, a, b)
		syncOK(t, m)
		b.set(func() { b.hang = true })
		for i, want := range []time.Duration{time.Second, 0, 0} {
			start := time.Now()
			if err := m.Put(t.Context(), Set{Name: "x", Files: f}); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took != want {
				t.Errorf("Put %d took %v, want %v", i, took, want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(5 * time.Minute) // all times in this test are synctest's
		b.set(func() { b.hang = false })
		time.Sleep(2 * time.Minute)
		if b.names() != "x" {
			t.Errorf("b has %q after Run", b.names())
		}
		calls := b.calls
		if calls > 20 {
			t.Errorf("a hanging member was asked %d times in five minutes", calls)
		}
		b.set(func() { b.sets, b.instance = map[string]Set{}, 2 })
		time.Sleep(2 * time.Minute)
		if b.names() != "x" {
			t.Errorf("b has %q after it was started again", b.names())
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestMultiWithClosedFiles(t *testing.T) {
	a, b := newMemory(), newMemory()
	dir := t.TempDir()
	startServer(t, filepath.Join(dir, "s"))
	c := newClient(t, filepath.Join(dir, "s"))
	m := newMulti(t, MultiOptions{}, a, b, c)
	f := files(t, 2)
	for i, name := range []string{"gone", "kept"} {
		if err := m.Put(t.Context(), Set{Name: name, Files: f[i : i+1]}); err != nil {
			t.Fatal(err)
		}
	}
	closing(t, f[0])
	for _, name := range []string{"gone", "kept"} {
		if err := c.Drop(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	syncOK(t, m)
	list, err := c.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "kept" {
		t.Errorf("the client's server has %v, %v, want what is still open", list, err)
	}
}

// A start asks for many sets: a member that hangs must not delay each.
func TestMultiGetFromHangingMember(t *testing.T) {
	f := files(t, 1)
	synctest.Test(t, func(t *testing.T) {
		a, b := newMemory(), newMemory()
		m := newMulti(t, MultiOptions{Timeout: 2 * time.Second}, a, b)
		if err := m.Put(t.Context(), Set{Name: "x", Files: f}); err != nil {
			t.Fatal(err)
		}
		get := func() time.Duration {
			t.Helper()
			start := time.Now()
			s, err := m.Get(t.Context(), "x")
			if err != nil {
				t.Fatal(err)
			}
			closing(t, s)
			return time.Since(start)
		}
		b.set(func() { b.hang = true })
		for i, want := range []time.Duration{2 * time.Second, 50 * time.Millisecond, 50 * time.Millisecond} {
			if took := get(); took != want {
				t.Errorf("Get %d took %v, want %v", i, took, want)
			}
		}
		b.set(func() { b.hang = false })
		get()
		if m.members[1].patience(time.Second) != time.Second {
			t.Error("a member that answers again is not waited for")
		}
	})
}

// What the last Get returned is what a member is given that lost it.
func TestMultiRestoresFromTheLastGet(t *testing.T) {
	a, b := newMemory(), newMemory()
	m := newMulti(t, MultiOptions{}, a, b)
	if err := m.Put(t.Context(), Set{Name: "x", Files: files(t, 1)}); err != nil {
		t.Fatal(err)
	}
	first, err := m.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	last, err := m.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, last)
	closing(t, first)
	m.mu.Lock()
	defer m.mu.Unlock()
	if known := m.known["x"]; len(known.Files) != 1 || known.Files[0] != last.Files[0] {
		t.Error("a file that was closed is what is known")
	}
}
