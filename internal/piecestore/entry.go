package piecestore

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

// entry is a task in the store; handles share it.
type entry struct {
	// Set once.
	store *Store
	dir   string
	meta  meta
	count int // pieces

	// Guarded by store.mu.
	refs      int
	bytes     int64 // of held pieces
	last      time.Time
	lastSaved time.Time
	pinned    time.Time

	mu       sync.Mutex
	gone     bool // no longer to be used: store closed or task removed
	heldN    int
	held     task.Set
	unproven task.Set // of held: nobody vouched for their digests
	complete bool
	subs     map[chan struct{}]struct{}
	// doubt has the held pieces whose bytes must be checked before use.
	doubt task.Set
	// checks has the pieces being checked, with what is closed at the end.
	checks map[int]chan struct{}
	slots  map[int]*slot
	// gen counts the data files this task has had. Whoever works without mu
	// notes it and finds out afterwards that the file is no longer the same.
	gen uint64

	// writes is held while bytes go into the data file. The kernel lets one writer
	// into a file at a time; the others would spin for it, with the processor that
	// the first one needs.
	writes sync.Mutex

	// The rest is set while data != nil, which warm sees to.
	data        *os.File
	journal     *os.File
	journalCRC  uint32
	journalSize int64
	records     int
	digests     []task.Digest
	// writing counts the writes to data under way. While there is none, seen is
	// the fingerprint that data has unless somebody else wrote to it.
	writing int
	seen    fingerprint
}

func newEntry(s *Store, dir string, p replay) *entry {
	e := &entry{store: s, dir: dir, meta: p.meta, count: p.meta.Table.Count()}
	e.held, e.heldN, e.complete, e.pinned = p.held, p.held.Len(), p.complete, p.pinned
	if e.unproven = p.unproven; e.unproven == nil {
		e.unproven = task.NewSet(e.count)
	}
	e.doubt = task.NewSet(e.count)
	e.slots, e.checks = map[int]*slot{}, map[int]chan struct{}{}
	e.bytes = e.heldBytes()
	return e
}

// heldBytes adds up the held pieces. mu is held, or nobody else has e.
func (e *entry) heldBytes() int64 {
	if e.heldN == e.count {
		return e.meta.Table.Length
	}
	total := int64(0)
	for i := range e.held.All() {
		_, n := e.meta.Table.Piece(i)
		total += n
	}
	return total
}

// warm opens the files and reads the digests. mu is held.
func (e *entry) warm() error {
	if e.gone {
		return ErrClosed
	}
	if e.data != nil {
		return nil
	}
	journal, err := os.OpenFile(filepath.Join(e.dir, journalName), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open journal of %s: %w", e.meta.ID.Short(), err)
	}
	p, err := e.readJournal(journal)
	if err != nil {
		return errors.Join(fmt.Errorf("read journal of %s: %w", e.meta.ID.Short(), err), journal.Close())
	}
	data, err := os.OpenFile(filepath.Join(e.dir, dataName), os.O_RDWR, 0)
	if err != nil {
		return errors.Join(fmt.Errorf("open data of %s: %w", e.meta.ID.Short(), err), journal.Close())
	}
	seen, err := fingerprintOf(data)
	if err != nil {
		return errors.Join(err, journal.Close(), data.Close())
	}
	e.journal, e.journalCRC, e.journalSize, e.records = journal, p.crc, p.size, p.records
	e.data, e.digests = data, p.digests
	if seen != e.seen {
		e.doubt, e.seen = e.held.Clone(), seen
	}
	e.forget(p.held)
	return nil
}

// readJournal replays f, which must be e's journal.
func (e *entry) readJournal(f *os.File) (replay, error) {
	p, err := decodeJournal(bufio.NewReader(io.NewSectionReader(f, 0, math.MaxInt64)), true)
	if err == nil && (p.meta.ID != e.meta.ID || !p.meta.Table.Equal(e.meta.Table)) {
		err = fmt.Errorf("%w: it is that of %s", errCorrupt, p.meta.ID)
	}
	return p, err
}

// forget drops the pieces that the journal, read again, no longer has. mu is
// held.
func (e *entry) forget(journalled task.Set) {
	for i := range e.held.Clone().All() {
		if !journalled.Has(i) {
			e.unhold(i)
		}
	}
}

// unhold takes piece i out of the held ones. mu is held.
func (e *entry) unhold(i int) {
	_, n := e.meta.Table.Piece(i)
	e.held.Remove(i)
	e.unproven.Remove(i)
	e.doubt.Remove(i)
	e.heldN--
	e.complete = false
	e.store.account(e, -n)
}

// cool closes the files of a task that nobody references.
func (e *entry) cool() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.store.mu.Lock()
	busy := e.refs > 0
	e.store.mu.Unlock()
	if busy || len(e.slots) > 0 || len(e.checks) > 0 {
		return
	}
	if err := e.closeFiles(); err != nil {
		e.store.log.Warn("closing files of a task", "task", e.meta.ID.Short(), "error", err)
	}
}

func (e *entry) closeFiles() error {
	if e.data == nil {
		return nil
	}
	err := errors.Join(e.data.Close(), e.journal.Close())
	e.data, e.journal, e.digests = nil, nil, nil
	return err
}

// shut ends all use of e: when it returns nothing more is written to its files.
func (e *entry) shut() error {
	e.mu.Lock()
	e.gone = true
	e.gen++
	slots := e.slots
	e.slots = map[int]*slot{}
	err := e.closeFiles()
	e.notify()
	e.mu.Unlock()
	for _, sl := range slots {
		// After the lock was held once, no writer is inside its fence, and the
		// next to come finds that it is not the owner.
		sl.mu.Lock()
		sl.owner = nil
		sl.mu.Unlock()
	}
	return err
}

// log appends a record to the journal. It is written at the end of the last
// good record, so that what a failed write left there is overwritten. mu is
// held, and the task warm.
func (e *entry) log(r record) error {
	var b [recordSize]byte
	if _, err := e.journal.WriteAt(appendRecord(b[:0], e.journalCRC, r), e.journalSize); err != nil {
		return fmt.Errorf("write journal of %s: %w", e.meta.ID.Short(), err)
	}
	e.journalSize += recordSize
	e.records++
	if e.records > 2*e.count+compactSlack {
		// The record is written; a journal that stays long is no failure.
		if err := e.compact(); err != nil {
			e.store.log.Warn("journal cannot be made shorter", "task", e.meta.ID.Short(), "error", err)
		}
	}
	return nil
}

// notify wakes all subscribers. mu is held.
func (e *entry) notify() {
	for c := range e.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// commit makes piece i held, unless the data file the caller wrote to is no
// longer the task's. The caller holds the piece's slot and reserved its bytes.
func (e *entry) commit(i int, d task.Digest, proven bool, gen uint64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return ErrClosed
	}
	if e.gen != gen {
		return ErrSuperseded
	}
	kind := recHeld
	if !proven {
		kind = recUnproven
	}
	if err := e.log(record{kind: kind, index: uint32(i), payload: d}); err != nil { //nolint:gosec // below task.MaxPieces
		return err
	}
	e.held.Add(i)
	if !proven {
		e.unproven.Add(i)
	}
	e.heldN++
	e.doubt.Remove(i)
	e.digests[i] = d
	_, n := e.meta.Table.Piece(i)
	e.store.settle(e, n)
	e.notify()
	return nil
}

// beginWrite and endWrite enclose every write to the data file, so that changes
// by others can be told from ours. It fails when the file is no longer the one
// of generation gen.
func (e *entry) beginWrite(gen uint64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return ErrClosed
	}
	if e.gen != gen {
		return ErrSuperseded
	}
	if err := e.notice(); err != nil {
		return err
	}
	e.writing++
	return nil
}

func (e *entry) endWrite(gen uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gen != gen || e.gone {
		return
	}
	e.writing--
	if e.writing > 0 {
		return
	}
	seen, err := fingerprintOf(e.data)
	if err != nil {
		// The zero fingerprint matches none: all will be checked.
		e.store.log.Warn("data file cannot be looked at", "task", e.meta.ID.Short(), "error", err)
	}
	e.seen = seen
}

// notice puts all held pieces in doubt when somebody else changed the data
// file. mu is held, and the task warm.
func (e *entry) notice() error {
	now, err := fingerprintOf(e.data)
	if err != nil {
		return err
	}
	if now == e.seen || (e.writing > 0 && now.size == e.seen.size) {
		return nil
	}
	e.doubt, e.seen = e.held.Clone(), now
	return nil
}

// pin sets or, with the zero time, ends the pin.
func (e *entry) pin(until time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.warm(); err != nil {
		return err
	}
	if err := e.log(pinRecord(until)); err != nil {
		return err
	}
	e.store.mu.Lock()
	e.pinned = until
	e.store.mu.Unlock()
	return nil
}

func (e *entry) info() Info {
	e.mu.Lock()
	defer e.mu.Unlock()
	in := Info{
		ID: e.meta.ID, Source: e.meta.Source, Created: e.meta.Created,
		Length: e.meta.Table.Length, Pieces: e.count, HeldPieces: e.heldN, Complete: e.complete,
	}
	e.store.mu.Lock()
	defer e.store.mu.Unlock()
	in.HeldBytes, in.LastAccess, in.Refs = e.bytes, e.last, e.refs
	if e.pinned.After(e.store.opts.Now()) {
		in.PinnedUntil = e.pinned
	}
	return in
}
