package content

import (
	"container/list"
	"context"
	"sync"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// cache keeps the groups that were used last and lets those who want the same
// one wait for the first.
type cache struct {
	limit int64

	mu      sync.Mutex
	size    int64
	entries map[chunkfmt.GroupRef]*list.Element // of *entry
	recent  list.List
	loads   map[chunkfmt.GroupRef]*load
}

type entry struct {
	ref   chunkfmt.GroupRef
	plain []byte
}

// load is a fetch that is under way.
type load struct {
	done  chan struct{}
	plain []byte
	err   error
	// stopped is set when the fetch ended because its own reader gave up.
	stopped bool
}

func newCache(limit int64) *cache {
	return &cache{
		limit:   limit,
		entries: map[chunkfmt.GroupRef]*list.Element{},
		loads:   map[chunkfmt.GroupRef]*load{},
	}
}

// get returns a group from the cache, from somebody else's fetch, or from its
// own. A reader that gives up ends its own fetch; those who wait for it then
// fetch themselves.
func (c *cache) get(ctx context.Context, ref chunkfmt.GroupRef, fetch func() ([]byte, error)) ([]byte, error) {
	for {
		plain, l, first := c.find(ref)
		switch {
		case l == nil:
			return plain, nil
		case first:
			return c.run(ctx, ref, l, fetch)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-l.done:
			if !l.stopped {
				return l.plain, l.err
			}
		}
	}
}

// find returns a group, or a load of it and whether the caller is to do it.
func (c *cache) find(ref chunkfmt.GroupRef) ([]byte, *load, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[ref]; ok {
		c.recent.MoveToFront(e)
		return e.Value.(*entry).plain, nil, false //nolint:errcheck // nothing else is put there
	}
	if l, ok := c.loads[ref]; ok {
		return nil, l, false
	}
	l := &load{done: make(chan struct{}), stopped: true}
	c.loads[ref] = l
	return nil, l, true
}

func (c *cache) run(ctx context.Context, ref chunkfmt.GroupRef, l *load, fetch func() ([]byte, error)) ([]byte, error) {
	defer func() { // a fetch that panics must not leave the others waiting
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.loads, ref)
		if l.err == nil && !l.stopped {
			c.keep(&entry{ref, l.plain})
		}
		close(l.done)
	}()
	l.plain, l.err = fetch()
	l.stopped = l.err != nil && ctx.Err() != nil
	return l.plain, l.err
}

// keep adds an entry and drops the oldest ones beyond the limit. c.mu is held.
func (c *cache) keep(e *entry) {
	if int64(cap(e.plain)) > c.limit {
		return
	}
	c.entries[e.ref] = c.recent.PushFront(e)
	for c.size += int64(cap(e.plain)); c.size > c.limit; {
		oldest := c.recent.Remove(c.recent.Back()).(*entry) //nolint:errcheck // nothing else is put there
		c.size -= int64(cap(oldest.plain))
		delete(c.entries, oldest.ref)
	}
}
