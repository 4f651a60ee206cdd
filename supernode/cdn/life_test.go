package cdn

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

func TestCloseWhileFetching(t *testing.T) {
	before := runtime.NumGoroutine()
	s := newSite(t, size)
	var stuck atomic.Int64
	s.intercept = func(_ http.ResponseWriter, r *http.Request, n int) bool {
		if n == 1 {
			return false
		}
		stuck.Add(1)
		<-r.Context().Done()
		return true
	}
	n := newNode(t, nil)
	o, err := n.Ensure(t.Context(), s.request())
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, func() bool { return stuck.Load() > 0 }, "a request hangs")
	n.Close()
	o.Release()
	if got := n.events.failures(); len(got) != 0 {
		t.Errorf("closing is told as a failure: %v", got)
	}
	n.o.Origin.CloseIdleConnections()
	s.CloseClientConnections()
	s.Close()
	testenv.Eventually(t, func() bool { return runtime.NumGoroutine() <= before }, "no goroutine is left")
	// And nothing starts any more.
	if o, err := n.Ensure(t.Context(), newSite(t, 10).request()); err == nil {
		o.Release()
		t.Error("a closed cache fetches")
	}
}

// Who waits for a slow origin can stop waiting; others are not affected.
func TestRequesterLeaves(t *testing.T) {
	s := newSite(t, size)
	var asked atomic.Int64
	s.intercept = func(_ http.ResponseWriter, r *http.Request, n int) bool {
		asked.Add(1)
		if n == 1 {
			<-r.Context().Done()
		}
		return false
	}
	n := newNode(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := n.Ensure(ctx, s.request())
		first <- err
	}()
	testenv.Eventually(t, func() bool { return asked.Load() == 1 }, "the origin is asked")
	second := make(chan *Object, 1)
	go func() {
		o, err := n.Ensure(t.Context(), s.request())
		if err != nil {
			t.Error(err)
		}
		second <- o
	}()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who left got %v", err)
	}
	if o := <-second; o != nil {
		waitComplete(t, o, s.content)
		o.Release()
	}
}

// An object that is given back once the fetch has ended can be evicted.
func TestIdleObjectsAreForgotten(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	o, err := n.Ensure(t.Context(), s.request())
	if err != nil {
		t.Fatal(err)
	}
	waitComplete(t, o, s.content)
	o.Release()
	testenv.Eventually(t, func() bool { i, _ := storeHas(n.store, s.id()); return i.Refs == 0 }, "the store's task is released")
	if err := n.store.Remove(s.id()); err != nil {
		t.Error(err)
	}
	waitComplete(t, n.ensure(t, s.request()), s.content)
}

// A failure between the answer and the moment the requester can be told of
// failures is made up for.
func TestResume(t *testing.T) {
	s := newSite(t, size)
	s.intercept = func(w http.ResponseWriter, _ *http.Request, n int) bool {
		if n > 1 {
			w.WriteHeader(http.StatusNotFound)
		}
		return n > 1
	}
	n := newNode(t, nil)
	o := n.ensure(t, s.request())
	_ = n.events.waitFailed(t)
	testenv.Eventually(t, func() bool { return !o.busy() }, "the fetch ends")
	s.set(func() { s.intercept = nil })
	o.Resume(s.request())
	waitComplete(t, o, s.content)
	gets := len(s.ranges())
	o.Resume(s.request())
	if len(s.ranges()) != gets {
		t.Error("resuming what is complete asked the origin")
	}
}

func TestWaitPublishedEnds(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	r := s.request()
	r.Whole, r.Ranges = false, []Range{{Offset: 20 * testPiece, Length: 1}}
	o := n.ensure(t, r)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := o.WaitPublished(ctx, 3); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a piece nobody wants: %v", err)
	}
}
