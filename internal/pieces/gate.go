package pieces

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Priority orders requests: a lower value goes first.
type Priority int

// Priorities, highest first: a client waits for the bytes; they are expected
// to be read soon; they are brought ahead of any use.
const (
	Demand Priority = iota
	Prefetch
	Preheat
	priorities
)

var priorityNames = [priorities]string{"demand", "prefetch", "preheat"}

// String returns the name used on the wire.
func (p Priority) String() string {
	if p < 0 || p >= priorities {
		return fmt.Sprintf("priority(%d)", int(p))
	}
	return priorityNames[p]
}

// ParsePriority reads a name used on the wire; "" means demand.
func ParsePriority(s string) (Priority, error) {
	if s == "" {
		return Demand, nil
	}
	for i, name := range priorityNames {
		if s == name {
			return Priority(i), nil
		}
	}
	return 0, fmt.Errorf("unknown priority %q: want demand, prefetch or preheat", s)
}

// errBusy is returned when the queue of a gate is full.
var errBusy = errors.New("too many requests are waiting")

// gate admits a bounded number of requests at a time, those of the highest
// priority first, and within one priority in order of arrival.
type gate struct {
	maxWaiting int

	mu      sync.Mutex
	free    int
	waiting [priorities][]*waiter
	queued  int
}

// waiter is one queued request; admitted is closed when it may go on.
type waiter struct{ admitted chan struct{} }

func newGate(slots, maxWaiting int) *gate { return &gate{free: slots, maxWaiting: maxWaiting} }

// enter waits for a slot; leave must follow if it returns nil.
func (g *gate) enter(ctx context.Context, p Priority) error {
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return nil
	}
	if g.queued >= g.maxWaiting {
		g.mu.Unlock()
		return errBusy
	}
	w := &waiter{admitted: make(chan struct{})}
	g.waiting[p] = append(g.waiting[p], w)
	g.queued++
	g.mu.Unlock()

	select {
	case <-w.admitted:
		return nil
	case <-ctx.Done():
		if !g.abandon(p, w) {
			g.leave()
		}
		return ctx.Err()
	}
}

// abandon takes w out of the queue; false means that it was admitted already.
func (g *gate) abandon(p Priority, w *waiter) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, q := range g.waiting[p] {
		if q == w {
			g.waiting[p] = append(g.waiting[p][:i], g.waiting[p][i+1:]...)
			g.queued--
			return true
		}
	}
	return false
}

// leave gives the slot to the next waiter, if any.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p := range g.waiting {
		if len(g.waiting[p]) == 0 {
			continue
		}
		w := g.waiting[p][0]
		g.waiting[p] = g.waiting[p][1:]
		g.queued--
		close(w.admitted)
		return
	}
	g.free++
}
