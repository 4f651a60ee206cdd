package fill

import (
	"context"
	"sync"
	"time"
)

// gate tells whether readers are waiting. The zero value is open.
type gate struct {
	mu     sync.Mutex
	inside int
	left   time.Time     // by the last one
	empty  chan struct{} // closed when inside is 0; nil when nobody waits for that
}

func (g *gate) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside++
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.left = time.Now()
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// quiet returns when nobody has been inside for a while.
func (g *gate) quiet(ctx context.Context, while time.Duration) error {
	for {
		g.mu.Lock()
		var empty chan struct{}
		rest := while - time.Since(g.left)
		if g.inside > 0 {
			if g.empty == nil {
				g.empty = make(chan struct{})
			}
			empty = g.empty
		}
		g.mu.Unlock()
		if empty == nil && rest <= 0 {
			return nil
		}
		if err := waitFor(ctx, empty, rest); err != nil {
			return err
		}
	}
}

// waitFor waits for ch or, if that is nil, for d.
func waitFor(ctx context.Context, ch <-chan struct{}, d time.Duration) error {
	var after <-chan time.Time
	if ch == nil {
		timer := time.NewTimer(d)
		defer timer.Stop()
		after = timer.C
	}
	select {
	case <-ch:
	case <-after:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}
