package piecestore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/task"
)

// clock is a time that moves only when told.
type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ns.Store(time.Now().UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

// have returns which of blobs the store has.
func have(s *Store, blobs []blob) string {
	var names []byte
	ids := map[task.ID]bool{}
	for _, in := range s.List() {
		ids[in.ID] = true
	}
	for k, b := range blobs {
		if ids[b.id] {
			names = append(names, byte('0'+k))
		}
	}
	return string(names)
}

func hundreds(n int) []blob {
	var blobs []blob
	for k := range n {
		blobs = append(blobs, newBlob(uint64(50+k), 100, 50))
	}
	return blobs
}

func TestEvictionOrder(t *testing.T) {
	c, b := newClock(), hundreds(6)
	var gone []task.ID
	o := Options{Dir: t.TempDir(), Limit: 450, Now: c.now, OnRemove: func(id task.ID) { gone = append(gone, id) }}
	s := open(t, o)
	for _, x := range b[:4] {
		put(t, s, x)
		c.advance(2 * time.Minute)
	}
	if err := s.Pin(b[0].id, c.now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	inUse, _ := s.Get(b[1].id)
	c.advance(2 * time.Minute)
	h, _ := s.Get(b[2].id) // now 3 is the least recently used
	h.Release()
	put(t, s, b[4])
	if got := have(s, b); got != "0124" || !slices.Equal(gone, []task.ID{b[3].id}) {
		t.Fatalf("have %s, told of %v", got, gone)
	}
	if _, err := os.Stat(s.taskPath(b[3].id)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("evicted task is on disk: %v", err)
	}
	inUse.Release()
	for _, k := range []int{2, 4, 1} {
		c.advance(2 * time.Minute)
		h, _ := s.Get(b[k].id)
		h.Release()
	}
	closeStore(t, s)

	// The order, the pin and the counts outlive the process.
	s = open(t, o)
	if u := s.Usage(); u.Bytes != 400 || u.PinnedBytes != 100 || u.Tasks != 4 || u.Limit != 450 {
		t.Fatalf("%+v", u)
	}
	c.advance(2 * time.Minute)
	put(t, s, b[5])
	if got := have(s, b); got != "0145" {
		t.Errorf("have %s", got)
	}
	c.advance(time.Hour) // the pin ends
	freed, removed, err := s.Prune(0)
	if err != nil || freed != 400 || len(removed) != 4 || s.Usage().Bytes != 0 {
		t.Errorf("Prune freed %d, removed %v, error %v", freed, removed, err)
	}
	if left, err := os.ReadDir(s.path(trashDir)); err != nil || len(left) != 0 {
		t.Errorf("trash has %v, error %v", left, err)
	}
}

func TestLastAccessOutlivesRestart(t *testing.T) {
	c, b := newClock(), hundreds(3)
	o := Options{Dir: t.TempDir(), Limit: 200, Now: c.now}
	s := open(t, o)
	put(t, s, b[0])
	put(t, s, b[1])
	c.advance(time.Hour)
	h, _ := s.Get(b[0].id)
	h.Release()
	closeStore(t, s)
	s = open(t, o)
	put(t, s, b[2])
	if got := have(s, b); got != "02" {
		t.Errorf("have %s, want the task used last and the new one", got)
	}
}

func TestFull(t *testing.T) {
	b := hundreds(3)
	s := open(t, Options{Dir: t.TempDir(), Limit: 210})
	put(t, s, b[0])
	inUse := create(t, s, b[1])
	fill(t, inUse, b[1], 0, 1)
	if err := s.Pin(b[0].id, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	h := create(t, s, b[2])
	_, err := h.WritePiece(t.Context(), 0, nil, bytes.NewReader(b[2].data))
	var full *FullError
	if !errors.Is(err, ErrFull) || !errors.As(err, &full) || full.Needed != 50 || full.Held != 200 || full.Limit != 210 {
		t.Fatalf("error %v (%+v)", err, full)
	}
	if errors.Is(err, unix.ENOSPC) {
		t.Error("a limit of the store is taken for a full disk")
	}
	if err := s.Remove(b[1].id); !errors.Is(err, ErrInUse) {
		t.Errorf("Remove of a referenced task: %v", err)
	}
	if err := s.Remove("sha256:x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Remove of nothing: %v", err)
	}
	inUse.Release()
	inUse.Release() // no second time
	fill(t, h, b[2], 0, 1)
	if got := have(s, b); got != "02" {
		t.Errorf("have %s", got)
	}
	h.Release()
	if err := s.Remove(b[0].id); err != nil {
		t.Errorf("Remove of a pinned task: %v", err)
	}
}

// What cannot be made to fit evicts nothing.
func TestNothingEvictedInVain(t *testing.T) {
	b := hundreds(2)
	s := open(t, Options{Dir: t.TempDir(), Limit: 210})
	put(t, s, b[0])
	put(t, s, b[1])
	large := newBlob(60, 220, 220)
	h := create(t, s, large)
	defer h.Release()
	if _, err := h.WritePiece(t.Context(), 0, nil, bytes.NewReader(large.data)); !errors.Is(err, ErrFull) {
		t.Errorf("error %v", err)
	}
	if got := have(s, b); got != "01" {
		t.Errorf("have %s", got)
	}
}

func TestMinFree(t *testing.T) {
	b := hundreds(3)
	var s *Store
	// A disk of 1000 bytes of which others use 650.
	disk := func(string) (int64, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return 350 - s.held, nil
	}
	s = open(t, Options{Dir: t.TempDir(), MinFree: 100, FreeSpace: disk})
	put(t, s, b[0])
	put(t, s, b[1])
	put(t, s, b[2])
	if got := have(s, b); got != "12" {
		t.Errorf("have %s", got)
	}
	large := newBlob(60, 300, 300)
	h := create(t, s, large)
	defer h.Release()
	_, err := h.WritePiece(t.Context(), 0, nil, bytes.NewReader(large.data))
	var full *FullError
	if !errors.As(err, &full) || full.MinFree != 100 || full.Free != 150 {
		t.Errorf("error %v", err)
	}
}

// mountSmall mounts a file system of the given size, or skips the test.
func mountSmall(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "size="+strconv.Itoa(size)); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDiskFull(t *testing.T) {
	s := open(t, Options{Dir: filepath.Join(mountSmall(t, 4<<20), "store")})
	var blobs []blob
	for k := range 4 {
		blobs = append(blobs, newBlob(uint64(70+k), 1<<20, 256<<10))
	}
	for _, b := range blobs[:3] {
		put(t, s, b)
	}
	h := create(t, s, blobs[3])
	fill(t, h, blobs[3], all(blobs[3])...) // evicts the first
	if got := have(s, blobs); got != "123" {
		t.Fatalf("have %s", got)
	}
	// With everything in use there is an error, and what is held stays good.
	h1, _ := s.Get(blobs[1].id)
	h2, _ := s.Get(blobs[2].id)
	large := newBlob(80, 2<<20, 2<<20)
	hl := create(t, s, large)
	_, err := hl.WritePiece(t.Context(), 0, nil, bytes.NewReader(large.data))
	if !errors.Is(err, ErrFull) || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("error %v, want a full disk", err)
	}
	if hl.HeldCount() != 0 || s.reserved != 0 {
		t.Errorf("%d pieces held, %d bytes reserved", hl.HeldCount(), s.reserved)
	}
	for k, h := range []*Task{h1, h2, h} {
		sum := h.NewSummer()
		pos, err := sum.Advance(t.Context())
		if want, _ := h.ID().Digest(); err != nil || pos != 1<<20 || sum.Sum() != want {
			t.Errorf("task %d: hashed %d bytes, error %v", k, pos, err)
		}
		h.Release()
	}
	// Once there is something to evict, the same write succeeds.
	if _, err := hl.WritePiece(t.Context(), 0, nil, bytes.NewReader(large.data)); err != nil {
		t.Error(err)
	}
	hl.Release()
}
