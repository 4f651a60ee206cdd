package device

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// wake lets the store's goroutine look for something to do.
func (s *Store) wake() { signal(s.kick) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// wrote counts bytes that are not synced.
func (s *Store) wrote(n int64) {
	s.wake()
	if s.unsynced.Add(n) >= s.o.SyncBytes {
		signal(s.urgent)
	}
}

// run syncs, closes and evicts until Close.
func (s *Store) run() {
	defer close(s.done)
	for {
		select {
		case <-s.stop:
			return
		case <-s.kick:
		}
		select {
		case <-s.stop:
			return
		case <-s.o.After(s.o.SyncEvery):
		case <-s.urgent:
		}
		s.tend()
	}
}

// tend does what is to be done now.
func (s *Store) tend() {
	s.unsynced.Store(0)
	for _, e := range s.all() {
		s.tendDevice(e)
	}
	if err := s.trim(); err != nil {
		s.o.Log.Error("evict devices", "error", err)
	}
}

// tendDevice syncs a device and closes it if nobody references it.
func (s *Store) tendDevice(e *entry) {
	e.mu.Lock()
	d := e.dev
	e.mu.Unlock()
	if d == nil {
		return
	}
	if err := d.sync(); err != nil { // not under e.mu: others may want a reference
		s.o.Log.Error("sync a device", "key", e.key.String(), "error", err)
		s.wake()
	}
	if e.refs.Load() > 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dev == d && e.refs.Load() == 0 {
		s.closeIdle(e)
	}
}

// closeIdle closes a device that nobody references. What could not be recorded
// is lost. e.mu is held.
func (s *Store) closeIdle(e *entry) {
	d := e.dev
	e.dev = nil
	if err := errors.Join(d.sync(), d.punchDropped(), d.close()); err != nil {
		s.o.Log.Error("close a device", "key", e.key.String(), "error", err)
	}
	e.bytes.Store(allocated(s.dir(e.key)))
}

// sync makes durable what is present. When the data cannot be brought to the
// disk the groups become absent: they may be lost already.
func (d *Device) sync() error {
	d.syncMu.Lock()
	lost, err := d.syncLocked()
	d.syncMu.Unlock()
	if len(lost) == 0 {
		return err
	}
	if d.s.o.OnLost != nil && d.e.refs.Load() > 0 {
		d.s.o.OnLost(d, lost)
	}
	return fmt.Errorf("%d groups are lost: %w", len(lost), err)
}

// syncLocked is sync with syncMu held. It returns the groups that became absent.
func (d *Device) syncLocked() (lost []int, err error) {
	d.mu.Lock()
	batch, origins := d.pending, d.originsChanged
	d.pending, d.originsChanged = nil, false
	d.mu.Unlock()
	if len(batch) == 0 && !origins && !d.fresh {
		return nil, nil
	}
	if len(batch) > 0 {
		if err := d.syncData(); err != nil {
			d.undo(nil, origins)
			return d.lose(batch), err
		}
	}
	if err := d.syncRest(origins); err != nil {
		d.undo(batch, origins)
		return nil, err
	}
	d.e.bytes.Store(allocated(d.s.dir(d.e.key)))
	if len(batch) == 0 {
		return nil, nil
	}
	if err := d.ledger.add(batch); err != nil {
		d.undo(batch, false)
		return nil, fmt.Errorf("record groups: %w", err)
	}
	return nil, nil
}

// undo leaves things to the next sync.
func (d *Device) undo(batch []written, origins bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending = append(batch, d.pending...)
	d.originsChanged = d.originsChanged || origins
}

// syncData brings the data to the disk. The writer's open file has to be used,
// as it alone is told of each error; a second descriptor of it, so that
// SetWriter, and through it writers, do not wait.
func (d *Device) syncData() error {
	fd := -1
	err := d.withWriter(func(f *os.File) (err error) {
		fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // the other descriptor is told
	path := d.Path()
	if err := d.s.o.step("sync", path); err != nil {
		return err
	}
	if err := unix.Fdatasync(fd); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return d.s.o.step("synced", path)
}

// syncRest brings a new directory and the origins to the disk.
func (d *Device) syncRest(origins bool) error {
	if !d.fresh && !origins {
		return nil
	}
	dir := d.s.dir(d.e.key)
	files := []string{originsFile}
	if d.fresh {
		files = []string{tableFile, dataFile, presentFile, originsFile}
	}
	for _, name := range files {
		if err := syncPath(filepath.Join(dir, name), unix.Fsync); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if d.fresh {
		if err := syncDir(d.s.o.Dir); err != nil {
			return err
		}
	}
	d.fresh = false
	return d.s.o.step("made", dir)
}

// lose makes groups absent whose bytes may not be what was written: those of a
// sync that failed and all that were written until it had, since the kernel
// tells of a failure only once.
func (d *Device) lose(batch []written) []int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures++
	groups := make([]int, 0, len(batch)+len(d.pending))
	for _, w := range slices.Concat(batch, d.pending) {
		groups = append(groups, w.group)
	}
	d.pending = nil
	slices.Sort(groups)
	d.remove(groups)
	return groups
}

// punchDropped takes away the bytes of dropped groups. Nobody references the
// device.
func (d *Device) punchDropped() error {
	d.mu.Lock()
	holes := d.holes
	d.holes = nil
	d.mu.Unlock()
	if len(holes) == 0 {
		return nil
	}
	return d.withWriter(func(f *os.File) error {
		for _, g := range holes {
			if d.Has(g) {
				continue
			}
			for _, p := range d.table.parts(g) {
				if err := d.s.punch(f, p.Device, int64(p.Length)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
