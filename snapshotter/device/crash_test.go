package device

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var errCrash = errors.New("the power is cut")

// powerCut keeps what is certain to be on the disk, lets the store do a number
// of steps, and then changes the files to what may be found after a power cut.
type powerCut struct {
	t     *testing.T
	r     *rand.Rand
	steps int // until the cut
	made  bool
	// synced has the files as they were synced last.
	synced map[string][]byte
}

func (c *powerCut) step(op, path string) error {
	if c.steps--; c.steps <= 0 {
		return errCrash
	}
	switch op {
	case "synced", "recorded":
		c.keep(path)
	case "made":
		c.made = true
		for _, name := range []string{tableFile, presentFile, dataFile} {
			c.keep(filepath.Join(path, name))
		}
	case "forgotten":
		delete(c.synced, filepath.Join(path, presentFile))
	}
	return nil
}

func (c *powerCut) keep(path string) {
	p, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.synced[path] = p
}

// cut leaves of each sector either what is in the file or what was synced.
// Files keep their inodes.
func (c *powerCut) cut(dir string) {
	if _, err := os.Stat(dir); !c.made && (err != nil || c.r.Intn(2) == 0) {
		if err := os.RemoveAll(dir); err != nil {
			c.t.Fatal(err)
		}
		c.synced = map[string][]byte{}
		return
	}
	for _, name := range []string{tableFile, dataFile, presentFile} {
		path := filepath.Join(dir, name)
		now, err := os.ReadFile(path)
		if err != nil && (!errors.Is(err, fs.ErrNotExist) || name != presentFile) {
			c.t.Fatal(err)
		}
		synced := c.synced[path]
		if err != nil && (synced == nil || c.r.Intn(2) == 0) {
			continue // it was removed, and stays so
		}
		if err != nil {
			now = synced // nobody knows yet that it was removed
		}
		p := make([]byte, len(now))
		copy(p, synced)
		for at := 0; at < len(p); at += 512 {
			if end := min(at+512, len(p)); c.r.Intn(2) == 0 {
				copy(p[at:end], now[at:end])
			}
		}
		overwrite(c.t, path, p)
		c.synced[path] = p
	}
}

func overwrite(t *testing.T, path string, p []byte) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// Whatever is done, and whenever the power is cut: what is present afterwards is
// right, and what was synced and not taken away is present.
func TestPowerCuts(t *testing.T) {
	for seed := range int64(16) {
		r := rand.New(rand.NewSource(seed)) // #nosec G404 -- test data
		x, dir := some(t, seed%5, seed%2 == 1), t.TempDir()
		c := &powerCut{t: t, r: r, synced: map[string][]byte{}}
		sure := map[int]bool{}
		for range 12 {
			c.steps = 1 + r.Intn(60)
			s, err := Open(Options{Dir: dir, After: still, step: c.step})
			if err != nil {
				t.Fatal(err)
			}
			s.Recovered()
			err = useUntilCut(t, s, x, r, sure)
			if !errors.Is(err, errCrash) {
				t.Fatalf("seed %d: %v", seed, err)
			}
			_ = s.Close() // it cannot sync
			c.cut(s.dir(x.table.Key))
		}
	}
}

// useUntilCut does things in random order. sure are the groups that a sync has
// made certain.
func useUntilCut(t *testing.T, s *Store, x *blob, r *rand.Rand, sure map[int]bool) error {
	d, err := s.Get(x.table)
	if err != nil {
		return err
	}
	for g := range sure {
		if !d.Has(g) {
			t.Errorf("group %d was synced and is missing", g)
		}
	}
	all := x.groups()
	for {
		check(t, d, x)
		switch op := r.Intn(12); {
		case op < 7:
			g := all[r.Intn(len(all))]
			err = d.Write(g, x.plain[g])
		case op < 9:
			if err = s.Sync(t.Context()); err == nil {
				for _, g := range all {
					if d.Has(g) {
						sure[g] = true
					}
				}
			}
		case op == 9:
			groups := []int{all[r.Intn(len(all))], all[r.Intn(len(all))]}
			for _, g := range groups {
				delete(sure, g)
			}
			err = d.Drop(groups)
		case op == 10:
			d.Release()
			if d, err = s.Get(x.table); err != nil {
				return err
			}
		default:
			d.Release()
			clear(sure)
			_, err = s.Prune(0)
			if err == nil {
				d, err = s.Get(x.table)
			}
		}
		if err != nil {
			return err
		}
	}
}

// A step that fails once leaves everything usable.
func TestStepsThatFail(t *testing.T) {
	errOnce := errors.New("failed")
	for _, op := range []string{"rename", "write", "sync", "synced", "made", "record", "recorded", "forget", "forgotten", "punch"} {
		t.Run(op, func(t *testing.T) {
			x, failed := some(t, 1, false), 0
			s := openStore(t, Options{After: still, step: func(at, _ string) error {
				if at == op && failed == 0 {
					failed++
					return errOnce
				}
				return nil
			}})
			var d *Device
			for range 3 {
				var err error
				for d == nil {
					if d, err = s.Get(x.table); err != nil && !errors.Is(err, errOnce) {
						t.Fatal(err)
					}
				}
				for !d.Complete() {
					for _, g := range x.groups() {
						if err := d.Write(g, x.plain[g]); err != nil && !errors.Is(err, errOnce) {
							t.Fatal(err)
						}
					}
					if err := s.Sync(t.Context()); err != nil && !errors.Is(err, errOnce) {
						t.Fatal(err)
					}
				}
				check(t, d, x)
				if err := d.Drop(x.groups()[:2]); err != nil && !errors.Is(err, errOnce) {
					t.Fatal(err)
				}
				check(t, d, x)
				d.Release()
				d = nil
				if _, err := s.Prune(0); err != nil && !errors.Is(err, errOnce) {
					t.Fatal(err)
				}
			}
			if failed == 0 {
				t.Errorf("%s never happened", op)
			}
		})
	}
}

// What a sync could not bring to the disk is absent, and its users are told.
func TestFailedSyncLosesGroups(t *testing.T) {
	x, errSync := some(t, 1, false), errors.New("write back failed")
	var fail bool
	var lost []int
	s := openStore(t, Options{After: still,
		OnLost: func(_ *Device, groups []int) { lost = append(lost, groups...) },
		step: func(op, _ string) error {
			if op == "sync" && fail {
				return errSync
			}
			return nil
		}})
	d := get(t, s, x)
	defer d.Release()
	all := x.groups()
	fill(t, d, x, all[0])
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	fill(t, d, x)
	done := d.Done()
	fail = true
	if err := s.Sync(t.Context()); !errors.Is(err, errSync) {
		t.Errorf("error %v", err)
	}
	fail = false
	if !slices.Equal(lost, all[1:]) || !d.Has(all[0]) || d.Has(all[1]) || d.Complete() {
		t.Errorf("lost %v of %v", lost, all)
	}
	if d.Done() == done {
		t.Error("a device that lacks groups is done")
	}
	fill(t, d, x)
	<-d.Done()
	check(t, d, x)
}

func TestTornSlot(t *testing.T) {
	key, dir := Key{3}, t.TempDir()
	ok := func(string, string) error { return nil }
	open := func() *presence {
		p := &presence{path: filepath.Join(dir, presentFile), key: key, groups: 9, step: ok}
		if _, err := p.load(); err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := open()
	for g := range 5 {
		if err := p.add([]written{{group: g}}); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(p.path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range 2 * int(p.slotSize()) {
		bad := bytes.Clone(good)
		bad[at] ^= 0x10
		overwrite(t, p.path, bad)
		if n := open().durable.Len(); n < 4 || n > 5 {
			t.Fatalf("byte %d: %d groups", at, n)
		}
	}
	overwrite(t, p.path, good)
	p = open()
	if err := p.remove([]int{1}); err != nil {
		t.Fatal(err)
	}
	if good, err = os.ReadFile(p.path); err != nil {
		t.Fatal(err)
	}
	for _, slot := range []int64{0, p.slotSize()} { // no slot has it any more
		bad := bytes.Clone(good)
		bad[slot+20] ^= 1
		overwrite(t, p.path, bad)
		if got := open().durable; got.Has(1) || got.Len() != 4 {
			t.Errorf("without the slot at %d: %v", slot, got)
		}
	}
}
