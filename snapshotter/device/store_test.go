package device

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

func TestFillAndReopen(t *testing.T) {
	for name, unproven := range map[string]bool{"proven": false, "unproven": true} {
		t.Run(name, func(t *testing.T) {
			x, dir := some(t, 1, unproven), t.TempDir()
			s := openStore(t, Options{Dir: dir, After: still})
			d := get(t, s, x)
			all := x.groups()
			if d.Complete() || !slices.Equal(d.Missing(0, d.Size()), placed(x)) {
				t.Errorf("an empty device lacks %v", d.Missing(0, d.Size()))
			}
			fill(t, d, x, all[:3]...)
			check(t, d, x)
			if err := d.AddOrigin("registry.example/a/b"); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}

			s = openStore(t, Options{Dir: dir, After: still})
			d, err := s.Load(x.table.Key)
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range all {
				if want := slices.Contains(all[:3], g); d.Has(g) != want {
					t.Errorf("group %d is present: %v, want %v", g, d.Has(g), want)
				}
			}
			if got := d.Origins(); !slices.Equal(got, []string{"registry.example/a/b"}) {
				t.Errorf("origins %q", got)
			}
			select {
			case <-d.Done():
				t.Error("done before it is complete")
			default:
			}
			fill(t, d, x)
			<-d.Done()
			check(t, d, x)
			d.Release()
		})
	}
}

// placed are the groups that Missing names of an empty device.
func placed(x *blob) []int {
	return slices.DeleteFunc(x.table.Groups(0, x.table.Blob.DeviceSize), func(g int) bool { return x.table.empty(g) })
}

func TestOneDevicePerKey(t *testing.T) {
	x, s := some(t, 1, false), openStore(t, Options{})
	var wg sync.WaitGroup
	devices := make([]*Device, 16)
	for i := range devices {
		wg.Go(func() { devices[i] = get(t, s, x) })
	}
	wg.Wait()
	for _, d := range devices {
		if d != devices[0] {
			t.Error("two devices of one key")
		}
		d.Release()
	}
	d, err := s.Load(x.table.Key)
	if err != nil {
		t.Fatal(err)
	}
	d.Release()
}

func TestParallelWrites(t *testing.T) {
	x, s := some(t, 2, false), openStore(t, Options{SyncEvery: 1})
	d := get(t, s, x)
	defer d.Release()
	var wg sync.WaitGroup
	for range 2 {
		for _, g := range x.groups() {
			wg.Go(func() { fill(t, d, x, g) })
		}
	}
	for range 4 {
		wg.Go(func() {
			f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
			if err != nil {
				t.Error(err)
			} else if err := d.SetWriter(f); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	<-d.Done()
	check(t, d, x)
}

func TestSecondOpenerIsTold(t *testing.T) {
	dir := t.TempDir()
	openStore(t, Options{Dir: dir})
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("error %v", err)
	} else if want := dir + ": the device store is in use by another process"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestIdleDevicesAreClosed(t *testing.T) {
	x, s := some(t, 1, false), openStore(t, Options{SyncEvery: 1})
	d := get(t, s, x)
	fill(t, d, x)
	d.Release()
	testenv.Eventually(t, func() bool { return d.Writer() == nil }, "the device is closed")
	d = get(t, s, x)
	defer d.Release()
	if !d.Complete() {
		t.Error("what was present is missing")
	}
	check(t, d, x)
}

func TestLoadOfNothing(t *testing.T) {
	s := openStore(t, Options{})
	if _, err := s.Load(Key{1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if list := s.List(); len(list) != 0 {
		t.Errorf("list %v", list)
	}
}

func TestDamagedFiles(t *testing.T) {
	truncate := func(n int64) func(string) error {
		return func(path string) error { return os.Truncate(path, n) }
	}
	scribble := func(path string) error {
		p, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := 3; i < len(p); i += 40 {
			p[i] ^= 0x55
		}
		return os.WriteFile(path, p, 0o600)
	}
	for _, c := range []struct {
		name, file string
		damage     func(string) error
		gone       bool
	}{
		{"table scribbled", tableFile, scribble, true},
		{"table short", tableFile, truncate(200), true},
		{"table empty", tableFile, truncate(0), true},
		{"table removed", tableFile, os.Remove, true},
		{"present scribbled", presentFile, scribble, false},
		{"present short", presentFile, truncate(50), false},
		{"present removed", presentFile, os.Remove, false},
		{"data short", dataFile, truncate(4096), false},
		{"data removed", dataFile, os.Remove, false},
		{"origins scribbled", originsFile, scribble, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			x, dir := some(t, 1, false), t.TempDir()
			s := openStore(t, Options{Dir: dir, After: still})
			d := get(t, s, x)
			fill(t, d, x)
			if err := d.AddOrigin("registry.example/a"); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(s.dir(d.Key()), c.file)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := c.damage(path); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, Options{Dir: dir, After: still})
			d, err := s.Load(x.table.Key)
			if c.gone != errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("load: %v", err)
			}
			if c.gone {
				d = get(t, s, x)
			}
			if c.file != originsFile && c.file != tableFile && d.Missing(0, d.Size()) == nil {
				t.Error("nothing is missing")
			}
			check(t, d, x)
			fill(t, d, x)
			check(t, d, x)
			d.Release()
		})
	}
}
