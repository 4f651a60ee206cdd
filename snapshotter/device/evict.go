package device

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"golang.org/x/sys/unix"
)

// roomAtOnce is how much is evicted when a write finds no space.
const roomAtOnce = 256 << 20

// Info says what a device is.
type Info struct {
	Key Key
	// Blob is the digest of the blob whose content it has.
	Blob chunkfmt.Digest
	// Size is the length of the device in bytes.
	Size int64
	// Bytes is what it takes on the disk, table and all.
	Bytes int64
	// Used is when it was referenced or released last, to the minute after a
	// restart.
	Used time.Time
	// Refs is how many references there are.
	Refs int
	// Complete says of a referenced device that nothing is missing.
	Complete bool
}

// Usage is what a store takes on the disk.
type Usage struct {
	// Devices is how many there are, InUse how many of them are referenced.
	Devices, InUse int
	// Bytes is what all devices take on the disk, BytesInUse what those do that
	// are referenced and cannot be evicted.
	Bytes, BytesInUse int64
	// Free is how many bytes the file system has for others.
	Free int64
}

// List returns all devices, the one that was used last first.
func (s *Store) List() []Info {
	all := s.all()
	list := make([]Info, 0, len(all))
	for _, e := range all {
		info := e.info.Load()
		if info == nil { // it is being made
			continue
		}
		e.mu.Lock()
		s.measure(e)
		list = append(list, Info{
			Key: e.key, Blob: info.blob, Size: info.size, Bytes: e.bytes.Load(),
			Used: time.Unix(0, e.used.Load()), Refs: int(e.refs.Load()),
			Complete: e.dev != nil && e.dev.Complete(),
		})
		e.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b Info) int {
		if c := b.Used.Compare(a.Used); c != 0 {
			return c
		}
		return slices.Compare(a.Key[:], b.Key[:])
	})
	return list
}

// Usage returns what the devices take now.
func (s *Store) Usage() (Usage, error) {
	var u Usage
	for _, e := range s.all() {
		e.mu.Lock()
		s.measure(e)
		e.mu.Unlock()
		u.Devices++
		u.Bytes += e.bytes.Load()
		if e.refs.Load() > 0 {
			u.InUse++
			u.BytesInUse += e.bytes.Load()
		}
	}
	var err error
	u.Free, err = s.free()
	return u, err
}

// measure looks at what an open device takes. e.mu is held.
func (s *Store) measure(e *entry) {
	if e.dev != nil {
		e.bytes.Store(allocated(s.dir(e.key)))
	}
}

// free returns how many bytes the file system has for users without privileges.
func (s *Store) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.o.Dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", s.o.Dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil // #nosec G115 -- far below 2^63
}

// taken is Usage.Bytes as it was when last looked at.
func (s *Store) taken() int64 {
	total := int64(0)
	for _, e := range s.all() {
		total += e.bytes.Load()
	}
	return total
}

// trim evicts what is beyond Limit and MinFree.
func (s *Store) trim() error {
	if !s.recovered.Load() {
		return nil
	}
	over := int64(0)
	if s.o.Limit > 0 {
		over = s.taken() - s.o.Limit
	}
	if s.o.MinFree > 0 {
		free, err := s.free()
		if err != nil {
			return err
		}
		over = max(over, s.o.MinFree-free)
	}
	if over <= 0 {
		return nil
	}
	_, err := s.evict(over)
	return err
}

// Prune evicts devices that nobody references, least recently used first, until
// all devices together take at most target bytes, and returns how many bytes it
// freed. It fails with ErrNotRecovered before Recovered was called.
func (s *Store) Prune(target int64) (freed int64, err error) {
	if !s.recovered.Load() {
		return 0, fmt.Errorf("prune: %w", ErrNotRecovered)
	}
	u, err := s.Usage()
	if err != nil {
		return 0, err
	}
	return s.evict(u.Bytes - target)
}

// makeRoom evicts something for one who found no space when evictions was as
// given, and reports whether there may be space now.
func (s *Store) makeRoom(evictions int64) (bool, error) {
	if !s.recovered.Load() {
		return false, ErrNotRecovered
	}
	s.evictMu.Lock()
	defer s.evictMu.Unlock()
	if s.evictions.Load() != evictions {
		return true, nil // somebody else made some
	}
	freed, err := s.evictLocked(roomAtOnce)
	return freed > 0, err
}

// evict frees at least so many bytes, if there are that many to free.
func (s *Store) evict(want int64) (freed int64, err error) {
	s.evictMu.Lock()
	defer s.evictMu.Unlock()
	return s.evictLocked(want)
}

func (s *Store) evictLocked(want int64) (freed int64, err error) {
	type idle struct {
		e    *entry
		used int64
	}
	var candidates []idle
	for _, e := range s.all() {
		if e.refs.Load() == 0 && e.info.Load() != nil {
			candidates = append(candidates, idle{e, e.used.Load()})
		}
	}
	slices.SortFunc(candidates, func(a, b idle) int { return int(max(-1, min(1, a.used-b.used))) })
	var errs []error
	for _, c := range candidates {
		if freed >= want {
			break
		}
		n, err := s.evictOne(c.e)
		if freed += n; n > 0 {
			s.evictions.Add(1)
		}
		errs = append(errs, err)
	}
	return freed, errors.Join(errs...)
}

// evictOne takes a device's bytes away, if nobody references it.
func (s *Store) evictOne(e *entry) (int64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	keep := s.o.Keep == nil || s.o.Keep(e.key)
	if e.gone || e.refs.Load() > 0 || keep && e.emptied.Load() {
		return 0, nil
	}
	if e.dev != nil {
		s.closeIdle(e)
	}
	before, after := allocated(s.dir(e.key)), int64(0)
	if keep {
		if err := s.empty(e.key); err != nil {
			return 0, fmt.Errorf("evict device %s: %w", e.key, err)
		}
		e.emptied.Store(true)
		after = allocated(s.dir(e.key))
	} else {
		if err := s.trash(e.key); err != nil {
			return 0, fmt.Errorf("evict device %s: %w", e.key, err)
		}
		s.forget(e)
	}
	e.bytes.Store(after)
	freed := max(0, before-after)
	if s.o.OnEvict != nil && freed > 0 {
		s.o.OnEvict(e.key, freed)
	}
	return freed, nil
}

// empty takes the bytes out of a device that is not open, after it was made
// durable that nothing is present. It removes the file, and does not punch holes
// into it: should a file system be left that still reads it, which nobody here
// knows of, then it reads what it always has, and not zeros.
func (s *Store) empty(key Key) error {
	dir := s.dir(key)
	present := filepath.Join(dir, presentFile)
	if err := s.o.step("forget", present); err != nil {
		return err
	}
	if err := os.Remove(present); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if err := s.o.step("forgotten", dir); err != nil {
		return err
	}
	data := filepath.Join(dir, dataFile)
	if err := s.o.step("punch", data); err != nil {
		return err
	}
	if err := os.Remove(data); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// punch gives the blocks of a part of a file back.
func (s *Store) punch(f *os.File, off, n int64) error {
	if err := s.o.step("punch", f.Name()); err != nil {
		return err
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
		return fmt.Errorf("punch %d bytes at %d out of %s: %w", n, off, f.Name(), err)
	}
	return nil
}

// Remove removes a device with its table. The error is, or wraps,
// fs.ErrNotExist, ErrInUse, or, before Recovered was called, ErrNotRecovered.
func (s *Store) Remove(key Key) error {
	if err := s.remove(key); err != nil {
		return fmt.Errorf("remove device %s: %w", key, err)
	}
	return nil
}

func (s *Store) remove(key Key) error {
	if !s.recovered.Load() {
		return ErrNotRecovered
	}
	e, err := s.lookup(key, false)
	if err != nil {
		return err
	}
	if e == nil {
		return fs.ErrNotExist
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.gone:
		return fs.ErrNotExist
	case e.refs.Load() > 0:
		return ErrInUse
	}
	if e.dev != nil {
		s.closeIdle(e)
	}
	if err := s.trash(key); err != nil {
		return err
	}
	s.forget(e)
	return nil
}
