package device

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"golang.org/x/sys/unix"
)

// clock is a clock that only the test moves.
type clock struct{ now atomic.Int64 }

func (c *clock) Now() time.Time       { return time.Unix(1e9, 0).Add(time.Duration(c.now.Load())) }
func (c *clock) add(by time.Duration) { c.now.Add(int64(by)) }

// filled makes complete devices, an hour after each other, and releases them.
func filled(t *testing.T, s *Store, c *clock, n int) []*blob {
	t.Helper()
	var blobs []*blob
	for i := range n {
		x := some(t, int64(100+i), i%2 == 1)
		d := get(t, s, x)
		fill(t, d, x)
		d.Release()
		c.add(time.Hour)
		blobs = append(blobs, x)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return blobs
}

// state tells what of a device is there: its bytes, its table only, or nothing.
func state(t *testing.T, s *Store, x *blob) string {
	t.Helper()
	d, err := s.Load(x.table.Key)
	if errors.Is(err, fs.ErrNotExist) {
		return "gone"
	}
	if err != nil {
		t.Fatal(err)
	}
	defer d.Release()
	check(t, d, x)
	var st unix.Stat_t
	if err := unix.Stat(d.Path(), &st); err != nil {
		t.Fatal(err)
	}
	switch {
	case d.Complete() && st.Blocks > 0:
		return "complete"
	case len(d.Missing(0, d.Size())) == len(placed(x)) && st.Blocks == 0:
		return "empty"
	}
	return fmt.Sprintf("lacks %v with %d blocks", d.Missing(0, d.Size()), st.Blocks)
}

func expect(t *testing.T, s *Store, blobs []*blob, want ...string) {
	t.Helper()
	var got []string
	for _, x := range blobs {
		got = append(got, state(t, s, x))
	}
	if !slices.Equal(got, want) {
		t.Errorf("devices are %q, want %q", got, want)
	}
}

func TestPruneTakesTheLeastRecentlyUsed(t *testing.T) {
	c, dir := &clock{}, t.TempDir()
	var evicted []Key
	o := Options{Dir: dir, After: still, Now: c.Now, OnEvict: func(key Key, freed int64) {
		if freed <= 0 {
			t.Errorf("%d bytes freed", freed)
		}
		evicted = append(evicted, key)
	}}
	s := openStore(t, o)
	blobs := filled(t, s, c, 4)
	get(t, s, blobs[0]).Release() // now used last
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openStore(t, o) // it still knows the order
	list := s.List()
	if len(list) != 4 || list[0].Key != blobs[0].table.Key || list[0].Blob != blobs[0].table.Blob.Digest ||
		list[0].Size != blobs[0].table.Blob.DeviceSize || !list[0].Used.Equal(c.Now()) || list[3].Key != blobs[1].table.Key {
		t.Errorf("list %+v", list)
	}
	held := get(t, s, blobs[1])
	defer held.Release()
	u, err := s.Usage()
	if err != nil || u.Devices != 4 || u.InUse != 1 || u.BytesInUse <= 0 || u.Bytes <= u.BytesInUse || u.Free <= 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	freed, err := s.Prune(u.Bytes - 1)
	if err != nil || freed <= 0 || !slices.Equal(evicted, []Key{blobs[2].table.Key}) {
		t.Errorf("%d bytes of %v freed: %v", freed, evicted, err)
	}
	expect(t, s, blobs, "complete", "complete", "empty", "complete")
	if after, err := s.Usage(); err != nil || after.Bytes != u.Bytes-freed {
		t.Errorf("usage %+v after %d of %+v", after, freed, u)
	}
	if _, err := s.Prune(0); err != nil {
		t.Error(err)
	}
	expect(t, s, blobs, "empty", "complete", "empty", "empty")
	if freed, err := s.Prune(0); err != nil || freed != 0 {
		t.Errorf("%d bytes freed of what is empty: %v", freed, err)
	}
}

func TestKeepDecidesOnTables(t *testing.T) {
	c := &clock{}
	var kept Key
	s := openStore(t, Options{After: still, Now: c.Now, Keep: func(key Key) bool { return key == kept }})
	blobs := filled(t, s, c, 3)
	kept = blobs[1].table.Key
	if _, err := s.Prune(0); err != nil {
		t.Fatal(err)
	}
	expect(t, s, blobs, "gone", "empty", "gone")
	if n := len(s.List()); n != 1 {
		t.Errorf("%d devices", n)
	}
	kept = Key{}
	if _, err := s.Prune(0); err != nil {
		t.Fatal(err)
	}
	expect(t, s, blobs, "gone", "gone", "gone")
	if files, err := os.ReadDir(s.o.Dir); err != nil || len(files) != 1 {
		t.Errorf("left are %v, %v", files, err)
	}
}

func TestLimitIsKept(t *testing.T) {
	c := &clock{}
	for name, o := range map[string]Options{"limit": {Limit: 1}, "free space": {MinFree: 1 << 60}} {
		t.Run(name, func(t *testing.T) {
			o.SyncEvery, o.Now = 1, c.Now
			s := openStore(t, o)
			held := some(t, 99, false)
			d := get(t, s, held)
			fill(t, d, held)
			blobs := filled(t, s, c, 3)
			testenv.Eventually(t, func() bool {
				return !slices.ContainsFunc(blobs, func(x *blob) bool { return state(t, s, x) != "empty" })
			}, "all is evicted that nobody references")
			expect(t, s, []*blob{held}, "complete")
			d.Release()
			testenv.Eventually(t, func() bool { return state(t, s, held) == "empty" }, "the last one is evicted")
		})
	}
}

func TestNothingGoesBeforeRecovery(t *testing.T) {
	c, dir := &clock{}, t.TempDir()
	s := openStore(t, Options{Dir: dir, After: still, Now: c.Now})
	blobs := filled(t, s, c, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Dir: dir, Limit: 1, After: still, step: func(op, _ string) error {
		if op == "write" {
			return unix.ENOSPC
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // read only
	key := blobs[0].table.Key
	if err := s.Remove(key); !errors.Is(err, ErrNotRecovered) {
		t.Errorf("remove: %v", err)
	}
	if _, err := s.Prune(0); !errors.Is(err, ErrNotRecovered) {
		t.Errorf("prune: %v", err)
	}
	if _, err := s.Verify(t.Context(), key, nil); !errors.Is(err, ErrNotRecovered) {
		t.Errorf("verify: %v", err)
	}
	x := some(t, 5, false)
	d := get(t, s, x)
	defer d.Release()
	if err := d.Write(0, x.plain[0]); !errors.Is(err, ErrFull) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write: %v", err)
	}
	s.tend()
	expect(t, s, blobs, "complete")
}

func TestRemove(t *testing.T) {
	x, s := some(t, 1, false), openStore(t, Options{After: still})
	if err := s.Remove(x.table.Key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
	d := get(t, s, x)
	fill(t, d, x)
	if err := s.Remove(x.table.Key); !errors.Is(err, ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	d.Release()
	d.Release() // once too often
	if err := s.Remove(x.table.Key); err != nil {
		t.Error(err)
	}
	expect(t, s, []*blob{x}, "gone")
	d = get(t, s, x)
	defer d.Release()
	if d.Has(x.groups()[0]) {
		t.Error("the new device has what the old one had")
	}
}

// No space: others are evicted, once for all who wait, and else it is an error.
func TestFullDisk(t *testing.T) {
	c := &clock{}
	var room atomic.Int64
	s := openStore(t, Options{After: still, Now: c.Now,
		OnEvict: func(Key, int64) { room.Store(2) },
		step: func(op, _ string) error {
			if op == "write" && room.Add(-1) < 0 {
				return unix.ENOSPC
			}
			return nil
		}})
	room.Store(1 << 40)
	blobs := filled(t, s, c, 1)
	x := some(t, 1, false)
	d := get(t, s, x)
	defer d.Release()
	room.Store(0)
	all := x.groups()
	if err := d.Write(all[0], x.plain[all[0]]); err != nil {
		t.Fatal(err)
	}
	expect(t, s, blobs, "empty")
	fill(t, d, x, all[1])
	if err := d.Write(all[2], x.plain[all[2]]); !errors.Is(err, ErrFull) || !errors.Is(err, unix.ENOSPC) || d.Has(all[2]) {
		t.Errorf("write: %v", err)
	}
	room.Store(1 << 40)
	fill(t, d, x)
	check(t, d, x)
}

func TestFullTmpfs(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH) //nolint:errcheck // the test is over
	c := &clock{}
	s := openStore(t, Options{Dir: dir, Now: c.Now, After: still})
	defer s.Close() //nolint:errcheck // closed again, where it counts
	// Each takes some hundred kilobytes: the later ones push out the first.
	blobs := filled(t, s, c, 12)
	if got := state(t, s, blobs[0]); got != "empty" {
		t.Errorf("the first is %s", got)
	}
	var held []*Device
	var err error
	for seed := int64(200); err == nil && seed < 240; seed++ {
		x := some(t, seed, false)
		var d *Device
		if d, err = s.Get(x.table); err != nil {
			break
		}
		held = append(held, d)
		for _, g := range x.groups() {
			if err = d.Write(g, x.plain[g]); err != nil {
				break
			}
		}
		check(t, d, x)
	}
	if !errors.Is(err, ErrFull) || len(held) < 2 {
		t.Errorf("with %d devices in use: %v", len(held), err)
	}
	for _, d := range held {
		d.Release()
	}
}

// Devices come and go while everything is evicted all the time.
func TestEvictionUnderUse(t *testing.T) {
	s := openStore(t, Options{SyncEvery: 1, Limit: 1})
	var blobs []*blob
	for i := range int64(4) {
		blobs = append(blobs, some(t, i, i%2 == 0))
	}
	var users, pruner sync.WaitGroup
	stop := make(chan struct{})
	pruner.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := s.Prune(0); err != nil {
				t.Error(err)
			}
			if err := s.Remove(blobs[0].table.Key); err != nil && !errors.Is(err, ErrInUse) && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	for seed := range int64(4) {
		users.Go(func() {
			r := rand.New(rand.NewSource(seed)) // #nosec G404 -- test data
			for range 40 {
				x := blobs[r.Intn(len(blobs))]
				d := get(t, s, x)
				for _, g := range d.Missing(0, d.Size()) {
					if err := d.Write(g, x.plain[g]); err != nil {
						t.Error(err)
					}
				}
				if !d.Complete() {
					t.Error("something was evicted that is in use")
				}
				check(t, d, x)
				d.Release()
			}
		})
	}
	users.Wait()
	close(stop)
	pruner.Wait()
}

func TestOpenClearsLeftovers(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{newPrefix + "123", trashPrefix + "abc", "0123", "other"} {
		if err := os.MkdirAll(filepath.Join(dir, name, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s := openStore(t, Options{Dir: dir})
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 3 || len(s.List()) != 0 {
		t.Errorf("left are %v, %v", files, err)
	}
}

// Eviction takes nothing away from who reads a device that the store believes to
// be unused.
func TestEvictionSparesOpenFiles(t *testing.T) {
	s := openStore(t, Options{After: still})
	s.Recovered()
	x := filled(t, s, &clock{}, 1)[0]
	d, err := s.Load(x.table.Key)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	d.Retain()
	d.Release()
	if _, err := s.Prune(0); err != nil || !d.Complete() {
		t.Fatalf("a device that is retained was evicted (%v)", err)
	}
	d.Release()
	if freed, err := s.Prune(0); err != nil || freed == 0 {
		t.Fatalf("evicting frees %d bytes: %v", freed, err)
	}
	got := make([]byte, x.table.Blob.DeviceSize)
	if _, err := f.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for _, g := range x.groups() {
		if !x.holds(g, got) {
			t.Errorf("group %d is gone from a file that is open", g)
		}
	}
	if got := state(t, s, x); got == "gone" {
		t.Error("the table is gone")
	}
}
