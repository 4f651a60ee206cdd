package accelerate

import (
	"errors"
	"slices"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

// recheck is how long the blobs of an index that is asked for count as complete
// and as used. Evictions and damage are told at once: this is for what is not.
const recheck = time.Minute

// errEvicted says that there was no room for an index.
var errEvicted = errors.New("the cache has no room for all of the index: make it larger (cache-size)")

// offer stores r and offers it from now on.
func (a *Accelerator) offer(r *record) error {
	a.saving.Lock()
	defer a.saving.Unlock()
	if err := a.save(r); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.table.images[r.key()]; old != nil {
		a.table.remove(old)
	}
	a.table.add(r)
	if r.checked = a.o.Now(); !a.complete(r) {
		a.dropLocked(r)
		return errEvicted
	}
	return nil
}

// offeredLocked reports whether all that r needs is in the cache, and marks it
// as used. If not, r is dropped.
func (a *Accelerator) offeredLocked(r *record) bool {
	now := a.o.Now()
	if now.Sub(r.checked) < recheck {
		return true
	}
	if !a.complete(r) {
		a.o.Log.Info("an accelerated image is not offered any more: the cache does not have all of it",
			"repository", r.place().String(), "image", r.Subject.Digest.String())
		a.dropLocked(r)
		return false
	}
	r.checked = now
	return true
}

// discardUnused removes blobs that no record needs.
func (a *Accelerator) discardUnused(ids []task.ID) {
	a.mu.Lock()
	unused := slices.DeleteFunc(ids, func(id task.ID) bool { return a.table.blobs[id] != nil })
	a.mu.Unlock()
	a.discard(unused)
}
