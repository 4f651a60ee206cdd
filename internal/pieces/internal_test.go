package pieces

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

// run lets callers take the gate's only slot in turn and returns their order.
func order(t *testing.T, arrivals []Priority) []int {
	t.Helper()
	var got []int
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 100)
		if err := g.enter(t.Context(), Preheat); err != nil {
			t.Fatal(err)
		}
		entered := make(chan int, len(arrivals))
		for i, p := range arrivals {
			go func() {
				if err := g.enter(t.Context(), p); err != nil {
					t.Error(err)
				}
				entered <- i
			}()
			synctest.Wait() // so that they queue in this order
		}
		for range arrivals {
			g.leave()
			got = append(got, <-entered)
		}
		g.leave()
		if g.free != 1 || g.queued != 0 {
			t.Errorf("%d slots and %d waiting in the end", g.free, g.queued)
		}
	})
	return got
}

func TestGateOrder(t *testing.T) {
	for _, tc := range []struct {
		name     string
		arrivals []Priority
		want     []int
	}{
		{"in order of arrival", []Priority{Demand, Demand, Demand}, []int{0, 1, 2}},
		{"by priority", []Priority{Preheat, Prefetch, Demand}, []int{2, 1, 0}},
		{"both", []Priority{Preheat, Demand, Prefetch, Preheat, Demand}, []int{1, 4, 2, 0, 3}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := order(t, tc.arrivals); !slices.Equal(got, tc.want) {
				t.Errorf("order %v, want %v", got, tc.want)
			}
		})
	}
}

func TestGateFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2, 1)
		for range 2 {
			if err := g.enter(t.Context(), Demand); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		waiting := make(chan error, 1)
		go func() { waiting <- g.enter(ctx, Prefetch) }()
		synctest.Wait()
		if err := g.enter(t.Context(), Demand); !errors.Is(err, errBusy) {
			t.Errorf("beyond the queue: %v", err)
		}
		cancel()
		if err := <-waiting; !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up: %v", err)
		}
		if g.queued != 0 || len(g.waiting[Prefetch]) != 0 {
			t.Error("who gave up still waits")
		}
		g.leave()
		g.leave()
		if g.free != 2 {
			t.Errorf("%d slots are free, want 2", g.free)
		}
	})
}

// Whoever is admitted at the moment it gives up passes the slot on.
func TestGateLosesNoSlot(t *testing.T) {
	g := newGate(3, 1000)
	done := make(chan struct{})
	for i := range 200 {
		go func() {
			defer func() { done <- struct{}{} }()
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(500))*time.Microsecond)
			defer cancel()
			if g.enter(ctx, Priority(i%3)) == nil {
				g.leave()
			}
		}()
	}
	for range 200 {
		<-done
	}
	if g.free != 3 || g.queued != 0 {
		t.Errorf("%d slots free and %d waiting, want 3 and 0", g.free, g.queued)
	}
}

func TestPriorityNames(t *testing.T) {
	for _, p := range []Priority{Demand, Prefetch, Preheat} {
		if got, err := ParsePriority(p.String()); err != nil || got != p {
			t.Errorf("%v is read as %v, %v", p, got, err)
		}
	}
	if p, err := ParsePriority(""); err != nil || p != Demand {
		t.Errorf("no priority is read as %v, %v", p, err)
	}
	if _, err := ParsePriority("Demand"); err == nil {
		t.Error("an unknown name was taken")
	}
	if s := Priority(-1).String(); s != "priority(-1)" {
		t.Errorf("a priority that is none is %q", s)
	}
}

func TestLimitsTakeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(limitedChunk, 0)
		start := time.Now()
		for range 5 { // the burst covers two
			if err := l.wait(t.Context(), "a", limitedChunk); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("took %v, want 3s", took)
		}
	})
}

func TestLimitsOfHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(0, limitedChunk)
		start := time.Now()
		for _, holder := range []string{"a", "a", "b", "b", "c"} {
			if err := l.wait(t.Context(), holder, limitedChunk); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("within bursts took %v", took)
		}
		if err := l.wait(t.Context(), "a", limitedChunk); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("beyond the burst took %v, want 1s", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.wait(ctx, "a", limitedChunk); err == nil {
			t.Error("an ended context is no error")
		}
	})
}

func TestLimitsAreBounded(t *testing.T) {
	l := newLimits(0, 1)
	for i := range 3 * maxHolders {
		l.holder(string(binary.AppendUvarint(nil, uint64(i))))
	}
	if len(l.holders) > maxHolders {
		t.Errorf("%d holders are kept", len(l.holders))
	}
	if (&limits{}).active() || !newLimits(1, 0).active() || !newLimits(0, 1).active() {
		t.Error("active is wrong")
	}
}

func TestAppendRuns(t *testing.T) {
	const n = 300
	random := rand.New(rand.NewPCG(1, 2))
	sent, all := task.NewSet(n), task.NewSet(n)
	got := task.NewSet(n)
	for range 50 {
		for range random.IntN(20) {
			all.Add(random.IntN(n))
		}
		b := appendRuns(nil, all, sent)
		err := readFeed(bytes.NewReader(b), n, func(first, count int) {
			for i := first; i < first+count; i++ {
				if got.Has(i) {
					t.Fatalf("piece %d was sent twice", i)
				}
				got.Add(i)
			}
		})
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !slices.Equal(got, all) {
			t.Fatal("the receiver has other pieces than were sent")
		}
	}
}

func TestReadFeed(t *testing.T) {
	type run struct{ first, count int }
	for _, tc := range []struct {
		name string
		in   []byte
		want []run
		err  error
	}{
		{"empty", nil, nil, io.EOF},
		{"keep-alive", []byte{0, 0}, nil, io.EOF},
		{"runs", []byte{1, 2, 9, 1}, []run{{1, 2}, {9, 1}}, io.EOF},
		{"up to the end", []byte{0, 10}, []run{{0, 10}}, io.EOF},
		{"nothing at the end", []byte{10, 0}, nil, io.EOF},
		{"beyond the end", []byte{9, 2}, nil, errFeed},
		{"begins beyond the end", []byte{11, 0}, nil, errFeed},
		{"a sum that overflows", append([]byte{1}, binary.AppendUvarint(nil, 1<<64-1)...), nil, errFeed},
		{"cut in a number", []byte{0x80}, nil, io.ErrUnexpectedEOF},
		{"cut between numbers", []byte{1}, nil, io.ErrUnexpectedEOF},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []run
			err := readFeed(bytes.NewReader(tc.in), 10, func(first, count int) { got = append(got, run{first, count}) })
			if !errors.Is(err, tc.err) || !slices.Equal(got, tc.want) {
				t.Errorf("%v, %v; want %v, %v", got, err, tc.want, tc.err)
			}
		})
	}
	if readFeed(bytes.NewReader(bytes.Repeat([]byte{0xff}, 11)), 10, nil) == nil {
		t.Error("a number of more than 64 bits was read")
	}
}

func FuzzReadFeed(f *testing.F) {
	f.Add([]byte{0, 10, 0, 0, 3, 4}, 10)
	f.Add(binary.AppendUvarint(binary.AppendUvarint(nil, 1<<63), 1<<63), 10)
	f.Add(bytes.Repeat([]byte{0xff}, 20), 1<<20)
	f.Fuzz(func(t *testing.T, b []byte, pieces int) {
		if pieces < 0 || pieces > task.MaxPieces {
			return
		}
		err := readFeed(bytes.NewReader(b), pieces, func(first, count int) {
			if first < 0 || count <= 0 || first+count > pieces {
				t.Fatalf("pieces [%d, +%d) of %d", first, count, pieces)
			}
		})
		if err == nil {
			t.Fatal("a feed ended without an error")
		}
	})
}
