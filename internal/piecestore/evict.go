package piecestore

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/damselfly-io/damselfly/internal/task"
)

// createRoom is what is evicted when the file system has no room for a new
// task's directory.
const createRoom = 1 << 20

// account changes the held bytes of e by n.
func (s *Store) account(e *entry, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.bytes += n
	s.held += n
}

// settle turns n reserved bytes into held ones of e.
func (s *Store) settle(e *entry, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.bytes += n
	s.held += n
	s.reserved -= n
}

func (s *Store) unreserve(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved -= n
}

// reserve makes sure that n more bytes fit, evicting if it must. The
// reservation ends with settle or unreserve.
func (s *Store) reserve(n int64) error {
	short, err := s.tryReserve(n)
	if short <= 0 || err != nil {
		return err
	}
	removed, err := s.reserveEvicting(n)
	s.removed(removed...)
	return err
}

func (s *Store) reserveEvicting(n int64) ([]task.ID, error) {
	s.evictMu.Lock()
	defer s.evictMu.Unlock()
	short, err := s.tryReserve(n) // another may have made room meanwhile
	if short <= 0 || err != nil {
		return nil, err
	}
	// Nothing is evicted in vain: the cache is worth more than a write that
	// fails anyway.
	_, removed, err := s.evict(short, true)
	if err != nil {
		return removed, err
	}
	short, err = s.tryReserve(n)
	if err == nil && short > 0 {
		err = s.full(n, nil)
	}
	return removed, err
}

// tryReserve reserves n bytes, or returns how many too few there are.
func (s *Store) tryReserve(n int64) (short int64, err error) {
	free := int64(-1)
	if s.opts.MinFree > 0 {
		free = s.free()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, ErrClosed
	}
	if s.opts.Limit > 0 {
		short = s.held + s.reserved + n - s.opts.Limit
	}
	if free >= 0 {
		short = max(short, s.opts.MinFree-(free-s.reserved-n))
	}
	if short <= 0 {
		s.reserved += n
		return 0, nil
	}
	return short, nil
}

// full describes why n bytes do not fit.
func (s *Store) full(n int64, cause error) *FullError {
	free := s.free()
	s.mu.Lock()
	defer s.mu.Unlock()
	return &FullError{Needed: n, Held: s.held, Reserved: s.reserved, Limit: s.opts.Limit, MinFree: s.opts.MinFree, Free: free, Err: cause}
}

// makeRoom evicts at least n bytes because the file system had no room left,
// which cause says. It fails with a FullError when nothing can be evicted.
func (s *Store) makeRoom(n int64, cause error) error {
	s.evictMu.Lock()
	freed, removed, err := s.evict(n, false)
	s.evictMu.Unlock()
	s.removed(removed...)
	if err == nil && freed == 0 {
		err = s.full(n, cause)
	}
	return err
}

// Prune evicts tasks, least recently used first, until at most target bytes are
// held or what is left is referenced or pinned. It returns the bytes freed and
// the tasks removed, also when it fails midway.
func (s *Store) Prune(target int64) (freed int64, removed []task.ID, err error) {
	s.evictMu.Lock()
	s.mu.Lock()
	over, closed := s.held-max(target, 0), s.closed
	s.mu.Unlock()
	switch {
	case closed:
		err = ErrClosed
	case over > 0:
		freed, removed, err = s.evict(over, false)
	}
	s.evictMu.Unlock()
	s.removed(removed...)
	if err != nil {
		return freed, removed, fmt.Errorf("prune piece store: %w", err)
	}
	return freed, removed, nil
}

// evict removes unreferenced, unpinned tasks, least recently used first, until
// it has freed the given bytes or no such task is left. With all, it removes
// nothing unless it can free as much. evictMu is held.
func (s *Store) evict(bytes int64, all bool) (freed int64, removed []task.ID, err error) {
	victims, evictable := s.victims()
	if all && evictable < bytes {
		return 0, nil, nil
	}
	for _, e := range victims {
		if freed >= bytes {
			break
		}
		n, err := s.remove(e, true)
		if errors.Is(err, ErrInUse) || errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return freed, removed, fmt.Errorf("evict %s: %w", e.meta.ID.Short(), err)
		}
		freed += n
		removed = append(removed, e.meta.ID)
	}
	return freed, removed, nil
}

// victims returns the tasks that may be evicted, least recently used first, and
// the bytes they hold.
func (s *Store) victims() (victims []*entry, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := map[*entry]int64{} // Touch goes on while we sort
	for _, e := range s.tasks {
		if s.evictableLocked(e) {
			victims, bytes = append(victims, e), bytes+e.bytes
			last[e] = e.last.UnixNano()
		}
	}
	slices.SortFunc(victims, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(last[a], last[b]), cmp.Compare(a.meta.ID, b.meta.ID))
	})
	return victims, bytes
}

func (s *Store) evictableLocked(e *entry) bool {
	return e.refs == 0 && !e.pinned.After(s.opts.Now())
}

// remove takes e out of the store and deletes its files. It fails with ErrInUse
// when e is referenced or, for an eviction, pinned by now.
func (s *Store) remove(e *entry, eviction bool) (freed int64, err error) {
	trash, freed, err := s.detach(e, eviction)
	if err != nil {
		return 0, err
	}
	if err := e.shut(); err != nil {
		s.log.Warn("closing files of a removed task", "task", e.meta.ID.Short(), "error", err)
	}
	// Deleting a large file takes long; by now it is out of everybody's way.
	if err := os.RemoveAll(trash); err != nil {
		s.log.Warn("deleting files of a removed task", "task", e.meta.ID.Short(), "error", err)
	}
	return freed, nil
}

// detach moves e's directory to the trash, which is emptied when the store is
// next opened should the process end before it has deleted it.
func (s *Store) detach(e *entry, eviction bool) (trash string, freed int64, err error) {
	s.dirMu.Lock()
	defer s.dirMu.Unlock()
	s.mu.Lock()
	switch {
	case s.closed:
		err = ErrClosed
	case s.tasks[e.meta.ID] != e:
		err = ErrNotFound
	case e.refs > 0, eviction && !s.evictableLocked(e):
		err = ErrInUse
	}
	if err != nil {
		s.mu.Unlock()
		return "", 0, err
	}
	delete(s.tasks, e.meta.ID)
	freed = e.bytes
	s.held -= freed
	if i := slices.Index(s.warm, e); i >= 0 {
		s.warm = slices.Delete(s.warm, i, i+1)
	}
	s.mu.Unlock()
	// A rename into a directory that exists needs no room, which there may be
	// none of.
	s.trashed++
	trash = s.path(trashDir, strconv.FormatUint(s.trashed, 10))
	if err := os.Rename(e.dir, trash); err != nil {
		// Deleted where it is, while nobody can make it anew.
		err = errors.Join(err, os.RemoveAll(e.dir))
		s.log.Warn("moving a removed task to the trash", "task", e.meta.ID.Short(), "error", err)
	}
	return trash, freed, nil
}
