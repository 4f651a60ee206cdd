package device

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"golang.org/x/sys/unix"
)

// Options of a Store.
type Options struct {
	// Dir is where the devices are; it is made if it does not exist. It must be
	// on a file system with sparse files.
	Dir string
	// Limit bounds the bytes that devices take on the disk, as far as devices
	// that nobody references can be evicted for it. 0 is no limit.
	Limit int64
	// MinFree is how many bytes of the file system eviction tries to keep free
	// for others. 0 is none.
	MinFree int64
	// SyncEvery is how long a group may be present before the disk knows it: so
	// much is fetched again after a crash. Default one second.
	SyncEvery time.Duration
	// SyncBytes is how many bytes may be present before the disk knows it.
	// Default 64 MiB.
	SyncBytes int64
	// Keep reports that the table of an evicted device is needed, as there is an
	// image that may be mounted again. It is called while the device is locked
	// and must not call the Store. Nil keeps all tables.
	Keep func(Key) bool
	// OnEvict is told which devices were evicted, and how many bytes of the disk
	// that freed. It must not call the Store. May be nil.
	OnEvict func(key Key, freed int64)
	// OnLost is told which groups of a referenced device were forgotten because
	// their bytes are damaged or could not be brought to the disk, after that
	// was done. A device that was Complete and whose readers raise no more events
	// depends on somebody filling them again at once. It is called by the store's
	// goroutine or by Verify, and must return soon. May be nil.
	OnLost func(d *Device, groups []int)
	// Log gets what goes wrong in the store's goroutine. Default: nothing is
	// logged.
	Log *slog.Logger
	// Now is the clock, for last uses. Default time.Now.
	Now func() time.Time
	// After is the timer for SyncEvery. Default time.After.
	After func(time.Duration) <-chan time.Time

	// step is called before, and after some, changes on the disk: tests make it
	// fail, or look.
	step func(op, path string) error
}

func (o *Options) setDefaults() error {
	if o.Dir == "" {
		return errors.New("device store: no directory")
	}
	if o.Limit < 0 || o.MinFree < 0 || o.SyncEvery < 0 || o.SyncBytes < 0 {
		return errors.New("device store: a negative option")
	}
	if o.SyncEvery == 0 {
		o.SyncEvery = time.Second
	}
	if o.SyncBytes == 0 {
		o.SyncBytes = 64 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.After == nil {
		o.After = time.After
	}
	if o.step == nil {
		o.step = func(string, string) error { return nil }
	}
	return nil
}

// Store is a directory of devices. Its methods may be called by several
// goroutines.
type Store struct {
	o    Options
	lock *os.File

	kick   chan struct{} // something is to be synced, closed or evicted
	urgent chan struct{} // at once
	stop   chan struct{}
	done   chan struct{}

	recovered atomic.Bool
	unsynced  atomic.Int64 // bytes
	evictions atomic.Int64 // devices that were evicted
	evictMu   sync.Mutex   // one eviction at a time; taken before any other lock

	mu      sync.Mutex // taken last
	closed  bool
	entries map[Key]*entry
}

// entry is a device on the disk, or one that is being made.
type entry struct {
	key Key

	// mu is held while the device is opened, closed, evicted or removed. It is
	// taken before all locks but Store.evictMu.
	mu sync.Mutex
	// dev is nil while the device is not open. It stays for a moment after the
	// last reference went.
	dev *Device
	// gone says that the entry was removed from Store.entries.
	gone bool

	// Changed under mu only.
	refs  atomic.Int32
	used  atomic.Int64 // last use, nanoseconds since 1970
	bytes atomic.Int64 // on the disk, when last looked at
	// emptied says that there is nothing to free but the table.
	emptied atomic.Bool
	info    atomic.Pointer[tableInfo]
}

// tableInfo is what the store keeps in mind of a table.
type tableInfo struct {
	blob chunkfmt.Digest
	size int64 // of the device
}

// Open opens a store and starts its goroutine, which Close ends. It fails with
// ErrLocked while another process has it open.
func Open(o Options) (*Store, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("device store: %w", err)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		o: o, lock: lock, entries: map[Key]*entry{},
		kick: make(chan struct{}, 1), urgent: make(chan struct{}, 1),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	if err := s.scan(); err != nil {
		lock.Close() //nolint:errcheck // the other error counts
		return nil, fmt.Errorf("device store %s: %w", o.Dir, err)
	}
	go s.run()
	return s, nil
}

// lockDir keeps other processes, and other stores of this one, out.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600) // #nosec G304 -- the operator's directory
	if err != nil {
		return nil, fmt.Errorf("device store: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close() //nolint:errcheck // the other error counts
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s: %w by another process", dir, ErrLocked)
	}
	return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
}

// Close syncs what is present and closes all devices, the referenced ones too:
// afterwards their methods that need the file fail. It gives the error of the
// last sync.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	<-s.done
	var errs []error
	for _, e := range s.all() {
		e.mu.Lock()
		if e.dev != nil {
			errs = append(errs, e.dev.sync(), e.dev.close())
			e.dev = nil
		}
		e.mu.Unlock()
	}
	errs = append(errs, s.lock.Close())
	return errors.Join(errs...)
}

// Recovered says that all devices that are mounted since before the store was
// opened are referenced now. From then on devices may be evicted and removed.
func (s *Store) Recovered() {
	s.recovered.Store(true)
	s.wake()
}

func (s *Store) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// all returns the entries.
func (s *Store) all() []*entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*entry, 0, len(s.entries))
	for _, e := range s.entries {
		all = append(all, e)
	}
	return all
}

// lookup returns the entry of a key; if there is none, a new one when create is
// set, and else nil.
func (s *Store) lookup(key Key, create bool) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	e := s.entries[key]
	if e == nil && create {
		e = &entry{key: key}
		s.entries[key] = e
	}
	return e, nil
}

// forget removes an entry. e.mu is held.
func (s *Store) forget(e *entry) {
	e.gone = true
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entries, e.key)
}

// Get returns the device of a table and makes it if there is none. It belongs to
// the caller until its Release. The error wraps ErrFull if there is no space and
// none can be made.
func (s *Store) Get(table *Table) (*Device, error) {
	return s.acquire(table.Key, table)
}

// Load returns a device by the table that is stored with it; if there is none,
// or a damaged one, the error wraps fs.ErrNotExist. It belongs to the caller
// until its Release.
func (s *Store) Load(key Key) (*Device, error) {
	return s.acquire(key, nil)
}

func (s *Store) acquire(key Key, table *Table) (*Device, error) {
	evictions := s.evictions.Load()
	d, err := s.tryAcquire(key, table)
	if !isFull(err) {
		return d, err
	}
	if room, more := s.makeRoom(evictions); !room {
		return nil, fmt.Errorf("%w: %w", ErrFull, errors.Join(err, more))
	}
	if d, err = s.tryAcquire(key, table); isFull(err) {
		return nil, fmt.Errorf("%w: %w", ErrFull, err)
	}
	return d, err
}

func (s *Store) tryAcquire(key Key, table *Table) (*Device, error) {
	for {
		e, err := s.lookup(key, table != nil)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", key, err)
		}
		if e == nil {
			return nil, fmt.Errorf("device %s: %w", key, fs.ErrNotExist)
		}
		if d, err := s.reference(e, table); d != nil || err != nil {
			return d, err
		}
	}
}

// reference returns neither a device nor an error when the entry was removed.
func (s *Store) reference(e *entry, table *Table) (*Device, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return nil, nil
	}
	if s.isClosed() { // Close may have been here already
		return nil, fmt.Errorf("device %s: %w", e.key, ErrClosed)
	}
	if e.dev == nil {
		d, err := s.openDevice(e, table)
		if err != nil {
			if e.info.Load() == nil { // it was never on the disk
				s.forget(e)
			}
			return nil, fmt.Errorf("device %s: %w", e.key, err)
		}
		e.dev = d
		e.emptied.Store(false)
		e.bytes.Store(allocated(s.dir(e.key)))
		e.info.Store(&tableInfo{d.table.Blob.Digest, d.Size()})
	}
	e.refs.Add(1)
	s.touch(e)
	return e.dev, nil
}

// retain adds a reference to a device that has one.
func (s *Store) retain(e *entry, d *Device) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dev == d {
		e.refs.Add(1)
	}
}

// release gives a reference back.
func (s *Store) release(e *entry, d *Device) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dev != d || e.refs.Load() == 0 {
		return
	}
	s.touch(e)
	if e.refs.Add(-1) == 0 {
		s.wake()
	}
}

// touch records a use, on the disk at most once a minute. A failure only makes
// eviction choose less well.
func (s *Store) touch(e *entry) {
	now := s.o.Now()
	if last := e.used.Swap(now.UnixNano()); now.Sub(time.Unix(0, last)).Abs() > time.Minute {
		_ = os.Chtimes(filepath.Join(s.dir(e.key), tableFile), now, now)
	}
}

// Sync makes everything durable that is present now.
func (s *Store) Sync(ctx context.Context) error {
	var errs []error
	for _, e := range s.all() {
		if err := ctx.Err(); err != nil {
			return err
		}
		e.mu.Lock()
		d := e.dev
		e.mu.Unlock()
		if d != nil {
			errs = append(errs, d.sync())
		}
	}
	return errors.Join(errs...)
}
