package device

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Device is a sparse file that is filled with the groups of a blob. Its methods
// may be called by several goroutines, by each until it calls Release.
type Device struct {
	s     *Store
	e     *entry
	table *Table

	// present has a bit for each group. Bits change under mu only.
	present []atomic.Uint64
	missing atomic.Int64 // groups that are to come

	// file is held, shared, while writer is used, and exclusively to change it.
	file   sync.RWMutex
	writer *os.File // nil when closed

	// syncMu is held while the ledger is used. Taken before file and mu.
	syncMu sync.Mutex
	ledger presence
	fresh  bool // directory and table may not be on the disk yet

	mu      sync.Mutex
	done    chan struct{} // closed when nothing is missing
	pending []written     // in the file, but not in the ledger
	// failures counts failed syncs of the data.
	failures int
	holes    []int // dropped: to be punched when nobody references the device
	origins  origins
	// originsChanged says that the file of origins is to be synced.
	originsChanged bool
}

// start takes over what the ledger says. The device is not shared yet.
func (d *Device) start() {
	for g := range d.ledger.durable.All() {
		d.present[g/64].Or(1 << (g % 64))
	}
	missing := int64(0)
	for g := range d.table.Blob.Groups {
		if d.table.empty(g) {
			d.present[g/64].Or(1 << (g % 64))
		} else if !d.Has(g) {
			missing++
		}
	}
	d.missing.Store(missing)
	if missing == 0 {
		close(d.done)
	}
}

// Key returns the name of the device.
func (d *Device) Key() Key { return d.e.key }

// Table returns what is where.
func (d *Device) Table() *Table { return d.table }

// Size returns the length of the device in bytes.
func (d *Device) Size() int64 { return d.table.Blob.DeviceSize }

// Path returns the path of the data file. Reading it shows zeros where groups
// are absent; who writes it other than through the Device breaks it.
func (d *Device) Path() string { return filepath.Join(d.s.dir(d.e.key), dataFile) }

// Release gives the device back, once for each Get and Load.
func (d *Device) Release() { d.s.release(d.e, d) }

// Retain adds a reference to those that the caller knows to be there. It is
// given back with Release.
func (d *Device) Retain() { d.s.retain(d.e, d) }

// Sync makes durable what is present now. When it fails groups may have become
// absent.
func (d *Device) Sync() error { return d.sync() }

// AddOrigin records that the device's blob can be read in a repository,
// "HOST/REPO". The last sixteen are kept.
func (d *Device) AddOrigin(repo string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed, err := d.origins.add(repo)
	if err != nil {
		return fmt.Errorf("device %s: %w", d.e.key, err)
	}
	if changed {
		d.originsChanged = true
		d.s.wake()
	}
	return nil
}

// Origins returns the repositories that have the device's blob, the one that
// was added last first.
func (d *Device) Origins() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.origins.list)
}

// Has reports that a group is present, or has nothing that belongs on the
// device.
func (d *Device) Has(group int) bool {
	return group >= 0 && group/64 < len(d.present) && d.present[group/64].Load()&(1<<(group%64)) != 0
}

// Missing returns the groups that are absent and fill some of the n bytes at
// off, in the order of the device.
func (d *Device) Missing(off, n int64) []int {
	if d.Complete() {
		return nil
	}
	return slices.DeleteFunc(d.table.Groups(off, n), d.Has)
}

// Complete reports that all groups are present that have something on the
// device.
func (d *Device) Complete() bool { return d.missing.Load() == 0 }

// Done returns a channel that is closed when the device is complete. If Drop
// takes groups away from a complete device, later calls return another channel.
func (d *Device) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

// Write puts the plain bytes of a group, as Table.Decode returned them, into
// the device, after which the group is present. Of the bytes of an Unproven
// blob only those of its chunks are written. Nothing is written if the group is
// present. The error wraps ErrFull if there is no space and none can be made.
func (d *Device) Write(group int, plain []byte) error {
	if group < 0 || group >= len(d.table.Blob.Groups) {
		return d.table.noGroup(group)
	}
	if want := d.table.Blob.Groups[group].Plain; len(plain) != int(want) {
		return fmt.Errorf("device %s: group %d has %d bytes, not %d", d.e.key, group, want, len(plain))
	}
	if d.Has(group) {
		return nil
	}
	parts := d.table.parts(group)
	w := written{group: group, sum: sumParts(parts, plain)}
	for _, p := range parts {
		w.bytes += int64(p.Length)
	}
	for {
		before := d.syncFailures()
		if err := d.putWithRoom(parts, plain); err != nil {
			return fmt.Errorf("device %s: write group %d: %w", d.e.key, group, err)
		}
		if d.add(w, before) {
			return nil
		}
	}
}

func (d *Device) syncFailures() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failures
}

// add makes a group present whose bytes are written, unless they may have been
// part of a sync that failed since.
func (d *Device) add(w written, failures int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failures != failures {
		return false
	}
	if d.Has(w.group) {
		return true
	}
	d.pending = append(d.pending, w)
	d.present[w.group/64].Or(1 << (w.group % 64))
	if d.missing.Add(-1) == 0 {
		close(d.done)
	}
	d.s.wrote(w.bytes)
	return true
}

// remove makes groups absent. d.mu is held.
func (d *Device) remove(groups []int) {
	for _, g := range groups {
		if !d.Has(g) || d.table.empty(g) {
			continue
		}
		if d.missing.Add(1) == 1 {
			d.done = make(chan struct{})
		}
		d.present[g/64].And(^uint64(1 << (g % 64)))
	}
}

// Writer returns the descriptor by which the device is filled. It was opened
// before anybody could mark the file, so that its use raises no fanotify
// events, unless the file was marked when the device was opened: then it is to
// be replaced by SetWriter. It stays the device's own and is closed after the
// last Release, and by SetWriter.
func (d *Device) Writer() *os.File {
	d.file.RLock()
	defer d.file.RUnlock()
	return d.writer
}

// SetWriter makes the device use another descriptor of its file from now on,
// which becomes its own. When it fails, f stays the caller's.
func (d *Device) SetWriter(f *os.File) error {
	d.file.Lock()
	defer d.file.Unlock()
	if f != nil && f == d.writer {
		return nil
	}
	if err := checkWriter(f, d.writer); err != nil {
		return fmt.Errorf("device %s: set the descriptor for writing: %w", d.e.key, err)
	}
	old := d.writer
	d.writer = f
	if err := old.Close(); err != nil {
		d.s.o.Log.Warn("close the former descriptor of a device", "key", d.e.key.String(), "error", err)
	}
	return nil
}

// checkWriter checks that f can take the place of another descriptor.
func checkWriter(f, other *os.File) error {
	if f == nil {
		return errors.New("no descriptor")
	}
	if other == nil {
		return ErrClosed
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if flags&unix.O_ACCMODE != unix.O_RDWR || flags&(unix.O_APPEND|unix.O_PATH) != 0 {
		return fmt.Errorf("flags %#x are not those of reading and writing", flags)
	}
	got, err := f.Stat()
	if err != nil {
		return err
	}
	want, err := other.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(got, want) {
		return errors.New("it is of another file")
	}
	return nil
}

// withWriter calls use with the writer, which stays open meanwhile.
func (d *Device) withWriter(use func(*os.File) error) error {
	d.file.RLock()
	defer d.file.RUnlock()
	if d.writer == nil {
		return ErrClosed
	}
	return use(d.writer)
}

// ReadAt reads the device through the writer's descriptor, so that no event is
// raised. The caller has made sure that the groups are present: others read as
// zeros, or as what they were when they were dropped.
func (d *Device) ReadAt(p []byte, off int64) (n int, err error) {
	err = d.withWriter(func(f *os.File) error {
		n, err = f.ReadAt(p, off)
		return err
	})
	return n, err
}

// Drop forgets groups, durably, so that they are filled again. Nothing that
// anybody may be reading is taken away: the bytes stay until they are written
// over or, when the device is not referenced any more, a hole is punched. When
// Drop fails the groups are absent for this process, but may be present after
// its end.
func (d *Device) Drop(groups []int) error {
	for _, g := range groups {
		if g < 0 || g >= len(d.table.Blob.Groups) {
			return d.table.noGroup(g)
		}
	}
	d.syncMu.Lock() // no sync records meanwhile what it took before
	defer d.syncMu.Unlock()
	d.mu.Lock()
	d.remove(groups)
	d.pending = slices.DeleteFunc(d.pending, func(w written) bool { return !d.Has(w.group) })
	d.mu.Unlock()
	if err := d.ledger.remove(groups); err != nil {
		return fmt.Errorf("device %s: forget groups: %w", d.e.key, err)
	}
	d.mu.Lock()
	d.holes = append(d.holes, groups...)
	d.mu.Unlock()
	return nil
}

// close closes the file. Afterwards the device does nothing any more.
func (d *Device) close() error {
	d.file.Lock()
	defer d.file.Unlock()
	if d.writer == nil {
		return nil
	}
	f := d.writer
	d.writer = nil
	return f.Close()
}
