package fill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

func TestCompleteInOrderAtHalfTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 64, 64<<10)
		d := x.device()
		src := &fetcher{x: x, between: func(context.Context, int, int) error { time.Sleep(time.Millisecond); return nil }}
		f := newFiller(t, Options{Fetch: src})
		start := time.Now()
		if err := f.complete(t.Context(), d, nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 100*time.Millisecond || took > 129*time.Millisecond {
			t.Errorf("took %v for 64 ms of transfer", took)
		}
		log := src.log()
		if !slices.IsSortedFunc(log, func(a, b read) int { return a.first - b.first }) || len(log) != 2 || log[0].priority != node.Background {
			t.Errorf("reads %v", log)
		}
		for g := range 64 {
			d.check(t, g)
		}
	})
}

func TestCompleteYieldsToReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 64, 64<<10)
		d := x.device()
		src := &fetcher{x: x, before: func(_ context.Context, _ int, r read) error {
			if r.priority == node.Demand {
				time.Sleep(10 * time.Second)
			}
			return nil
		}}
		f := newFiller(t, Options{Fetch: src, Quiet: time.Second})
		reader := make(chan error, 1)
		go func() { reader <- f.group(t.Context(), d, 60) }()
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- f.complete(t.Context(), d, NewLimiter(LimiterOptions{Share: 1})) }()
		time.Sleep(9 * time.Second)
		if n := len(src.log()); n != 1 {
			t.Errorf("%d reads while a reader waits", n)
		}
		if err := <-reader; err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("went on after %v", took)
		}
	})
}

func TestCompleteGoesOnThroughFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 60, 64<<10)
		d := x.device()
		src := &fetcher{x: x,
			before: func(_ context.Context, n int, _ read) error {
				if n < 5 {
					return node.ErrUnreachable
				}
				return nil
			},
			bytes: func(_, g int, p []byte) []byte {
				if g == 3 {
					return make([]byte, len(p))
				}
				return p
			},
		}
		f := newFiller(t, Options{Fetch: src})
		err := f.complete(t.Context(), d, nil)
		if !hopeless(err) || d.count() != 59 || d.Has(3) {
			t.Errorf("%d groups, %v", d.count(), err)
		}
	})
}

func TestCompleteEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 4, 16<<10)
		d, src := x.device(), &fetcher{x: x}
		f := newFiller(t, Options{Fetch: src})
		d.full = fmt.Errorf("write: %w", device.ErrFull)
		if err := f.complete(t.Context(), d, nil); !errors.Is(err, device.ErrFull) {
			t.Errorf("full: %v", err)
		}
		d.full = nil
		src.before = func(ctx context.Context, _ int, _ read) error { <-ctx.Done(); return ctx.Err() }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.complete(ctx, d, nil) }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		src.before = nil
		if err := f.complete(t.Context(), d, nil); err != nil || !d.Complete() {
			t.Errorf("at last: %v", err)
		}
	})
}

func TestPrefetchInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 40, 512<<10)
		d := x.device()
		src := &fetcher{x: x, before: func(_ context.Context, n int, _ read) error {
			time.Sleep(time.Second)
			return nil
		}}
		f := newFiller(t, Options{Fetch: src})
		var order []int
		for g := 39; g >= 0; g-- {
			order = append(order, g, g, -1, 1000)
		}
		start := time.Now()
		if err := f.prefetch(t.Context(), d, order); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 2*time.Second { // 5 parts, 3 at a time
			t.Errorf("took %v", took)
		}
		log := src.log()
		if !d.Complete() || len(log) != 5 || log[0].priority != node.Prefetch || log[4].first > 7 {
			t.Errorf("%d groups, reads %v", d.count(), log)
		}
	})
}

func TestPrefetchEndsWhenTheDaemonIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 3, 16<<10)
		src := &fetcher{x: x, before: func(context.Context, int, read) error { return node.ErrUnreachable }}
		f := newFiller(t, Options{Fetch: src})
		if err := f.prefetch(t.Context(), x.device(), []int{0, 1, 2}); !errors.Is(err, node.ErrUnreachable) {
			t.Errorf("got %v", err)
		}
	})
}

func TestLimiter(t *testing.T) {
	for _, tc := range []struct {
		o    LimiterOptions
		n    int64
		took time.Duration
		want time.Duration
	}{
		{LimiterOptions{}, 1 << 20, time.Second, time.Second},
		{LimiterOptions{Share: 1}, 1 << 20, time.Second, 0},
		{LimiterOptions{Share: 0.25}, 1 << 20, time.Second, 3 * time.Second},
		{LimiterOptions{Share: 1, BytesPerSecond: 1 << 20}, 4 << 20, time.Second, 3 * time.Second},
		{LimiterOptions{BytesPerSecond: 1 << 20}, 4 << 20, 4 * time.Second, 4 * time.Second},
	} {
		if got := NewLimiter(tc.o).rest(tc.n, tc.took); got != tc.want {
			t.Errorf("%+v: rest %v after %d bytes in %v, want %v", tc.o, got, tc.n, tc.took, tc.want)
		}
	}
}
