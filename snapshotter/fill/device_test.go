package fill

import (
	"bytes"
	"context"
	"math/rand"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// open returns a device on a disk.
func (x *fixture) open(t testing.TB) *device.Device {
	t.Helper()
	store, err := device.Open(device.Options{Dir: filepath.Join(t.TempDir(), "devices")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	d, err := store.Get(x.table)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Release)
	if err := d.AddOrigin("registry.test/app"); err != nil {
		t.Fatal(err)
	}
	return d
}

// Readers of all sorts and background work get the right bytes from a device on a
// disk, each group fetched about once.
func TestDevice(t *testing.T) {
	const size = 64 << 10
	x := newZstdFixture(t, 96, size)
	want := bytes.Join(x.plain, nil)
	var spoilt sync.Map
	src := &fetcher{x: x, bytes: func(_, g int, p []byte) []byte {
		if _, again := spoilt.LoadOrStore(g, true); !again && g%5 == 0 {
			p = bytes.Clone(p)
			p[rand.Intn(len(p))] ^= 1
		}
		return p
	}}
	d := x.open(t)
	var accesses atomic.Int64
	f := newFiller(t, Options{Fetch: src, MemoryBudget: 1 << 20, OnAccess: func(got *device.Device, _ int) {
		if got != d {
			t.Error("another device")
		}
		accesses.Add(1)
	}})
	work, ctx := errgroup.WithContext(t.Context())
	work.Go(func() error { return f.Complete(ctx, d, NewLimiter(LimiterOptions{Share: 1})) })
	work.Go(func() error { return f.Prefetch(ctx, d, rand.Perm(96)) })
	for i := range 8 {
		work.Go(func() error { return compare(ctx, f, d, want, int64(i)) })
	}
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	if !d.Complete() || accesses.Load() > 96 {
		t.Errorf("complete: %v, %d first accesses", d.Complete(), accesses.Load())
	}
	f.Forget(d)
}

// compare reads a device, in sequence or at random.
func compare(ctx context.Context, f *Filler, d *device.Device, want []byte, seed int64) error {
	r := rand.New(rand.NewSource(seed))
	p := make([]byte, 10_000)
	for off := int64(0); off+int64(len(p)) < int64(len(want)); off += int64(len(p)) {
		at := off
		if seed%2 == 0 {
			at = r.Int63n(int64(len(want) - len(p)))
		}
		if err := f.Fill(ctx, d, at, int64(len(p))); err != nil {
			return err
		}
		if _, err := d.ReadAt(p, at); err != nil {
			return err
		}
		if !bytes.Equal(p, want[at:at+int64(len(p))]) {
			return errTest
		}
	}
	return nil
}

// BenchmarkMiss is what a reader that misses a group of 1 MiB pays besides the
// fetch, and Decode what decoding is of it.
func BenchmarkMiss(b *testing.B) {
	x := newZstdFixture(b, 64, 1<<20)
	b.Run("Fill", func(b *testing.B) {
		d := x.open(b)
		f := newFiller(b, Options{Fetch: &fetcher{x: x}, Readahead: -1})
		b.SetBytes(1 << 20)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if i%64 == 0 {
				b.StopTimer()
				if err := d.Drop(f.all(d)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			if err := f.Fill(b.Context(), d, int64(i*37%64)<<20, 4096); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Decode", func(b *testing.B) {
		b.SetBytes(1 << 20)
		var buf []byte
		for i := 0; b.Loop(); i++ {
			g := &x.table.Blob.Groups[i%64]
			var err error
			if buf, err = x.table.Decode(i%64, x.stored[g.Offset:end(g)], buf); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Present", func(b *testing.B) {
		d := x.open(b)
		f := newFiller(b, Options{Fetch: &fetcher{x: x}})
		if err := f.Fill(b.Context(), d, 0, 1); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if err := f.Fill(b.Context(), d, 4096, 4096); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// all lists the groups of a device.
func (f *Filler) all(d *device.Device) []int { return newState(f, d).places() }
