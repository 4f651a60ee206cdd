package pieces_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/pieces"
)

func TestHaves(t *testing.T) {
	const count = 200
	s := newSite(t, count, nil)
	s.catalog.offer(3, 5)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type run struct{ first, n int }
	runs := make(chan run, 16)
	ended := make(chan error, 1)
	go func() {
		ended <- s.client.Haves(ctx, s.parent(), s.id, count, func(first, n int) { runs <- run{first, n} })
	}()
	if got := <-runs; got != (run{3, 2}) {
		t.Errorf("begins with %v", got)
	}
	s.catalog.offer(60, 130) // across words
	if got := <-runs; got != (run{60, 70}) {
		t.Errorf("goes on with %v", got)
	}
	s.catalog.offer(0, count)
	for _, want := range []run{{0, 3}, {5, 55}, {130, 70}} {
		if got := <-runs; got != want {
			t.Errorf("goes on with %v, want %v", got, want)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ends with %v", err)
	}
}

func TestHavesEnd(t *testing.T) {
	stop := make(chan struct{})
	var now atomic.Int64
	start := time.Now()
	for _, tc := range []struct {
		name string
		end  func(*site)
	}{
		{"by the catalog", func(s *site) { s.catalog.end() }},
		{"with the ticket", func(*site) { now.Store(int64(2 * time.Hour)) }},
		{"with the server", func(*site) { close(stop) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			now.Store(0)
			s := newSite(t, 1, func(o *pieces.ServerOptions) {
				o.Stop, o.KeepAlive = stop, 5*time.Millisecond
				o.Now = func() time.Time { return start.Add(time.Duration(now.Load())) }
			})
			s.catalog.offer(0, 1)
			told := make(chan struct{}, 1)
			ended := make(chan error, 1)
			go func() {
				ended <- s.client.Haves(t.Context(), s.parent(), s.id, 1, func(int, int) { told <- struct{}{} })
			}()
			<-told
			tc.end(s)
			if err := <-ended; err == nil {
				t.Error("ended without an error")
			}
			s.Close() // waits for handlers
			if n := s.catalog.open(); n != 0 {
				t.Errorf("%d feeds are still open", n)
			}
		})
	}
}

func TestNoFeed(t *testing.T) {
	s := newSite(t, 1, nil)
	s.catalog.unfed = true
	if err := s.client.Haves(t.Context(), s.parent(), s.id, 1, func(int, int) {}); !errors.Is(err, pieces.ErrNotHeld) {
		t.Errorf("no feed: %v, want ErrNotHeld", err)
	}
}
