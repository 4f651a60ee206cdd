package device

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"testing"
)

// damage changes a byte of a group in the file.
func damage(t *testing.T, d *Device, g int) {
	t.Helper()
	f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	parts := d.table.parts(g)
	last := parts[len(parts)-1]
	at, b := last.Device+int64(last.Length)-1, make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	for name, unproven := range map[string]bool{"proven": false, "unproven": true} {
		for _, inUse := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				x := some(t, 2, unproven)
				var lost []int
				s := openStore(t, Options{After: still, OnLost: func(_ *Device, groups []int) { lost = groups }})
				d := get(t, s, x)
				fill(t, d, x)
				if bad, err := s.Verify(t.Context(), d.Key(), nil); err != nil || bad != nil {
					t.Fatalf("of a good device: %v, %v", bad, err)
				}
				all := x.groups()
				want := []int{all[1], all[len(all)-1]}
				for _, g := range want {
					damage(t, d, g)
				}
				if !inUse {
					d.Release()
				}
				calls := 0
				bad, err := s.Verify(t.Context(), d.Key(), func(done, total int) {
					if calls++; done != calls || total != len(x.table.Blob.Groups) {
						t.Errorf("progress %d of %d in call %d", done, total, calls)
					}
				})
				if err != nil || !slices.Equal(bad, want) || calls != len(x.table.Blob.Groups) {
					t.Errorf("bad are %v, want %v; %d calls; %v", bad, want, calls, err)
				}
				if inUse != slices.Equal(lost, want) {
					t.Errorf("told of %v", lost)
				}
				if !inUse {
					s.tend()
					d = get(t, s, x)
				}
				if got := d.Missing(0, d.Size()); !slices.Equal(got, want) {
					t.Errorf("missing %v, want %v", got, want)
				}
				holed := make([]byte, 1)
				first := d.table.parts(want[0])[0].Device
				if _, err := d.ReadAt(holed, first); err != nil || !inUse && holed[0] != 0 || inUse && holed[0] != x.device[first] {
					t.Errorf("in use: %v, and the bytes of a dropped group begin with %d: %v", inUse, holed[0], err)
				}
				fill(t, d, x)
				check(t, d, x)
				if bad, err := s.Verify(t.Context(), d.Key(), nil); err != nil || bad != nil {
					t.Errorf("after the repair: %v, %v", bad, err)
				}
				d.Release()
			})
		}
	}
}

func TestVerifyWithoutDigests(t *testing.T) {
	x, s := some(t, 2, false), openStore(t, Options{After: still})
	d := get(t, s, x)
	defer d.Release()
	fill(t, d, x)
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.ledger.path, 2*d.ledger.slotSize()); err != nil {
		t.Fatal(err)
	}
	if bad, err := s.Verify(t.Context(), d.Key(), nil); err != nil || !slices.Equal(bad, x.groups()) {
		t.Errorf("bad are %v: %v", bad, err)
	}
}

func TestVerifyStops(t *testing.T) {
	x, s := some(t, 2, false), openStore(t, Options{After: still})
	d := get(t, s, x)
	defer d.Release()
	fill(t, d, x)
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	_, err := s.Verify(ctx, d.Key(), func(int, int) { calls++; cancel() })
	if !errors.Is(err, context.Canceled) || calls != 1 {
		t.Errorf("after %d calls: %v", calls, err)
	}
	if _, err := s.Verify(t.Context(), Key{9}, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
}
