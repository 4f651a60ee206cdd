package snapshots

import (
	"context"
	"sync"
)

// locks are locks by name.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	token   chan struct{} // has one element while it is free
	waiting int           // including who holds it
}

// lock waits for the lock of a name until ctx ends.
func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*lock{}
	}
	e := l.held[name]
	if e == nil {
		e = &lock{token: make(chan struct{}, 1)}
		e.token <- struct{}{}
		l.held[name] = e
	}
	e.waiting++
	l.mu.Unlock()
	select {
	case <-e.token:
		return func() {
			e.token <- struct{}{}
			l.leave(name, e)
		}, nil
	case <-ctx.Done():
		l.leave(name, e)
		return nil, ctx.Err()
	}
}

func (l *locks) leave(name string, e *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.waiting--; e.waiting == 0 {
		delete(l.held, name)
	}
}
