package piecestore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/damselfly-io/damselfly/internal/task"
)

// Task is a handle on a task in the store. While a handle is not released, the
// task is neither evicted nor removed. Handles on one task share everything but
// the reference. Methods may be called concurrently, and not after Release.
type Task struct {
	e       *entry
	release sync.Once
}

// ID returns the task's ID.
func (t *Task) ID() task.ID { return t.e.meta.ID }

// Table returns the task's piece table, which must not be changed.
func (t *Task) Table() task.Table { return t.e.meta.Table }

// Source returns the source given when the task was created.
func (t *Task) Source() string { return t.e.meta.Source }

// Release gives the reference back. Further calls do nothing.
func (t *Task) Release() { t.release.Do(func() { t.e.store.unref(t.e) }) }

// Touch marks the task as used now. On disk that is kept to the minute.
func (t *Task) Touch() {
	s, e := t.e.store, t.e
	now := s.opts.Now()
	s.mu.Lock()
	e.last = now
	save := now.Sub(e.lastSaved) >= accessGrain
	if save {
		e.lastSaved = now
	}
	s.mu.Unlock()
	if !save {
		return
	}
	if err := os.Chtimes(filepath.Join(e.dir, journalName), now, now); err != nil {
		s.log.Warn("last access of a task cannot be kept", "task", e.meta.ID.Short(), "error", err)
	}
}

// Held returns the set of held pieces; it is the caller's.
func (t *Task) Held() task.Set {
	t.e.mu.Lock()
	defer t.e.mu.Unlock()
	return t.e.held.Clone()
}

// Has reports whether piece i is held. No i is out of range.
func (t *Task) Has(i int) bool {
	t.e.mu.Lock()
	defer t.e.mu.Unlock()
	return t.e.held.Has(i)
}

// HeldCount returns the number of held pieces.
func (t *Task) HeldCount() int {
	t.e.mu.Lock()
	defer t.e.mu.Unlock()
	return t.e.heldN
}

// Digest returns the digest of piece i, and false if it is not held.
func (t *Task) Digest(i int) (task.Digest, bool) {
	e := t.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.held.Has(i) {
		return task.Digest{}, false
	}
	if err := e.warm(); err != nil {
		e.store.log.Warn("digest of a held piece cannot be read", "task", e.meta.ID.Short(), "piece", i, "error", err)
		return task.Digest{}, false
	}
	return e.digests[i], e.held.Has(i)
}

// Complete reports whether MarkComplete was called and all pieces are still
// held.
func (t *Task) Complete() bool {
	t.e.mu.Lock()
	defer t.e.mu.Unlock()
	return t.e.complete
}

// MarkComplete records that the digest of the whole content was verified. It
// fails with ErrIncomplete while a piece is missing.
func (t *Task) MarkComplete() error {
	e := t.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.complete {
		return nil
	}
	if err := e.warm(); err != nil {
		return err
	}
	if e.heldN != e.count {
		return fmt.Errorf("mark %s complete: %w: %d of %d pieces are held", e.meta.ID.Short(), ErrIncomplete, e.heldN, e.count)
	}
	if err := e.log(record{kind: recComplete}); err != nil {
		return err
	}
	e.complete = true
	clear(e.unproven)
	e.notify()
	return nil
}

// Subscribe returns a channel that gets a value after every change of what is
// held or complete, a Reset and the store's Close included. It has room for one:
// several changes in a row may be told once. Call cancel before Release.
func (t *Task) Subscribe() (changed <-chan struct{}, cancel func()) {
	e := t.e
	c := make(chan struct{}, 1)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.subs == nil {
		e.subs = map[chan struct{}]struct{}{}
	}
	e.subs[c] = struct{}{}
	return c, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.subs, c)
	}
}

// Wait returns when piece i is held. It fails when ctx ends, and with ErrClosed
// when the store is closed.
func (t *Task) Wait(ctx context.Context, i int) error {
	if err := t.e.inRange(i, i+1); err != nil {
		return err
	}
	if t.Has(i) {
		return nil
	}
	changed, cancel := t.Subscribe()
	defer cancel()
	for !t.Has(i) {
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for piece %d of %s: %w", i, t.e.meta.ID.Short(), context.Cause(ctx))
		case <-t.e.store.done:
			return ErrClosed
		}
	}
	return nil
}

func (e *entry) inRange(first, end int) error {
	if first < 0 || end > e.count || first > end {
		return fmt.Errorf("pieces [%d, %d) of %s: it has %d", first, end, e.meta.ID.Short(), e.count)
	}
	return nil
}
