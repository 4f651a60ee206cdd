package piecestore

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

const (
	// maxWarm bounds the tasks nobody references whose files and digests are
	// kept at hand.
	maxWarm = 64
	// accessGrain is how often, at most, the last access of a task is written
	// to disk.
	accessGrain = time.Minute
)

// Options configures a Store.
type Options struct {
	// Dir is the store's directory, made if absent. It belongs to the store
	// alone. Required.
	Dir string
	// Limit bounds the bytes of held pieces together with those being written;
	// 0 means no limit.
	Limit int64
	// MinFree is the number of bytes that must stay free on the file system;
	// 0 means none.
	MinFree int64
	// Now returns the time; default time.Now.
	Now func() time.Time
	// Log gets what went wrong where no caller can be told; default: nothing is
	// logged.
	Log *slog.Logger
	// OnRemove is called after a task left the store by eviction or Remove, on
	// the goroutine that caused it and with no lock held. Optional.
	OnRemove func(task.ID)
	// OnDamage is called after a held piece was found damaged and dropped, like
	// OnRemove. Optional.
	OnDamage func(id task.ID, piece int)
	// FreeSpace returns the bytes free on the file system of dir; default
	// statfs. For tests.
	FreeSpace func(dir string) (int64, error)
}

// Store keeps tasks in a directory. Its methods may be called concurrently.
type Store struct {
	// Set once.
	opts Options
	log  *slog.Logger
	lock *os.File
	done chan struct{} // closed by Close
	bufs sync.Pool     // of *buffer

	// Lock order: evictMu, dirMu, slot.mu, entry.mu, mu.
	//
	// evictMu is held by whoever evicts, so that two writers short of space do
	// not both make the room that one of them needs.
	evictMu sync.Mutex
	// dirMu is held while a task's directory appears or disappears.
	dirMu   sync.Mutex
	trashed uint64 // tasks moved to the trash

	mu       sync.Mutex
	closed   bool
	tasks    map[task.ID]*entry
	held     int64    // bytes of held pieces
	reserved int64    // bytes of writes under way
	warm     []*entry // unreferenced with files open, oldest first
}

// Info describes a task in the store.
type Info struct {
	ID     task.ID
	Source string
	// Length is the task's length in bytes, Pieces the number of its pieces.
	Length int64
	Pieces int
	// HeldPieces and HeldBytes say how much of it is held.
	HeldPieces int
	HeldBytes  int64
	// Complete is true once MarkComplete was called.
	Complete   bool
	Created    time.Time
	LastAccess time.Time
	// PinnedUntil is zero for a task that is not pinned.
	PinnedUntil time.Time
	// Refs is the number of handles not yet released.
	Refs int
}

// Usage says how full a store is.
type Usage struct {
	Tasks int
	// Bytes of held pieces; PinnedBytes is the part of it in pinned tasks.
	Bytes, PinnedBytes int64
	// Limit is the store's limit, 0 for none.
	Limit int64
	// Free is what the file system has free, -1 if that is unknown.
	Free int64
}

// Open opens the store in o.Dir, or makes one. It reads the tasks' journals but
// not their data: pieces are checked at first use, see Task.Check. A task that
// cannot be read is removed, and logged. Open fails when another process has
// the store open.
func Open(o Options) (*Store, error) {
	if o.Dir == "" || o.Limit < 0 || o.MinFree < 0 {
		return nil, fmt.Errorf("open piece store: dir %q, limit %d, min free %d are not usable", o.Dir, o.Limit, o.MinFree)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.FreeSpace == nil {
		o.FreeSpace = freeSpace
	}
	s := &Store{opts: o, log: o.Log, done: make(chan struct{}), tasks: map[task.ID]*entry{}}
	s.bufs.New = func() any { return newBuffer() }
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make piece store: %w", err)
	}
	lock, err := lockFile(filepath.Join(o.Dir, "lock"), o.Dir)
	if err != nil {
		return nil, err
	}
	s.lock = lock
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open piece store %s: %w", o.Dir, err), lock.Close())
	}
	return s, nil
}

// Close ends all use of the store. Handles need not be released before; their
// operations fail with ErrClosed from then on, and Wait returns.
func (s *Store) Close() error {
	s.dirMu.Lock()
	defer s.dirMu.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	all := s.entriesLocked()
	s.warm = nil
	s.mu.Unlock()
	close(s.done)
	var errs []error
	for _, e := range all {
		errs = append(errs, e.shut())
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

func (s *Store) entriesLocked() []*entry {
	all := make([]*entry, 0, len(s.tasks))
	for _, e := range s.tasks {
		all = append(all, e)
	}
	return all
}

// Get returns a handle on the task, and false if the store does not have it.
// The caller releases the handle.
func (s *Store) Get(id task.ID) (*Task, bool) {
	s.mu.Lock()
	e := s.tasks[id]
	if e == nil || s.closed {
		s.mu.Unlock()
		return nil, false
	}
	t := s.refLocked(e)
	s.mu.Unlock()
	t.Touch()
	return t, true
}

func (s *Store) refLocked(e *entry) *Task {
	e.refs++
	if e.refs == 1 {
		if i := slices.Index(s.warm, e); i >= 0 {
			s.warm = slices.Delete(s.warm, i, i+1)
		}
	}
	return &Task{e: e}
}

// unref gives a reference back. Files of the task that has been without
// references for longest are closed when there are too many such.
func (s *Store) unref(e *entry) {
	var cold *entry
	now := s.opts.Now()
	s.mu.Lock()
	e.refs--
	e.last = now
	if e.refs == 0 && !s.closed {
		s.warm = append(s.warm, e)
		if len(s.warm) > maxWarm {
			cold = s.warm[0]
			s.warm = slices.Delete(s.warm, 0, 1)
		}
	}
	s.mu.Unlock()
	if cold != nil {
		cold.cool()
	}
}

// Create returns a handle on the task, which it makes if the store does not
// have it. An existing task must have the same table, otherwise Create fails
// with ErrTableMismatch. Source is the origin URL to show to people; it must
// not contain credentials. The caller releases the handle.
func (s *Store) Create(id task.ID, table task.Table, source string) (*Task, error) {
	if _, err := task.ParseID(string(id)); err != nil {
		return nil, fmt.Errorf("create task: %w", err)
	}
	if err := table.Validate(); err != nil {
		return nil, fmt.Errorf("create task %s: %w", id.Short(), err)
	}
	if len(source) > maxSource {
		source = source[:maxSource]
	}
	t, err := s.getOrCreate(id, table, source)
	if noSpace(err) {
		// The directory, the journal and the inodes take a few blocks.
		if err = s.makeRoom(createRoom, err); err == nil {
			t, err = s.getOrCreate(id, table, source)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("create task %s: %w", id.Short(), err)
	}
	if !t.e.meta.Table.Equal(table) {
		t.Release()
		return nil, fmt.Errorf("create task %s: %w", id.Short(), ErrTableMismatch)
	}
	return t, nil
}

func (s *Store) getOrCreate(id task.ID, table task.Table, source string) (*Task, error) {
	if t, ok := s.Get(id); ok {
		return t, nil
	}
	s.dirMu.Lock()
	defer s.dirMu.Unlock()
	if t, ok := s.Get(id); ok {
		return t, nil
	}
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	now := s.opts.Now()
	m := meta{ID: id, Table: table, Source: source, Created: now}
	m.Table.Ends = slices.Clone(table.Ends)
	e, err := s.makeTask(m)
	if err != nil {
		return nil, err
	}
	e.last, e.lastSaved = now, now
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tasks[id] = e
	return s.refLocked(e), nil
}

// List describes all tasks, in the order of their IDs.
func (s *Store) List() []Info {
	s.mu.Lock()
	all := s.entriesLocked()
	s.mu.Unlock()
	infos := make([]Info, 0, len(all))
	for _, e := range all {
		infos = append(infos, e.info())
	}
	slices.SortFunc(infos, func(a, b Info) int { return cmp.Compare(a.ID, b.ID) })
	return infos
}

// Remove removes a task and its pieces, pinned or not. It fails with
// ErrNotFound, and with ErrInUse while somebody holds a reference.
func (s *Store) Remove(id task.ID) error {
	s.mu.Lock()
	e, closed := s.tasks[id], s.closed
	s.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if e == nil {
		return fmt.Errorf("remove task %s: %w", id.Short(), ErrNotFound)
	}
	if _, err := s.remove(e, false); err != nil {
		return fmt.Errorf("remove task %s: %w", id.Short(), err)
	}
	s.removed(id)
	return nil
}

// removed tells the owner that tasks are gone. No lock may be held.
func (s *Store) removed(ids ...task.ID) {
	if s.opts.OnRemove == nil {
		return
	}
	for _, id := range ids {
		s.opts.OnRemove(id)
	}
}

// Pin keeps a task from eviction until the given time, replacing an earlier
// pin; a time that is not in the future unpins it. Pins survive a restart.
func (s *Store) Pin(id task.ID, until time.Time) error {
	s.mu.Lock()
	e := s.tasks[id]
	if e == nil || s.closed {
		defer s.mu.Unlock()
		if s.closed {
			return ErrClosed
		}
		return fmt.Errorf("pin task %s: %w", id.Short(), ErrNotFound)
	}
	t := s.refLocked(e)
	s.mu.Unlock()
	defer t.Release()
	if !until.After(s.opts.Now()) {
		until = time.Time{}
	}
	if err := e.pin(until); err != nil {
		return fmt.Errorf("pin task %s: %w", id.Short(), err)
	}
	return nil
}

// Usage says how full the store is.
func (s *Store) Usage() Usage {
	u := Usage{Limit: s.opts.Limit, Free: s.free()}
	now := s.opts.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	u.Tasks, u.Bytes = len(s.tasks), s.held
	for _, e := range s.tasks {
		if e.pinned.After(now) {
			u.PinnedBytes += e.bytes
		}
	}
	return u
}

// free returns the bytes free on the file system, -1 if that is unknown.
func (s *Store) free() int64 {
	n, err := s.opts.FreeSpace(s.opts.Dir)
	if err != nil {
		s.log.Warn("free space of piece store is unknown", "error", err)
		return -1
	}
	return n
}
