package fill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

func TestRandomReadMovesItsOwnGroupOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 20, 64<<10)
		d, src := x.device(), &fetcher{x: x}
		f := newFiller(t, Options{Fetch: src})
		for _, g := range []int{7, 3, 19, 0, 12} {
			if err := f.group(t.Context(), d, g); err != nil {
				t.Fatal(err)
			}
			d.check(t, g)
			if err := f.group(t.Context(), d, g); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if log := src.log(); len(log) != 5 || d.count() != 5 || log[0] != (read{7, 8, "registry.test/app", node.Demand}) {
			t.Errorf("%d groups by %v", d.count(), log)
		}
	})
}

func TestReadersShareAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 4, 64<<10)
		d := x.device()
		open := make(chan struct{})
		src := &fetcher{x: x, before: func(context.Context, int, read) error { <-open; return nil }}
		f := newFiller(t, Options{Fetch: src})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if err := f.group(t.Context(), d, 2); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		close(open)
		wg.Wait()
		d.check(t, 2)
		if len(src.log()) != 1 || d.writes != 1 {
			t.Errorf("%d reads, %d writes", len(src.log()), d.writes)
		}
	})
}

func TestWideReadIsOneFetchThatReleasesAsItComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 8, 64<<10)
		d := x.device()
		open := make(chan struct{})
		src := &fetcher{x: x, between: func(_ context.Context, _, g int) error {
			if g == 5 {
				<-open
			}
			return nil
		}}
		f := newFiller(t, Options{Fetch: src})
		all := make(chan error, 1)
		go func() { all <- f.fill(t.Context(), d, 2*64<<10, 5*64<<10) }()
		synctest.Wait()
		if err := f.group(t.Context(), d, 4); err != nil { // present, or at least on its way
			t.Fatal(err)
		}
		select {
		case err := <-all:
			t.Fatalf("the wide read ended early: %v", err)
		default:
		}
		close(open)
		if err := <-all; err != nil {
			t.Fatal(err)
		}
		d.check(t, 2, 3, 4, 5, 6)
		if log := src.log(); len(log) != 1 || log[0].first != 2 || log[0].end != 7 {
			t.Errorf("reads %v", log)
		}
	})
}

func TestSequentialReaderIsReadAheadFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const groups, size = 64, 256 << 10
		x := newFixture(t, groups, size)
		d, src := x.device(), &fetcher{x: x}
		f := newFiller(t, Options{Fetch: src, Readahead: 4 << 20})
		for off := int64(0); off < groups*size/2; off += 128 << 10 {
			if err := f.fill(t.Context(), d, off, 128<<10); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // the reader is slow
		}
		log := src.log()
		if n := d.count(); n < groups/2+8 || n > groups/2+16 { // 2 to 4 MiB ahead
			t.Errorf("%d groups", n)
		}
		if len(log) > 15 {
			t.Errorf("%d reads: %v", len(log), log)
		}
		d.check(t, 0, 1, 20, 39)
	})
}

func TestFetchAheadIsStoleFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 8, 64<<10)
		d := x.device()
		open := make(chan struct{})
		src := &fetcher{x: x, between: func(ctx context.Context, n, g int) error {
			if n == 0 && g == 2 {
				select {
				case <-open:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		}}
		f := newFiller(t, Options{Fetch: src})
		done := make(chan error, 1)
		go func() { done <- f.prefetch(t.Context(), d, []int{0, 1, 2, 3, 4, 5}) }()
		synctest.Wait()
		if err := f.group(t.Context(), d, 4); err != nil {
			t.Fatal(err)
		}
		d.check(t, 0, 1, 4)
		close(open)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		d.check(t, 0, 1, 2, 3, 4, 5)
		want := []read{{0, 6, "registry.test/app", node.Prefetch}, {4, 5, "registry.test/app", node.Demand}}
		if log := src.log(); !slices.Equal(log, want) || d.writes != 6 {
			t.Errorf("reads %v, %d writes", log, d.writes)
		}
	})
}

func TestCorruptThenGood(t *testing.T) {
	for _, bad := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(bad), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newFixture(t, 6, 64<<10)
				d := x.device()
				src := &fetcher{x: x, bytes: func(n, g int, p []byte) []byte {
					if g == 2 && n < bad {
						p = bytes.Clone(p)
						p[len(p)/2] ^= 1
					}
					return p
				}}
				m := &metrics{}
				f := newFiller(t, Options{Fetch: src, Metrics: m})
				err := f.fill(t.Context(), d, 0, 5*64<<10)
				synctest.Wait()
				d.check(t, 0, 1, 3, 4)
				if bad < maxCorrupt {
					if err != nil {
						t.Fatal(err)
					}
					d.check(t, 2)
				} else if !errors.Is(err, content.ErrCorrupt) || d.Has(2) {
					t.Errorf("after %d corrupt reads: %v, written: %v", bad, err, d.Has(2))
				}
				log := src.log()
				if int(m.corrupt.Load()) != bad || len(log) != min(bad+1, maxCorrupt) || log[1].first != 2 || log[1].end != 3 {
					t.Errorf("%d counted, reads %v", m.corrupt.Load(), log)
				}
				if want := bad / 2; src.discarded != min(want, 1) {
					t.Errorf("discarded %d times", src.discarded)
				}
			})
		})
	}
}

// metrics counts.
type metrics struct{ corrupt, filled, ahead atomic.Int64 }

func (m *metrics) Corrupt()                    { m.corrupt.Add(1) }
func (m *metrics) Filled(time.Duration, error) { m.filled.Add(1) }
func (m *metrics) Written(_, _ int64, ahead bool) {
	if ahead {
		m.ahead.Add(1)
	}
}

func TestRidesOutFailures(t *testing.T) {
	denied := fmt.Errorf("read: %w", node.ErrDenied)
	for _, tc := range []struct {
		name    string
		repos   []string
		fail    func(n int, r read) error
		wait    time.Duration // at most
		reads   int           // at most
		wantErr error
	}{
		{"daemon restarts", []string{"a/x"}, func(n int, _ read) error {
			if n < 5 {
				return node.ErrUnreachable
			}
			return nil
		}, 5 * time.Second, 6, nil},
		{"daemon stays away", []string{"a/x", "b/x"}, func(int, read) error { return node.ErrUnreachable }, time.Minute, 80, node.ErrUnreachable},
		{"origin fails for some time", []string{"a/x"}, func(n int, _ read) error {
			if n < 3 {
				return errTest
			}
			return nil
		}, 2 * time.Second, 4, nil},
		{"one of two origins works", []string{"a/x", "b/x"}, func(_ int, r read) error {
			if r.repo == "a/x" {
				return errTest
			}
			return nil
		}, 0, 2, nil},
		{"one origin denies", []string{"a/x", "b/x"}, func(_ int, r read) error {
			if r.repo == "a/x" {
				return denied
			}
			return nil
		}, 0, 2, nil},
		{"all origins deny", []string{"a/x", "b/x"}, func(int, read) error { return denied }, time.Minute, 140, node.ErrDenied},
		{"all origins deny for a while", []string{"a/x", "b/x"}, func(n int, _ read) error {
			if n < 6 {
				return denied
			}
			return nil
		}, 5 * time.Second, 7, nil},
		{"damaged for good", []string{"a/x"}, func(int, read) error { return node.ErrDamaged }, 0, 1, node.ErrDamaged},
		{"one fails, one denies", []string{"a/x", "b/x"}, func(n int, r read) error {
			if r.repo == "a/x" {
				return denied
			}
			if n < 4 {
				return errTest
			}
			return nil
		}, 3 * time.Second, 5, nil},
		{"no origin", nil, nil, 0, 0, errNoOrigin},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newFixture(t, 2, 16<<10)
				d := x.device()
				d.repos = tc.repos
				src := &fetcher{x: x, before: func(_ context.Context, n int, r read) error { return tc.fail(n, r) }}
				f := newFiller(t, Options{Fetch: src})
				start := time.Now()
				err := f.group(t.Context(), d, 1)
				if !errors.Is(err, tc.wantErr) {
					t.Errorf("%v, want %v", err, tc.wantErr)
				}
				if took := time.Since(start); took > tc.wait {
					t.Errorf("took %v", took)
				}
				if n := len(src.log()); n > tc.reads || n < tc.reads/2 {
					t.Errorf("%d reads, want %d", n, tc.reads)
				}
				time.Sleep(2 * lastRetry)
				synctest.Wait()
				if n := len(src.log()); n > tc.reads {
					t.Errorf("%d reads after the end", n)
				}
			})
		})
	}
}

func TestStalledReadIsTriedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 4, 16<<10)
		d := x.device()
		src := &fetcher{x: x, between: func(ctx context.Context, n, g int) error {
			if n == 0 && g == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}}
		f := newFiller(t, Options{Fetch: src, Stall: 10 * time.Second})
		start := time.Now()
		if err := f.fill(t.Context(), d, 0, 3*16<<10); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 10*time.Second || took > 11*time.Second {
			t.Errorf("took %v", took)
		}
		if log := src.log(); len(log) != 2 || log[1].first != 1 || log[1].end != 3 {
			t.Errorf("reads %v", log)
		}
	})
}

func TestFullDiskFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 4, 16<<10)
		d, src := x.device(), &fetcher{x: x}
		d.full = fmt.Errorf("write: %w", device.ErrFull)
		f := newFiller(t, Options{Fetch: src})
		start := time.Now()
		if err := f.fill(t.Context(), d, 0, 4*16<<10); !errors.Is(err, device.ErrFull) {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if took := time.Since(start); took > 0 || len(src.log()) != 1 {
			t.Errorf("took %v, reads %v", took, src.log())
		}
		d.full = nil
		if err := f.group(t.Context(), d, 1); err != nil {
			t.Errorf("with room again: %v", err)
		}
	})
}

func TestReaderThatGivesUpLeavesTheFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 4, 16<<10)
		d := x.device()
		open := make(chan struct{})
		src := &fetcher{x: x, before: func(context.Context, int, read) error { <-open; return nil }}
		f := newFiller(t, Options{Fetch: src})
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { first <- f.group(ctx, d, 1) }()
		go func() { second <- f.group(t.Context(), d, 1) }()
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		close(open)
		if err := <-second; err != nil {
			t.Error(err)
		}
		if len(src.log()) != 1 {
			t.Errorf("reads %v", src.log())
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 4, 16<<10)
		d := x.device()
		src := &fetcher{x: x, before: func(ctx context.Context, _ int, _ read) error { <-ctx.Done(); return ctx.Err() }}
		f := newFiller(t, Options{Fetch: src})
		results := make(chan error, 3)
		go func() { results <- f.group(t.Context(), d, 1) }()
		go func() { results <- f.complete(t.Context(), d, nil) }()
		go func() { results <- f.prefetch(t.Context(), d, []int{3, 2}) }()
		synctest.Wait()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := <-results; !errors.Is(err, ErrClosed) {
				t.Errorf("got %v", err)
			}
		}
		if err := f.group(t.Context(), d, 0); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestForgetDoesNotDisturbReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 8, 64<<10)
		d := x.device()
		open := make(chan struct{})
		src := &fetcher{x: x, before: func(ctx context.Context, _ int, _ read) error {
			select {
			case <-open:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		f := newFiller(t, Options{Fetch: src})
		reader, ahead := make(chan error, 1), make(chan error, 1)
		go func() { reader <- f.group(t.Context(), d, 1) }()
		go func() { ahead <- f.prefetch(t.Context(), d, []int{5, 6}) }()
		synctest.Wait()
		f.forget(d)
		if err := <-ahead; !errors.Is(err, errForgotten) {
			t.Errorf("prefetch: %v", err)
		}
		close(open)
		if err := <-reader; err != nil {
			t.Error(err)
		}
	})
}

func TestAccessesAreToldOnce(t *testing.T) {
	x := newFixture(t, 6, 16<<10)
	d := x.device()
	f := newFiller(t, Options{Fetch: &fetcher{x: x}})
	var mu sync.Mutex
	var seen []int
	f.onAccess = func(_ target, g int) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, g)
	}
	if err := f.prefetch(t.Context(), d, []int{2}); err != nil {
		t.Fatal(err)
	}
	for _, g := range []int{3, 2, 3, 0} {
		if err := f.group(t.Context(), d, g); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(seen, []int{3, 2, 0}) {
		t.Errorf("told of %v", seen)
	}
}

func TestWideReadGoesInStrides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 20, 4<<20)
		d := x.device()
		var most atomic.Int64
		src := &fetcher{x: x, before: func(_ context.Context, _ int, r read) error {
			most.Store(max(most.Load(), int64(r.end)-int64(d.count())))
			time.Sleep(time.Second)
			return nil
		}}
		f := newFiller(t, Options{Fetch: src, Readahead: -1, MemoryBudget: 1 << 20}) // less than one group
		if err := f.fill(t.Context(), d, 0, 20*4<<20); err != nil {
			t.Fatal(err)
		}
		if !d.Complete() || most.Load() > 2*stride/(4<<20) {
			t.Errorf("%d groups, %d at a time", d.count(), most.Load())
		}
	})
}

func TestForgetBetweenReads(t *testing.T) {
	x := newFixture(t, 64, 16<<10)
	d := x.device()
	f := newFiller(t, Options{Fetch: &fetcher{x: x}})
	var wg sync.WaitGroup
	for r := range 4 {
		wg.Go(func() {
			for g := range 64 {
				if err := f.group(t.Context(), d, (g+r*16)%64); err != nil {
					t.Error(err)
				}
				f.forget(d)
			}
		})
	}
	wg.Wait()
	if len(f.states) != 0 {
		t.Errorf("%d devices are not forgotten", len(f.states))
	}
}
